"""Direct logit attribution: the parts sum to the logit, and each part is what the formula says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

import interp
from interp import WrongUse
from interp.lenses import direct_logit_attribution
from interp.model import load
from interp.model.model import Tokens
from interp.model.twin import Lifted, randomise
from tests.model.shapes import GQA, TEXT, module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
PLAIN = {k: v for k, v in GQA.items() if k != "head_dim"}
# A bias in the head and a partial rotary; scaled embeddings, writes and logits; norms only after the sublayers.
MORE = {
    "gptj": (hf.GPTJForCausalLM, hf.GPTJConfig, TEXT | dict(n_embd=32, n_layer=3, n_head=4, rotary_dim=4)),
    "granite": (
        hf.GraniteForCausalLM,
        hf.GraniteConfig,
        TEXT | PLAIN | dict(logits_scaling=3.0, residual_multiplier=0.4, embedding_multiplier=5.0),
    ),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config, TEXT | GQA),
}


def double(name: str):
    if name not in MORE:
        return module(name, torch.float64)
    kind, config, options = MORE[name]
    torch.manual_seed(3)
    built = kind(config(**options)).eval().requires_grad_(False)
    randomise(built, 3)
    return built.double()


def error(found) -> float:
    return float((found.values.sum(1) - found.total).abs().max())


@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia", "gemma2", "opt", "qwen3", "mamba", *MORE])
def test_the_parts_sum_to_the_logit(name):
    """In float64 with norms left in float64, the sum misses only by rounding: 1e-10 is a hundred thousand roundings."""
    with Lifted(), torch.no_grad():
        model = load(double(name))
        found = direct_logit_attribution(model, IDS, [4, (5, 9)], pos=3)
        logits = model(IDS).logits[:, 3]
    assert error(found) < 1e-10
    wanted = torch.stack([logits[0, 4], logits[1, 5] - logits[1, 9]])
    if name == "gemma2":  # capped at 30, so the sum is what the cap bends
        assert found.of == "logit difference before the cap"
        before = found.total[0]
        assert abs(30 * torch.tanh(before / 30) - wanted[0]) < 1e-10
    else:
        assert found.of == "logit difference"
        assert float((found.total - wanted).abs().max()) < 1e-10
    parts = {p.component for p in found.parts}
    assert ("mixer" if name == "mamba" else "mlp") in parts
    assert (found.heads.shape[1:] == (3, 4)) == (name != "mamba")
    assert not bool(found.heads.isnan().any())


def by_hand(net, cache, token: int, centred: bool):
    """w_t ⊙ γ / s, with s the divisor of this run's last position, and the mean taken out where the norm does."""
    norm = net.transformer.ln_f if centred else net.model.norm
    x = cache["blocks.2.resid_post"][:, -1]
    x = x - x.mean(-1, keepdim=True) if centred else x
    eps = norm.eps if centred else norm.variance_epsilon
    u = net.lm_head.weight[token] * norm.weight / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return u - u.mean(-1, keepdim=True) if centred else u


@pytest.mark.parametrize(("name", "centred"), [("llama", False), ("gpt2", True)])
def test_each_part_is_its_write_through_the_frozen_norm(name, centred):
    with Lifted(), torch.no_grad():
        net = double(name)
        model = load(net)
        cache = model.record(IDS, ["blocks.*.attn.result", "blocks.*.mlp.write", "blocks.2.resid_post", "embed"])
        found = direct_logit_attribution(model, IDS, 4)
        u = by_hand(net, cache, 4, centred)
        frame = found.to_frame()
        at = {
            (c, layer, h): frame[(frame.component == c) & (frame.layer == layer) & ((frame["head"] == h) | (h is None))]
            for c, layer, h in [("attn", 1, 2), ("mlp", 0, None)]
        }
        head = (cache["blocks.1.attn.result"][:, -1, 2] * u).sum(-1)
        mlp = (cache["blocks.0.mlp.write"][:, -1] * u).sum(-1)
        assert np.allclose(at["attn", 1, 2]["value"], head.numpy(), atol=1e-10)
        assert np.allclose(at["mlp", 0, None]["value"], mlp.numpy(), atol=1e-10)
        assert float((found.heads[:, 1, 2] - head).abs().max()) < 1e-10
        embed = frame[frame.component == "embed"]["value"]
        assert np.allclose(embed, (cache["embed"][:, -1] * u).sum(-1).numpy(), atol=1e-10)


