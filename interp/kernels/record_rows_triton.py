"""`record_rows` on a GPU: a program has 64 rows of one group of features, eight at a time.

Rounding is done on the bits, and products are not fused into sums, so rows and scales are those of the reference bit for bit.
Sums and squares of a program are added up outside: no atomics, so two runs agree.
"""

# Arguments of kernels have Triton's types.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from interp.kernels.record_rows import GROUP, TINY, reference

ROWS, TURNS = 8, 8  # of a program: rows at a time, and how often
BITS = {torch.bfloat16: torch.int16}
KNOWN = torch.float32, torch.bfloat16, torch.float16
HOW = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _half(x):
    """The bits of the nearest bfloat16, ties to even; NaN is the quiet one."""
    bits = x.to(tl.int32, bitcast=True)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, near, 0x7FC0).to(tl.int16)


@triton.jit
def _whole(half):
    return (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _record(
    x, kept, slots, rows, scales, pivot, squares, parts, n, width, groups,
    ROWS: tl.constexpr, TURNS: tl.constexpr, GROUP: tl.constexpr, TINY: tl.constexpr,
    GATHERED: tl.constexpr, CODED: tl.constexpr, HALVED: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1)
    at = g * GROUP + tl.arange(0, GROUP)
    inside = at < width
    if CODED:
        middle = tl.load(pivot + at, mask=inside, other=0.0)[None, :]
    if COUNTED:
        total = tl.zeros((ROWS, GROUP), tl.float64)
        square, loss = total, total
    for turn in tl.static_range(TURNS):
        i = (tl.program_id(0) * TURNS + turn) * ROWS + tl.arange(0, ROWS)
        there = i < n
        mask = there[:, None] & inside[None, :]
        row = i.to(tl.int64)
        if GATHERED:
            row = tl.load(kept + i, mask=there, other=0)
        place = tl.load(slots + i, mask=there, other=0)
        y = tl.load(x + row[:, None] * width + at[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(squares + g * n + i, tl.sum(y * y, 1), mask=there)
        into = rows + place[:, None] * width + at[None, :]
        if CODED:
            y = tl.where(mask, y - middle, 0.0)
            peak = tl.max(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)
            scale = tl.div_rn(peak, 127.0)
            scale = _half(tl.where(scale < TINY, TINY, scale))
            tl.store(scales + place * groups + g, scale, mask=there)
            scale = _whole(scale)[:, None]
            v = y * tl.div_rn(1.0, scale)
            code = (v + 12582912.0) - 12582912.0  # to the nearest, ties to even, of numbers below 2^22
            tl.store(into, code.to(tl.int8), mask=mask)
            found = code * scale
        elif HALVED:
            half = _half(y)
            tl.store(into, half, mask=mask)
            found = _whole(half)
        else:
            stored = y.to(rows.dtype.element_ty)
            tl.store(into, stored, mask=mask)
            found = stored.to(tl.float32)
        if COUNTED:
            lost = (y - found).to(tl.float64)
            wide = y.to(tl.float64)
            total += wide
            square += wide * wide
            loss += lost * lost
    if COUNTED:
        own = parts + tl.program_id(0) * 3 * width + at
        tl.store(own, tl.sum(total, 0), mask=inside)
        tl.store(own + width, tl.sum(square, 0), mask=inside)
        tl.store(own + 2 * width, tl.sum(loss, 0), mask=inside)


def record_rows(
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None = None,
    pivot: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """See `interp.kernels.record_rows`; float64 is left to the reference, as are rows that do not lie one behind the other."""
    coded = scales is not None and pivot is not None and pivot.dtype == torch.float32
    if x.dtype not in KNOWN or not rows.is_contiguous() or not (coded or rows.dtype in KNOWN) or not len(slots):
        return reference(x, kept, slots, rows, scales, pivot, sums)
    n, width = len(slots), x.shape[1]
    groups, blocks = triton.cdiv(width, GROUP), triton.cdiv(n, ROWS * TURNS)
    squares = x.new_empty(groups, n, dtype=torch.float32)
    parts = x.new_empty((blocks, 3, width) if sums is not None else 1, dtype=torch.float64)
    given = x.contiguous(), slots if kept is None else kept, slots, rows.view(BITS.get(rows.dtype, rows.dtype))
    codes = (squares, squares) if scales is None or pivot is None else (scales.view(torch.int16), pivot)
    settings = {"ROWS": ROWS, "TURNS": TURNS, "GROUP": GROUP, "TINY": TINY, "GATHERED": kept is not None}
    settings |= {"CODED": coded, "HALVED": rows.dtype == torch.bfloat16, "COUNTED": sums is not None}
    _record[(blocks, groups)](*given, *codes, squares, parts, n, width, groups, **settings, **HOW)
    if sums is not None:
        sums += parts.sum(0)
    return squares.sum(0).sqrt()


COMPILED = {
    f"record_rows, {read} to {wrote}": (
        _record,
        {"x": f"*{read}", "kept": "*i64", "slots": "*i64", "rows": f"*{bits}", "scales": "*i16", "pivot": "*fp32"}
        | {"squares": "*fp32", "parts": "*fp64", "n": "i32", "width": "i32", "groups": "i32"}
        | {"ROWS": ROWS, "TURNS": TURNS, "GROUP": GROUP, "TINY": TINY, "GATHERED": True, "CODED": wrote == "int8"}
        | {"HALVED": wrote == "bf16", "COUNTED": wrote == "int8"}
        | HOW,
    )
    for read, wrote, bits in (("fp32", "bf16", "i16"), ("bf16", "fp16", "fp16"), ("bf16", "int8", "i8"))
}
