"""`largest` on a CPU: a row is read once, by groups of 32 columns, and only a few groups a second time.

Floats are compared as integers of the same order. The k-th largest of the groups' maxima is no larger than the k-th
largest entry, so only groups that reach it are looked into; the k-th largest of what reaches it there is found, and k are sorted.
Rows are shared by as many threads as torch uses, outside OpenMP: numba's threads and torch's would wait for each other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

GROUP, MANY = 32, 16  # columns looked at together; entries beyond k that are sorted rather than sorted out
LOW, SIGN, ALL, ZERO = np.int32(-(2**31)), np.int32(31), np.int32(0x7FFFFFFF), np.float32(0)


def rows(z: Tensor, c: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """`largest` for z in bfloat16 or float32, c in float32."""
    (n, m), half = z.shape, z.dtype == torch.bfloat16
    bits = z.detach().contiguous().view(torch.int16 if half else torch.int32).numpy()
    bias = np.zeros(m, np.float32) if c is None else c.detach().contiguous().numpy()
    values, indices = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    shared(_some, n, bits, np.int32(16 if half else 0), bias, k, values, indices)
    return torch.from_numpy(values), torch.from_numpy(indices)


def shared(work: Any, n: int, *given: Any) -> None:
    """work(start, stop, …) over the numbers below n, cut into as many ranges as torch uses threads."""
    threads = min(torch.get_num_threads(), n)
    if threads < 2:
        work(0, n, *given)
        return
    cuts = [n * i // threads for i in range(threads + 1)]
    list(_pool(threads).map(lambda i: work(cuts[i], cuts[i + 1], *given), range(threads)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@njit(nogil=True, cache=True)
def _ordered(z: Any, shift: Any, c: Any) -> Any:
    """The bits of z + c as an integer that is larger where z + c is, and largest where it is NaN."""
    total = np.float32(np.int32(np.int32(z) << shift).view(np.float32) + c + ZERO)  # there is no −0 among sums
    bits = total.view(np.int32)
    return bits ^ ((bits >> SIGN) & ALL) if total == total else ALL


@njit(nogil=True, cache=True)
def _kth(numbers: Any, k: int) -> Any:
    """The largest number that k of them reach, bit by bit."""
    edge = LOW
    for bit in range(31, -1, -1):
        trial = np.int32(0) if bit == 31 else np.int32(edge + (np.int32(1) << np.int32(bit)))
        reach = np.int32(0)
        for i in range(len(numbers)):
            reach += np.int32(numbers[i] >= trial)
        if reach >= k:
            edge = trial
    return edge


@njit(nogil=True, cache=True)
def _reaching(edge: Any, found: Any, where: Any, n: int) -> int:
    """Of the first n found those that reach the edge, moved to the front; how many they are."""
    kept = 0
    for i in range(n):
        found[kept], where[kept] = found[i], where[i]
        kept += found[kept] >= edge
    return kept


@njit(nogil=True, cache=True)
def _some(start: int, stop: int, z: Any, shift: Any, c: Any, k: int, values: Any, indices: Any) -> None:
    m = z.shape[1]
    whole = m // GROUP
    tops = np.empty(whole, np.int32)
    found, where, keys = np.empty(m + 1, np.int32), np.empty(m + 1, np.int32), np.empty(m, np.int64)
    for row in range(start, stop):
        for g in range(whole):
            best = LOW
            for j in range(g * GROUP, g * GROUP + GROUP):
                best = max(best, _ordered(z[row, j], shift, c[j]))
            tops[g] = best
        edge = _kth(tops, k) if whole >= k else LOW
        n = 0
        for g in range(whole + 1):
            if g == whole or tops[g] >= edge:
                for j in range(g * GROUP, min(m, g * GROUP + GROUP)):
                    found[n], where[n] = _ordered(z[row, j], shift, c[j]), j
                    n += found[n] >= edge
        if n > k + MANY:
            n = _reaching(_kth(found[:n], k), found, where, n)
        for i in range(n):
            keys[i] = (np.int64(found[i]) << np.int64(32)) - where[i]  # of equal ones the first is the largest
        keys[:n].sort()
        for i in range(k):
            key = keys[n - 1 - i]
            column = -key & np.int64(0xFFFFFFFF)
            bits = np.int32((key + column) >> np.int64(32))
            values[row, i] = np.int32(bits ^ ((bits >> SIGN) & ALL)).view(np.float32)
            indices[row, i] = column
