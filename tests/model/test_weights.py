"""Weights by name: every layout, proven against the recorded sites; circuits made of them, against the plain product."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from interp import Failed, WrongUse
from interp.model import load
from interp.model.inputs import probe_inputs
from interp.model.model import Model
from interp.model.twin import Lifted, twin_of
from interp.model.weights import prove_weights, weight_errors
from tests.model.shapes import BUILD, module

OTHERS = ["gptj", "gpt_neo", "falcon one key head", "falcon grouped", "mistral", "phi3", "olmo2", "gemma3", "granite"]
ALL = [*BUILD, *OTHERS, "roberta", "bart", "bloom", "whisper"]
ATTENTION, BIASES = {"W_Q", "W_K", "W_V", "W_O"}, {"b_Q", "b_K", "b_V", "b_O"}
GLU, PLAIN = {"W_gate", "W_up", "W_out"}, {"W_in", "W_out"}


def built(name: str) -> nn.Module:
    """A shape, every parameter drawn away from its default; a copy of one's own."""
    return copy.deepcopy(module(name))


def of(net: nn.Module) -> Model:
    """The float64 twin of a network, wrapped."""
    return Model(twin_of(net))


@cache
def twin(name: str) -> Model:
    """The twin of a shape; shared between tests, so leave it as it is."""
    model = of(built(name))
    with Lifted():
        model.weights  # noqa: B018
    return model


@cache
def inputs(name: str) -> dict[str, Any]:
    return probe_inputs(twin(name).module, batch=3, length=7, seed=2)


# ---------------------------------------------------------------- every name, proven


@pytest.mark.parametrize("name", ALL)
@pytest.mark.check("wrapper proofs", formula="proof h: weights by name reproduce the recorded sites", tolerance=1e-10)
def test_weights_by_name_reproduce_the_sites(name, measured):
    """Relative to each site's norm; the largest is a few float64 roundings, 1e-10 leaves room for other matrix products."""
    proof = prove_weights(twin(name), inputs(name))
    assert proof.status == "pass" and proof.name == "h"
    measured(proof.error)


def parts(model: Model, role: str) -> set[str]:
    return {n.removeprefix(role + ".") for n in model.weights if n.startswith(role + ".") and "norm" not in n}


