"""Every form of `above` against a loop over entries, ties with the bound, infinities and NaN among them.

Under TRITON_INTERPRET=1 the form is Triton's, in its interpreter: `test_ops.py` runs this file so.
"""

from __future__ import annotations

import pytest
import torch
from forms import FORMS, INTERPRETED

from interp.kernels import above

form = pytest.mark.parametrize("form", FORMS)
LOWEST = torch.finfo(torch.float32).min


def written_out(y, bound, k):
    """(values, indices, counts) entry by entry: what is not at or below its bound."""
    values, indices = torch.full((len(y), k), torch.finfo(y.dtype).min, dtype=y.dtype), torch.zeros(len(y), k).long()
    counts = torch.zeros(len(y)).long()
    for b, row in enumerate(y.tolist()):
        there = [i for i, (a, e) in enumerate(zip(row, bound.tolist(), strict=True)) if not a <= e]
        counts[b] = len(there)
        for j, i in enumerate(there[:k]):
            values[b, j], indices[b, j] = y[b, i], i
    return values, indices, counts


def same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@form
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64] + ([] if INTERPRETED else [torch.bfloat16]))
@pytest.mark.parametrize(("n", "m", "k"), [(0, 40, 3), (1, 1, 1), (9, 37, 5), (6, 64, 64), (4, 1300, 90), (3, 40, 0)])
def test_what_is_above_its_bound(form, dtype, n, m, k):
    """Small whole numbers: most entries tie with a bound; some rows have more than k above, some none."""
    generator = torch.Generator().manual_seed(n + m)
    z = torch.randint(-3, 4, (n, 2 * m), generator=generator).to(dtype)[:, ::2]
    wide = torch.promote_types(dtype, torch.float32)
    c, bound = (torch.randint(-2, 3, (2 * m,), generator=generator).to(wide)[::2] for _ in range(2))
    if n > 2:
        z[0], z[1] = -9, 9
    same(above.forms[form](z, c, bound + 1, k), written_out(z.to(wide) + c, bound + 1, k))


@form
def test_what_is_not_finite(form):
    """NaN in z or in a bound counts as above; −∞ is above nothing, and nothing finite is above +∞."""
    z = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0], [0.0, -0.0, torch.inf, -1.0]])
    bound = torch.tensor([5.0, torch.inf, -torch.inf, torch.nan])
    values, indices, counts = above.forms[form](z, torch.zeros(4), bound, 3)
    assert counts.tolist() == [2, 2]
    assert indices.tolist() == [[0, 3, 0], [2, 3, 0]]
    assert values[0, 0].isnan()
    assert values[:, 1:].tolist() == [[1.0, LOWEST], [-1.0, LOWEST]]


@form
@pytest.mark.skipif(INTERPRETED, reason="the interpreter multiplies the bits of bfloat16 (triton #11584)")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_fewer_bits_say_where_to_look_and_lose_nothing(form, scale):
    """z in bfloat16 finds all that the product in float32 has above: rows and columns of very different lengths, large biases."""
    generator = torch.Generator().manual_seed(0)
    rows, W = torch.randn(60, 48, generator=generator), torch.randn(700, 48, generator=generator)
    rows *= 10 ** torch.linspace(-2, 2, 60)[:, None]
    W *= scale * 10 ** torch.linspace(-1, 1, 700)[torch.randperm(700, generator=generator)][:, None]
    c = W.norm(dim=1) * torch.randn(700, generator=generator)
    y = rows @ W.T + c
    bound = y[torch.randint(60, (700,), generator=generator), torch.arange(700)]  # many entries lie close to one
    z = rows.bfloat16() @ W.T.bfloat16()
    got, wanted = above.forms[form](z, c, bound, 700, rows, W), written_out(y, bound, 700)
    listed = [v > LOWEST for v, _, _ in (got, wanted)]
    there, right = (
        torch.zeros(60, 700).scatter_add(1, i, at.float()) for (_, i, _), at in zip((got, wanted), listed, strict=True)
    )
    far = 1e-6 * (rows.norm(dim=1)[:, None] * W.norm(dim=1) + c.abs())  # sums in another order
    sure = (y - bound).abs() > far
    assert torch.equal(there[sure], right[sure])
    assert sure.float().mean() > 0.98
    values = torch.zeros(60, 700).scatter_add(1, got[1], torch.where(listed[0], got[0], 0))
    assert ((values - y).abs() <= far)[there > 0].all()


@pytest.mark.skipif(INTERPRETED, reason="says nothing of the Triton form")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        z = torch.randn(7, 500, generator=torch.Generator().manual_seed(0))
        for n in (1, 2, 7):
            same(above(z[:n], torch.zeros(500), torch.ones(500), 99), written_out(z[:n], torch.ones(500), 99))
    finally:
        torch.set_num_threads(before)
