"""Recording: the values, the positions, the stop, the promises."""

from __future__ import annotations

import copy

import pytest
import torch

import interp
from interp import Failed, WrongUse
from interp.model import load, memory
from interp.model.memory import check_plan
from interp.model.model import Tokens
from tests.model.shapes import CAUSAL, module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])


def inputs_for(name: str):
    torch.manual_seed(4)
    if name == "vit":
        return torch.randn(2, 3, 16, 16)
    if name == "t5":
        return {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
    return IDS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "gemma2", "bert", "t5", "vit", "mamba"])
def test_logits_are_the_same_bits_wrapped_and_while_everything_is_read(name, dtype):
    bare = module(name, dtype)
    bare = copy.deepcopy(bare).to(dtype)
    model = load(bare)
    x = model.inputs(inputs_for(name))
    with torch.no_grad():
        expected = bare(**x).logits
        assert torch.equal(model(x).logits, expected)
    assert torch.equal(model.record(x, "*").logits, expected)


def test_the_stream_is_what_the_blocks_hand_on():
    model = load(module("llama"))
    cache = model.record(IDS, ["blocks.*.resid_*", "embed", "final_norm"])
    hidden = copy.deepcopy(module("llama"))(IDS, output_hidden_states=True).hidden_states  # leaves hooks behind
    for i in range(3):
        assert torch.equal(cache[f"blocks.{i}.resid_pre"], hidden[i])
    assert torch.equal(cache["blocks.0.resid_post"], cache["blocks.1.resid_pre"])
    assert torch.equal(cache["final_norm"], hidden[3])
    assert torch.equal(cache["embed"], hidden[0])


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "gemma2", "opt", "qwen3", "bert"])
def test_patterns_equal_the_models_own_eager_ones(name):
    eager = copy.deepcopy(module(name))
    eager.set_attn_implementation("eager")
    expected = eager(IDS, output_attentions=True).attentions
    cache = load(module(name)).record(IDS, "blocks.*.attn.pattern")
    for i in range(3):
        # Two float32 softmaxes of the same scores, computed by other kernels.
        assert (cache[f"blocks.{i}.attn.pattern"] - expected[i]).abs().max() < 2e-6


def test_masked_keys_get_no_attention_with_padding():
    model = load(module("llama"))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    cache = model.record(Tokens(IDS, mask), ["blocks.1.attn.pattern", "blocks.1.resid_post"])
    pattern = cache["blocks.1.attn.pattern"]
    assert pattern[1, :, :4, 4:].abs().max() == 0
    assert (pattern[1, :, :4].sum(-1) - 1).abs().max() < 1e-6
    alone = model.record(IDS[1:, :4], "blocks.1.resid_post")["blocks.1.resid_post"]
    assert (cache["blocks.1.resid_post"][1, :4] - alone[0]).abs().max() < 1e-5
    assert cache.rows("blocks.1.resid_post").shape == (10, 32)
    assert torch.equal(cache.at("blocks.1.resid_post", -1)[1], cache["blocks.1.resid_post"][1, 3])


def test_grouped_heads_have_their_own_shapes():
    sites = load(module("llama")).sites()
    assert sites["blocks.0.attn.q"] == ("batch", "pos", 4, 8)
    assert (
        sites["blocks.0.attn.k"] == sites["blocks.0.attn.v"] == sites["blocks.0.attn.k_raw"] == ("batch", "pos", 2, 8)
    )


def test_sites_are_listed_in_order_of_depth():
    names = [n.removeprefix("blocks.1.") for n in load(module("llama")).sites() if n.startswith("blocks.1.")]
    inner = ["norm.scale", "in", "q_raw", "k_raw", "q", "k", "v", "scores", "pattern", "z", "result", "out", "write"]
    last = ("norm.scale", "in", "gate", "up", "pre", "post", "out", "write")
    expected = ["resid_pre", *(f"attn.{n}" for n in inner), "resid_mid", *(f"mlp.{n}" for n in last), "resid_post"]
    assert names == expected


def test_recorded_shapes_are_those_of_the_list():
    for name in ("gpt2", "llama", "t5", "vit"):
        model = load(module(name))
        x = inputs_for(name)
        cache = model.record(x, "*")
        for site, shape in model.sites().items():
            got = cache[site].shape
            assert all(g == s for g, s in zip(got, shape, strict=False) if isinstance(s, int)), site


