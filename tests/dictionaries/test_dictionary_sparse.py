"""The sparse products against the plain dense formula, both in float64; ties; and the same bits twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.dictionaries.sparse import DENSE_ABOVE, decode_topk, encode_topk

Measure = Callable[[float], None]


def parts(m: int, batch: int = 70, d: int = 11, d_out: int = 13, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, b, W, c, W_dec, away from zero and from each other's scale."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_()

    return [normal(batch, d), normal(d), normal(d, m), normal(m, scale=0.5), normal(m, d_out, scale=2.0)]


def plain(x: Tensor, b: Tensor, W: Tensor, c: Tensor, W_dec: Tensor, indices: Tensor) -> Tensor:
    """The textbook's formula with the selection given: every latent is computed, most are masked."""
    z = (x - b) @ W + c
    mask = torch.zeros_like(z).scatter(1, indices, 1.0)
    return (z.relu() * mask) @ W_dec


@pytest.mark.check(
    "dictionaries performance 3: gradients",
    formula="‖g − g_dense‖ / ‖g_dense‖, float64, the same selection",
    tolerance=1e-13,
)
@pytest.mark.parametrize(("m", "k"), [(200, 7), (40, 7), (8, 8)])
def test_gradients_are_those_of_the_dense_formula(m: int, k: int, measured: Measure) -> None:
    """1e-13: sums of under 100 float64 products of order one, in two orders. (200, 7) is sparse, the others are dense."""
    given = parts(m)
    assert (k > DENSE_ABOVE * m) == (m < 200)
    values, indices = encode_topk(*given[:4], k)
    y = decode_topk(values, indices, given[4])
    reference = plain(*given, indices)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    got = torch.autograd.grad((y.square() * weight).sum(), given)
    wanted = torch.autograd.grad((reference.square() * weight).sum(), given)
    measured(((y - reference).norm() / reference.norm()).item())
    for a, e in zip(got, wanted, strict=True):
        assert a.shape == e.shape
        measured(((a - e).norm() / e.norm()).item())


def test_latents_that_no_row_selects_get_no_gradient() -> None:
    given = parts(200, batch=3)
    values, indices = encode_topk(*given[:4], 2)
    decode_topk(values, indices, given[4]).sum().backward()
    silent = torch.ones(200, dtype=torch.bool)
    silent[indices[values > 0]] = False
    assert silent.sum() >= 194
    assert not given[2].grad[:, silent].any()
    assert not given[4].grad[silent].any()


def test_what_is_not_positive_does_not_fire() -> None:
    """With two positive entries and k = 5, three values are 0, their indices valid, and nothing flows through them."""
    x, b, W, c, W_dec = parts(200, batch=1)
    c = torch.full_like(c, -50.0)
    c[[3, 150]] = 50.0
    c.requires_grad_()
    values, indices = encode_topk(x, b, W, c, 5)
    assert (values > 0).sum() == 2
    assert set(indices[values > 0].tolist()) == {3, 150}
    assert indices.unique().numel() == 5
    decode_topk(values, indices, W_dec).sum().backward()
    assert c.grad.nonzero().flatten().tolist() == [3, 150]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_bits(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = []
        for _ in range(2):
            given = parts(900, batch=1300, d=33, d_out=33, dtype=torch.float32)
            code = encode_topk(*given[:4], 12)
            decode_topk(*code, given[4]).square().sum().backward()
            runs.append([*code, *(p.grad for p in given)])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_product(dtype: torch.dtype) -> None:
    """The product alone is in `dtype`: sorted values agree with float32 to about one unit of rounding in it."""
    given = parts(900, dtype=torch.float32)
    exact, low = (encode_topk(*given[:4], 12, wanted)[0] for wanted in (torch.float32, dtype))
    assert low.dtype == torch.float32
    exact, low = (values.sort(1).values for values in (exact, low))
    assert 0 < (low - exact).norm() / exact.norm() < torch.finfo(dtype).eps
    low.sum().backward()
    assert given[2].grad.dtype == torch.float32
