"""`record_rows` and `unpack_rows` on a CPU: a row is gathered, rounded or coded, measured and put in its place while the cache holds it.

bfloat16 is read and written by its bits. Sums are added up in float64 over `ROWS` rows and then over those, in order, so they
do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from interp.kernels.largest_numba import shared
from interp.kernels.record_rows import GROUP, TINY

ROWS, TILE = 256, 4  # that a thread takes, and that are added up, at a time
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.int8: torch.int8}
ALL, UPPER, QUIET, INFINITE = np.int32(0x7FFFFFFF), np.int32(-65536), np.int32(0x7FC00000), np.int32(0x7F800000)
HALF, HIGH, BIT = np.int32(0x7FFF), np.int32(16), np.int32(1)
ONE, MOST, LEAST = np.float32(1), np.float32(127), np.float32(TINY)


def put(
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None,
    pivot: Tensor | None,
    sums: Tensor | None,
) -> Tensor:
    """`record_rows` of float32 and bfloat16."""
    n, width = len(slots), x.shape[1]
    blocks, norms = -(-n // ROWS), torch.empty(n)
    parts = np.zeros((0 if sums is None else blocks, 3, width))
    places = (slots if kept is None else kept).numpy(), kept is not None, slots.numpy()
    given = _bits(x.detach().contiguous()), *places, _bits(rows), norms.numpy(), parts
    if scales is None or pivot is None:
        shared(_rounded, blocks, *given)
    else:
        shared(_coded, blocks, *given, _bits(scales), pivot.contiguous().numpy())
    if sums is not None:
        sums += torch.from_numpy(
            parts.sum(0)
        )  # numpy's: torch's threads, for so little, would mostly wait for each other
    return norms


def unpack(codes: Tensor, scales: Tensor, pivot: Tensor, rows: Tensor) -> None:
    """`unpack_rows`, into float32."""
    given = codes.numpy(), _bits(scales.contiguous()), pivot.contiguous().numpy(), rows.numpy()
    shared(_unpacked, len(codes), *given)


def _bits(t: Tensor) -> Any:
    return t.view(BITS[t.dtype]).numpy()


@njit(nogil=True, cache=True)
def _rounded(
    start: int, stop: int, x: Any, kept: Any, gathered: bool, slots: Any, rows: Any, norms: Any, parts: Any
) -> None:
    width, up, down = x.shape[1], np.int32(32 - 8 * x.itemsize), np.int32(32 - 8 * rows.itemsize)
    y, lost = np.zeros((TILE, width), np.float32), np.zeros((TILE, width), np.float32)
    for first in range(start * ROWS, min(stop * ROWS, len(slots)), TILE):
        for i in range(first, min(first + TILE, len(slots))):
            one, into = x[kept[i] if gathered else i], rows[slots[i]]
            if up == down:
                for j in range(width):
                    into[j] = one[j]
            elif down:
                for j in range(width):
                    into[j] = _half(np.int32(one[j])) >> HIGH
            else:
                for j in range(width):
                    into[j] = np.int32(one[j]) << up
            norms[i] = np.sqrt(_square(one, up))
            if len(parts):
                _differences(one, up, into, down, y[i - first], lost[i - first])
        if len(parts):
            _add(parts[first // ROWS], y, lost, len(slots) - first)


@njit(nogil=True, cache=True)
def _coded(
    start: int,
    stop: int,
    x: Any,
    kept: Any,
    gathered: bool,
    slots: Any,
    rows: Any,
    norms: Any,
    parts: Any,
    scales: Any,
    pivot: Any,
) -> None:
    width, up = x.shape[1], np.int32(32 - 8 * x.itemsize)
    ys, losts = np.zeros((TILE, width), np.float32), np.zeros((TILE, width), np.float32)
    step, inverse = np.empty(width, np.float32), np.empty(width, np.float32)
    for first in range(start * ROWS, min(stop * ROWS, len(slots)), TILE):
        for i in range(first, min(first + TILE, len(slots))):
            one, codes, own = x[kept[i] if gathered else i], rows[slots[i]], scales[slots[i]]
            y, lost = ys[i - first], losts[i - first]
            for j in range(width):
                y[j] = np.int32(np.int32(one[j]) << up).view(np.float32) - pivot[j]
            for g in range(len(own)):
                begin, end = np.uintp(g * GROUP), np.uintp(min(width, g * GROUP + GROUP))
                scale = _scale(y.view(np.int32), begin, end)
                own[g] = scale >> HIGH
                size = np.int32(scale).view(np.float32)
                for j in range(begin, end):
                    step[j], inverse[j] = size, ONE / size
            for j in range(width):
                code = np.rint(y[j] * inverse[j])
                codes[j] = np.int8(code)
                lost[j] = code * step[j] - y[j]
            norms[i] = np.sqrt(_square(one, up))
        if len(parts):
            _add(parts[first // ROWS], ys, losts, len(slots) - first)


@njit(nogil=True, cache=True)
def _scale(bits: Any, begin: Any, end: Any) -> Any:
    """The bits of a group's scale. Unsigned places are not looked at for their sign, so the loop is vectorised."""
    peak = np.int32(0)
    for j in range(begin, end):
        peak = max(peak, bits[j] & ALL)  # floats are ordered as their bits are, and NaN above all
    most = np.int32(peak).view(np.float32) / MOST
    most = np.float32(LEAST if most < LEAST else most)
    return _half(most.view(np.int32))


