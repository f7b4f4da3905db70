"""Where a row lies and when it is served: pure functions of counters, so that any part can be computed by itself.

Rows thrown independently and uniformly into piles, and each pile permuted uniformly, make together an exactly uniform
permutation (Rao 1961, "Generation of random permutations of given number of elements using random sampling numbers";
Sandelius 1962, "A simple randomization procedure").

All randomness is one table of 64-bit words: word `i` of the stream `(seed, use, epoch, pile)` is lane `i mod 4` of
Philox4x64-10 (Salmon et al. 2011) with key `(seed, use)` and counter `(⌊i/4⌋ + 1, pile, epoch, 0)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt64

# What a stream is used for is half of its key: equal seeds of the writer and of a reader share no randomness.
TO_PILE, PILE_ORDER, ROW_ORDER = 0, 1, 2


def words(seed: int, use: int, start: int, stop: int, epoch: int = 0, pile: int = 0) -> UInt64[np.ndarray, " n"]:
    """Words `start` to `stop` of one stream: uint64, shape [stop - start]; nothing before `start` is computed."""
    block, skip = divmod(start, 4)
    counter = np.array([block, pile, epoch, 0], dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed, use], dtype=np.uint64), counter=counter)
    return generator.random_raw(stop - start + skip)[skip:]


def piles_of(seed: int, start: int, stop: int, piles: int) -> Int64[np.ndarray, " n"]:
    """pile(i) = ⌊u_i · piles / 2⁶⁴⌋ for the rows `start` to `stop`, u_i word i; `piles` < 2³².

    A pile's probability is off 1/piles by less than 2⁻⁶⁴. Shape [stop - start].
    """
    u = words(seed, TO_PILE, start, stop)
    low = (u & np.uint64(0xFFFFFFFF)) * np.uint64(piles) >> np.uint64(32)
    return ((u >> np.uint64(32)) * np.uint64(piles) + low >> np.uint64(32)).astype(np.int64)


def pile_order(seed: int, epoch: int, piles: int) -> Int64[np.ndarray, " piles"]:
    """The order in which an epoch reads the piles: argsort of `piles` words. Shape [piles]."""
    return np.argsort(words(seed, PILE_ORDER, 0, piles, epoch))


def row_order(seed: int, epoch: int, pile: int, rows: int) -> Int64[np.ndarray, " rows"]:
    """The order in which an epoch serves the rows of one pile: argsort of `rows` words. Shape [rows].

    Two of n words are equal with probability below n²/2⁶⁵ (10⁻⁸ for a million rows), the only departure from uniform.
    """
    return np.argsort(words(seed, ROW_ORDER, 0, rows, epoch, pile))
