"""Rotary positions: relative, found in any model, used in full, and not decaying."""

from __future__ import annotations

import pytest
import torch

from interp import WrongUse
from interp.model import load
from probes.rotary import decay, frequencies, p_rope, rotate, turning, usage
from tests.model.shapes import module

IDS = [5, 9, 11, 3, 8, 20, 7]


@pytest.mark.check("squash rotary", formula="ρ(i) q · ρ(j) k depends on i − j alone", tolerance=1e-12)
def test_logits_depend_on_distance_alone(measured):
    draw = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 16, generator=draw, dtype=torch.float64)
    g = frequencies(16)

    def logit(i, j):
        return float((rotate(q, torch.tensor([i]), g) * rotate(k, torch.tensor([j]), g)).sum())

    for i, j in ((5.0, 2.0), (105.0, 102.0), (3.0, 0.0)):
        measured(abs(logit(i, j) - logit(3.0, 0.0)))
    assert logit(4.0, 0.0) != pytest.approx(logit(3.0, 0.0))


@pytest.mark.parametrize("name", ["llama", "qwen3", "pythia", "gptj"])
def test_pairs_and_frequencies_are_found(name):
    """Halves, neighbours, a part of the head alone; norms of queries between."""
    model = load(module(name, torch.float64))
    found = turning(model)
    assert len(found) == 3
    turned = {"llama": 8, "qwen3": 8, "pythia": 2, "gptj": 4}[name]
    wanted = frequencies(turned)
    for t in found.values():
        assert torch.allclose(t.g, wanted, rtol=1e-3, atol=1e-6)
        halves = [[i, i + turned // 2] for i in range(turned // 2)]
        assert t.pairs.tolist() == ([[0, 1], [2, 3]] if name == "gptj" else halves)


@pytest.mark.check("squash rotary usage", formula="q · k = Σ over pairs and what does not turn", tolerance=1e-10)
def test_what_pairs_add_to_a_logit_is_all_of_it(measured):
    model = load(module("llama", torch.float64))
    found = usage(model, IDS)
    cache = model.record(torch.tensor([IDS]), ["blocks.1.attn.q", "blocks.1.attn.k"])
    q, k = cache["blocks.1.attn.q"][0], cache["blocks.1.attn.k"][0].repeat_interleave(2, 1)
    pairs = found.turning["blocks.1.attn"].pairs
    parts = (q[:, None, :, pairs] * k[None, :, :, pairs]).sum(-1)  # [query, key, head, pair]
    measured(float((parts.sum(-1) - (q[:, None] * k[None]).sum(-1)).abs().max()))
    lengths = q[..., pairs].square().sum(-1).sqrt()
    measured(float((lengths.mean(0) - found.q["blocks.1.attn"]).abs().max()))
    bound = lengths[:, None] * k[..., pairs].square().sum(-1).sqrt()[None]
    assert bool((parts.abs() <= bound + 1e-12).all())
    assert len(found.to_frame()) == 3 * 4 * 4
    assert len(found.plot().data[0].z) == 3


def test_no_frequency_is_no_position_and_all_are_the_model():
    model, ids = load(module("llama")), torch.tensor([IDS])
    before = model(ids).logits
    with p_rope(model, 1.0):
        assert torch.equal(model(ids).logits, before)
    with p_rope(model, 0.0):
        without = model(ids).logits
    assert torch.equal(without, model.module(ids, position_ids=torch.zeros_like(ids)).logits)
    with p_rope(model, 0.5):
        half = model(ids).logits
        assert len(turning(model)["blocks.0.attn"].g) == 2
    assert not torch.allclose(half, before)
    assert not torch.allclose(half, without)
    with pytest.raises(RuntimeError, match="inside"), p_rope(model, 0.0):
        raise RuntimeError("inside")
    assert torch.equal(model(ids).logits, before)


def test_heads_that_rotary_positions_can_build():
    """q = k = ψ looks at itself, and k = ρ(1) ψ at the token before, ever more sharply; without positions neither can."""
    n, psi = torch.arange(12.0), 40 * torch.ones(12, 16)
    g = frequencies(16)
    q = rotate(psi, n, g)
    for shift in (0, 1):
        scores = q @ rotate(psi, n + shift, g).T
        pattern = torch.softmax(scores.masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf), -1)
        assert bool((pattern.diagonal(-shift) > 1 - 1e-3).all())
    same = torch.softmax(psi[1:] @ psi.T, -1)  # two tokens alike share what they get
    assert bool((same < 0.5).all())


def test_no_decay():
    found = decay(range(64), at=40, draws=2000)
    assert int(found.peaked.argmax()) == 40
    assert float((found.mean / found.error).abs().max()) < 4
    assert float(found.alike[0]) == pytest.approx(8.0)
    assert float(found.alike.argmax()) == 0
    assert len(found.to_frame()) == 64
    assert len(found.plot().data) == 3


def test_bad_requests_are_refused():
    with pytest.raises(WrongUse, match="no rotary positions"):
        usage(load(module("gpt2")), IDS)
    with pytest.raises(WrongUse, match="no rotary positions"):
        turning(load(module("mamba")))
    with pytest.raises(WrongUse, match="no rotary frequencies"), p_rope(load(module("gpt2")), 0.5):
        pass
    with pytest.raises(WrongUse, match="no share"), p_rope(load(module("llama")), 2.0):
        pass
    with pytest.raises(WrongUse, match="even d"):
        frequencies(7)
