"""Paths: products are sums over all paths, no pattern is made, and the bound holds wherever patterns are held."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch

import interp.model.tap
from interp import WrongUse
from interp.model import load
from interp.model.twin import Lifted
from probes.paths import Patterns, attentions, path_bound, paths
from probes.prompts import one_prompt
from tests.model.shapes import module
from tests.probes.plain import plain

IDS = [5, 9, 11, 3, 8, 20]


def means(model, ids=IDS):
    """Λ of every layer [layer, query, key]."""
    cache = model.record(torch.tensor([ids]), [f"{r}.pattern" for r in attentions(model)])
    return torch.stack([cache[f"{r}.pattern"][0].mean(0).double() for r in attentions(model)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "falcon alibi", "bloom"])
@pytest.mark.check("squash T2 (paths)", formula="Π (Λ + I)[n, i] = Σ over all paths from i to n", tolerance=1e-10)
def test_products_are_sums_over_paths(name, measured):
    with Lifted():
        model = load(module(name, torch.float64))
        found, Λ = paths(model, IDS), means(model)
    L, n = Λ.shape[:2]
    step = Λ + torch.eye(n, dtype=torch.float64)
    for i in range(n):
        middle = itertools.product(range(n), repeat=L - 1)
        ways = ([n - 1, *m, i] for m in middle)
        total = sum(prod(float(step[L - 1 - s, way[s], way[s + 1]]) for s in range(L)) for way in ways)
        measured(abs(total - float(found.products["blocks.0.resid_pre"][i])))
    whole = torch.linalg.multi_dot([*step.flip(0)])
    measured(float((whole[-1] / 2**L - found.rollout["blocks.0.resid_pre"]).abs().max()))
    context = torch.linalg.multi_dot([*Λ.flip(0)])
    measured(float((context[-1] - found.context["blocks.0.resid_pre"]).abs().max()))
    assert found.products["blocks.2.resid_post"].tolist() == [0.0] * 5 + [1.0]
    assert float(found.products["blocks.0.resid_pre"].sum()) == pytest.approx(2**L, rel=1e-6)
    assert float(found.rollout["blocks.1.resid_pre"].sum()) == pytest.approx(1, rel=1e-6)


def test_no_pattern_is_made(monkeypatch):
    model = load(module("llama", torch.float64))
    _ = model.binding
    monkeypatch.setattr(interp.model.tap, "reference_scores", lambda *a: pytest.fail("a pattern was made"))
    assert len(paths(model, IDS, pos=3).to_frame()) == 24
    assert bool((paths(model, IDS, pos=3).rollout["blocks.0.resid_pre"][4:] == 0).all())


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon one key head"])
def test_attention_received_is_the_mean_of_columns(name):
    """Groups of query heads that share a key head are told apart."""
    model = load(module(name, torch.float64))
    roles = attentions(model)
    patterns = Patterns(model, one_prompt(model, IDS), roles)
    cache = model.record(torch.tensor([IDS]), [f"{r}.pattern" for r in roles])
    for role in roles:
        assert torch.allclose(patterns.received(role), cache[f"{role}.pattern"][0].mean(1).float(), atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gptj", "pythia", "granite", "qwen3"])
@pytest.mark.check("squash T3 (bound)", formula="exact / bound - 1, patterns held, its largest", tolerance=1e-9)
def test_the_bound_holds_everywhere(name, measured):
    with Lifted():
        found = path_bound(load(module(name, torch.float64)), IDS)
    for site, bound in found.bound.items():
        measured(float((found.held.norms[site] / bound.clamp(min=1e-300) - 1).max()))
    loose = found.looseness
    assert float(loose["least"].min()) >= 1 - 1e-9
    assert loose["mean"].iloc[-1] == pytest.approx(1)  # nothing but the last norm
    assert len(found.constants) == 3
    assert len(found.to_frame()) == 24
    assert len(found.plot().data) == 3


@pytest.mark.check("squash T3 (equality)", formula="bound / exact - 1 for x + P x, P uniform", tolerance=1e-10)
def test_the_bound_is_met_where_every_step_is_a_multiple_of_the_identity(measured):
    model = plain(uniform=True)
    found = path_bound(model, IDS)
    for site, bound in found.bound.items():
        for norms in (found.held.norms[site], found.exact.norms[site]):
            assert bool(((norms > 0) == (bound > 0)).all())
            measured(float((bound / norms - 1)[norms > 0].abs().max()))
    n = len(IDS)
    Λ = torch.ones(n, n, dtype=torch.float64).tril() / torch.arange(1, n + 1)[:, None]
    wanted = torch.linalg.matrix_power(Λ + torch.eye(n, dtype=torch.float64), 3)[-1]
    measured(float((found.bound["blocks.0.resid_pre"] / found.last - wanted).abs().max()))


def test_the_bound_holds_through_mixtures_and_in_16_bits():
    for name, dtype, slack in (("mixtral", torch.float32, 1e-4), ("llama", torch.bfloat16, 0.1)):
        found = path_bound(load(module(name, dtype)), IDS)
        for site, bound in found.bound.items():
            assert bool((found.held.norms[site] <= bound * (1 + slack)).all())


def test_long_prompts_in_pieces_give_the_same_bound(monkeypatch):
    model = load(module("llama", torch.float64))
    whole = path_bound(model, IDS, probes=2).bound["blocks.0.resid_pre"]
    monkeypatch.setattr("probes.paths.LARGE", 2 * 32 * 32 * 8)
    monkeypatch.setattr("probes.paths.AT_ONCE", 1)
    assert torch.allclose(path_bound(model, IDS, probes=2).bound["blocks.0.resid_pre"], whole, rtol=1e-12)


def test_bad_requests_are_refused():
    with pytest.raises(WrongUse, match="normalises after adding"):
        path_bound(load(module("bert")), IDS)
    with pytest.raises(WrongUse, match="no attention"):
        paths(load(module("mamba")), IDS)
    with pytest.raises(WrongUse, match="none of products"):
        paths(load(module("gpt2")), IDS).plot("flow")
    with pytest.raises(WrongUse, match="position 6 is not there"):
        paths(load(module("gpt2")), IDS, pos=6)