def test_raw_queries_are_the_projections_output():
    model, hf = load(module("qwen3")), module("qwen3")
    cache = model.record(IDS, ["blocks.1.attn.*"])
    layer = hf.model.layers[1].self_attn
    for name, proj in (("q_raw", layer.q_proj), ("k_raw", layer.k_proj), ("v", layer.v_proj)):
        assert torch.equal(cache[f"blocks.1.attn.{name}"].flatten(2), proj(cache["blocks.1.attn.in"]))
    assert torch.equal(cache["blocks.1.attn.out"], layer.o_proj(cache["blocks.1.attn.z"].flatten(2)))


def test_interleaved_fused_projection_is_unpacked():
    model, hf = load(module("pythia")), module("pythia")
    cache = model.record(IDS, ["blocks.0.attn.*"])
    fused = hf.gpt_neox.layers[0].attention.query_key_value(cache["blocks.0.attn.in"]).view(2, 6, 4, 3, 8)
    for k, name in enumerate(("q_raw", "k_raw", "v")):
        assert torch.equal(cache[f"blocks.0.attn.{name}"], fused[..., k, :])


def test_the_forward_stops_after_the_last_site():
    model = load(module("gpt2"))
    ran: list[int] = []
    handles = [
        b.register_forward_hook(lambda m, a, o, i=i: ran.append(i)) for i, b in enumerate(model.module.transformer.h)
    ]
    model.binding  # noqa: B018  (solve first)
    ran.clear()
    model.record(IDS, "blocks.1.attn.pattern")
    assert ran == [0]
    for handle in handles:
        handle.remove()


def test_positions_dtype_and_device():
    model = load(module("llama"))
    full = model.record(IDS, "blocks.1.resid_post")["blocks.1.resid_post"]
    for pos, index in ((2, [2]), (-1, [5]), ([0, 3], [0, 3]), (slice(1, 4), [1, 2, 3]), ("last", [5])):
        kept = model.record(IDS, "blocks.1.resid_post", pos=pos, dtype=torch.float16)["blocks.1.resid_post"]
        assert torch.equal(kept, full[:, index].half()), pos
    assert model.record(IDS, "blocks.0.attn.pattern", pos="last")["blocks.0.attn.pattern"].shape == (2, 4, 1, 6)


def test_module_sites_and_aliases():
    model = load(module("gpt2"))
    cache = model.record(
        IDS, ["module:transformer.h.1.mlp.act", "module:transformer.h.1.ln_2:in", "blocks.1.hook_resid_mid"]
    )
    assert torch.equal(cache["module:transformer.h.1.ln_2:in"], cache["blocks.1.resid_mid"])
    assert torch.equal(cache["blocks.1.hook_resid_mid"], cache["blocks.1.resid_mid"])
    assert load(module("bert")).record(IDS, ["blocks.0.hook_resid_mid"]).keys() == {"blocks.0.attn.sum"}


def test_one_token_and_a_plain_module():
    assert load(module("llama")).record(IDS[:1, :1], "blocks.*.attn.pattern")["blocks.2.attn.pattern"].shape == (
        1,
        4,
        1,
        1,
    )
    plain = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    x = torch.randn(3, 4)
    cache = load(plain).record({"input": x}, ["module:1", "module:2:in"])
    assert torch.equal(cache["module:1"], plain[:2](x))


def test_in_place_changes_do_not_reach_the_record():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            before = self.b(y)
            y += 1
            return y * before

    net, x = InPlace(), torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(load(net).record({"x": x}, ["module:a", "module:"])["module:a"], net.a(x))


