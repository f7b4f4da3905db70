"""Rows of activations put where a store wants them, in the store's numbers: each number read once and written once.

    rows[slots_i] = q(x[kept_i])        norm_i = ‖x[kept_i]‖      sums += Σ_i (y_i, y_i², (y_i − ŷ_i)²)

q rounds to the dtype of `rows`; x̂ = ŷ is the row as it is read back, and y = x. int8 rows are written in groups of 128
features, their scales beside them:

    y = x − pivot     scale_g = bfloat16(max over f in g of |y_f| / 127)     code_f = round(y_f / scale_g)     ŷ = scale · code

and x̂ = pivot + ŷ. `sums`, float64, add up over calls to the mean and the variance of every feature and to what is lost of
it (`moments`). No entry of a row is larger than its norm, which is not finite where one is not, or where squares overflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.kernels.registry import NUMBA, Op

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int, Shaped

GROUP = 128
TINY = 2.0**-126  # the smallest scale: that of a group of zeros, and of numbers below float32's normal ones
BLOCK = 1 << 18  # numbers at a time where torch makes a pass for each step: they stay in the cache


def reference(
    x: Float[Tensor, "n width"],
    kept: Int[Tensor, " r"] | None,
    slots: Int[Tensor, " r"],
    rows: Shaped[Tensor, "places width"],
    scales: Float[Tensor, "places groups"] | None = None,
    pivot: Float[Tensor, " width"] | None = None,
    sums: Float64[Tensor, "3 width"] | None = None,
) -> Float[Tensor, " r"]:
    """A pass for each step; in float32 at least, int8 in the dtype of the pivot."""
    x = x if kept is None else x.index_select(0, kept)
    if scales is None or pivot is None:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        stored = x.to(rows.dtype)
        found = stored.to(y.dtype)
    else:
        y = x.to(pivot.dtype) - pivot
        stored, scales[slots], found = _coded(y, scales.dtype)
    rows[slots] = stored.to(rows.dtype)
    if sums is not None:
        y, lost = (y.double() if pivot is None else y), y - found  # about a mean nothing cancels
        for total, part in zip(sums, (y, y.square(), lost.square()), strict=True):
            total += part.sum(0)
    return x.to(norm_dtype(x, pivot)).norm(dim=1)


def _coded(y: Float[Tensor, "r width"], of: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales, scale · code."""
    width = y.shape[1]
    grouped = F.pad(y, (0, -width % GROUP)).unflatten(1, (-1, GROUP))
    scales = (grouped.abs().amax(-1) / 127).clamp(min=TINY).to(of)
    scale = scales.to(y.dtype).unsqueeze(-1)
    codes = (grouped * scale.reciprocal()).round()
    return codes.flatten(1)[:, :width], scales, (codes * scale).flatten(1)[:, :width]


def cpu(
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None = None,
    pivot: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Row by row, in numba; what it cannot write, and without it all, a block at a time."""
    if NUMBA and _has(x, rows, pivot):
        from interp.kernels.record_rows_numba import put

        if x.dtype == torch.float16:
            x, kept = (x if kept is None else x.index_select(0, kept)).float(), None
        return put(x, kept, slots, rows, scales, pivot, sums)
    step = max(1, BLOCK // max(1, x.shape[1]))
    if len(slots) <= step:
        return reference(x, kept, slots, rows, scales, pivot, sums)
    parts = [slice(at, at + step) for at in range(0, len(slots), step)]
    given = [(x[at], None, slots[at]) if kept is None else (x, kept[at], slots[at]) for at in parts]
    return torch.cat([reference(some, own, places, rows, scales, pivot, sums) for some, own, places in given])


def _has(x: Tensor, rows: Tensor, pivot: Tensor | None) -> bool:
    wrote = rows.dtype in (torch.float32, torch.bfloat16) if pivot is None else pivot.dtype == torch.float32
    return wrote and x.dtype != torch.float64 and rows.is_contiguous()


def _plain(
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None = None,
    pivot: Tensor | None = None,
    sums: Tensor | None = None,
) -> bool:
    """Reference for up to a million numbers that are rounded to float16."""
    return rows.dtype == torch.float16 and len(slots) * x.shape[1] <= 2**20


def norm_dtype(x: Tensor, pivot: Tensor | None) -> torch.dtype:
    """In which norms are given."""
    return torch.promote_types(x.dtype, torch.float32) if pivot is None else pivot.dtype


def _fake(
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None = None,
    pivot: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    return x.new_empty(len(slots), dtype=norm_dtype(x, pivot))


record_rows = Op(
    "record_rows(Tensor x, Tensor? kept, Tensor slots, Tensor(a!) rows, Tensor(b!)? scales=None, Tensor? pivot=None, "
    "Tensor(c!)? sums=None) -> Tensor",
    reference,
    fake=_fake,
    cpu=cpu,
    plain=_plain,
    triton="interp.kernels.record_rows_triton:record_rows",
    cuda="interp.kernels.record_rows_cuda:record_rows",
)


def moments(
    sums: Float64[Tensor, "3 width"], rows: int, pivot: Float[Tensor, " width"] | float = 0.0
) -> Float64[Tensor, "3 width"]:
    """Mean, variance and mean squared loss of every feature of so many rows: pivot + Σy/n, Σy²/n − (Σy/n)², Σ(y − ŷ)²/n."""
    y, square, lost = sums / rows
    return torch.stack([pivot + y, (square - y.square()).clamp(min=0), lost])
