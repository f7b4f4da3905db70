"""Sums over paths against networks, rank against depth, and weights over depth that change nothing until they are moved."""

from __future__ import annotations

import math

import pytest
import torch

from interp.errors import WrongUse
from interp.model import load
from probes.depth import depth_weighted, depth_weights, routed, routers
from probes.measures import rank_one_residual
from probes.rank import VARIANTS, by_length, path_residuals, paths, patterns_of, rank_collapse
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20, 7, 7, 12, 40, 6, 13]])


def attention(layers=3, heads=2, n=7, d=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, heads, n, n, generator=draw, dtype=torch.float64)
    patterns = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
    W = torch.randn(layers, heads, d, d, generator=draw, dtype=torch.float64) / d**0.5
    return patterns, W, torch.randn(n, d, generator=draw, dtype=torch.float64)


@pytest.mark.check(
    "geometry 9 paths", formula="Σ over paths of P X W = the attention network, with and without skips", tolerance=1e-13
)
@pytest.mark.parametrize("skip", [False, True])
def test_paths_sum_to_the_network(measured, skip):
    patterns, W, x = attention()
    out = x
    for p, w in zip(patterns, W, strict=True):
        out = (p @ out @ w).sum(0) + (out if skip else 0)
    every = paths(patterns, W, skip)
    measured(float((sum(p @ x @ w for _, p, w in every) - out).abs().max()))
    lengths = [sum(h >= 0 for h in choice) for choice, _, _ in every]
    if not skip:
        assert lengths == [3] * 8
        return
    assert [lengths.count(k) for k in range(4)] == [math.comb(3, k) * 2**k for k in range(4)]
    found = by_length(patterns, W, x)
    for k in range(4):
        wanted = sum(p @ x @ w for c, p, w in every if sum(h >= 0 for h in c) == k)
        measured(float((found[k] - wanted).abs().max()))
    measured(float((found.sum(0) - out).abs().max()))


def test_rank_is_lost_along_paths():
    patterns, _, _ = attention(layers=6, heads=3, n=10, seed=2)
    rows = path_residuals(patterns, samples=20, seed=1)
    assert rows.shape == (20, 6)
    assert bool((rows.diff(dim=1) < 0).all())
    one = path_residuals(patterns[:, :1], samples=1)
    product = torch.eye(10, dtype=torch.float64)
    for layer in range(6):
        product = patterns[layer, 0] @ product
        assert float(one[0, layer]) == pytest.approx(rank_one_residual(product), rel=1e-12)
    model = load(module("gpt2"))
    assert path_residuals(patterns_of(model, IDS), samples=5).shape == (5, 3)


# ---------------------------------------------------------------- variants of a model


def test_attention_alone_loses_rank_and_skips_keep_it():
    """Without skips it falls with every layer; with them it stays above; and the whole model's is what is recorded."""
    model = load(module("gpt2", torch.float64))
    found = rank_collapse(model, IDS)
    assert list(found.residuals) == list(VARIANTS)
    alone, skip = found.residuals["attention"], found.residuals["attention + skip"]
    assert bool((alone.diff() < 0).all())
    assert bool((skip[1:] > alone[1:]).all())
    plain = model.record(IDS, ["blocks.0.resid_pre", "blocks.*.resid_post"])
    wanted = [rank_one_residual(t[0]) for t in plain.values()]
    assert found.residuals["whole"].tolist() == pytest.approx(wanted, rel=1e-12)
    assert len(found.to_frame()) == 16
    assert len(found.plot().data) == 4


def test_a_variant_is_what_it_says():
    """The stream of block 1 from its own heads and neurons, by hand."""
    from probes.rank import _blocks, _edits

    model = load(module("llama", torch.float64))
    blocks = _blocks(model)
    sites = [f"blocks.1.{s}" for s in ("resid_pre", "resid_mid", "resid_post", "attn.z", "mlp.post")]
    for variant in VARIANTS:
        with model.edit(*_edits(model, blocks, variant)):
            pre, mid, post, z, neurons = model.record(IDS, sites).values()
            model(IDS)  # to the end: an edit that never fired would warn
        attn = torch.einsum("bphd,hde->bpe", z, model.weights["blocks.1.attn.W_O"])
        mlp = neurons @ model.weights["blocks.1.mlp.W_out"]
        skipped, without = variant in ("attention + skip", "whole"), variant in ("attention", "attention + skip")
        assert torch.allclose(mid, pre + attn if skipped else attn, atol=1e-9), variant
        wanted = mid if without else mid + mlp if skipped else mlp
        assert torch.allclose(post, wanted, atol=1e-9), variant


