"""The attention lens: every head by itself."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import WrongUse
from interp.lenses import AttentionLens, Lens, Recipe, train_attention_lens
from interp.lenses.tuned import Descent, descent
from interp.model import load
from tests.lenses.test_tuned import Words, numbers
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_untrained_it_is_the_logit_lens_on_single_heads_bit_for_bit(name):
    model = load(module(name))
    prefix = "decoder." if name == "t5" else ""
    lens = AttentionLens(model)
    seen, plain = lens(IDS), Lens(model)(IDS, [f"{prefix}blocks.*.attn.result", lens.head.last])
    assert seen.sites == plain.sites
    assert seen.sites[:2] == (f"{prefix}blocks.0.attn.result.0", f"{prefix}blocks.0.attn.result.1")
    for field in ("top", "top_log_prob", "entropy", "kl_forward", "kl_backward", "ranks"):
        assert torch.equal(getattr(seen, field), getattr(plain, field))
    assert float(seen.kl_forward[-1].abs().max()) < 1e-6  # states are scored in products of other sizes


def test_a_head_is_read_through_its_map(tmp_path):
    """logits = U(norm(r + W z + b)), by hand; kept on disk, and refused by another model."""
    model = load(module("llama"), tokenizer=Words())
    lens = train_attention_lens(model, numbers(61, 6, 0), tmp_path, Recipe(steps=2, tokens=48, context=16))
    row = "blocks.1.attn.result.2"
    seen = lens(IDS, row, tokens=range(61))
    cache = model.record(IDS, ["blocks.1.attn.result", "blocks.1.attn.z"])
    r, z = (cache[f"blocks.1.attn.{n}"][:, :, 2].flatten(0, 1) for n in ("result", "z"))
    i = lens.sites.index(row)
    assert lens.W[i].shape == (32, 8)
    wanted = lens.head(r + z @ lens.W[i].T + lens.b[i]).log_softmax(-1)
    assert torch.allclose(seen.chosen_log_prob[0], wanted, atol=1e-5)
    again = AttentionLens.load(tmp_path, model)
    assert torch.equal(again(IDS).kl_forward, lens(IDS).kl_forward)
    with pytest.raises(WrongUse, match="trained for another model"):
        AttentionLens.load(tmp_path, load(module("qwen3")))


def test_what_it_cannot_read():
    lens = AttentionLens(load(module("llama")))
    with pytest.raises(WrongUse, match=r"cannot read 'blocks\.1\.resid_mid'"):
        lens(IDS, "blocks.1.resid_mid")
    with pytest.raises(WrongUse, match="reads heads"):
        AttentionLens(lens.model, ["blocks.1.attn.write"])
    with pytest.raises(WrongUse, match="head"):
        lens(IDS, "blocks.1.attn.result.4")
    with pytest.raises(WrongUse, match="no heads whose writes are known"):
        AttentionLens(load(module("mamba")))


@pytest.mark.slow("heads of the bundled model are trained and read over thousands of tokens")
def test_on_the_bundled_model_held_out_kl_falls_for_every_head():
    """The whole 95 % band of the difference to the logit lens lies below zero, for each of four heads."""
    from interp.zoo.corpus import topics

    model, split = interp.load("zoo:books"), topics()
    lens = AttentionLens(model, [f"blocks.{block}.attn.result.{head}" for block in (1, 3) for head in (1, 3)])
    descent(Descent(lens, Recipe(steps=8, tokens=384, context=128)), [split.train]).run()
    texts = [split.held_out[:4000]]
    ours, plain = (a.over(texts, lens.sites, context=128) for a in (lens, Lens(model)))
    difference, (_, high) = ours.less(plain, "kl_forward")
    assert bool((difference < 0).all())
    assert bool((high < 0).all())
