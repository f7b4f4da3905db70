"""Generation with edits: with a KV cache and without, sampled, padded, recorded; on random shapes and on `zoo:books`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from interp import (
    Freeze,
    Mean,
    Noise,
    Patch,
    Project,
    Replace,
    Resample,
    Scale,
    Steer,
    WrongUse,
    Zero,
)
from interp.model import load
from interp.model.model import Tokens
from interp.model.twin import randomise
from tests.model.shapes import BUILD, GQA, LAYERS, TEXT
from tests.model.shapes import module as shared

IDS = torch.tensor([[5, 9, 11, 3, 8], [7, 7, 12, 40, 6], [30, 31, 32, 33, 34], [60, 2, 3, 50, 21]])
PLAIN: dict[str, Any] = TEXT | LAYERS | dict(intermediate_size=48)
MORE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gptj": (hf.GPTJForCausalLM, hf.GPTJConfig, TEXT | dict(n_embd=32, n_layer=3, n_head=4, rotary_dim=4)),
    "gptneo": (
        hf.GPTNeoForCausalLM,
        hf.GPTNeoConfig,
        TEXT
        | dict(hidden_size=32, num_layers=3, num_heads=4, attention_types=[[["global", "local"], 1], [["global"], 1]]),
    ),
    "bloom": (hf.BloomForCausalLM, hf.BloomConfig, TEXT | dict(hidden_size=32, n_layer=3, n_head=4)),
    "falcon": (hf.FalconForCausalLM, hf.FalconConfig, TEXT | LAYERS | dict(num_kv_heads=2)),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, TEXT | GQA | dict(sliding_window=8)),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, PLAIN | dict(num_key_value_heads=2)),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config, PLAIN | dict(num_key_value_heads=2)),
    "granite": (hf.GraniteForCausalLM, hf.GraniteConfig, PLAIN | dict(num_key_value_heads=2)),
}
LONG = {"gpt2": dict(n_positions=256), "opt": dict(max_position_embeddings=256)}
ALL = ["gpt2", "llama", "pythia", "gemma2", "qwen3", "opt", "mamba", *MORE]


@cache
def module(name):
    if name not in MORE and name not in LONG:
        return shared(name)
    kind, config, options = (MORE | BUILD)[name]
    torch.manual_seed(3)
    net = kind(config(**options | LONG.get(name, {}))).eval()
    randomise(net, 3)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.7)
    return net


@cache
def wrapped(name):
    return load(module(name))


def edits_for(name):
    edits = [
        Steer("blocks.1.resid_post", torch.linspace(-1, 1, 32), 1.5, pos="generated"),
        Noise("blocks.0.resid_post", 0.3, seed=5),
        Scale("embed", 1.2, pos=[1, 6, 9]),
    ]
    inner = [Scale("blocks.2.attn.z", 0.5, head=1, pos="prompt"), Zero("blocks.1.attn.pattern", head=2)]
    return edits + ([Scale("blocks.2.mixer.write", 0.5, pos="prompt")] if name == "mamba" else inner)


def same_with_and_without_a_cache(name, many):
    """Batch of four, sampled under a seed, with edits of the stream and inside attention; eos ignored."""
    model, edits = wrapped(name), edits_for(name)
    options = dict(seed=1, eos_token_id=None, temperature=4.0)
    with model.edit(*edits):
        cached = model.generate(IDS, many, **options)
        fired = [model.fired(e) for e in edits]
    with model.edit(*edits):
        bare = model.generate(IDS, many, use_cache=False, **options)
    assert cached.shape == (4, 5 + many)
    assert torch.equal(cached, bare)
    assert fired[:2] == [many - 1, many]  # a pass for the prompt, which gives the first token, and one for each after
    assert not torch.equal(cached[:, :17], model.generate(IDS, 12, **options))


@pytest.mark.parametrize("name", ALL)
def test_edited_and_sampled_tokens_are_the_same_with_a_cache_and_without(name):
    same_with_and_without_a_cache(name, 24)


@pytest.mark.slow("200 tokens without a KV cache are 20 000 token passes")
def test_two_hundred_tokens_are_the_same_with_a_cache_and_without():
    same_with_and_without_a_cache("llama", 200)


@pytest.mark.proof
@pytest.mark.parametrize("name", ALL)
def test_two_hundred_tokens_of_every_type_are_the_same_with_a_cache_and_without(name):
    same_with_and_without_a_cache(name, 200)


def test_sampling_follows_the_seed_and_leaves_the_generators_alone():
    model, state = wrapped("llama"), torch.get_rng_state()
    one, two, other = (model.generate(IDS, 12, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.generate(IDS, 5), model.generate(IDS, 5))  # greedy without a seed


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "bloom", "mamba"])
def test_recording_while_generating_gives_the_rows_of_one_full_forward(name, use_cache):
    """Prompts of three lengths, float32: 1e-4 of the root mean square, sums run in another order."""
    model = wrapped(name)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0], [1] * 5]).bool()
    inner = ["blocks.1.mixer.write"] if name == "mamba" else ["blocks.1.attn.z", "blocks.2.attn.pattern"]
    sites = ["blocks.0.resid_post", "logits", *inner]
    edit = Steer("blocks.0.resid_post", torch.linspace(-1, 1, 32), pos=[1, 4, 6])
    with model.edit(edit):
        out, cache = model.generate(
            Tokens(IDS, mask), 9, record=[s for s in sites if s != "logits"], use_cache=use_cache, eos_token_id=None
        )
        full = model.record(Tokens(cache.tokens, cache.mask), sites)
    assert cache.mask.sum(1).tolist() == [11, 13, 12, 13]
    assert torch.equal(cache.tokens[0, :3], IDS[0, :3]) and torch.equal(cache.tokens[1], out[1, :-1])
    for site in cache:
        got, expected = cache[site], full[site]
        if site.endswith("pattern"):
            error = max(
                float((got[r, :, :n, :n] - expected[r, :, :n, :n]).abs().max()) for r, n in enumerate((11, 13, 12, 13))
            )
        else:
            error = float((cache.rows(site) - full.rows(site)).abs().max())
        assert error < 1e-4 * float(expected.square().mean().sqrt()) + 1e-5, site


def test_recording_stops_at_the_end_of_each_text():
    """A row that ended is padded from there on, in its tokens' mask and in its rows."""
    model = wrapped("llama")
    free = model.generate(IDS, 8, eos_token_id=None)
    ends = [int(free[0, 7])]
    out, cache = model.generate(IDS, 8, record="blocks.1.resid_post", eos_token_id=ends)
    for row in range(4):
        found = (out[row, 5:-1] == ends[0]).nonzero()
        length = 5 + (int(found[0]) + 1 if len(found) else out.shape[1] - 6)
        assert int(cache.mask[row].sum()) == length
    full = model.record(Tokens(cache.tokens, cache.mask), "blocks.1.resid_post")
    assert (cache.rows("blocks.1.resid_post") - full.rows("blocks.1.resid_post")).abs().max() < 1e-3


