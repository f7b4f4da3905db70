"""Every form of `weight_gradient` against the code with its zeros written out, in float64.

Under TRITON_INTERPRET=1 the form is Triton's, in its interpreter: `test_ops.py` runs this file so.
"""

from __future__ import annotations

import pytest
import torch
from forms import FORMS, INTERPRETED

from interp.dictionaries.sparse import decode_topk, encode_topk
from interp.kernels import counted, weight_gradient

form = pytest.mark.parametrize("form", FORMS)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="says nothing of the Triton form")
BARS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float64: 1e-14}  # bfloat16: plain torch adds up in it


def drawn(n, d, m, k, dtype):
    """Skewed: latent 0 is active on most rows, many on none; values and rows lie with gaps between them."""
    torch.manual_seed(n + d)
    values, rows = torch.randn(k, n).T.to(dtype), torch.randn(n, 2 * d)[:, ::2].to(dtype)
    indices = torch.stack([torch.randperm(m)[:k] for _ in range(n)]) if n else torch.zeros(0, k, dtype=torch.int64)
    if n and k:
        indices[: 2 * n // 3, 0] = 0  # a latent may be named twice
    return values, indices, rows


@form
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64] + ([] if INTERPRETED else [torch.bfloat16]))
@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(1, 1, 1, 1), (50, 33, 17, 3), (9, 300, 40, 20), (4, 8, 9, 9), (0, 5, 6, 2), (3, 0, 6, 2), (3, 5, 6, 0)],
)
def test_the_code_times_rows(form, dtype, n, d, m, k):
    values, indices, rows = drawn(n, d, m, k, dtype)
    code = torch.zeros(n, m, dtype=torch.float64).scatter_add(1, indices, values.double())
    size = torch.zeros(n, m, dtype=torch.float64).scatter_add(1, indices, values.double().abs())
    total, mass = weight_gradient.forms[form](values, indices, rows, m)
    assert (total.shape, total.dtype, mass.shape, mass.dtype) == ((m, d), dtype, (m,), dtype)
    far = BARS[dtype] * (size.T @ rows.double().abs()) + 1e-300
    assert ((total.double() - code.T @ rows.double()).abs() <= far).all()
    assert ((mass.double() - code.sum(0)).abs() <= BARS[dtype] * size.sum(0) + 1e-300).all()


@form
def test_what_is_not_finite_stays_with_its_latents(form):
    values, indices, rows = torch.ones(2, 2), torch.tensor([[0, 1], [1, 3]]), torch.ones(2, 3)
    rows[0, 1] = torch.nan
    total, mass = weight_gradient.forms[form](values, indices, rows, 4)
    assert total.isnan().nonzero().tolist() == [[0, 1], [1, 1]]
    assert mass.tolist() == [1, 2, 0, 1]


@not_interpreted
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_runs_agree_bit_for_bit_whatever_the_threads(threads):
    before, given = torch.get_num_threads(), (*drawn(200, 40, 30, 4, torch.float32), 30)
    wanted = weight_gradient(*given)
    torch.set_num_threads(threads)
    try:
        assert all(torch.equal(a, b) for a, b in zip(weight_gradient(*given), wanted, strict=True))
    finally:
        torch.set_num_threads(before)


@not_interpreted
def test_encoding_goes_back_through_it():
    torch.manual_seed(0)
    x, b, W, c = (torch.randn(*s, dtype=torch.float64) for s in ((6, 7), (7,), (7, 40), (40,)))
    g = torch.randn(6, 3, dtype=torch.float64)
    plain = [t.clone().requires_grad_() for t in (x, b, W, c)]
    z = (plain[0] - plain[1]) @ plain[2] + plain[3]
    wanted = torch.autograd.grad(z.relu().topk(3).values, plain, g)
    ours = [t.clone().requires_grad_() for t in (x, b, W, c)]
    with counted() as calls:
        got = torch.autograd.grad(encode_topk(*ours, 3)[0], ours, g)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(got, wanted, strict=True))
    assert {name for name, _ in calls} == {"largest", "weight_gradient"}


@form
def test_what_did_not_fire_adds_nothing(form):
    values, indices, rows = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0, 1], [1, 3]]), torch.ones(2, 3)
    total, mass = weight_gradient.forms[form](values, indices, rows, 4)
    assert (total[:, 0].tolist(), mass.tolist()) == ([2, 0, 0, 3], [2, 0, 0, 3])
    rows[0, 1] = torch.nan
    total, _ = weight_gradient.forms[form](values, torch.tensor([[0, 1], [2, 3]]), rows, 4)
    assert total.isnan().nonzero().tolist() == [[0, 1]]


@not_interpreted
def test_a_code_with_few_entries_is_gathered_by_them():
    """Half of the entries and more are 0: decoding skips them, and says the same."""
    torch.manual_seed(0)
    values, indices = (
        torch.rand(9, 30) * (torch.rand(9, 30) < 0.2),
        torch.stack([torch.randperm(300)[:30] for _ in range(9)]),
    )
    values[4] = 0
    W = torch.randn(300, 7, dtype=torch.float64)
    code = torch.zeros(9, 300, dtype=torch.float64).scatter(1, indices, values.double())
    assert torch.allclose(decode_topk(values.double(), indices, W), code @ W, atol=1e-14)
