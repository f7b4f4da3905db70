"""Every form of `attention_statistics` against the pattern in float64, key heads repeated."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from forms import FORMS, INTERPRETED

from interp.kernels import attention_statistics, counted
from interp.model import load
from probes.geometry import geometry
from probes.measures import attention_entropy
from tests.model.shapes import module

pytestmark = pytest.mark.skipif(INTERPRETED, reason="there is no Triton form")
form = pytest.mark.parametrize("form", FORMS)
SHAPES = [
    (1, 1, 1, 1, 1, 3),
    (2, 4, 2, 7, 7, 5),
    (1, 6, 6, 40, 40, 8),
    (3, 4, 1, 5, 9, 2),
    (0, 2, 2, 4, 4, 3),
    (2, 2, 1, 0, 4, 3),
]


def by_hand(q, k, bias, sink, causal, scale):
    """Number by number of the definition, in float64."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scale * torch.einsum("bhid,bhjd->bhij", q.double(), k)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias.double()
    if causal:
        scores = scores + torch.full(scores.shape[2:], -torch.inf).double().triu(1)
    seen = scores > -torch.inf
    p = torch.where(seen.any(-1, keepdim=True), scores.softmax(-1), 0.0)
    i, j = (torch.arange(n).double() for n in scores.shape[2:])
    first = p[torch.arange(len(p)), :, :, torch.zeros(len(p)).long() if sink is None else sink]
    numbers = -(p * torch.where(p > 0, p.log(), 0.0)).sum(-1), first, (p * (i[:, None] - j).abs()).sum(-1), seen.sum(-1)
    return torch.stack([n.double() for n in numbers], -1), p.sum(-2)


@pytest.fixture(params=[60, 1 << 18])
def at_a_time(request, monkeypatch):
    """Few queries at a time, and all."""
    for name in ("SCORES", "WHOLE"):
        monkeypatch.setattr(sys.modules["interp.kernels.attention_statistics"], name, request.param)


@form
@pytest.mark.usefixtures("poisoned", "at_a_time")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "left padding", "one head apart"])
@pytest.mark.parametrize(("b", "h", "g", "n", "t", "d"), SHAPES)
def test_against_the_pattern(form, dtype, causal, kind, b, h, g, n, t, d):
    """Left padding: the first queries may look nowhere. Sums of up to 40 float32 numbers: 2e-5 of distances up to 40."""
    torch.manual_seed(n + h)
    q, k = torch.randn(b, n, h, d).transpose(1, 2).to(dtype), torch.randn(b, g, t, d).to(dtype)
    bias, sink = None, None
    if kind == "left padding":
        bias = (torch.arange(t) >= torch.arange(1, b + 1)[:, None])[:, None, None]
        sink = torch.arange(1, b + 1).clamp(max=t - 1)
    elif kind == "one head apart":
        bias = torch.randn(1, h, n, t)
        bias[:, :, :, : t // 2] = bias[:, :1, :, : t // 2].masked_fill(torch.rand(1, 1, n, t // 2) < 0.4, -torch.inf)
    found, received = attention_statistics.forms[form](q, k, bias, sink, causal, 0.7)
    wanted, got = by_hand(q, k, bias, sink, causal, 0.7)
    assert found.dtype == received.dtype == torch.promote_types(dtype, torch.float32)
    bar = 1e-12 if dtype == torch.float64 else 2e-5
    assert torch.allclose(found.double(), wanted, rtol=bar, atol=bar)
    assert torch.allclose(received.double(), got, rtol=bar, atol=bar)
    assert torch.equal(found[..., 3].double(), wanted[..., 3])


@form
@pytest.mark.usefixtures("at_a_time")
def test_uniform_and_one_hot(form):
    """Equal scores: log of the keys seen, half of them away; a score far above: no entropy, all on that key."""
    q, k = torch.zeros(1, 1, 9, 4, dtype=torch.float64), torch.randn(1, 1, 9, 4, dtype=torch.float64)
    found, received = attention_statistics.forms[form](q, k, None, None, True, 1.0)
    seen = torch.arange(1, 10, dtype=torch.float64)
    assert torch.allclose(found[0, 0], torch.stack([seen.log(), 1 / seen, (seen - 1) / 2, seen], -1), atol=1e-14)
    assert math.isclose(float(received.sum()), 9)
    bias = torch.zeros(1, 1, 1, 9, dtype=torch.float64)
    bias[..., 3] = 1e4
    found, received = attention_statistics.forms[form](q, k, bias, torch.tensor([3]), False, 1.0)
    assert found[0, 0, :, :2].tolist() == [[0, 1]] * 9
    assert received[0, 0].tolist() == [0, 0, 0, 9, 0, 0, 0, 0, 0]


@form
def test_nan_stays_with_its_queries(form):
    q, k = torch.randn(1, 2, 6, 3), torch.randn(1, 2, 6, 3)
    q[0, 1, 2] = torch.nan
    found, _ = attention_statistics.forms[form](q, k, None, None, True, 0.5)
    assert found[..., :3].isnan().any(-1).nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_geometry_makes_no_pattern_of_fused_attention(name, monkeypatch):
    """And says what the patterns say: heads that share keys, padding, and a model whose own attention makes them."""
    model, ids = load(module(name)), torch.randint(3, 60, (6, 20), generator=torch.Generator().manual_seed(0))
    x = {"input_ids": ids, "attention_mask": (torch.arange(20) < torch.tensor([20] * 5 + [14])[:, None]).long()}
    patterns = model.record(x, "blocks.*.attn.pattern")
    masks = x["attention_mask"].bool()
    rows = [[attention_entropy(p[:, m])[1] for p, m in zip(ps, masks, strict=True)] for ps in patterns.values()]
    monkeypatch.setattr("interp.model.tap.reference_pattern", lambda scores: pytest.fail("a pattern was made"))
    with counted() as calls:
        seen = geometry(model, x)
    assert sum(calls.values()) == (2 * len(rows) if name == "llama" else 0)
    assert torch.allclose(seen.heads, torch.stack([torch.stack(r).mean(0) for r in rows]), atol=1e-6)