@njit(nogil=True, cache=True)
def _unpacked(start: int, stop: int, codes: Any, scales: Any, pivot: Any, rows: Any) -> None:
    width = codes.shape[1]
    for i in range(start, stop):
        one, into, own = codes[i], rows[i], scales[i]
        for g in range(len(own)):
            step = np.int32(np.int32(own[g]) << HIGH).view(np.float32)
            for j in range(np.uintp(g * GROUP), np.uintp(min(width, g * GROUP + GROUP))):
                into[j] = pivot[j] + step * np.float32(one[j])


@njit(nogil=True, cache=True)
def _half(bits: Any) -> Any:
    """The nearest bfloat16, ties to even, as the bits of a float32; NaN is the quiet one."""
    near = np.int32(np.int32(bits + HALF + ((bits >> HIGH) & BIT)) & UPPER)
    return QUIET if np.int32(bits & ALL) > INFINITE else near


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _square(one: Any, up: Any) -> Any:
    total = np.float32(0)
    for j in range(len(one)):
        x = np.int32(np.int32(one[j]) << up).view(np.float32)
        total += x * x
    return total


@njit(nogil=True, cache=True)
def _differences(one: Any, up: Any, into: Any, down: Any, y: Any, lost: Any) -> None:
    for j in range(len(one)):
        y[j] = np.int32(np.int32(one[j]) << up).view(np.float32)
        lost[j] = y[j] - np.int32(np.int32(into[j]) << down).view(np.float32)


@njit(nogil=True, cache=True)
def _add(parts: Any, y: Any, lost: Any, there: int) -> None:
    """Of four rows at a time, of which so many are there."""
    for i in range(there, TILE):
        y[i], lost[i] = 0, 0
    total, square, loss = parts[0], parts[1], parts[2]
    y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
    for j in range(len(total)):
        a, b, c, d = np.float64(y0[j]), np.float64(y1[j]), np.float64(y2[j]), np.float64(y3[j])
        total[j] += (a + b) + (c + d)
        square[j] += (a * a + b * b) + (c * c + d * d)
    y0, y1, y2, y3 = lost[0], lost[1], lost[2], lost[3]
    for j in range(len(total)):
        a, b, c, d = np.float64(y0[j]), np.float64(y1[j]), np.float64(y2[j]), np.float64(y3[j])
        loss[j] += (a * a + b * b) + (c * c + d * d)
