"""Sinks: attention to the first token as the patterns have it, and how a change spreads where it is known."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import WrongUse
from interp.model import load
from probes.sinks import Sinks, sinks, spread, started
from tests.model.shapes import module
from tests.probes.plain import plain

WINDOWS = [[5, 9, 11, 3, 8, 20, 7, 40], [6, 6, 1, 30, 2, 44, 9, 9], [8, 1, 1, 1, 1, 3, 5, 7]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_oss"])
def test_mass_is_the_mean_of_the_first_column(name):
    model = load(module(name))
    found = sinks(model, WINDOWS, context=8)
    cache = model.record(torch.tensor(WINDOWS), "blocks.*.attn.pattern")
    for i, role in enumerate(found.attentions):
        wanted = cache[f"{role}.pattern"].mean((0, 2))
        assert torch.allclose(found.received[i], wanted, atol=1e-5)
    assert found.windows == 3
    frame = found.to_frame()
    assert frame["mass"].tolist() == pytest.approx(found.mass.flatten().tolist())
    assert len(found.plot().data[0].z) == 3


def test_uniform_attention_gives_the_first_token_its_harmonic_share():
    found = sinks(plain(uniform=True), [[5, 9, 11, 3]], context=4)
    wanted = sum(1 / n for n in range(1, 5)) / 4
    assert found.mass.flatten().tolist() == pytest.approx([wanted] * 3)
    assert found.rate(0.5) == 1.0
    assert found.rate(0.6) == 0.0
    half = Sinks(torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]), ("a",), 1, None)
    assert half.rate() == 0.5


@pytest.mark.check("squash spread", formula="δv_j = Π (Λ + I)[j, i] δe_i, uniform attention", tolerance=1e-12)
def test_a_change_spreads_along_the_paths(measured):
    model, ids = plain(uniform=True), [5, 9, 11, 3, 8, 20]
    found = spread(model, ids, pos=1, token=2)
    n = len(ids)
    Λ = torch.ones(n, n, dtype=torch.float64).tril() / torch.arange(1, n + 1)[:, None]
    wanted = torch.linalg.matrix_power(Λ + torch.eye(n, dtype=torch.float64), 3)[:, 1]
    table = model.module.embed.weight
    size = model.record(torch.tensor([ids]), "blocks.2.resid_post")["blocks.2.resid_post"][0].norm(dim=1)
    made = wanted * (table[2] - table[9]).norm() / size
    measured(float((found.change["blocks.2.resid_post"] - made).abs().max()))
    assert float(found.change["blocks.2.resid_post"][0]) == 0
    assert next(iter(found.later.values())) == 0
    assert len(found.to_frame()) == 24
    assert len(found.plot().data[0].z) == 4


def test_nothing_spreads_where_attention_writes_nothing():
    model = plain()
    with torch.no_grad():
        for block in model.module.blocks:
            block.attn.o.weight.zero_()
    found = spread(model, [5, 9, 11, 3], pos=1, token=2)
    assert all(v == 0 for v in found.later.values())


def test_start_tokens_are_put_and_taken_away(tiny_folder):
    model = interp.load(tiny_folder)
    bos = model.tokenizer.bos_token_id
    assert started(model, [bos, 5, 6], False) == [5, 6]
    assert started(model, [5, 6], True) == [bos, 5, 6]
    assert started(model, [bos, 5, 6], True) == [bos, 5, 6]
    assert started(model, [5, 6], None) == [5, 6]
    assert sinks(model, [[bos, *range(10, 20)]], context=8, bos=False).bos is False


def test_bad_requests_are_refused():
    model = load(module("gpt2"))
    with pytest.raises(WrongUse, match="window 1 has 3 tokens, fewer than the 8"):
        sinks(model, [WINDOWS[0], [1, 2, 3]], context=8)
    with pytest.raises(WrongUse, match="no window"):
        sinks(model, [], context=8)
    with pytest.raises(WrongUse, match="not causal"):
        sinks(load(module("bert")), WINDOWS, context=8)
    with pytest.raises(WrongUse, match="no start token"):
        sinks(model, WINDOWS, context=8, bos=True)
    with pytest.raises(WrongUse, match="no attention"):
        sinks(load(module("mamba")), WINDOWS, context=8)
    with pytest.raises(WrongUse, match="another token"):
        spread(model, WINDOWS[0], pos=2, token=11)
