"""`sddmm` on a GPU: a program has one row and some of its entries; the row is read once for all of them. Sums are in float32."""

# Arguments of kernels have Triton's types.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from interp.kernels.sddmm import reference

CHOSEN, INNER = 16, 256  # entries of a program, and how much of a row it holds


@triton.jit
def _products(
    rows, W, indices, values, found, k, d,
    CHOSEN: tl.constexpr, INNER: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * CHOSEN + tl.arange(0, CHOSEN)
    fired = j < k
    if not EVERY:
        fired = fired & (tl.load(values + b * k + j, mask=j < k, other=0.0) != 0)
    i = tl.load(indices + b * k + j, mask=j < k, other=0).to(tl.int64)
    z = tl.zeros((CHOSEN,), tl.float32)
    for start in range(0, d, INNER):
        at = start + tl.arange(0, INNER)
        row = tl.load(rows + b * d + at, mask=at < d, other=0.0).to(tl.float32)
        other = tl.load(W + i[:, None] * d + at[None, :], mask=fired[:, None] & (at < d)[None, :], other=0.0)
        z += tl.sum(tl.where(fired[:, None], row[None, :] * other.to(tl.float32), 0.0), 1)
    tl.store(found + b * k + j, z.to(found.dtype.element_ty), mask=j < k)


def sddmm(rows: Tensor, W: Tensor, indices: Tensor, values: Tensor | None = None) -> Tensor:
    """See `interp.kernels.sddmm`; float64 is left to the reference."""
    if rows.dtype == torch.float64 or not indices.numel():
        return reference(rows, W, indices, values)
    found, (n, k) = rows.new_empty(indices.shape), indices.shape
    weights = rows if values is None else values.contiguous()
    given = rows.contiguous(), W.contiguous(), indices.contiguous(), weights, found
    settings = {"CHOSEN": CHOSEN, "INNER": INNER, "EVERY": values is None, "num_warps": 4}
    _products[(n, triton.cdiv(k, CHOSEN))](*given, k, rows.shape[1], **settings)
    return found


COMPILED = {
    f"sddmm, {dtype}": (
        _products,
        {"indices": "*i64", "k": "i32", "d": "i32"}
        | dict.fromkeys(("rows", "W", "values", "found"), f"*{dtype}")
        | {"CHOSEN": CHOSEN, "INNER": INNER, "EVERY": False, "num_warps": 4},
    )
    for dtype in ("fp32", "bf16")
}
