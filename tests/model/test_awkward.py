"""Awkward architectures by name, each against a plain computation of the same thing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import interp
from interp.model import load
from tests.model.shapes import module

IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(6))
CAP = "attn_logit_softcapping"
CLOSE = dict(atol=2e-6, rtol=2e-5)  # float32: another order of sums


def near(a, b):
    assert a.shape == b.shape
    assert torch.allclose(a, b, **CLOSE), (a - b).abs().max()


def causal(scores):
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))


def spread(t, heads):
    """Key heads [batch, pos, head, d], one for each query head, as [batch, head, pos, d]."""
    return t.repeat_interleave(heads // t.shape[2], dim=2).transpose(1, 2)


def test_attention_sinks_take_their_share_of_every_row():
    model = load(module("gpt_oss"))
    at = "blocks.1.attn."  # full attention; block 0 has a window
    c = model.record(IDS, [at + n for n in ("q", "k", "scores", "pattern", "sink", "v", "z")])
    attention = model.module.model.layers[1].self_attn
    plain = causal(c[at + "q"].transpose(1, 2) @ spread(c[at + "k"], 4).mT * attention.scaling)
    whole = torch.cat([plain, attention.sinks.view(1, 4, 1, 1).expand(2, 4, 7, 1)], dim=-1).softmax(-1)
    near(c[at + "pattern"], whole[..., :-1])
    near(c[at + "sink"], whole[..., -1].transpose(1, 2))
    near(c[at + "z"], (whole[..., :-1] @ spread(c[at + "v"], 4)).transpose(1, 2))
    assert c[at + "sink"].min() > 0.001  # they do take a share


@pytest.mark.parametrize(("name", "scale"), [("llama", 8**-0.5), ("qwen3", 8**-0.5), ("falcon one key head", 8**-0.5)])
def test_query_heads_of_a_group_look_at_the_same_keys_and_values(name, scale):
    model, at = load(module(name)), "blocks.1.attn."
    c = model.record(IDS, [at + n for n in ("q", "k", "v", "scores", "pattern", "z")])
    assert c[at + "q"].shape == (2, 7, 4, 8) and c[at + "k"].shape[2] in (1, 2)
    pattern = causal(c[at + "q"].transpose(1, 2) @ spread(c[at + "k"], 4).mT * scale).softmax(-1)
    near(c[at + "pattern"], pattern)
    near(c[at + "z"], (pattern @ spread(c[at + "v"], 4)).transpose(1, 2))
    first = model.record(IDS, at + "pattern", edits=[interp.Zero(at + "k", head=0)])[at + "pattern"]
    other = slice(2, None) if c[at + "k"].shape[2] == 2 else slice(0, 0)
    near(first[:, other], pattern[:, other])
    own = first[:, :2]
    near(own, causal(torch.zeros(7, 7)).softmax(-1).expand_as(own))  # no key is better than another


@pytest.mark.parametrize(
    ("name", "scale"),
    [("mistral", 8**-0.5), ("gemma2", 256**-0.5), ("gemma3", 256**-0.5), ("gpt_oss", 8**-0.5), ("gpt_neo", 1.0)],
)
def test_a_sliding_window_hides_all_but_the_last_four_tokens(name, scale):
    """Queries and keys as recorded, a window written out: query - key < 4."""
    model = load(module(name))
    local = 1 if name == "gpt_neo" else 0  # the block with a window
    at = f"blocks.{local}.attn."
    c = model.record(IDS, [at + n for n in ("q", "k", "pattern", "scores")])
    plain, cap = c[at + "q"].transpose(1, 2) @ spread(c[at + "k"], 4).mT * scale, getattr(model.config, CAP, None)
    plain = causal(plain if cap is None else cap * torch.tanh(plain / cap))
    plain = plain.masked_fill(torch.ones(7, 7).tril(-4).bool(), float("-inf"))
    if name == "gpt_oss":
        sinks = model.module.model.layers[local].self_attn.sinks.view(1, 4, 1, 1).expand(2, 4, 7, 1)
        plain = torch.cat([plain, sinks], dim=-1)
    near(c[at + "pattern"], plain.softmax(-1)[..., :7])
    assert (c[at + "pattern"].tril(-4) == 0).all() and (c[at + "pattern"].tril(-3).triu(-3).sum((2, 3)) > 0).all()


ALONE = [
    "gpt2",
    "llama",
    "pythia",
    "gemma2",
    "mamba",
    "opt",
    "bloom",
    "gpt_oss",
    "mixtral",
    "jamba",
    "mamba2",
    "bitnet",
]


@pytest.mark.parametrize("name", [*ALONE, "falcon one key head", "gpt_neo", "deberta", "bert"])
def test_one_token_has_every_site_and_what_it_has_in_front_of_others(name):
    model = load(module(name))
    one = model.record(IDS[:, :1], "*")
    assert {*one} == {*model.sites()}
    for site, shape in model.sites().items():
        assert one[site].shape[1:] == tuple(s if isinstance(s, int) else 1 for s in shape[1:]), site
        if site.endswith(".pattern"):
            sink = one.values_by_site.get(site.replace("pattern", "sink"), torch.zeros(2, 1, 4))
            near(one[site][..., 0] + sink.transpose(1, 2), torch.ones(2, 4, 1))
    if name in ALONE:
        many = model.record(IDS, "*")
        for site in [s for s in one if s.endswith(("resid_post", ".write", ".state", "logits"))]:
            assert (one[site] - many[site][:, :1]).norm() < 1e-4 * many[site][:, :1].norm(), site


def test_inputs_that_are_no_block_of_memory_give_the_same():
    """Every second column of a wider tensor, a transposed one, one row for all: the values count, not where they lie."""
    model, plain = load(module("llama")), IDS[:, :6].contiguous()
    wide = torch.zeros(2, 12, dtype=torch.long)
    wide[:, ::2] = plain
    turned = plain.T.contiguous().T
    sites = ["blocks.1.attn.pattern", "blocks.1.attn.q", "blocks.2.mlp.post", "logits"]
    edits = [interp.Scale("blocks.0.attn.z", 2.0, head=1, pos=2), interp.Zero("blocks.1.attn.scores", pos=3)]
    for how in ([], edits):
        expected = model.record(plain, sites, edits=how)
        for ids in (wide[:, ::2], turned):
            assert not ids.is_contiguous()
            found = model.record(ids, sites, edits=how)
            assert all(torch.equal(found[s], expected[s]) for s in sites)
    row = model.record(plain[:1].expand(3, 6), sites)
    assert all(torch.equal(row[s][2], row[s][0]) for s in sites)
    pixels = torch.randn(2, 16, 16, 3, generator=torch.Generator().manual_seed(1)).permute(0, 3, 1, 2)
    picture = load(module("vit"))
    a, b = (picture.record(x, "*") for x in (pixels, pixels.contiguous()))
    assert all(torch.allclose(a[s], b[s], atol=1e-5, rtol=1e-4) for s in a)
    value = torch.randn(32, 2, 6, generator=torch.Generator().manual_seed(2)).permute(1, 2, 0)
    put = model.record(plain, "blocks.1.resid_post", edits=[interp.Replace("blocks.1.resid_post", value)])
    assert torch.equal(put["blocks.1.resid_post"], value)


def test_a_tensor_changed_in_place_after_the_hook_is_recorded_as_it_was_returned():
    """Falcon's MLP output gets the attention output added in place; the block that does is compared with its parts."""
    model = load(module("falcon one key head"))
    names = [f"blocks.1.{n}" for n in ("resid_pre", "mlp.in", "mlp.out", "mlp.write", "attn.write", "resid_post")]
    c = model.record(IDS, names)
    pre, into, out, write, attention, post = (c[n] for n in names)
    near(out, model.module.transformer.h[1].mlp(into))
    near(post, pre + attention + write)
    alone = model.record(IDS, names[2])[names[2]]
    assert torch.equal(alone, out)


