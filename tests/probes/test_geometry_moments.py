"""The formulas of DeepScaleLM against Monte Carlo, autograd for the gradients, deep random stacks, and random models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from interp.errors import WrongUse
from interp.model import load
from probes import moments as mo
from tests.model.shapes import BUILD, module

TOKENS, CHANNELS = 8, 200_000
CLOSE = 0.01  # 1.6 million values, correlated: standard errors up to 0.3 %


def drawn(var=1.0, corr=0.4, mean=0.0, seed=0, tokens=TOKENS, channels=CHANNELS):
    """Normal values [token, channel] of which two tokens of a channel have the correlation."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(tokens, channels, generator=draw, dtype=torch.float64)
    common = torch.randn(channels, generator=draw, dtype=torch.float64)
    return mean + var**0.5 * (corr**0.5 * common + (1 - corr) ** 0.5 * own)


def near(found, wanted, rel=CLOSE):
    scale = wanted.var
    for name in vars(wanted):
        if not math.isnan(getattr(wanted, name)):
            unit = scale**0.5 if name == "mean" else scale
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=rel * unit), name


def slopes(g):
    seen = mo.measured(g)
    return mo.Slopes(seen.var, seen.cov)


def test_measured_moments_are_those_that_were_drawn():
    near(mo.measured(drawn(2.0, 0.3, 1.5)), mo.Moments(1.5, 2.0, 0.6))
    x = drawn(tokens=3, channels=5)
    y = x - x.mean()
    pairs = [float((y[i] * y[j]).mean()) for i in range(3) for j in range(3) if i != j]
    assert mo.measured(x).cov == pytest.approx(sum(pairs) / 6, rel=1e-12)


@pytest.mark.parametrize(("var", "corr"), [(1.0, 0.0), (0.3, 0.5), (4.0, 0.9)])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_activations(name, var, corr):
    """Values, and their gradients by autograd."""
    function = {"relu": torch.relu, "gelu": nn.functional.gelu}[name]
    x, g = drawn(var, corr).requires_grad_(), drawn(0.7, 0.6, seed=9)
    given = mo.Moments(0.0, var, corr * var)
    near(mo.measured(function(x.detach())), getattr(mo, name)(given))
    back = torch.autograd.grad(function(x), x, g)[0]
    near(slopes(back), getattr(mo, f"{name}_back")(mo.Slopes(0.7, 0.42), given))
    with pytest.raises(WrongUse, match="for mean 0"):
        getattr(mo, name)(mo.Moments(1.0, 1.0, 0.5))


def test_linear_maps():
    """Over 300 × 400 weights; the sum over 300 inputs and 400 outputs: standard error of the covariance 1/√400 of its size."""
    d_in, d_out, w2 = 300, 4000, 0.02
    w = w2**0.5 * torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = drawn(1.5, 0.3, 0.8, tokens=40, channels=d_in, seed=1)
    near(mo.measured(x @ w), mo.linear(mo.measured(x), d_in, w2), 0.06)
    g = drawn(0.5, 0.2, tokens=40, channels=d_out, seed=2)
    near(slopes(g @ w.T), mo.linear_back(slopes(g), d_out, w2), 0.12)


def test_layer_norm():
    d = 50
    x = torch.stack([drawn(3.0, 0.5, tokens=6, channels=d, seed=s) for s in range(4000)])  # centred over 50 channels
    y = nn.functional.layer_norm(x, (d,))
    r = 0.5
    found = mo.measured(y)
    wanted = mo.layer_norm(mo.Moments(0.0, 3.0, 3.0 * r), d)
    assert (found.mean, found.var) == pytest.approx((0.0, 1.0), abs=1e-4)
    assert found.cov == pytest.approx(wanted.cov, abs=0.03)  # r (1 - 1/d) holds to O(1/d)
    x = drawn(3.0, 0.5, tokens=6, channels=20_000).requires_grad_()
    g = drawn(0.5, 0.4, tokens=6, channels=20_000, seed=5)
    back = torch.autograd.grad(nn.functional.layer_norm(x, (20_000,)), x, g)[0]
    near(slopes(back), mo.layer_norm_back(mo.Slopes(0.5, 0.2), mo.Moments(0.0, 3.0, 1.5)), 0.04)


