"""The solver, and the proofs that must reject a wiring that is not the model's."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import interp.model
from interp.errors import WrongUse
from interp.model import load
from interp.model.inputs import probe_inputs
from interp.model.model import Model
from interp.model.proof import Proof, _remainder, by_letter, doctor, norm_error, prove_sums, sum_error
from interp.model.stacks import solve
from interp.model.state import CLAIM
from interp.model.tiny import tiny
from interp.model.trace import trace
from interp.model.twin import Lifted, twin_of
from interp.model.wiring import Block, Place, Sum, Wiring
from tests.model.shapes import BUILD, CAUSAL, MORE, NO_SOFTMAX, RECURRENT, module


def traced(name: str):
    twin = twin_of(module(name))
    with Lifted(), torch.no_grad():
        first = trace(twin, probe_inputs(twin))
        return twin, solve(twin, first), trace(twin, probe_inputs(twin, batch=3, length=9, seed=5))


@pytest.mark.parametrize("name", [*BUILD, *MORE])
def test_every_parameter_of_a_twin_is_away_from_its_default(name):
    """None is constant, and nearly every entry of each depends on the seed; three blocks or more, four heads, grouped keys."""
    one, other = (dict(twin_of(module(name), seed).named_parameters()) for seed in (0, 1))
    for path, p in one.items():
        assert (p != other[path]).double().mean() > 0.9, path
        assert p.numel() == 1 or p.std() > 0, path
    if name != "swin":  # two stages of two blocks, two heads and four
        config = twin_of(module(name)).config.get_text_config()
        layers, heads, keys = (
            next((getattr(config, f) for f in fields if getattr(config, f, None)), None)
            for fields in (["num_hidden_layers"], ["num_attention_heads", "num_heads"], ["num_key_value_heads"])
        )
        assert layers >= 3 and heads in (4, None)
        assert keys in (None, 4) or 1 <= keys < 4


def test_saved_zeros_of_a_router_are_drawn_too():
    gate = next(m for n, m in twin_of(tiny("deepseek_v3")).named_modules() if hasattr(m, "e_score_correction_bias"))
    assert gate.e_score_correction_bias.std() > 0.1


@pytest.mark.parametrize("name", [*BUILD, *MORE])
@pytest.mark.check("wrapper proofs", formula="proofs a to h of the doctor: largest error / tolerance", tolerance=1.0)
def test_doctor_proves_every_shape(name, measured):
    proofs = doctor(load(module(name)))
    assert not [p for p in proofs if p.status == "fail"]
    proven = {letter for letter, p in by_letter(proofs).items() if p["status"] == "pass"}
    assert proven >= {"a", "b", "d", "e", "g", "h"}
    assert ("c" in proven) == (name not in NO_SOFTMAX)
    assert any(p.claim == CLAIM for p in proofs) == (name in RECURRENT)
    assert name not in CAUSAL or "f" in proven
    measured(max((p.error or 0.0) / p.tolerance if p.tolerance else float(bool(p.error)) for p in proofs))


def test_what_the_doctor_calls_not_applicable_is_measured():
    why = {p.name: p.why for p in doctor(load(module("mamba"))) if p.error is None}
    assert "no softmax" in why["c"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "sequential"), ("gemma2", "sequential"), ("pythia", "parallel"), ("bert", "post"), ("mamba", "single")],
)
def test_the_shape_of_a_block_is_found(name, kind):
    _, wiring, _ = traced(name)
    block = wiring.stacks[0].blocks[1]
    assert bool(block.norms) == (kind == "post")
    assert ("resid_mid" in block.sites) == (kind in ("sequential", "post"))
    assert sum(len(s.writes) for s in block.sums) == (1 if kind == "single" else 2)
    assert all(abs(c - 1) < 1e-8 for s in block.sums for _, c in s.writes)


def test_post_norm_write_of_gemma2_is_not_the_attention_output():
    sites = traced("gemma2")[1].stacks[0].blocks[0].sites
    assert sites["attn.out"] != sites["attn.write"]
    assert sites["mlp.out"] != sites["mlp.write"]


def test_encoder_and_decoder_have_prefixes_and_cross_attention():
    wiring = traced("t5")[1]
    assert [s.prefix for s in wiring.stacks] == ["encoder.", "decoder."]
    assert "cross_attn.write" in wiring.stacks[1].blocks[0].sites


def broken(block: Block) -> dict[str, Block]:
    """Ways to get a pre-norm block with two writes wrong."""
    mid, post = block.sums
    sites = block.sites
    swapped = sites | {"attn.write": sites["mlp.write"], "mlp.write": sites["attn.write"]}
    both = Sum("resid_post", "resid_pre", (*mid.writes, *post.writes))
    return {
        "a missing write": replace(block, sums=(replace(mid, writes=()), post)),
        "a doubled write": replace(block, sums=(replace(mid, writes=(("attn.write", 2.0),)), post)),
        "a write subtracted": replace(block, sums=(mid, replace(post, writes=(("mlp.write", -1.0),)))),
        "a coefficient off by a thousandth": replace(block, sums=(mid, replace(post, writes=(("mlp.write", 1.001),)))),
        "swapped writes": replace(block, sites=swapped),
        "the wrong base": replace(block, sums=(mid, replace(post, base="resid_pre"))),
        "the stream counted twice": replace(block, sums=(mid, replace(both, base="resid_mid"))),
        "the norm's output for its input": replace(
            block, sites=sites | {"resid_mid": replace(sites["resid_mid"], side="out", key=None)}
        ),
        "the sublayer's input for its output": replace(block, sites=sites | {"mlp.write": sites["mlp.in"]}),
        "an inner projection for the write": replace(
            block, sites=sites | {"attn.write": Place(f"{block.path}.self_attn.q_proj", "out")}
        ),
        "a norm that is not there": replace(block, norms=(("resid_mid", "resid_mid", "mlp.norm.scale"),)),
    }


@pytest.mark.parametrize(
    "how",
    list(
        broken(
            replace(
                Block(),
                sums=(Sum("a", "b", ()), Sum("a", "b", ())),
                sites=dict.fromkeys(["attn.write", "mlp.write", "resid_mid", "mlp.in"], Place("", "out")),
            )
        )
    ),
)
def test_a_broken_wiring_is_rejected(how):
    _, wiring, unseen = traced("llama")
    stack = wiring.stacks[0]
    bad = replace(stack, blocks=(broken(stack.blocks[0])[how], *stack.blocks[1:]))
    kept = prove_sums(Wiring((bad,), wiring.sites), unseen, tolerance=1e-8)
    assert "unproven" in kept.stacks[0].blocks[0].refused["*"]
    assert set(kept.stacks[0].blocks[0].sites) == {"resid_pre", "resid_post"}
    assert kept.stacks[0].blocks[1] == stack.blocks[1]


def damaged_wirings(wiring: Wiring) -> dict[str, tuple[str, Wiring]]:
    """A wiring of a pre-norm model damaged in one block, and the proof that must see it."""
    stack = wiring.stacks[0]
    block = stack.blocks[1]
    sites, core = block.sites, block.cores["attn"]
    up = sites["mlp.up"]
    ways = {
        "swapped writes": ("b", broken(block)["swapped writes"]),
        "a missing write": ("b", broken(block)["a missing write"]),
        "a norm that is not there": ("b", broken(block)["a norm that is not there"]),
        "a module that is not there": ("b", replace(block, sites=sites | {"mlp.write": Place("nowhere", "out")})),
        "no attention": ("c", replace(block, cores={})),
        "another module's softmax": ("c", replace(block, cores={"attn": replace(core, path=up.path)})),
        "the attention's output before its last matrix": (
            "c",
            replace(block, sites=sites | {"attn.out": replace(sites["attn.in"])}),
        ),
        "the gate for the down projection's input": ("h", replace(block, sites=sites | {"mlp.post": up})),
    }
    return {
        how: (letter, replace(wiring, stacks=(replace(stack, blocks=(stack.blocks[0], bad, *stack.blocks[2:])),)))
        for how, (letter, bad) in ways.items()
    }


def test_a_wiring_comes_back_from_json_as_it_was():
    for name in ("llama", "bert", "t5", "mixtral"):
        wiring = load(module(name)).wiring
        assert Wiring.from_json(json.loads(json.dumps(wiring.to_json()))) == wiring
    with pytest.raises(WrongUse, match="prefix"):
        Wiring.from_json(load(module("bert")).wiring.to_json() | {"prefixes": []})
    with pytest.raises(WrongUse, match="no wiring"):
        Wiring.from_json({"stacks": 3})


@pytest.mark.parametrize("how", list(damaged_wirings(load(module("llama")).wiring)))
def test_the_doctor_names_the_proof_that_a_damaged_wiring_fails(how):
    letter, bad = damaged_wirings(load(module("llama")).wiring)[how]
    assert by_letter(doctor(load(module("llama")), bad))[letter]["status"] == "fail"


def remainder(net: nn.Module, wrong: dict[str, str]) -> Proof:
    """The proof that z makes the output, on a twin some of whose sites stand for others."""
    twin = Model(twin_of(net))
    twin.binding.sites.update({name: twin.binding.sites[other] for name, other in wrong.items()})
    with Lifted():
        return next(p for p in _remainder(twin, probe_inputs(twin.module, batch=3)) if p.name == "c")


def test_what_makes_no_output_is_not_taken_for_z():
    assert remainder(module("bitnet"), {}).status == "pass"  # a norm stands between z and the matrix
    wrong = remainder(module("llama"), {"blocks.1.attn.z": "blocks.1.attn.q_raw"})
    assert wrong.status == "fail" and "blocks.1.attn.out" in wrong.why
    gated = remainder(tiny("qwen3_next"), {})
    assert gated.status == "na" and "more than z enters" in gated.why


def test_a_doubled_norm_is_rejected_in_a_post_norm_block():
    _, wiring, unseen = traced("bert")
    block = wiring.stacks[0].blocks[0]
    assert norm_error(unseen, block, *block.norms[0]) < 1e-12
    doubled = replace(block, sites=block.sites | {"attn.sum": replace(block.sites["resid_mid"])})
    assert sum_error(unseen, doubled, block.sums[0]) > 1e-3


class Doubled(torch.autograd.Function):
    """x forward, with a slope that is off by a thousandth."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return 1.001 * slope