def test_scores_are_capped_before_the_mask():
    model = load(module("gemma2"))
    at = "blocks.1.attn."
    c = model.record(IDS, [at + n for n in ("q", "k", "scores", "pattern")])
    cap, scale = model.config.attn_logit_softcapping, model.module.model.layers[1].self_attn.scaling
    plain = c[at + "q"].transpose(1, 2) @ spread(c[at + "k"], 4).mT * scale
    near(c[at + "pattern"], causal(cap * torch.tanh(plain / cap)).softmax(-1))


def test_sandwich_norms_stand_between_out_and_write():
    model = load(module("gemma2"))
    c = model.record(IDS, ["blocks.1.attn.out", "blocks.1.attn.write", "blocks.1.resid_pre", "blocks.1.resid_mid"])
    near(c["blocks.1.attn.write"], model.module.model.layers[1].post_attention_layernorm(c["blocks.1.attn.out"]))
    near(c["blocks.1.resid_mid"], c["blocks.1.resid_pre"] + c["blocks.1.attn.write"])


def test_a_multiplier_is_part_of_the_write():
    model = load(module("granite"))
    names = ["resid_pre", "attn.out", "attn.write", "resid_mid", "mlp.out", "mlp.write", "resid_post"]
    c = model.record(IDS, [f"blocks.1.{n}" for n in names])
    pre, out, write, mid, mlp_out, mlp_write, post = (c[f"blocks.1.{n}"] for n in names)
    near(write, 0.7 * out)
    near(mlp_write, 0.7 * mlp_out)
    near(mid, pre + write)
    near(post, mid + mlp_write)
    edited = model.record(IDS, "blocks.1.resid_mid", edits=[interp.Replace("blocks.1.attn.write", torch.ones(32))])
    near(edited["blocks.1.resid_mid"], pre + 1)