def test_dropout():
    x, draw = drawn(1.5, 0.3, 0.8), torch.Generator().manual_seed(4)
    kept = (torch.rand(x.shape, generator=draw, dtype=torch.float64) > 0.2) / 0.8
    near(mo.measured(x * kept), mo.dropout(mo.Moments(0.8, 1.5, 0.45), 0.2))
    g = drawn(0.7, 0.6, seed=9)
    near(slopes(g * kept), mo.dropout_back(mo.Slopes(0.7, 0.42), 0.2))


def test_softmax_over_many_keys():
    """400 scores of variance .5, equal ones correlated by .4: the formula is for many keys."""
    n = 400
    x = drawn(0.5, 0.4, tokens=n, channels=4000).T.clone().requires_grad_()  # a row is a query, its keys share a part
    given = mo.Moments(0.0, 0.5, 0.2)
    p = x.softmax(-1)
    found, wanted = mo.measured(p.detach()), mo.softmax(given, n)
    assert found.mean == pytest.approx(wanted.mean, rel=1e-9)
    assert found.var == pytest.approx(wanted.var, rel=0.03)
    g = torch.randn(p.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    back = torch.autograd.grad(p, x, g)[0]
    assert slopes(back).var == pytest.approx(mo.softmax_back(mo.Slopes(1.0, 0.0), given, n).var, rel=0.03)


@pytest.mark.check(
    "geometry 9 DeepScaleLM", formula="|variance - 1| after 200 random layers, λ² + β² = 1, β² = 2/N", tolerance=0.1
)
def test_two_hundred_layers_keep_their_variance(measured):
    """x ← λ x + β f(x), f a linear map of the normed x; a plain pre-norm stack grows as 1 + N."""
    d, layers, draw = 256, 200, torch.Generator().manual_seed(0)
    beta = math.sqrt(2 / layers)
    lam = math.sqrt(1 - beta**2)
    x = plain = torch.randn(64, d, generator=draw, dtype=torch.float64)
    told = told_plain = mo.Moments(0.0, 1.0, 0.0)
    for layer in range(layers):
        w = torch.randn(d, d, generator=draw, dtype=torch.float64) / math.sqrt(d)
        x = lam * x + beta * nn.functional.layer_norm(x, (d,)) @ w
        plain = plain + nn.functional.layer_norm(plain, (d,)) @ w
        told = mo.residual(told, mo.linear(mo.layer_norm(told, d), d, 1 / d), lam, beta)
        told_plain = mo.residual(told_plain, mo.linear(mo.layer_norm(told_plain, d), d, 1 / d))
        if layer % 50 == 49:
            assert mo.measured(plain).var == pytest.approx(told_plain.var, rel=0.1)
    assert told.var == pytest.approx(1.0, abs=1e-12)
    assert told_plain.var == pytest.approx(1 + layers, rel=1e-12)
    measured(abs(mo.measured(x).var - 1))


def test_a_model_at_initialisation_follows_the_formulas():
    """GPT-2's own initialisation, width 128: every linear map, GELU and norm to a tenth; the table has all of them."""
    kind, config, options = BUILD["gpt2"]
    torch.manual_seed(0)
    model = load(kind(config(**options | dict(n_embd=128, n_layer=2, n_head=4))).eval())
    ids = torch.randint(3, 61, (4, 48), generator=torch.Generator().manual_seed(1))
    found = mo.moments(model, ids)
    table = found.to_frame().set_index("site")
    assert len(table) == 12
    parts = [f"blocks.{i}.{p}" for i in (0, 1) for p in ("attn.in", "attn.v", "mlp.pre", "mlp.post", "mlp.out")]
    for site in parts:
        assert table.loc[site, "var"] == pytest.approx(table.loc[site, "formula_var"], rel=0.1), site
    assert table.loc["blocks.0.mlp.post", "formula"] == "GELU"
    assert len(found.plot().data) == 2


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_other_models_have_the_parts_they_have(name):
    model = load(module(name))
    table = mo.moments(model, torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))).to_frame()
    gated = [s for s in table["site"] if s.endswith("mlp.gate")]
    assert bool(gated) == (name == "llama")
    assert ("norm" in set(table["formula"])) == (name == "llama")
    with pytest.raises(WrongUse, match="no formula applies"):
        mo.moments(load(module("mamba")), torch.ones(2, 12, dtype=torch.long))