def test_encoder_decoder_generation_reads_and_edits_both_sides():
    model = wrapped("t5")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0], [1] * 5]).bool()
    inside = Steer("encoder.blocks.1.resid_post", torch.linspace(-1, 1, 32), 2.0, pos="last")
    after = Steer("decoder.blocks.1.resid_post", torch.linspace(-1, 1, 32), 2.0, pos="generated")
    sites = ["encoder.blocks.1.resid_post", "decoder.blocks.1.resid_post"]
    with model.edit(inside, after):
        cached, cache = model.generate(Tokens(IDS, mask), 6, record=sites, eos_token_id=None)
        bare = model.generate(Tokens(IDS, mask), 6, use_cache=False, eos_token_id=None)
        alone = model.generate(IDS[:1, :3], 6, eos_token_id=None)
    assert torch.equal(cached, bare)
    assert torch.equal(cached[:1], alone)
    assert cache[sites[0]].shape == (4, 5, 32) and cache[sites[1]].shape == (4, 6, 32)
    full = model.record(
        {"input_ids": IDS, "attention_mask": mask.long(), "decoder_input_ids": cached[:, :-1]}, sites[1]
    )
    assert not torch.allclose(full[sites[1]][:, 1:], cache[sites[1]][:, 1:], atol=1e-3)  # it was not edited