def test_a_gradient_that_is_off_by_a_thousandth_is_rejected():
    net = copy.deepcopy(module("llama"))
    net.model.norm.register_forward_hook(lambda m, a, out: Doubled.apply(out))
    proof = by_letter(doctor(load(net)))["g"]
    assert proof["status"] == "fail" and proof["error"] == pytest.approx(1e-3, rel=1e-3)


class Odd(nn.Module):
    """A block that multiplies the stream: no sum explains it."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(32, 32)

    def forward(self, hidden_states, **kwargs):
        return hidden_states * self.lin(hidden_states)


def test_an_unexplained_block_keeps_its_ends_and_says_why():
    model = twin_of(module("llama")).to(torch.float32)
    model.model.layers[1] = Odd()
    wrapped = load(model)
    assert "blocks.1.resid_post" in wrapped.sites()
    assert "blocks.1.attn.write" not in wrapped.sites()
    with pytest.raises(ValueError, match="could not be solved"):
        wrapped.record(torch.tensor([[3, 4, 5]]), ["blocks.1.mlp.post"])


def test_no_architecture_is_named_in_the_code():
    """Model types of transformers may stand in the data table, nowhere in the code."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    words = {w for n in CONFIG_MAPPING_NAMES for w in (n, n.replace("_", "")) if len(w) > 3}
    words -= {"align", "decoder", "vision"}  # ordinary words
    for file in sorted(Path(interp.model.__file__).parent.glob("*.py")):
        found = set(re.findall(r"[a-z][a-z0-9_]+", file.read_text().lower())) & words
        assert not found, f"{file.name} names {found}"
    assert json.loads((Path(interp.model.__file__).parent / "table.json").read_text())["sizes"]
