"""Gradients at sites: against central differences, for every kind of site; and what they leave alone."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
import torch

import interp
from interp import Replace, Scale, WrongUse, Zero
from interp.model import load
from interp.model.twin import Lifted
from tests.model.shapes import module
from tests.model.wrapped import wrapped

IDS = torch.tensor([[5, 9, 11, 3, 8, 20]])
OTHER = torch.tensor([[5, 9, 33, 3, 8, 20]])


def inputs_for(name):
    return {"input_ids": IDS, "decoder_input_ids": IDS[:, 1:5]} if name == "t5" else IDS


def weighted(logits):
    """One number a row, from every logit."""
    weight = torch.linspace(-1, 1, logits[0].numel(), dtype=logits.dtype).reshape(logits.shape[1:])
    return (weight * logits.tanh()).flatten(1).sum(1)


def moved(site, place, step):
    def value(x):
        new = x.clone()
        new[(slice(None), *place)] += step
        return new

    return Replace(site, value)


def sites_of(model, name):
    """Every kind of site: the middle block's, and those outside the blocks."""
    blocks = ("encoder.blocks.1.", "decoder.blocks.1.") if name == "t5" else ("blocks.1.",)
    return [n for n in model.sites() if "blocks." not in n or n.startswith(blocks)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "pythia", "bert", "t5"])
def test_gradients_match_central_differences(name):
    """float64, three coordinates a site: (f(x + h) - f(x - h)) / 2h, h = 1e-7 (a larger one crosses kinks of T5's ReLU); relative 1e-4."""
    model, x, h = wrapped(name, torch.float64), inputs_for(name), 1e-7
    generator = torch.Generator().manual_seed(1)
    with Lifted():
        sites = sites_of(model, name)
        assert any("pattern" in s for s in sites) and any("result" in s for s in sites)
        cache = model.record(x, sites, grad=lambda logits: weighted(logits).sum())
        edits, expected, where = [], [], []
        for site in sites:
            slope = cache.grad[site]
            assert slope.shape == cache[site].shape
            finite = cache[site][0].isfinite().flatten().nonzero().flatten()
            for _ in range(3):
                flat = int(finite[torch.randint(len(finite), (1,), generator=generator)])
                place = [int(i) for i in torch.unravel_index(torch.tensor(flat), slope.shape[1:])]
                edits += [moved(site, place, h), moved(site, place, -h)]
                expected.append(float(slope[(0, *place)]))
                where.append((site, place))
        values = model.sweep(edits, x, weighted, batch=64).values
    found = (values[0::2] - values[1::2]) / (2 * h)
    scale = {site: float(cache.grad[site].square().mean().sqrt()) for site in sites}
    for got, exact, (site, place) in zip(found.tolist(), expected, where, strict=True):
        assert abs(got - exact) <= 1e-4 * max(abs(exact), scale[site], 1e-5), (site, place, got, exact)


def test_parameters_modes_and_the_callers_grad_mode_are_left_alone():
    net = copy.deepcopy(module("llama"))
    for i, p in enumerate(net.parameters()):
        p.requires_grad_(i % 2 == 0)
    wanted, model = [p.requires_grad for p in net.parameters()], load(net)
    expected = model.record(IDS, "blocks.1.attn.q", grad=lambda x: x[:, -1, 3].sum()).grad["blocks.1.attn.q"]
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert all(p.grad is None for p in net.parameters())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            again = model.record(IDS.clone(), "blocks.1.attn.q", grad=lambda x: x[:, -1, 3].sum())
            assert not torch.is_grad_enabled()
        assert torch.equal(again.grad["blocks.1.attn.q"], expected)
    net.requires_grad_(False)
    again = model.record(IDS, "blocks.1.attn.q", grad=lambda x: x[:, -1, 3].sum())
    assert torch.equal(again.grad["blocks.1.attn.q"], expected)
    assert not again["blocks.1.attn.q"].requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_gradients_see_the_edits_around_them():
    model, site = wrapped("gpt2"), "blocks.1.resid_post"
    plain = model.record(IDS, [site, "blocks.0.resid_post"], grad=lambda x: x[0, -1, 4])
    with model.edit(Zero("blocks.2.mlp.write")):
        inside = model.record(IDS, site, grad=lambda x: x[0, -1, 4], edits=[Scale("blocks.2.attn.write", 2.0)])
    given = model.record(
        IDS, site, grad=lambda x: x[0, -1, 4], edits=[Zero("blocks.2.mlp.write"), Scale("blocks.2.attn.write", 2.0)]
    )
    assert torch.equal(inside.grad[site], given.grad[site])
    assert not torch.equal(inside.grad[site], plain.grad[site])
    assert (plain.grad[site][0, -1] != 0).all()
    cut = model.record(IDS, site, grad=lambda x: x[0, -1, 4], edits=[Zero("blocks.2.resid_post")])
    assert cut.grad[site].abs().max() == 0  # nothing gets through


