"""int8 rows of a store as numbers: x̂ = pivot + scale · code, a scale for each group of 128 features (`record_rows` wrote them).

Codes of 7 bits times scales of 8 are exact in float32, so every form, and every machine, gives the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.kernels.record_rows import BLOCK, GROUP
from interp.kernels.registry import NUMBA, Op

if TYPE_CHECKING:
    from jaxtyping import Float, Int8


def reference(
    codes: Int8[Tensor, "n width"],
    scales: Float[Tensor, "n groups"],
    pivot: Float[Tensor, " width"],
    rows: Float[Tensor, "n width"],
) -> None:
    """A group of features at a time."""
    for g in range(scales.shape[1]):
        of = slice(g * GROUP, g * GROUP + GROUP)
        scale = scales[:, g : g + 1].to(rows.dtype)
        torch.addcmul(pivot[of].to(rows.dtype), codes[:, of].to(rows.dtype), scale, out=rows[:, of])


def cpu(codes: Tensor, scales: Tensor, pivot: Tensor, rows: Tensor) -> None:
    """In numba; without it, and for other numbers than float32, as many rows at a time as stay in the cache."""
    plain = codes.is_contiguous() and rows.is_contiguous() and rows.dtype == pivot.dtype == torch.float32
    if NUMBA and plain and scales.dtype == torch.bfloat16:
        from interp.kernels.record_rows_numba import unpack

        unpack(codes, scales, pivot, rows)
        return
    step = max(1, BLOCK // max(1, codes.shape[1]))
    for part in zip(codes.split(step), scales.split(step), rows.split(step), strict=True):
        reference(*part[:2], pivot, part[2])


unpack_rows = Op(
    "unpack_rows(Tensor codes, Tensor scales, Tensor pivot, Tensor(a!) rows) -> ()",
    reference,
    fake=lambda codes, scales, pivot, rows: None,
    cpu=cpu,
)