def test_bad_generation_requests_teach():
    model = wrapped("llama")
    for call, words in [
        (lambda: wrapped("bert").generate(IDS), "cannot generate"),
        (lambda: model.generate(IDS, temprature=2.0), "temperature"),
        (lambda: model.generate(IDS, record="blocks.1.resid_pots"), "resid_post"),
        (lambda: model.generate(IDS, record="embed", num_beams=2), "num_beams"),
        (lambda: model.generate(IDS, record="embed", num_return_sequences=2, seed=1), "num_return_sequences"),
    ]:
        with pytest.raises(WrongUse, match=words):
            call()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    with model.edit(Scale("embed", 2.0, pos="generated")):
        assert model.generate(IDS, 4, num_return_sequences=2, seed=1).shape == (8, 9)


# ---------------------------------------------------------------- a trained model


PROMPTS = ["The war lasted from the year 17", "It was a dark", "She looked at him and", "The old man"]


@cache
def books():
    return interp.load("zoo:books")


def trained_edits(model):
    site, tokens = "blocks.2.resid_post", model.tokens(PROMPTS)
    cache = model.record(tokens, [site, "blocks.*.attn.pattern"])
    other = model.record(model.tokens(PROMPTS[::-1]), [site, "blocks.*.attn.pattern"])
    d, rms = cache.rows(site).mean(0), float(cache.rows(site).square().mean().sqrt())
    return [
        Zero("blocks.0.mlp.write", pos="generated"),
        Mean(site, d, pos="last"),
        Scale("blocks.*.mlp.write", 0.2),
        Steer(site, torch.randn(len(d), generator=torch.Generator().manual_seed(0)), 3 * rms, pos="generated"),
        Project("blocks.*.resid_post", d),
        Patch(site, other, from_pos=-1, to_pos=[2]),
        Replace("blocks.*.attn.z", lambda x: -x, pos="prompt"),
        Resample(site, other, pos="prompt", seed=3),
        Noise(site, 3 * rms),
        Freeze("blocks.*.attn.pattern", other),
        Zero("blocks.*.attn.pattern", head=1),
    ]


@pytest.mark.slow("eleven edits of a model of 4 million parameters, each with a KV cache and without")
def test_every_edit_changes_what_a_trained_model_writes_and_says_how_often():
    """8 tokens for four prompts of different length: another text than unedited, the same with a KV cache and without."""
    model = books()
    clean = model.generate(PROMPTS, 8)
    assert len(set(clean)) == 4
    for edit in trained_edits(model):
        with model.edit(edit, strict=True):
            cached = model.generate(PROMPTS, 8)
            fired = model.fired(edit)
        with model.edit(edit):
            bare = model.generate(PROMPTS, 8, use_cache=False)
        name = f"{type(edit).__name__}({edit.site})"
        assert cached != clean, name
        assert cached == bare, name
        assert fired > 0, name


@pytest.mark.check(
    "generation bf16 cache",
    formula="‖logits with KV cache − without‖/‖without‖ up to the first divergence",
    tolerance=0.03,
)
def test_in_bfloat16_a_cache_changes_logits_by_rounding_until_the_first_divergence(measured):
    """The roundings of bfloat16 (2⁻⁸ each) over all layers; tokens may then part, and the row tells where."""
    model = interp.load("zoo:books", dtype="bfloat16")
    texts = ["The old man said that", "interp: error: the option"]
    (_, a), (_, b) = (model.generate(texts, 24, record="logits", use_cache=cache) for cache in (True, False))
    parted = (a.tokens != b.tokens).long().argmax(1)
    rows = [int(n) or a.tokens.shape[1] for n in parted]  # of logits that continue the same tokens
    x, y = (torch.cat([c.logits[i, :n].float() for i, n in enumerate(rows)]) for c in (a, b))
    assert a.logits.shape == b.logits.shape and min(rows) > 10  # prompts have 6 and 12 tokens
    measured(float((x - y).norm() / y.norm()))