def test_lists_of_ids_are_prompts():
    model = load(module("llama"))
    both = model.record([[5, 9, 7], [5, 9]], "blocks.1.resid_post")
    assert torch.equal(both.mask, torch.tensor([[True, True, True], [True, True, False]]))
    assert torch.equal(model.record([5, 9, 7], "logits").logits, model.record(torch.tensor([5, 9, 7]), "logits").logits)
    alone = model.record([5, 9], "blocks.1.resid_post").rows("blocks.1.resid_post")
    assert torch.allclose(both.rows("blocks.1.resid_post")[3:], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.record(IDS, "blocks.1.resid_pots"), "resid_post"),
        (lambda m: m.record(IDS, "blocks.9.resid_post"), "blocks are 0 to 2"),
        (lambda m: m.record(IDS, "blocks.*.atn.*"), "interp sites"),
        (lambda m: m.record(IDS, "module:model.layers.1.mpl"), "model.layers.1.mlp"),
        (lambda m: m.record(IDS, "embed", dtpye=torch.float16), "dtype"),
        (lambda m: m.record("text", "embed"), "tokenizer"),
        (lambda m: m.record([], "embed"), "give text"),
        (lambda m: m.record([5.0, 9], "embed"), "a list for each prompt"),
        (lambda m: m.record([[5, 9], []], "embed"), "prompt 1 has no tokens"),
        (lambda m: m.record(IDS[:, :0], "embed"), "no tokens"),
        (lambda m: m.record(IDS[:0], "embed"), "no tokens"),
        (lambda m: m.record({"input_ids": IDS[:, :0]}, "embed"), "'input_ids' holds nothing"),
        (lambda m: m(IDS[:, :0]), "no tokens"),
        (lambda m: m.generate(IDS[:, :0]), "no tokens"),
        (lambda m: m.record(IDS, []), "nothing to record"),
        (lambda m: m.record(IDS, "blocks.0.mixer.state"), "no site matches"),
        (lambda m: m.record(IDS, "embed")["blocks.0.resid_post"], "Recorded: embed"),
        (lambda m: m.record(IDS, "embed", pos="first"), "'last'"),
        (lambda m: m.width("blocks.0.attn.pattern"), "no fixed width"),
        (lambda m: load(m.module, dtype="float64"), "as it is"),
        (lambda m: load("./nowhere"), "no folder"),
        (lambda m: interp.lode("x"), "load"),
    ],
)
def test_errors_teach(call, words):
    with pytest.raises((WrongUse, AttributeError), match=words):
        call(load(module("llama")))


def test_parallel_blocks_say_why_there_is_no_middle():
    with pytest.raises(WrongUse, match="parallel"):
        load(module("pythia")).record(IDS, "blocks.0.resid_mid")


def test_a_recording_that_does_not_fit_is_refused_with_its_costs(monkeypatch):
    with pytest.raises(Failed, match=r"blocks\.0\.attn\.pattern \(8\.00 GiB\)"):
        check_plan({"blocks.0.attn.pattern": 8 * 2**30, "embed": 10}, 2**30)
    model = load(module("llama"))
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    model.record(IDS, "blocks.*.attn.pattern")  # a few KiB are not asked about
    monkeypatch.setattr(memory, "SMALL", 0)
    with pytest.raises(Failed, match="pos="):
        model.record(IDS, "blocks.*.attn.pattern")


def test_loading_changes_nothing_and_leaves_no_hook():
    net = copy.deepcopy(module("gpt2")).train()
    net.transformer.h[0].eval()
    modes = [m.training for m in net.modules()]
    config, forwards = net.config.to_dict(), [m.__dict__.get("forward") for m in net.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]  # transformers leaves its own
    model = load(net)
    model.record(IDS, "*")
    with pytest.raises(WrongUse):
        model.record({"input_ids": IDS, "decoder_input_ids": IDS}, "blocks.0.nothing")
    assert [m.training for m in net.modules()] == modes
    assert net.config.to_dict() == config
    assert [m.__dict__.get("forward") for m in net.modules()] == forwards
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()] == hooks
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", CAUSAL)
def test_recording_with_a_cache_given_is_the_same(name):
    """One forward over all tokens equals two with a KV cache between, float32 (1e-4 of the root mean square)."""
    if name == "mamba":
        return
    model, net = load(module(name)), module(name)
    whole = model.record(IDS, ["blocks.2.resid_post", "blocks.1.attn.pattern"])
    with torch.no_grad():
        first = net(IDS[:, :4], use_cache=True)
    rest = model.record(
        {"input_ids": IDS[:, 4:], "past_key_values": first.past_key_values},
        ["blocks.2.resid_post", "blocks.1.attn.pattern"],
    )
    for site, expected in (("blocks.2.resid_post", whole["blocks.2.resid_post"][:, 4:]),):
        assert (rest[site] - expected).abs().max() < 1e-4 * expected.square().mean().sqrt()
    pattern = rest["blocks.1.attn.pattern"]
    assert (pattern - whole["blocks.1.attn.pattern"][:, :, 4:, -pattern.shape[-1] :]).abs().max() < 1e-5
