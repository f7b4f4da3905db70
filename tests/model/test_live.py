"""Models as they are found in the wild: really compiled, really quantised."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

import interp
from interp import Failed, Replace, Steer, WrongUse, Zero
from interp.model import Model, load
from interp.model.proof import by_letter, doctor
from tests.model.shapes import module
from tests.model.wrapped import wrapped

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
INNER = ["blocks.1.attn.pattern", "blocks.1.attn.z", "blocks.2.mlp.post", "blocks.1.resid_mid", "logits"]
EDITS = [Zero("blocks.1.attn.pattern", head=2), Steer("blocks.0.resid_post", torch.linspace(-2, 2, 32), pos=3)]


def logits(net: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return net(IDS).logits


# ---------------------------------------------------------------- compiled


def whole(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="aot_eager")
    return net


def layers(net: nn.Module) -> nn.Module:
    for i, layer in enumerate(net.model.layers):
        net.model.layers[i] = torch.compile(layer, backend="eager")
    return net


@pytest.mark.slow("torch.compile traces every layer")
@pytest.mark.parametrize(("compiled", "named"), [(whole, "the model"), (in_place, "the model"), (layers, "layers.2")])
def test_a_compiled_model_is_recorded_and_edited_as_if_it_were_not(compiled, named):
    torch.compiler.reset()
    own = copy.deepcopy(module("llama"))
    plain, net = wrapped("llama"), compiled(own)
    before = logits(net)  # it is compiled by now
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    with pytest.warns(UserWarning, match=rf"run uncompiled here, since hooks do not fire.*{named}"):
        model = load(net)
    assert model.module.lm_head is own.lm_head  # the parameters are shared
    for edits in ([], EDITS):
        here, there = (m.record(IDS, INNER, edits=edits) for m in (model, plain))
        assert all(torch.equal(here[n], there[n]) for n in INNER)
    with model.edit(*EDITS, strict=True) as edited:
        changed = edited.generate(IDS, 5)
        assert [model.fired(e) for e in EDITS] == [5, 1]
    with plain.edit(*EDITS):
        assert torch.equal(plain.generate(IDS, 5), changed)
    slope = model.record(IDS, INNER[:1], grad=lambda x: x[0, -1, 3]).grad[INNER[0]]
    assert torch.equal(slope, plain.record(IDS, INNER[:1], grad=lambda x: x[0, -1, 3]).grad[INNER[0]])
    assert torch.equal(logits(net), before)  # the model given stays compiled and clean


# ---------------------------------------------------------------- quantised


@cache
def int8() -> nn.Module:
    """A Llama whose matrices are packed in 8 bits, and whose products round what they receive to 8 bits, too."""
    with pytest.warns((DeprecationWarning, UserWarning)):  # torch moves this to torchao
        return torch.ao.quantization.quantize_dynamic(module("llama"), {nn.Linear}, dtype=torch.qint8)


def test_a_quantised_model_is_recorded_and_edited():
    net, model = int8(), load(int8())
    assert model.sites() == wrapped("llama").sites()
    cache = model.record(IDS, "*")
    assert torch.equal(cache.logits, logits(net))
    assert 0 < (cache.logits - logits(module("llama"))).abs().max() < 0.1 * cache.logits.abs().max()
    layer = net.model.layers[1]
    assert torch.equal(cache["blocks.1.attn.q_raw"].flatten(2), layer.self_attn.q_proj(cache["blocks.1.attn.in"]))
    assert torch.equal(cache["blocks.1.mlp.out"], layer.mlp.down_proj(cache["blocks.1.mlp.post"]))
    assert torch.equal(cache["blocks.1.attn.out"], layer.self_attn.o_proj(cache["blocks.1.attn.z"].flatten(2)))
    edited = model.record(IDS, ["blocks.1.attn.z", "blocks.1.attn.out"], edits=[Zero("blocks.1.attn.z", head=1)])
    z = cache["blocks.1.attn.z"].clone()
    z[:, :, 1] = 0
    assert torch.equal(edited["blocks.1.attn.out"], layer.self_attn.o_proj(z.flatten(2)))
    first = torch.eye(6)[0]
    looked = model.record(IDS, "blocks.1.attn.z", edits=[Replace("blocks.1.attn.pattern", first)])["blocks.1.attn.z"]
    expected = cache["blocks.1.attn.v"][:, :1].repeat_interleave(2, dim=2).expand_as(looked)
    assert torch.allclose(looked, expected, atol=1e-6)


def test_a_quantised_model_proves():
    assert {p["status"] for p in by_letter(doctor(load(int8()))).values()} == {"pass"}


def test_a_quantised_model_has_no_gradients_and_says_what_holds_its_weights():
    for call in (
        lambda m: m.record(IDS, "embed", grad=lambda x: x.sum()),
        lambda m: interp.attribution_patching(m, IDS, IDS.flip(1), "embed", lambda x: x[:, -1, 3]),
    ):
        with pytest.raises(
            WrongUse, match=r"is quantised \('model\.layers\.0\.self_attn\.q_proj\S* holds torch.qint8\)"
        ):
            call(load(int8()))


def test_quantised_weights_are_dequantised_on_request_and_read_only():
    """As the module applies them: to 1e-6; half a step of 8 bits from the real ones."""
    weights, real, layer = load(int8()).weights, wrapped("llama").weights, int8().model.layers[1]
    stored = {
        "attn.W_Q": layer.self_attn.q_proj.weight().dequantize().view(4, 8, 32).mT,
        "attn.W_V": layer.self_attn.v_proj.weight().dequantize().view(2, 8, 32).mT,
        "attn.W_O": layer.self_attn.o_proj.weight().dequantize().T.view(4, 8, 32),
        "mlp.W_out": layer.mlp.down_proj.weight().dequantize().T,
    }
    for name, expected in stored.items():
        name = f"blocks.1.{name}"
        assert torch.allclose(weights[name], expected, atol=1e-6)
        assert (weights[name] - real[name]).abs().max() <= 0.51 * 2 * real[name].abs().max() / 127
        with pytest.raises(WrongUse, match="read-only"):
            weights.set(name, expected)


def test_a_quantised_model_without_a_config_keeps_its_modules():
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.warns((DeprecationWarning, UserWarning)):
        net = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(3, 8)
    assert torch.equal(load(net).record({"input": x}, "module:1")["module:1"], net[:2](x))
    with pytest.raises(Failed, match="config"):
        load(net, example=x).sites()


def test_a_config_that_says_quantised_has_a_twin_of_plain_matrices():
    net = copy.deepcopy(module("gpt2"))
    net.config.quantization_config = {"bits": 4}
    assert {p["status"] for p in by_letter(doctor(Model(net))).values()} == {"pass"}
