"""Edits: what they change, what they leave alone, and generation with them."""

from __future__ import annotations

import warnings

import pytest
import torch

from interp import Failed, Mean, Patch, Project, Replace, Scale, Steer, WrongUse, Zero
from interp.model import load
from interp.model.model import Tokens
from tests.model.shapes import CAUSAL, module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
OTHER = torch.tensor([[5, 9, 33, 3, 8, 20], [7, 7, 12, 41, 6, 13]])


def logits(model, x=IDS):
    with torch.no_grad():
        return model(x).logits


def test_an_edited_value_is_what_is_recorded_and_what_goes_on():
    model = load(module("llama"))
    clean = model.record(IDS, "*")
    after = model.record(IDS, "*", edits=[Zero("blocks.1.mlp.write", pos=2)])
    assert after["blocks.1.mlp.write"][:, 2].abs().max() == 0
    assert torch.equal(after["blocks.1.mlp.write"][:, [0, 1, 3]], clean["blocks.1.mlp.write"][:, [0, 1, 3]])
    assert torch.equal(after["blocks.1.resid_post"][:, 2], clean["blocks.1.resid_mid"][:, 2])
    assert torch.equal(after.logits[:, :2], clean.logits[:, :2])
    assert not torch.equal(after.logits[:, 2], clean.logits[:, 2])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "t5", "vit", "opt"])
def test_resid_mid_is_edited_for_everyone_who_reads_the_stream(name):
    """resid_post - mlp.write must be the value put at resid_mid, not just what the norm reads."""
    model = load(module(name))
    x = model.inputs(
        torch.randn(2, 3, 16, 16)
        if name == "vit"
        else {"input_ids": IDS, "decoder_input_ids": IDS}
        if name == "t5"
        else IDS
    )
    prefix = "encoder." if name == "t5" else ""
    total = "mlp.sum" if name == "bert" else "resid_post"
    put = torch.randn(32)
    cache = model.record(
        x,
        [f"{prefix}blocks.1.{s}" for s in ("resid_mid", total, "mlp.write")],
        edits=[Replace(f"{prefix}blocks.1.resid_mid", put)],
    )
    assert (cache[f"{prefix}blocks.1.resid_mid"] - put).abs().max() < 1e-5
    reached = cache[f"{prefix}blocks.1.{total}"] - cache[f"{prefix}blocks.1.mlp.write"]
    assert (reached - put).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "pythia", "t5"])
def test_editing_a_pattern_gives_the_weighted_values(name):
    model = load(module(name))
    prefix = "encoder." if name == "t5" else ""
    x = {"input_ids": IDS, "decoder_input_ids": IDS} if name == "t5" else IDS
    site = f"{prefix}blocks.1.attn."
    first = torch.zeros(6)
    first[0] = 1.0  # everyone looks at the first token
    cache = model.record(
        x, [site + "z", site + "v", site + "pattern"], edits=[Replace(site + "pattern", first, head=3)]
    )
    z, v = cache[site + "z"], cache[site + "v"]
    value = v[:, :1, 3 * v.shape[2] // 4]
    assert (z[:, :, 3] - value).abs().max() < 1e-6
    assert (cache[site + "pattern"][:, 3] - first).abs().max() == 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "pythia"])
@pytest.mark.parametrize("inner", ["q", "k", "v", "scores", "q_raw", "k_raw", "z", "result"])
def test_every_inner_site_can_be_edited_and_reaches_the_output(name, inner):
    model = load(module(name))
    clean = logits(model)
    head = 0 if inner in ("k", "v", "k_raw") else 1  # two kv heads, four query heads
    with model.edit(
        Replace(f"blocks.1.attn.{inner}", lambda x: 1.5 * x + torch.linspace(0, 1, x.shape[-1]), head=head), strict=True
    ):
        changed = logits(model)
    assert (changed - clean).abs().max() > 1e-4
    assert torch.equal(logits(model), clean)


def test_head_of_v_reaches_only_its_group():
    model = load(module("llama"))
    clean = model.record(IDS, "blocks.0.attn.z")["blocks.0.attn.z"]
    z = model.record(IDS, "blocks.0.attn.z", edits=[Zero("blocks.0.attn.v", head=1)])["blocks.0.attn.z"]
    assert torch.equal(z[:, :, :2], clean[:, :, :2])
    assert z[:, :, 2:].abs().max() == 0


@pytest.mark.parametrize("name", ["llama", "pythia", "mamba", "opt"])
def test_patching_everything_from_another_run_gives_that_run(name):
    model = load(module(name))
    other = model.record(OTHER, "blocks.*.resid_post")
    with model.edit(Patch("blocks.2.resid_post", other)):
        assert (logits(model) - logits(load(module(name)), OTHER)).abs().max() < 1e-5
    with model.edit(Patch("blocks.0.resid_pre", model.record(OTHER, "blocks.0.resid_pre"), pos=slice(0, 3))):
        one = logits(model)
    assert torch.equal(one[1, :3], logits(model)[1, :3])  # rows differ from position 3 on


