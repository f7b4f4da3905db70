"""Every form of `sddmm` against the whole product in float64.

Under TRITON_INTERPRET=1 the form is Triton's, in its interpreter: `test_ops.py` runs this file so.
"""

from __future__ import annotations

import pytest
import torch
from forms import FORMS, INTERPRETED

from interp.dictionaries.sparse import decode_topk
from interp.kernels import counted, sddmm

form = pytest.mark.parametrize("form", FORMS)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="says nothing of the Triton form")
BARS = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float64: 1e-14}  # sums of d products, in float32 at least


@form
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64] + ([] if INTERPRETED else [torch.bfloat16]))
@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(1, 1, 1, 1), (5, 33, 17, 3), (3, 300, 40, 20), (4, 8, 9, 9), (0, 5, 6, 2), (3, 0, 6, 2), (3, 5, 6, 0)],
)
def test_entries_of_the_product(form, dtype, n, d, m, k):
    """Rows and W lie with gaps between their rows."""
    torch.manual_seed(n + d)
    rows, W = torch.randn(n, 2 * d)[:, ::2].to(dtype), torch.randn(d, m).T.to(dtype)
    indices = torch.stack([torch.randperm(m)[:k] for _ in range(n)]) if n else torch.zeros(0, k, dtype=torch.int64)
    wanted = (rows.double() @ W.double().T).gather(1, indices)
    got = sddmm.forms[form](rows, W, indices)
    assert (got.shape, got.dtype) == (wanted.shape, dtype)
    far = BARS[dtype] * (rows.double().abs() @ W.double().abs().T).gather(1, indices)
    assert ((got.double() - wanted).abs() <= far + 1e-300).all()


@form
def test_what_is_not_finite_stays_with_its_row(form):
    rows, W = torch.ones(3, 4), torch.ones(5, 4)
    rows[1, 2], W[3, 1] = torch.nan, torch.inf
    got = sddmm.forms[form](rows, W, torch.tensor([[0, 3], [0, 1], [2, 4]]))
    assert torch.equal(got.isnan(), torch.tensor([[False, False], [True, True], [False, False]]))
    assert got[0].tolist() == [4.0, torch.inf]


@not_interpreted
def test_decoding_goes_back_through_it():
    """d values_j = g · W[indices_j], by autograd of the dense product in float64."""
    torch.manual_seed(0)
    values, W = torch.rand(6, 3, dtype=torch.float64), torch.randn(40, 7, dtype=torch.float64)
    indices, g = torch.stack([torch.randperm(40)[:3] for _ in range(6)]), torch.randn(6, 7, dtype=torch.float64)
    plain = [t.clone().requires_grad_() for t in (values, W)]
    code = torch.zeros(6, 40, dtype=torch.float64).scatter(1, indices, plain[0])
    wanted = torch.autograd.grad(code @ plain[1], plain, g)
    ours = [t.clone().requires_grad_() for t in (values, W)]
    with counted() as calls:
        got = torch.autograd.grad(decode_topk(ours[0], indices, ours[1]), ours, g)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(got, wanted, strict=True))
    assert {name for name, _ in calls} == {"sddmm", "weight_gradient"}


@form
@pytest.mark.usefixtures("poisoned")
def test_what_did_not_fire_has_no_gradient(form):
    """Of a code whose rows differ in how many latents fire most entries are 0: whatever lies there is not read."""
    rows, W, indices = torch.ones(3, 4), torch.ones(5, 4), torch.tensor([[0, 3], [0, 1], [2, 4]])
    rows[1, 2], W[3, 1] = torch.nan, torch.inf
    values = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert sddmm.forms[form](rows, W, indices, values).tolist() == [[4, 0], [0, 0], [4, 0]]