@pytest.mark.parametrize(
    ("name", "attention", "mlp", "others"),
    [
        (
            "gpt2",
            ATTENTION | BIASES,
            PLAIN | {"b_in", "b_out"},
            {"W_E", "W_pos", "W_U", "final_norm.w", "final_norm.b"},
        ),
        ("llama", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("pythia", ATTENTION | BIASES, PLAIN | {"b_in", "b_out"}, {"W_E", "W_U", "final_norm.w", "final_norm.b"}),
        ("gemma2", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("bert", ATTENTION | BIASES, PLAIN | {"b_in", "b_out"}, {"W_E", "W_pos", "W_U", "b_U"}),
        ("roberta", ATTENTION | BIASES, PLAIN | {"b_in", "b_out"}, {"W_E", "W_pos", "W_U", "b_U"}),
        ("vit", ATTENTION | BIASES, PLAIN | {"b_in", "b_out"}, {"W_U", "b_U", "final_norm.w", "final_norm.b"}),
        ("qwen3", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("opt", ATTENTION | BIASES, PLAIN | {"b_in", "b_out"}, {"W_E", "W_U", "final_norm.w", "final_norm.b"}),
        ("gptj", ATTENTION, PLAIN | {"b_in", "b_out"}, {"W_E", "W_U", "b_U", "final_norm.w", "final_norm.b"}),
        ("gpt_neo", ATTENTION | {"b_O"}, PLAIN | {"b_in", "b_out"}, {"W_E", "W_pos", "W_U"}),
        ("falcon one key head", ATTENTION | BIASES, PLAIN | {"b_in", "b_out"}, {"W_E", "W_U"}),
        ("falcon grouped", ATTENTION, PLAIN, {"W_E", "W_U", "final_norm.w", "final_norm.b"}),
        ("mistral", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("phi3", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("olmo2", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("gemma3", ATTENTION, GLU, {"W_E", "W_U", "final_norm.w"}),
        ("granite", ATTENTION | BIASES, GLU, {"W_E", "W_U", "final_norm.w"}),
    ],
)
def test_every_weight_a_model_has_is_named(name, attention, mlp, others):
    model = twin(name)
    for i in range(3):
        assert parts(model, f"blocks.{i}.attn") == attention
        assert parts(model, f"blocks.{i}.mlp") == mlp
        between = {f"blocks.{i}.{s}.{n}.w" for s in ("attn", "mlp") for n in ("norm", "post_norm")}
        absent = {n for n in between if n not in model.weights}
        behind_only = {f"blocks.{i}.{s}.norm.w" for s in ("attn", "mlp")}
        assert absent == (
            set() if name in ("gemma2", "gemma3") else behind_only if name == "olmo2" else between - behind_only
        )
    assert {n for n in model.weights if "blocks" not in n} >= others
    assert ("blocks.0.attn.q_norm.w" in model.weights) == (name in ("qwen3", "olmo2", "gemma3"))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder_have_prefixes_and_cross_attention(name):
    model = twin(name)
    biases = BIASES if name == "bart" else set()
    for role in ("encoder.blocks.1.attn", "decoder.blocks.1.attn", "decoder.blocks.1.cross_attn"):
        assert parts(model, role) == ATTENTION | biases
        assert f"{role}.norm.w" in model.weights
    assert {"encoder.W_E", "decoder.W_E", "W_U"} <= set(model.weights)
    if name == "t5":
        assert model.weights.layout("decoder.blocks.1.cross_attn.W_K").reads == "encoder.final_norm"


def test_shapes_are_those_of_the_convention():
    weights = twin("llama").weights
    assert weights["blocks.1.attn.W_Q"].shape == (4, 32, 8)
    assert weights["blocks.1.attn.W_K"].shape == weights["blocks.1.attn.W_V"].shape == (2, 32, 8)
    assert weights["blocks.1.attn.W_O"].shape == (4, 8, 32)
    assert weights["blocks.1.mlp.W_gate"].shape == weights["blocks.1.mlp.W_up"].shape == (32, 48)
    assert weights["blocks.1.mlp.W_out"].shape == (48, 32)
    assert weights["W_E"].shape == (61, 32) and weights["W_U"].shape == (32, 61)
    assert weights.stack("blocks.*.attn.W_Q").shape == (3, 4, 32, 8)
    assert twin("gpt2").weights["blocks.0.attn.b_Q"].shape == (4, 8)
    assert twin("gpt2").weights["blocks.0.attn.b_O"].shape == (32,)


def test_fused_and_interleaved_layouts_are_the_parameters_they_are():
    """Against the model's own way of taking its projections apart."""
    pythia, grouped, phi3, gpt2 = (twin(n) for n in ("pythia", "falcon grouped", "phi3", "gpt2"))
    fused = pythia.module.gpt_neox.layers[1].attention.query_key_value
    for i, letter in enumerate("QKV"):
        assert torch.equal(pythia.weights[f"blocks.1.attn.W_{letter}"], fused.weight.view(4, 3, 8, 32)[:, i].mT)
        assert torch.equal(pythia.weights[f"blocks.1.attn.b_{letter}"], fused.bias.view(4, 3, 8)[:, i])
    packed = grouped.module.transformer.h[1].self_attention.query_key_value.weight.view(2, 4, 8, 32)
    assert torch.equal(grouped.weights["blocks.1.attn.W_Q"], packed[:, :2].flatten(0, 1).mT)
    assert torch.equal(grouped.weights["blocks.1.attn.W_V"], packed[:, 3].mT)
    gate_up = phi3.module.model.layers[2].mlp.gate_up_proj.weight
    assert torch.equal(phi3.weights["blocks.2.mlp.W_gate"], gate_up[:48].T)
    assert torch.equal(phi3.weights["blocks.2.mlp.W_up"], gate_up[48:].T)
    attention = gpt2.module.transformer.h[0].attn
    assert torch.equal(gpt2.weights["blocks.0.attn.W_K"].transpose(0, 1).flatten(1), attention.c_attn.weight[:, 32:64])
    assert torch.equal(gpt2.weights["blocks.0.attn.W_O"].flatten(0, 1), attention.c_proj.weight)


def test_what_stands_around_a_weight_is_found():
    """Multipliers, caps and offsets, as the configs have them."""
    gemma = twin("gemma2")
    assert gemma.weights.layout("W_E").scale == pytest.approx(32**0.5, rel=1e-6)
    assert gemma.weights.layout("W_U").cap == pytest.approx(gemma.config.final_logit_softcapping, rel=1e-6)
    assert gemma.weights.layout("blocks.0.attn.norm.w").offset == 1.0
    assert twin("llama").weights.layout("blocks.0.attn.norm.w").offset == 0.0
    assert twin("granite").weights.layout("W_U").multiplier == pytest.approx(1 / 3, rel=1e-6)
    assert twin("t5").weights.layout("W_U").scale == pytest.approx(32**-0.5, rel=1e-6)
    roberta = twin("roberta")  # its positions start behind the padding row
    assert torch.equal(roberta.weights["W_pos"], roberta.module.roberta.embeddings.position_embeddings.weight[1:])
    assert roberta.weights.layout("W_U").reads == "module:lm_head.decoder:in"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "gemma2", "bert"])
def test_the_layouts_of_real_weights_are_those_of_the_twin(name, dtype):
    real, exact = load(built(name).to(dtype)).weights.layouts, twin(name).weights.layouts
    assert list(real) == list(exact)
    for n, layout in real.items():
        assert (layout.path, layout.parameter, layout.turned) == (exact[n].path, exact[n].parameter, exact[n].turned)
        assert layout.columns is None or torch.equal(layout.columns, exact[n].columns)


# ---------------------------------------------------------------- a wrong mapping does not pass


def damaged(layouts) -> dict[str, str]:
    """Break several mappings, each of another weight: what was done by the name whose error must show it."""
    root = next(n for n in layouts if n.endswith("blocks.0.attn.W_Q")).removesuffix("0.attn.W_Q")
    one, two, done = f"{root}1.attn.", f"{root}2.attn.", {}

    def put(name: str, how: str, **change: Any) -> None:
        layouts[name], done[name] = replace(layouts[name], **change), how

    queries, mixed = layouts[one + "W_Q"], layouts[two + "W_O"]
    put(one + "W_Q", "swapped heads", columns=swapped(queries))
    put(two + "W_O", "swapped heads of z", columns=swapped(mixed))
    keys = layouts[two + "W_K"]
    columns = keys.columns.view(keys.heads, -1).repeat(queries.heads // keys.heads, 1).flatten()
    put(two + "W_Q", "keys for queries", path=keys.path, columns=columns)
    put(one + "W_O", "a square matrix the other way round", turned=not layouts[one + "W_O"].turned)
    put("W_U", "a wrong multiplier", multiplier=1.01 * layouts["W_U"].multiplier)
    put(next(n for n in layouts if n.endswith("W_E")), "the next row of the table", columns=torch.arange(61).roll(-1))
    norm = next(n for n in layouts if n.startswith(one) and n.endswith("norm.w"))
    put(norm, "an offset that is none", offset=1.0 - layouts[norm].offset)
    bias = next((n for n in layouts if n.rsplit(".", 1)[-1] in ("b_in", "b_gate", "b_K")), None)
    if bias is not None:
        del layouts[bias]
        done[bias.replace("b_", "W_")] = "a missed bias"
    return done


def swapped(layout) -> torch.Tensor:
    """Its columns with the first two heads exchanged."""
    return layout.columns.view(layout.heads, -1)[[1, 0, *range(2, layout.heads)]].flatten()


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("mamba", "vit")])
def test_damaged_mappings_are_detected_and_no_other_is_blamed(name):
    """A broken weight is off by at least a thousandth (it is of order one), all others by roundings."""
    weights = twin(name).weights
    intact = dict(weights.layouts)
    try:
        done = damaged(weights.layouts)
        with Lifted():
            errors = weight_errors(twin(name), inputs_of(twin(name)))
            assert prove_weights(twin(name), inputs_of(twin(name))).status == "fail"
    finally:
        weights.layouts = intact
    for broken, how in done.items():
        assert errors.pop(broken) > 1e-3, how
        for beside in (broken.replace("W_", "b_"), broken.removesuffix("w") + "b"):  # it made the same values
            errors.pop(beside, None)
    assert max(errors.values()) < 1e-10


def inputs_of(model: Model) -> dict[str, Any]:
    return probe_inputs(model.module, batch=2, length=6, seed=8)


# ---------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "phi3", "t5", "falcon one key head"])
def test_views_share_the_parameters_memory_and_writing_changes_the_model(name):
    model = of(built(name))
    spaces = [(p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in model.module.parameters()]
    frame = model.weights.to_frame().set_index("name")
    assert set(frame["kind"]) == {"view"}
    for n in model.weights:
        assert any(low <= model.weights[n].data_ptr() < high for low, high in spaces), n
    x = probe_inputs(model.module)
    prefix = "decoder." if name == "t5" else ""
    for n in (f"{prefix}blocks.1.attn.W_V", f"{prefix}blocks.2.mlp.W_out", "W_U"):
        before = model.module(**x).logits
        model.weights[n].mul_(1.5)
        assert not torch.equal(model.module(**x).logits, before), n


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia", "phi3", "falcon grouped", "gemma3", "t5"])
def test_set_writes_back_through_every_layout(name):
    """All attention and MLP weights of a block replaced by name: the sites follow, and the proof still holds."""
    model = of(built(name))
    generator = torch.Generator().manual_seed(1)
    block = ("decoder." if name == "t5" else "") + "blocks.1."
    changed = [n for n in model.weights if n.startswith(block)]
    kept = {n: model.weights[n].clone() for n in model.weights if n not in changed}
    new = {n: 0.3 * torch.randn(model.weights[n].shape, generator=generator, dtype=torch.float64) for n in changed}
    for n, value in new.items():
        model.weights.set(n, value)
    for n, value in (new | kept).items():
        assert torch.equal(model.weights[n], value), n
    with Lifted():
        assert prove_weights(model, inputs_of(model)).status == "pass"
    cache = model.record(inputs_of(model), [block + "attn.in", block + "attn.q_raw"])
    made = torch.einsum("bpd,hde->bphe", cache[block + "attn.in"], new[block + "attn.W_Q"])
    made = made + new.get(block + "attn.b_Q", 0.0)
    assert (made - cache[block + "attn.q_raw"]).abs().max() < 1e-12


def test_tied_weights_move_together_and_say_so():
    model = of(built("gpt2"))
    model.weights.set("W_E", torch.ones(61, 32))
    assert torch.equal(model.weights["W_U"], torch.ones(32, 61, dtype=torch.float64))
    frame = model.weights.to_frame().set_index("name")
    assert frame.loc["W_U", "note"] == "tied to W_E"
    assert frame.loc["blocks.0.attn.W_Q", "parameter"] == "transformer.h.0.attn.c_attn.weight"
    assert twin("falcon grouped").weights.to_frame().set_index("name").loc["blocks.0.attn.W_Q", "kind"] == "copy"


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("llama", lambda w: w["blocks.1.attn.W_q"], "W_Q"),
        ("llama", lambda w: w["blocks.0.mlp.W_in"], "GLU.*W_gate"),
        ("gpt2", lambda w: w["blocks.0.mlp.W_gate"], "no gate"),
        ("llama", lambda w: w["blocks.0.attn.b_Q"], "q_proj has no bias"),
        ("llama", lambda w: w["W_pos"], "rotary"),
        ("vit", lambda w: w["W_E"], "no table of tokens"),
        ("olmo2", lambda w: w["blocks.0.attn.norm.w"], "no norm with parameters"),
        ("llama", lambda w: w.set("W_U", torch.ones(61, 32)), r"\(32, 61\).*\(61, 32\)"),
        ("llama", lambda w: w.set("W_u", torch.ones(61, 32)), "W_U"),
        ("llama", lambda w: w.stack("blocks.*.attn.W_[QK]"), r"\(4, 32, 8\).*\(2, 32, 8\)"),
        ("llama", lambda w: w.stack("blocks.*.atn.W_Q"), "list"),
        ("llama", lambda w: w.stack("blocks.*.mlp.W_in"), "GLU"),
        ("llama", lambda w: w.composition("O"), '"Q", "K" or "V"'),
        ("t5", lambda w: w.composition("Q"), r"decoder\.blocks\.0\.attn"),
        ("llama", lambda w: w.singular(("blocks.0.attn.W_Q", "blocks.0.attn.W_K")), "do not multiply"),
        ("llama", lambda w: w.singular("blocks.9.attn.OV"), "no weight"),
    ],
)
def test_errors_teach(name, call, words):
    with pytest.raises(WrongUse, match=words):
        call(twin(name).weights)


def test_a_model_without_sites_says_why():
    with pytest.raises(Failed, match="example="):
        load(nn.Sequential(nn.Linear(4, 4))).weights  # noqa: B018


def test_reading_weights_changes_nothing_and_leaves_no_hook():
    net = built("llama").train()
    before = {n: p.clone() for n, p in net.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]  # transformers leaves some
    model = load(net)
    assert not any(model.weights[n].requires_grad for n in model.weights)
    assert all(m.training for m in net.modules()) and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    assert "W_Q" not in model.weights and model.weights.get("W_Q") is None


# ---------------------------------------------------------------- modules that do not apply what they store


class Adapted(nn.Module):
    """A matrix with a low-rank adapter beside it; `weight` is the matrix without the adapter."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Parameter(torch.randn(2, 32)), nn.Parameter(torch.randn(32, 2))

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


class Rounded(nn.Module):
    """Weights kept as int8 and one scale a row."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Parameter(base.weight.detach().abs().amax(1, keepdim=True) / 127, requires_grad=False)
        self.register_buffer("weight", (base.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = base.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class RoundsInputs(nn.Linear):
    """Rounds what it receives to few steps: no matrix does that."""

    def forward(self, x):
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 7
        return super().forward((x / step).round() * step)


def with_value_projection(make) -> Model:
    net = built("qwen3")
    for layer in net.model.layers:
        layer.self_attn.o_proj = make(nn.Linear(32, 32))
    return of(net)


@pytest.mark.parametrize("make", [Adapted, Rounded])
def test_what_a_module_applies_is_found_by_feeding_it_the_identity(make):
    model = with_value_projection(make)
    with Lifted():
        proof = prove_weights(model, inputs_of(model))
        weights = model.weights
    assert proof.status == "pass"
    o = model.module.model.layers[1].self_attn.o_proj
    matrix = o.base.weight + o.b @ o.a if make is Adapted else o.weight * o.scale
    assert (weights["blocks.1.attn.W_O"].flatten(0, 1) - matrix.T).abs().max() < 1e-12
    bias = o.base.bias if make is Adapted else o.bias
    assert torch.equal(weights["blocks.1.attn.b_O"], bias)
    assert weights.to_frame().set_index("name").loc["blocks.1.attn.W_O", "kind"] == "read-only"
    with pytest.raises(WrongUse, match="read-only"):
        weights.set("blocks.1.attn.W_O", torch.zeros(4, 8, 32))


def test_a_module_that_is_not_affine_has_no_matrix_and_says_so():
    model = with_value_projection(lambda base: RoundsInputs(32, 32))
    with Lifted():
        weights = model.weights
    with pytest.raises(WrongUse, match="not affine"):
        weights["blocks.1.attn.W_O"]
    assert "blocks.1.attn.W_V" in weights


# ---------------------------------------------------------------- circuits


def circuits(weights, role: str, heads: int):
    q, k, v, o = (weights[f"{role}.W_{w}"] for w in "QKVO")
    k, v = (t.repeat_interleave(heads // len(t), dim=0) for t in (k, v))
    return q @ k.mT, v @ o


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
@pytest.mark.parametrize("name", ["gpt2", "falcon grouped"])
def test_composition_scores_are_those_of_the_plain_products(name, kind):
    weights = twin(name).weights
    made = weights.composition(kind)
    qk, ov = zip(*(circuits(weights, f"blocks.{i}.attn", 4) for i in range(3)), strict=True)
    for i, h, j, g in torch.cartesian_prod(*(torch.arange(n) for n in (3, 4, 3, 4))).tolist():
        reads = {"Q": qk[j][g], "K": qk[j][g].T, "V": ov[j][g]}[kind]
        plain = (ov[i][h] @ reads).norm() / (ov[i][h].norm() * reads.norm()) if i < j else torch.tensor(0.0)
        assert abs(float(made.scores[i, h, j, g] - plain)) < 1e-13
    frame = made.to_frame()
    assert len(frame) == 3 * 16 and frame["score"].is_monotonic_decreasing
    top = frame.iloc[0]
    i, j = made.attentions.index(top["sender"]), made.attentions.index(top["receiver"])
    assert float(made.scores[i, top["sender_head"], j, top["receiver_head"]]) == top["score"]
    assert len(made.plot().data) == 1


@pytest.mark.parametrize(("circuit", "number"), [("QK", 0), ("OV", 1)])
def test_singular_directions_are_those_of_the_full_product(circuit, number):
    weights = twin("llama").weights
    product = circuits(weights, "blocks.1.attn", 4)[number]
    made = weights.singular(f"blocks.1.attn.{circuit}")
    assert made.values.shape == (4, 8) and made.left.shape == made.right.shape == (4, 32, 8)
    assert (made.values - torch.linalg.svdvals(product)[:, :8]).abs().max() < 1e-12
    assert (made.left * made.values[:, None] @ made.right.mT - product).abs().max() < 1e-12
    for side in (made.left, made.right):
        assert (side.mT @ side - torch.eye(8)).abs().max() < 1e-12
    frame = made.to_frame()
    assert len(frame) == 32 and frame.groupby("head")["share"].last().sub(1).abs().max() < 1e-12
    assert len(made.plot().data) == 4


def test_singular_directions_of_one_matrix_and_of_a_pair():
    weights = twin("llama").weights
    one = weights.singular("blocks.1.mlp.W_out")
    assert (one.left * one.values @ one.right.T - weights["blocks.1.mlp.W_out"]).abs().max() < 1e-12
    pair = weights.singular(("blocks.0.attn.W_O", "blocks.1.attn.W_V"))  # what head h writes, in head h's next values
    spread = weights["blocks.1.attn.W_V"].repeat_interleave(2, dim=0)
    product = weights["blocks.0.attn.W_O"] @ spread
    assert (pair.left * pair.values[:, None] @ pair.right.mT - product).abs().max() < 1e-12