def test_blocks_of_another_kind_are_refused():
    with pytest.raises(WrongUse, match="skip connections are taken out"):
        rank_collapse(load(module("bert")), IDS)
    with pytest.raises(WrongUse, match="stacks of blocks with attention"):
        rank_collapse(load(module("mamba")), IDS)
    with pytest.raises(WrongUse, match="attention \\+ skip"):
        rank_collapse(load(module("gpt2")), IDS, variants=["attention+skip"])


# ---------------------------------------------------------------- depth


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_at_the_start_nothing_changes(name):
    """Depth weights and routers as they begin: the same logits bit for bit, any dilation and period."""
    model = load(module(name))
    plain = model(IDS).logits
    for dilation, period in ((1, 1), (2, 1), (1, 2), (3, 2)):
        with depth_weighted(model, depth_weights(3), dilation=dilation, period=period):
            assert torch.equal(model(IDS).logits, plain)
    heads = 4 if name == "gpt2" else 2
    with routed(model, routers(3, heads)):
        assert torch.equal(model(IDS).logits, plain)
    assert torch.equal(model(IDS).logits, plain)


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (1, 2)])
def test_depth_weighted_averages_written_out(dilation, period):
    net = module("gpt2", torch.float64)
    model = load(net)
    alpha = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x = [net.transformer.wte(IDS) + net.transformer.wpe(torch.arange(12))]
    y = x[0]
    for i, block in enumerate(net.transformer.h, 1):
        out = block(y)
        x.append(out[0] if isinstance(out, tuple) else out)
        terms = [alpha[i - 1, j] * x[j] for j in range(i + 1) if (i - j) % dilation == 0]
        y = x[i] if i % period else sum(terms)
    wanted = net.lm_head(net.transformer.ln_f(y))
    with depth_weighted(model, alpha, dilation=dilation, period=period):
        found = model(IDS).logits
    assert torch.allclose(found, wanted, atol=1e-12)
    slope = torch.autograd.grad(found.sum(), alpha)[0]
    assert bool(slope[period - 1].abs().sum() > 0)
    with pytest.raises(WrongUse, match=r"α is \[3, 4\]"), depth_weighted(model, alpha[:2]):
        pass


def test_routed_keys_and_values():
    """One-hot on a lower layer: its keys before the rotation, and its values, stand in the layer; a mixture is the sum."""
    model, sites = load(module("llama", torch.float64)), ["blocks.*.attn.k_raw", "blocks.*.attn.v"]
    R = routers(3, 2)
    R[2] = torch.zeros(2, 6, dtype=torch.float64)
    R[2][0, 1] = R[2][1, 0] = 1.0  # heads of layer 0, crossed
    with routed(model, R):
        seen = model.record(IDS, sites)
    for s in ("k_raw", "v"):
        low, high = seen[f"blocks.0.attn.{s}"], seen[f"blocks.2.attn.{s}"]
        assert torch.equal(high, low.flip(2))
    R = routers(3, 2, off=1.0, seed=3)
    own = model.record(IDS, sites)
    with routed(model, R):
        seen = model.record(IDS, sites)
    both = torch.cat([own["blocks.0.attn.v"], own["blocks.1.attn.v"]], 2)
    # layer 1 reads the same stream as before only if layer 0 is untouched, and layer 0 keeps its own
    assert torch.equal(seen["blocks.0.attn.v"], own["blocks.0.attn.v"])
    assert torch.allclose(seen["blocks.1.attn.v"], torch.einsum("hn,bpnd->bphd", R[1], both), atol=1e-12)
    assert float(R[2][:, :4].abs().max()) <= (3 / 6) ** 0.5
    with pytest.raises(WrongUse, match="R_l is"), routed(model, routers(3, 4)):
        pass
    with pytest.raises(WrongUse, match="keys and values are routed"), routed(load(module("mamba")), routers(3, 2)):
        pass