def test_gradients_keep_positions_and_dtype_and_reach_padding_not_at_all():
    model, site = wrapped("llama"), "blocks.1.resid_post"
    x = interp.Tokens(torch.cat([IDS, OTHER]), torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).bool())
    full = model.record(x, site, grad=lambda logits: logits[0, 3, 7] + logits[1, 5, 7])
    last = model.record(x, site, pos="last", dtype=torch.float16, grad=lambda y: y[0, 3, 7] + y[1, 5, 7])
    assert full.grad[site][0, 4:].abs().max() == 0
    assert torch.equal(last.grad[site][:, 0], torch.stack([full.grad[site][0, 3], full.grad[site][1, 5]]).half())


def test_attribution_patching_is_the_slope_of_patching():
    """Shrinking the step of a patch shrinks the error of the estimate with it (float64): error(h) / h stays bounded."""
    model = wrapped("llama", torch.float64)
    sites = ["blocks.*.resid_pre", "blocks.1.attn.z", "blocks.1.attn.pattern", "blocks.1.attn.scores"]
    with Lifted():
        found = interp.attribution_patching(model, IDS, OTHER, sites, weighted)
        good, bad = model.record(IDS, sites), model.record(OTHER, sites)
        edits, expected = [], []
        steps = (1e-3, 1e-5)
        for site in bad:
            for pos in (2, 4):
                axis = 2 if site.endswith(("pattern", "scores")) else 1
                for step in steps:
                    part = good[site].nan_to_num(neginf=-1e9) - bad[site].nan_to_num(neginf=-1e9)
                    part = part * (torch.arange(6) == pos).view(-1, *[1] * (part.ndim - 1 - axis))
                    edits.append(Replace(site, lambda x, d=step * part: x + d))
                effect = found[site]
                expected.append(float(effect[0, :, pos].sum() if axis == 2 else effect[0, pos].sum()))
        table = model.sweep(edits, OTHER, weighted)
    measured = (table.values - table.clean).reshape(-1, 2) / torch.tensor(steps, dtype=torch.float64)
    for (rough, fine), exact in zip(measured.tolist(), expected, strict=True):
        assert abs(fine - exact) <= 0.05 * abs(rough - exact) + 1e-7 * (1 + abs(exact))  # rounding over the step
    assert found["blocks.1.attn.z"].shape == (1, 6, 4)
    assert found["blocks.1.attn.pattern"].shape == (1, 4, 6)
    frame = found.to_frame()
    assert list(frame.columns) == ["site", "row", "pos", "head", "effect"]
    row = frame[(frame["site"] == "blocks.1.attn.pattern") & (frame["pos"] == 4) & (frame["head"] == 2)]
    assert float(row["effect"].iloc[0]) == float(found["blocks.1.attn.pattern"][0, 2, 4])
    assert frame[frame["site"] == "blocks.0.resid_pre"]["head"].isna().all()
    assert found.plot().data[0].z.shape == (6, 6)


class Quantised(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ self.weight.to(x.dtype)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.record(IDS, "embed", grad=lambda x: x.sum(-1)), "scalar tensor; it gave shape"),
        (lambda m: m.record(IDS, "embed", grad=lambda x: 3.0), "it gave float"),
        (lambda m: m.record(IDS, "embed", grad=lambda x: x.detach().sum()), "without a gradient"),
        (lambda m: m.record(IDS, "embed").grad["embed"], "grad=metric"),
        (lambda m: load(Quantised()).record({"x": torch.ones(1, 3)}, "module:", grad=torch.sum), "is quantised"),
        (lambda m: interp.attribution_patching(m, IDS, OTHER[:, :4], "embed", weighted), "same lengths"),
    ],
)
def test_errors_teach(call, words):
    with pytest.raises(WrongUse, match=words):
        call(wrapped("gpt2"))


def test_a_model_whose_config_says_quantised_is_refused():
    net = copy.deepcopy(module("gpt2"))
    net.config.quantization_config = SimpleNamespace(bits=4)
    with pytest.raises(WrongUse, match="quantization_config"):
        load(net).record(IDS, "module:transformer.h.0", grad=lambda x: x.sum())
    assert fnmatchcase("module:transformer.h.0", "module:*")