def test_a_sandwich_norm_is_held_so_that_heads_come_apart():
    """Gemma 2 normalises what its attention returns: with that divisor held, the heads still sum to the write."""
    with Lifted(), torch.no_grad():
        net = double("gemma2")
        model = load(net)
        found = direct_logit_attribution(model, IDS, 4)
        cache = model.record(IDS, ["blocks.1.attn.*", "blocks.2.resid_post"], pos=-1)
        u = net.lm_head.weight[4] * (1 + net.model.norm.weight)
        x = cache["blocks.2.resid_post"][:, 0]
        u = u / (x.square().mean(-1, keepdim=True) + net.model.norm.eps).sqrt()
    whole = (cache["blocks.1.attn.write"][:, 0] * u).sum(-1)
    assert float((found.heads[:, 1].sum(-1) - whole).abs().max()) < 1e-10


def test_the_bundled_model_in_float32():
    """The model rounds to float32 at every step; rows and sum are added in float64."""
    model = interp.load("zoo:books")
    words = model.tokens("Mr. Darcy bowed to Elizabeth; and then Mr. Darcy smiled.")
    target = int(words.ids[0, -1])
    found = direct_logit_attribution(model, words.ids[:, :-1], target)
    assert error(found) < 1e-4
    with torch.no_grad():
        logit = model(words.ids[:, :-1]).logits[0, -1, target]
    assert abs(float(found.total[0] - logit)) < 1e-5
    assert found.of == "logit"


def test_padding_changes_nothing():
    model = load(module("gpt2"))
    short = Tokens(IDS, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    both = direct_logit_attribution(model, short, [4, 5])
    alone = direct_logit_attribution(model, IDS[:1, :4], 4)
    assert both.parts == alone.parts
    assert float((both.values[0] - alone.values[0]).abs().max()) < 1e-4
    assert "pos_embed" in {p.component for p in both.parts}


def test_table_and_picture():
    found = direct_logit_attribution(load(module("gpt2")), IDS, (4, 9))
    frame = found.to_frame()
    assert list(frame.columns) == ["prompt", "component", "layer", "head", "value"]
    assert np.allclose(frame.groupby("prompt")["value"].sum(), found.total.numpy(), atol=1e-4)
    figure = found.plot()
    bars = [t for t in figure.data if t.type == "bar"]
    assert {b.name for b in bars} == {"embed", "pos_embed", "attn", "attn bias", "mlp", "norm bias"}
    assert np.isclose(sum(sum(b.y) for b in bars), float(found.total.mean()), atol=1e-4)
    line = next(t for t in figure.data if t.name == "sum so far")
    assert np.isclose(line.y[-1], float(found.total.mean()), atol=1e-4)
    heat = next(t for t in figure.data if t.type == "heatmap")
    assert np.allclose(np.asarray(heat.z), found.heads.mean(0).numpy())


def test_a_sublayer_that_is_not_linear_after_its_heads_is_one_part():
    class Bent(torch.nn.Module):
        def forward(self, x):
            return x * (1 + 0.1 * torch.tanh(x))

    net = double("gemma2")
    kept = net.model.layers[1].post_attention_layernorm
    model = load(net)
    assert model.binding.sites
    try:
        net.model.layers[1].post_attention_layernorm = Bent()
        with Lifted():
            found = direct_logit_attribution(model, IDS, 4)
    finally:
        net.model.layers[1].post_attention_layernorm = kept
    assert error(found) < 1e-10
    assert [p.head for p in found.parts if p.component == "attn" and p.layer == 1] == [None]
    assert bool(found.heads[:, 1].isnan().all())
    assert not bool(found.heads[:, 0].isnan().any())


@pytest.mark.parametrize(
    ("name", "tokens", "words"),
    [
        ("bert", 4, "normalises after adding.*no logit is a sum"),
        ("llama", 61, "ids run from 0 to 60"),
        ("llama", [4], "1 answers for 2 prompts"),
        ("llama", (4, 5, 6), "one per prompt is a list"),
        ("llama", "word", "without a tokenizer"),
    ],
)
def test_what_has_no_answer_is_refused(name, tokens, words):
    with pytest.raises(WrongUse, match=words):
        direct_logit_attribution(load(module(name)), IDS, tokens)


def test_an_answer_of_several_tokens_is_refused(tiny_folder):
    with pytest.raises(WrongUse, match=r"tokens, \['.*mind the space"):
        direct_logit_attribution(interp.load(tiny_folder), "The class", " Netherfield")
    with pytest.raises(WrongUse, match="position"):
        direct_logit_attribution(interp.load(tiny_folder), "The class", 5, position=3)