def test_layer_scale_is_part_of_the_write():
    model = load(module("beit"))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    c = model.record(pixels, ["blocks.1.attn.out", "blocks.1.attn.write", "blocks.1.resid_pre", "blocks.1.resid_mid"])
    near(c["blocks.1.attn.write"], model.module.beit.layers[1].lambda_1 * c["blocks.1.attn.out"])
    near(c["blocks.1.resid_mid"], c["blocks.1.resid_pre"] + c["blocks.1.attn.write"])


def test_parallel_sublayers_read_the_same_stream():
    model = load(module("pythia"))
    c = model.record(
        IDS, [f"blocks.1.{n}" for n in ("resid_pre", "attn.in", "mlp.in", "attn.write", "mlp.write", "resid_post")]
    )
    layer, stream = model.module.gpt_neox.layers[1], c["blocks.1.resid_pre"]
    near(c["blocks.1.attn.in"], layer.input_layernorm(stream))
    near(c["blocks.1.mlp.in"], layer.post_attention_layernorm(stream))
    near(c["blocks.1.resid_post"], stream + c["blocks.1.attn.write"] + c["blocks.1.mlp.write"])


def test_one_shared_block_has_a_site_for_every_call():
    model = load(module("albert"))
    c = model.record(IDS, ["blocks.*.resid_pre", "blocks.*.resid_post", "blocks.2.attn.pattern"])
    block = model.module.albert.encoder.albert_layer_groups[0]
    for i in range(3):
        out = block(c[f"blocks.{i}.resid_pre"])
        near(c[f"blocks.{i}.resid_post"], out if isinstance(out, torch.Tensor) else out[0])
    with model.edit(interp.Zero("blocks.1.attn.z")):
        changed = model.record(IDS, ["blocks.0.resid_post", "blocks.1.resid_post"])
    assert torch.equal(changed["blocks.0.resid_post"], c["blocks.0.resid_post"])
    assert not torch.allclose(changed["blocks.1.resid_post"], c["blocks.1.resid_post"])


def test_expert_neurons_and_router():
    model = load(module("mixtral"))
    at = "blocks.1.mlp."
    c = model.record(IDS, [at + n for n in ("in", "router", "experts.post", "out")])
    mlp, x = model.module.model.layers[1].mlp, c[at + "in"].flatten(0, 1)
    near(c[at + "router"].flatten(0, 1), x @ mlp.gate.weight.T)
    weights, chosen = (x @ mlp.gate.weight.T).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    out, experts = torch.zeros_like(x), mlp.experts
    for token in range(len(x)):
        for slot in range(2):
            e = chosen[token, slot]
            gate, up = (experts.gate_up_proj[e] @ x[token]).chunk(2)
            post = F.silu(gate) * up
            near(c[at + "experts.post"].flatten(0, 1)[token, slot], post)
            out[token] += weights[token, slot] * (experts.down_proj[e] @ post)
    near(c[at + "out"].flatten(0, 1), out)
    silenced = model.record(IDS, at + "out", edits=[interp.Zero(at + "experts.post", pos=2)])[at + "out"]
    assert silenced[:, 2].abs().max() < 1e-6
    assert torch.equal(silenced[:, 3:], c[at + "out"][:, 3:])


def routed(name, mlp, x, scores):
    """What a mixture makes of tokens x [n, d] whose experts have these scores [n, expert], with its own experts."""
    if name == "gpt_oss":
        weights, chosen = scores.topk(2)
        weights = weights.softmax(-1)
    else:
        weights, chosen = scores.softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True) if name == "mixtral" else weights
    one = torch.ones(1, 1)
    experts = [[mlp.experts(x[t : t + 1], e.view(1, 1), one)[0] for e in chosen[t]] for t in range(len(x))]
    return (torch.stack([torch.stack(row) for row in experts]) * weights[..., None]).sum(1)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "jamba"])
