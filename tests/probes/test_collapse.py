"""Collapse: the families' ids, the curve, the bits, and a model without positions that falls as 1/n."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from interp import WrongUse
from interp.model import load
from probes.collapse import FAMILIES, Family, collapse_curve, family, same_bits
from probes.rotary import p_rope
from tests.model.shapes import module

MADE = {"start": (1,), "one": 7, "zero": 8, "separator": 9, "digits": (10, 11, 12)}


def test_families_are_the_ids_they_say():
    made = {name: Family(name, **MADE) for name in FAMILIES}
    assert made["repeat_last"].ids(5) == [1, 8, 7, 7, 7]
    assert made["copying"].ids(8) == [1, 7, 7, 7, 9, 7, 7, 7]
    assert made["separators"].ids(10) == [1, 7, 7, 7, 9, 7, 7, 7, 9, 7]
    assert made["separators"].ids(9)[-1] == 7
    assert set(made["digits"].ids(50)[1:]) == {10, 11, 12}
    counted = made["counting"].ids(400)
    assert counted[-1] == 7
    assert 0.6 < counted.count(7) / 399 < 0.8
    for f in made.values():
        assert all(len(f.ids(n)) == n for n in (4, 5, 16))
    assert made["digits"].ids(9) == made["digits"].ids(12)[:9]


def test_ids_of_a_model_without_tokenizer_are_drawn_and_printed():
    model = load(module("gpt2"))
    made = family(model, "digits", seed=2)
    assert made == family(model, "digits", seed=2)
    assert len({made.one, made.zero, made.separator}) == 3
    assert family(model, "digits", tokens=[3, 4, 5]).digits == (3, 4)
    assert made.to_dict()["start"] == []


def test_the_curve_is_the_difference_of_two_runs():
    model, site = load(module("llama", torch.float64)), "blocks.1.resid_post"
    made = family(model, "counting", tokens=[3, 4, 5])
    found = collapse_curve(model, made, [4, 8, 16], site)
    for i, n in enumerate((4, 8, 16)):
        a, b = (model.record(torch.tensor([ids]), site)[site][0, -1] for ids in (made.ids(n), [*made.ids(n), 3]))
        assert found.l1[i] == pytest.approx(float((a - b).abs().sum()), rel=1e-9)
        assert found.l2[i] == pytest.approx(float((a - b).norm()), rel=1e-9)
        assert found.linf[i] == pytest.approx(float((a - b).abs().max()), rel=1e-9)
        assert found.size[i] == pytest.approx(float(a.norm()), rel=1e-9)
    assert found.computed_in == "float64"
    assert len(found.to_frame()) == 3
    told = found.to_dict()
    assert told["equal_at"] == dict.fromkeys(("bf16", "fp16", "fp8"), "not reached by 16")
    assert len(found.plot(found).data) == 2


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_without_positions_the_last_tokens_come_to_be_the_same(name):
    """Theorem 4.2. One 0 among n ones: its weight 1/n moves by 1/n² when a one is added, and so does what is made of it."""
    model = load(module(name, torch.float64))
    with p_rope(model, 0.0):
        found = collapse_curve(model, family(model, "repeat_last", tokens=[3, 4, 5]), [64, 256, 1024])
    assert all(4 < a / b < 17 for a, b in pairwise(found.l1))
    turned = collapse_curve(model, family(model, "repeat_last", tokens=[3, 4, 5]), [64, 256])
    assert turned.l1[1] > found.l1[1]


def test_bits():
    a = torch.tensor([1.0, -300.0, 1e-9])
    assert same_bits(a, a * (1 + 1e-4), torch.bfloat16)
    assert not same_bits(a, a * 1.01, torch.bfloat16)
    assert not same_bits(a, a * (1 + 2e-3), torch.float16)
    assert same_bits(a, a * 1.01, torch.float8_e4m3fn)
    assert same_bits(torch.tensor([1e6]), torch.tensor([1e7]), torch.float16)  # both are its largest number
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]), torch.bfloat16)
    half_ulp = torch.tensor([1.0]), torch.tensor([1.0 + 2.0**-8])  # a tie, to even
    assert same_bits(*half_ulp, torch.bfloat16)
    assert not same_bits(torch.tensor([1.0]), torch.tensor([1.0 + 2.0**-8 + 2.0**-12]), torch.bfloat16)


def test_equal_at_is_the_first_length_of_equal_bits(monkeypatch):
    states = {8: [1.0], 9: [1.2], 16: [1.0], 17: [1.001], 32: [1.0], 33: [1.0001]}
    model = load(module("gpt2"))
    monkeypatch.setattr("probes.collapse._last", lambda m, ids, site: torch.tensor(states[len(ids)]))
    found = collapse_curve(model, family(model, "repeat_last"), [8, 16, 32])
    assert found.equal_at == {"bf16": 16, "fp16": 32, "fp8": 16}


def test_bad_requests_are_refused():
    gpt2 = load(module("gpt2"))
    made = family(gpt2, "repeat_last")
    for name in ("bert", "t5"):
        with pytest.raises(WrongUse, match="causal"):
            collapse_curve(load(module(name)), made, [4, 8])
    with pytest.raises(WrongUse, match="64 positions"):
        collapse_curve(gpt2, made, [32, 64])
    with pytest.raises(WrongUse, match="do not rise"):
        collapse_curve(gpt2, made, [16, 8])
    with pytest.raises(WrongUse, match="leaves 1 tokens"):
        collapse_curve(gpt2, made, [1, 8])
    with pytest.raises(WrongUse, match="Did you mean 'digits'"):
        family(gpt2, "digit")
    with pytest.raises(WrongUse, match="ids below 61"):
        family(gpt2, "digits", tokens=[3, 4, 99])
