"""`weight_gradient` and `sddmm` on a CPU: latents, or rows, are shared by as many threads as torch uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from interp.kernels.largest_numba import shared


def sums(values: Tensor, indices: Tensor, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """`weight_gradient`: entries are sorted by counting, then each latent's rows are added up."""
    total, mass = rows.new_zeros(m, rows.shape[1]), values.new_zeros(m)  # what no latent needs is never touched
    weights = values.detach().contiguous().numpy()
    starts, order = _sorted(indices.contiguous().numpy(), weights, m)
    given = (starts, order, weights, rows.detach().contiguous().numpy())
    shared(_sums, m, *given, total.numpy(), mass.numpy())
    return total, mass


def products(rows: Tensor, W: Tensor, indices: Tensor, values: Tensor, every: bool) -> Tensor:
    """`sddmm`; of `every` entry, or of those whose values are not 0."""
    found = rows.new_empty(indices.shape)
    given = (t.detach().contiguous().numpy() for t in (rows, W, indices, values))
    shared(_products, len(rows), *given, every, found.numpy())
    return found


@njit(nogil=True, cache=True)
def _sorted(indices: Any, values: Any, m: int) -> Any:
    """(Where each latent's entries begin, and the end; those that are not 0, a latent's in order of their rows)."""
    starts, flat, weights = np.zeros(m + 1, np.int64), indices.ravel(), values.ravel()
    for e in range(len(flat)):
        if weights[e] != 0:
            starts[flat[e] + 1] += 1
    for i in range(m):
        starts[i + 1] += starts[i]
    place, order = starts.copy(), np.empty(starts[m], np.int64)
    for e in range(len(flat)):
        if weights[e] != 0:
            order[place[flat[e]]] = e
            place[flat[e]] += 1
    return starts, order


@njit(nogil=True, cache=True)
def _sums(start: int, stop: int, starts: Any, order: Any, values: Any, rows: Any, total: Any, mass: Any) -> None:
    k, flat = values.shape[1], values.ravel()
    for i in range(start, stop):
        own = total[i]
        for e in order[starts[i] : starts[i + 1]]:
            value, row = flat[e], rows[e // k]
            mass[i] += value
            for j in range(len(own)):
                own[j] += value * row[j]


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _products(start: int, stop: int, rows: Any, W: Any, indices: Any, values: Any, every: bool, found: Any) -> None:
    for b in range(start, stop):
        row = rows[b]
        for j in range(indices.shape[1]):
            if not every and values[b, j] == 0:
                found[b, j] = 0
                continue
            other = W[indices[b, j]]
            found[b, j] = 0
            z = found[b, j]
            for i in range(len(row)):
                z += row[i] * other[i]
            found[b, j] = z
