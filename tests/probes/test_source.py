"""The source: its share as the patterns have it, its closed form, and a decoder rewritten as encoder and decoder."""

from __future__ import annotations

import pytest
import torch

from interp import WrongUse
from interp.model import load
from interp.model.twin import Lifted
from probes.source import rewritten, source_share
from tests.model.shapes import module
from tests.probes.plain import plain

SOURCE, TARGET = [5, 9, 11, 3, 8], [20, 7, 7, 12]


def test_uniform_attention_leaves_the_source_its_share():
    """s_t = S / (S + t) at step t, which has read t tokens of the target."""
    found = source_share(plain(uniform=True), SOURCE, TARGET)
    wanted = [5 / (5 + t) for t in range(4)]
    for row in found.mass.tolist():
        assert row == pytest.approx(wanted, rel=1e-6)
    assert found.exponent == pytest.approx(-1, rel=1e-5)
    assert float(found.target[0]) == 0
    assert float(found.share[0]) == 1
    assert bool((found.share.diff() < 0).all())
    assert len(found.to_frame()) == 4
    assert len(found.plot(found).data) == 4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_mass_is_the_share_of_the_patterns(name):
    model = load(module(name, torch.float64))
    found = source_share(model, SOURCE, TARGET)
    cache = model.record(torch.tensor([[*SOURCE, *TARGET[:-1]]]), "blocks.*.attn.pattern")
    for layer in range(3):
        pattern = cache[f"blocks.{layer}.attn.pattern"][0].mean(0)
        assert torch.allclose(found.mass[layer].double(), pattern[4:, :5].sum(-1), atol=1e-6)


def test_an_encoder_keeps_its_share():
    for name in ("t5", "bart"):
        found = source_share(load(module(name)), SOURCE, TARGET)
        assert found.encoder
        assert found.exponent == pytest.approx(0, abs=1e-9)
        assert bool((found.mass == 1).all())
        assert bool((found.source > 0).all())
        assert len(found.target) == 4


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "pythia", "gptj"])
@pytest.mark.check(
    "squash RED", formula="a decoder as encoder and decoder: logits, z = s cross + (1 − s) self", tolerance=1e-10
)
def test_a_decoder_is_an_encoder_and_a_decoder(name, measured):
    with Lifted():
        model = load(module(name, torch.float64))
        found = rewritten(model, SOURCE, TARGET)
    measured(found.error)
    measured(found.mixture)
    assert found.share.shape == (3, 4, 4)
    assert len(found.to_frame()) == 48
    assert len(found.plot().data[0].z) == 3


def test_bad_requests_are_refused():
    model = load(module("gpt2"))
    with pytest.raises(WrongUse, match="one of each"):
        source_share(model, SOURCE, [])
    with pytest.raises(WrongUse, match="one of each"):
        rewritten(model, [], TARGET)
    with pytest.raises(WrongUse, match="not causal"):
        rewritten(load(module("bert")), SOURCE, TARGET)
    with pytest.raises(WrongUse, match="has an encoder"):
        rewritten(load(module("t5")), SOURCE, TARGET)
