"""The patchscope as a lens: each state read in another prompt."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import WrongUse
from interp.lenses import Lens, PatchscopeLens
from interp.lenses import patchscope as module_of
from interp.model import load
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
TARGET = [4, 30, 2, 9]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_at_the_last_block_it_is_the_model_and_else_the_target_goes_on(name, monkeypatch):
    """Every row against a run of the target in which a hook of Hugging Face's block overwrites the last position."""
    net = module(name)
    model = load(net)
    monkeypatch.setattr(module_of, "PROMPTS", 5)  # twelve states in batches
    found = PatchscopeLens(model, TARGET)(IDS, tokens=range(61))
    assert found.kind == "patchscope"
    assert float(found.kl_forward[-1].abs().max()) < 1e-6
    blocks = net.transformer.h if name == "gpt2" else net.model.layers
    for layer in (0, 1):
        states = model.record(IDS, f"blocks.{layer}.resid_post")[f"blocks.{layer}.resid_post"].flatten(0, 1)

        def put(module, args, out, states=states):
            new = (out[0] if isinstance(out, tuple) else out).clone()
            new[:, -1] = states
            return (new, *out[1:]) if isinstance(out, tuple) else new

        handle = blocks[layer].register_forward_hook(put)
        with torch.no_grad():
            logits = net(input_ids=torch.tensor([TARGET]).expand(12, -1), use_cache=False).logits[:, -1]
        handle.remove()
        assert float((found.chosen_log_prob[1 + layer] - logits.log_softmax(-1)).abs().max()) < 1e-4


def test_a_text_that_ends_alike_is_its_own_target():
    """At its last token each state of the text is in its own place: nothing changes, at any layer."""
    model = load(module("llama"))
    found = PatchscopeLens(model, IDS[0].tolist())(IDS[:1])
    assert float(found.kl_forward[:, -1].abs().max()) < 1e-6
    assert float(Lens(model)(IDS[:1]).kl_forward[0, -1]) > 1e-3


def test_what_it_cannot_read(tiny_folder):
    with pytest.raises(WrongUse, match="no decoder alone"):
        PatchscopeLens(load(module("bert")))
    with pytest.raises(WrongUse, match="no decoder alone"):
        PatchscopeLens(load(module("t5")))
    with pytest.raises(WrongUse, match="has no tokenizer"):
        PatchscopeLens(load(module("llama")))
    with pytest.raises(WrongUse, match="cannot read"):
        PatchscopeLens(load(module("llama")), TARGET)(IDS, "blocks.0.attn.write")
    lens = PatchscopeLens(interp.load(tiny_folder))
    assert lens.model.tokenizer.decode(lens.target[0]).endswith("hello → hello; x")