def test_patch_moves_a_position():
    model = load(module("gpt2"))
    source = model.record(OTHER, "blocks.1.resid_post")
    cache = model.record(IDS, "blocks.1.resid_post", edits=[Patch("blocks.1.resid_post", source, pos=4, from_pos=2)])
    assert torch.equal(cache["blocks.1.resid_post"][:, 4], source["blocks.1.resid_post"][:, 2])


def test_patch_aligns_prompts_of_other_lengths_by_real_position():
    model = load(module("llama"))
    short = Tokens(IDS, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    source = model.record(short, "blocks.0.resid_post")
    left = {"input_ids": IDS.flip(1), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])}
    cache = model.record(left, "blocks.0.resid_post", edits=[Patch("blocks.0.resid_post", source)])
    assert torch.equal(cache["blocks.0.resid_post"][0, 2:], source["blocks.0.resid_post"][0, :4])


def test_steer_project_mean_rows_and_index():
    model, site = load(module("llama")), "blocks.1.resid_post"
    clean = model.record(IDS, site)[site]
    d = torch.randn(32)
    assert torch.equal(model.record(IDS, site, edits=[Steer(site, d, 2.0)])[site], clean + 2.0 * d)
    flat = model.record(IDS, site, edits=[Project(site, torch.stack([d, torch.ones(32)]))])[site]
    assert (flat @ d).abs().max() < 1e-4
    assert (flat.sum(-1)).abs().max() < 1e-4
    mean = model.record(IDS, site, edits=[Mean(site, clean.mean((0, 1)), rows=[1], index=[3, 4])])[site]
    assert torch.equal(mean[0], clean[0])
    assert torch.equal(mean[1, :, :3], clean[1, :, :3])
    assert torch.equal(mean[1, :, 3], clean.mean((0, 1))[3].expand(6))


def test_contexts_nest_and_leave_nothing_behind():
    model, site = load(module("gpt2")), "blocks.1.resid_post"
    clean = logits(model)
    with model.edit(Scale(site, 2.0)):
        with model.edit(Scale(site, 3.0)):
            sixfold = model.record(IDS, site)[site]
            six = logits(model)
        two = logits(model)
        recorded = model.record(IDS, "logits").logits
    assert torch.equal(two, recorded)
    assert torch.equal(sixfold, 3 * (2 * model.record(IDS, site)[site]))
    assert not torch.equal(two, six)
    with pytest.raises(ZeroDivisionError), model.edit(Zero(site)):
        1 / 0  # noqa: B018
    assert torch.equal(logits(model), clean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_an_edit_that_does_not_fire_warns_or_raises():
    model = load(module("llama"))
    with pytest.warns(UserWarning, match="changed nothing"), model.edit(Zero("embed", pos=50)):
        logits(model)
    with pytest.raises(Failed, match="changed nothing"), model.edit(Zero("embed", pos=50), strict=True):
        logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.edit(Zero("embed", pos=5)):
            logits(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Steer("embed", torch.ones(32), alhpa=2.0), "alpha"),
        (lambda: Zero("blocks.0.resid_post", head=1), "no heads"),
        (lambda: Zero("blocks.0.attn.z", head=7), "outside 0 to 3"),
        (lambda: Zero("blocks.0.resid_pots"), "resid_post"),
        (lambda: Zero("embed", pos="frist"), "'last'"),
        (lambda: Replace("embed", lambda x: x[:, :1]), "returned"),
    ],
)
def test_bad_edits_teach(make, words):
    model = load(module("llama"))
    with pytest.raises(WrongUse, match=words), model.edit(make()):
        logits(model)


# ---------------------------------------------------------------- generation

DIRECTION = torch.linspace(-2, 2, 32)


@pytest.mark.parametrize("pos", ["all", "prompt", "generated", [2, 3, 8]])
@pytest.mark.parametrize("name", [n for n in CAUSAL if n != "mamba"])
def test_steered_generation_is_the_same_with_cache_and_without(name, pos):
    model = load(module(name))
    with model.edit(Steer("blocks.1.resid_post", DIRECTION, 1.5, pos=pos)):
        cached = model.generate(IDS, max_new_tokens=6, use_cache=True)
        bare = model.generate(IDS, max_new_tokens=6, use_cache=False)
    assert torch.equal(cached, bare)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "opt", "mamba"])
def test_left_padding_changes_no_token(name):
    model = load(module(name))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    inner = "blocks.0.mixer.write" if name == "mamba" else "blocks.0.attn.pattern"
    with model.edit(Steer("blocks.1.resid_post", DIRECTION, pos=[1, 5]), Scale(inner, 0.5, pos="generated")):
        both = model.generate(Tokens(IDS, mask), max_new_tokens=5)
        alone = model.generate(IDS[:1, :3], max_new_tokens=5)
    assert torch.equal(both[0, 3:], alone[0])


def test_a_model_that_cannot_be_padded_on_the_left_is_refused():
    """A recurrence that reads padding as text: found by running its twin, not by its name."""
    from transformers import RwkvConfig, RwkvForCausalLM

    net = RwkvForCausalLM(RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=3, context_length=64)).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    with pytest.raises(WrongUse, match="padded on the left"):
        load(net).generate(Tokens(IDS, mask), max_new_tokens=2)