def test_an_edited_router_sends_tokens_to_other_experts(name):
    model = load(module(name))
    at = "blocks.1.mlp."
    c = model.record(IDS, [at + n for n in ("in", "router", "out")])
    layer = model.module.model.layers[1]
    mlp, x = getattr(layer, "mlp", None) or layer.feed_forward, c[at + "in"].flatten(0, 1)
    near(routed(name, mlp, x, c[at + "router"].flatten(0, 1)), c[at + "out"].flatten(0, 1))
    put = torch.tensor([1.0, -3.0, 2.0, -2.0])  # the third and the first
    assert (c[at + "router"][:, 4].topk(2).indices != torch.tensor([2, 0])).any()
    for edits in (
        [interp.Replace(at + "router", put, pos=4)],
        [interp.Steer(at + "router", put, 3.0, pos=slice(2, 5))],
    ):
        edited = model.record(IDS, [at + "router", at + "out"], edits=edits)
        near(routed(name, mlp, x, edited[at + "router"].flatten(0, 1)), edited[at + "out"].flatten(0, 1))
        assert not torch.allclose(edited[at + "out"][:, 4], c[at + "out"][:, 4], atol=1e-4)
        assert torch.equal(edited[at + "router"][:, 5], c[at + "router"][:, 5])
    near(
        model.record(IDS, at + "router", edits=[interp.Replace(at + "router", put)])[at + "router"], put.expand(2, 7, 4)
    )


def test_fused_projections_come_apart():
    pythia, phi3 = load(module("pythia")), load(module("phi3"))
    c = pythia.record(IDS, ["blocks.0.attn.in", "blocks.0.attn.q_raw", "blocks.0.attn.k_raw", "blocks.0.attn.v"])
    fused = pythia.module.gpt_neox.layers[0].attention.query_key_value(c["blocks.0.attn.in"]).view(2, 7, 4, 24)
    for name, part in zip(("q_raw", "k_raw", "v"), fused.split(8, dim=-1), strict=True):  # interleaved by head
        near(c[f"blocks.0.attn.{name}"], part)
    c = phi3.record(IDS, ["blocks.0.mlp.in", "blocks.0.mlp.gate", "blocks.0.mlp.up", "blocks.0.mlp.post"])
    gate, up = phi3.module.model.layers[0].mlp.gate_up_proj(c["blocks.0.mlp.in"]).chunk(2, dim=-1)
    near(c["blocks.0.mlp.gate"], gate)
    near(c["blocks.0.mlp.up"], up)
    near(c["blocks.0.mlp.post"], F.silu(gate) * up)


def test_cross_attention_looks_at_the_encoder_with_its_cache_and_without():
    model = load(module("t5"))
    source, target = IDS, IDS[:, :4]
    at = "decoder.blocks.1.cross_attn."
    inputs = {"input_ids": source, "decoder_input_ids": target}
    c = model.record(inputs, [at + n for n in ("q", "k", "v", "pattern", "z")] + ["encoder.final_norm"])
    assert c[at + "pattern"].shape == (2, 4, 4, 7)
    near(
        c[at + "k"], model.module.decoder.block[1].layer[1].EncDecAttention.k(c["encoder.final_norm"]).view(2, 7, 4, 8)
    )
    near(c[at + "pattern"], (c[at + "q"].transpose(1, 2) @ c[at + "k"].transpose(1, 2).mT).softmax(-1))
    past = model.module(**inputs | {"decoder_input_ids": target[:, :3]}, use_cache=True)
    step = {"encoder_outputs": (past.encoder_last_hidden_state,), "decoder_input_ids": target[:, 3:]}
    later = model.record(
        step | {"past_key_values": past.past_key_values, "use_cache": True}, [at + "pattern", at + "z"]
    )
    near(later[at + "pattern"], c[at + "pattern"][:, :, 3:])
    near(later[at + "z"], c[at + "z"][:, 3:])


def test_windows_of_a_picture_are_put_together_again():
    model = load(module("swin"))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    name = "stages.0.blocks.1."
    c = model.record(pixels, [name + n for n in ("resid_pre", "attn.write", "resid_mid", "attn.pattern")])
    near(c[name + "resid_mid"], c[name + "resid_pre"] + c[name + "attn.write"])
    near(c[name + "attn.pattern"].sum(-1), torch.ones(c[name + "attn.pattern"].shape[:-1]))


def test_divisors_of_norms():
    for name, block in (
        ("llama", lambda m: m.model.layers[1].input_layernorm),
        ("gpt2", lambda m: m.transformer.h[1].ln_1),
    ):
        model = load(module(name))
        c = model.record(
            IDS, ["blocks.1.resid_pre", "blocks.1.attn.norm.scale", "blocks.1.attn.in", "final_norm.scale"]
        )
        x, norm = c["blocks.1.resid_pre"], block(model.module)
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        centred = x - x.mean(-1, keepdim=True) if name == "gpt2" else x
        near(c["blocks.1.attn.norm.scale"], (centred.square().mean(-1, keepdim=True) + eps).sqrt())
        edited = model.record(IDS, "blocks.1.attn.in", edits=[interp.Scale("blocks.1.attn.norm.scale", 2.0)])
        bias = norm.bias if name == "gpt2" else 0.0
        near(edited["blocks.1.attn.in"], (c["blocks.1.attn.in"] - bias) / 2 + bias)
        assert math.isfinite(float(c["final_norm.scale"].sum()))
