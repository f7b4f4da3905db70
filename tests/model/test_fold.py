"""Folding: the same outputs, gains of one, writes without a mean; the model given is left alone."""

from __future__ import annotations

import copy

import pytest
import torch

import interp
from interp import WrongUse
from interp.model import load
from interp.model.model import Model
from interp.model.twin import Lifted, twin_of
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
CENTRED = ["gpt2", "gptj", "pythia", "opt", "bloom", "falcon grouped"]


@pytest.mark.parametrize("name", [*CENTRED, "llama", "gemma2", "qwen3", "phi3", "granite", "t5", "mistral"])
def test_outputs_are_the_same_with_gains_of_one_and_centred_writes(name):
    """float64, 1e-12 of the outputs' norm."""
    model = Model(twin_of(module(name)))
    x = {"input_ids": IDS, "decoder_input_ids": IDS[:, 1:4]} if name == "t5" else {"input_ids": IDS}
    with Lifted(), torch.no_grad():
        before, raw = model(x).logits.clone(), copy.deepcopy(model.module.state_dict())
        new = interp.folded(model)
        after = new(x).logits
        prefix = "decoder." if name == "t5" else ""
        streams = [m.record(x, f"{prefix}blocks.*.resid_post").stack("*") for m in (model, new)]
    assert (after - before).norm() < 1e-12 * before.norm()
    assert all(torch.equal(raw[k], v) for k, v in model.module.state_dict().items())
    folded = [n for n in new.weights if n.endswith(("attn.norm.w", "mlp.norm.w", "final_norm.w"))]
    assert len(folded) >= 7
    for n in folded:
        gain = new.weights[n] + new.weights.layout(n).offset
        assert (gain - 1).abs().max() < 1e-14
        assert (model.weights[n] + model.weights.layout(n).offset - 1).abs().max() > 0.1
    if name in CENTRED:
        raw, means = (s.mean(-1) for s in streams)
        assert (raw - raw[0]).abs().max() > 0.01
        assert (means - means[0]).abs().max() < 1e-10  # no block writes a mean
        if name not in (
            "opt",
            "bloom",
        ):  # what enters has none either; theirs comes from a table or norm without a name
            assert means.abs().max() < 1e-10
            assert torch.allclose(streams[1], streams[0] - streams[0].mean(-1, keepdim=True), atol=1e-10)
    else:
        assert torch.allclose(streams[0], streams[1], atol=1e-9)  # the stream is what it was


@pytest.mark.parametrize(
    ("name", "words"),
    [("bert", "after adding"), ("mixtral", r"'blocks\.0\.mlp\.norm\.w'.*has no name"), ("mamba", "has no name")],
)
def test_what_cannot_be_folded_is_refused_with_the_reason(name, words):
    with pytest.raises(WrongUse, match=words):
        interp.folded(load(module(name)))


def test_raw_weights_are_the_default():
    net = copy.deepcopy(module("gpt2"))
    assert torch.equal(load(net).weights["blocks.1.attn.norm.w"], net.transformer.h[1].ln_1.weight)
