"""`weight_gradient` on a GPU: a program has one latent and a block of columns, and adds its rows up in order.

No atomics: two runs agree bit for bit. Sums are in float32.
"""

# Arguments of kernels have Triton's types.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from interp.kernels.weight_gradient import by_latent, reference

COLUMNS, ENTRIES = 256, 16  # of a program, and read at a time


@triton.jit
def _sums(
    starts, order, values, rows, total, mass, k, d,
    COLUMNS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(starts + i), tl.load(starts + i + 1)
    own, weight = tl.zeros((COLUMNS,), tl.float32), tl.zeros((ENTRIES,), tl.float32)
    for at in range(begin, end, ENTRIES):
        place = at + tl.arange(0, ENTRIES)
        there = place < end
        entry = tl.load(order + place, mask=there, other=0)
        value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
        row = tl.load(
            rows + (entry // k)[:, None] * d + columns[None, :],
            mask=(value != 0)[:, None] & (columns < d)[None, :],
            other=0.0,
        )
        own += tl.sum(value[:, None] * row.to(tl.float32), 0)
        weight += value
    tl.store(total + i * d + columns, own.to(total.dtype.element_ty), mask=columns < d)
    if tl.program_id(1) == 0:
        tl.store(mass + i, tl.sum(weight, 0).to(mass.dtype.element_ty))


def weight_gradient(values: Tensor, indices: Tensor, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """See `interp.kernels.weight_gradient`; float64 is left to the reference."""
    d = rows.shape[1]
    if rows.dtype == torch.float64 or not (m and d):
        return reference(values, indices, rows, m)
    total, mass = rows.new_empty(m, d), values.new_empty(m)
    order, starts = by_latent(indices, m)
    grid = m, triton.cdiv(d, COLUMNS)
    given = starts, order, values.contiguous(), rows.contiguous(), total, mass
    _sums[grid](*given, max(1, indices.shape[1]), d, COLUMNS=COLUMNS, ENTRIES=ENTRIES, num_warps=4)
    return total, mass


COMPILED = {
    f"weight_gradient, {dtype}": (
        _sums,
        {"starts": "*i64", "order": "*i64", "k": "i32", "d": "i32"}
        | dict.fromkeys(("values", "rows", "total", "mass"), f"*{dtype}")
        | {"COLUMNS": COLUMNS, "ENTRIES": ENTRIES, "num_warps": 4},
    )
    for dtype in ("fp32", "bf16")
}
