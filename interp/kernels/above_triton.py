"""`above` on a GPU: a program has one row, reads it in blocks of columns, and counts what it has found so far."""

# Arguments of kernels have Triton's types.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from interp.kernels.above import reference, whole

BLOCK = 1024  # columns read at a time


@triton.jit
def _found(
    z, c, bound, values, indices, counts, m, k,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = 0
    for start in range(0, m, BLOCK):
        i = start + tl.arange(0, BLOCK)
        there = i < m
        y = tl.load(z + b * m + i, mask=there, other=0.0).to(tl.float32) + tl.load(c + i, mask=there, other=0.0)
        above = (there & ~(y <= tl.load(bound + i, mask=there, other=0.0))).to(tl.int32)
        place = n + tl.cumsum(above, 0) - 1
        kept = (above > 0) & (place < k)
        tl.store(values + b * k + place, y, mask=kept)
        tl.store(indices + b * k + place, i.to(tl.int64), mask=kept)
        n += tl.sum(above, 0)
    tl.store(counts + b, n)


def above(
    z: Tensor, c: Tensor, bound: Tensor, k: int, rows: Tensor | None = None, W: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `interp.kernels.above`; other dtypes than float32 of c are left to the reference."""
    if c.dtype != torch.float32 or not z.numel():
        return reference(z, c, bound, k, rows, W)
    z = whole(z, rows, W).contiguous()
    values = c.new_full((len(z), k), torch.finfo(c.dtype).min)
    indices = torch.zeros_like(values, dtype=torch.int64)
    counts = indices.new_empty(len(z))
    given = z, c.contiguous(), bound.contiguous(), values, indices, counts
    _found[(len(z),)](*given, z.shape[1], k, BLOCK=BLOCK, num_warps=4)
    return values, indices, counts


COMPILED = {
    f"above, {dtype}": (
        _found,
        {"z": f"*{dtype}", "indices": "*i64", "counts": "*i64", "m": "i32", "k": "i32"}
        | dict.fromkeys(("c", "bound", "values"), "*fp32")
        | {"BLOCK": BLOCK, "num_warps": 4},
    )
    for dtype in ("fp32", "bf16")
}
