"""`above` on a CPU: a row is read once, by groups of columns; a group where something may be above is read again.

With rows and W: rounded to z's dtype both factors of a product are off by u of their size at most, so their product by (2u + u²)
‖row‖ ‖w_i‖, and z by u of itself. What could be above its bound for all that is multiplied out again, and looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from interp.kernels.largest_numba import shared

GROUP = 32
EPS = float(np.finfo(np.float32).eps)


def found(
    z: Tensor, c: Tensor, bound: Tensor, k: int, rows: Tensor | None, W: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`above` for z in bfloat16 or float32, the others in float32."""
    (n, m), half = z.shape, z.dtype == torch.bfloat16
    bits = z.detach().contiguous().view(torch.int16 if half else torch.int32).numpy()
    if rows is None or W is None:
        u, more = 0.0, [np.zeros(shape, np.float32) for shape in (n, m, (0, 0), (0, 0))]
        given = [_numbers(t) for t in (c, bound)]
        given += [given[1], *more]
    else:
        u, edge = torch.finfo(z.dtype).eps / 2, bound - 4 * EPS * (bound.abs() + c.abs())
        slack, size = rows.norm(dim=1) * (2.1 * u + EPS * rows.shape[1]), W.norm(dim=1)
        given = [_numbers(t) for t in (c, bound, edge, slack, size, rows, W)]
    found = np.full((n, k), np.finfo(np.float32).min), np.zeros((n, k), np.int64), np.empty(n, np.int64)
    shared(_found, n, bits, np.int32(16 if half else 0), *given, np.float32(1.1 * u), u > 0, *found)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])


def _numbers(t: Tensor) -> Any:
    return t.detach().contiguous().numpy()


@njit(nogil=True, cache=True)
def _number(bits: Any, shift: Any) -> Any:
    return np.int32(np.int32(bits) << shift).view(np.float32)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _products(row: Any, W: Any, columns: Any, n: int, y: Any) -> None:
    for j in range(n):
        other = W[columns[j]]
        y[j] = 0
        total = y[j]
        for i in range(len(row)):
            total += row[i] * other[i]
        y[j] = total


@njit(nogil=True, cache=True)
def _found(
    start: int, stop: int, z: Any, shift: Any, c: Any, bound: Any, edge: Any, slack: Any, size: Any, rows: Any, W: Any,
    u: Any, again: bool, values: Any, indices: Any, counts: Any,
) -> None:  # fmt: skip
    m, k = z.shape[1], values.shape[1]
    whole = m // GROUP
    found, columns = np.empty(m, c.dtype), np.empty(m, np.int64)
    for b in range(start, stop):
        n, s = 0, slack[b]
        for g in range(whole + 1):
            below = np.int32(0)
            if g < whole:
                for i in range(g * GROUP, g * GROUP + GROUP):
                    y = _number(z[b, i], shift)
                    below += np.int32(y + c[i] + (s * size[i] + u * abs(y)) <= edge[i])
            if below < GROUP:
                for i in range(g * GROUP, min(m, g * GROUP + GROUP)):
                    y = _number(z[b, i], shift)
                    if not (y + c[i] + (s * size[i] + u * abs(y)) <= edge[i]):
                        found[n], columns[n] = y, i
                        n += 1
        if again:
            _products(rows[b], W, columns, n, found)
        count = 0
        for j in range(n):
            i = columns[j]
            y = found[j] + c[i]
            if not (y <= bound[i]):
                if count < k:
                    values[b, count], indices[b, count] = y, i
                count += 1
        counts[b] = count
