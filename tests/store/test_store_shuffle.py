"""The shuffle as pure functions: pinned, computable from anywhere, and uniform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from interp.store.shuffle import PILE_ORDER, ROW_ORDER, TO_PILE, pile_order, piles_of, row_order, words


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as printed in Salmon et al. 2011, section 3.3 and table 2."""
    mask = 2**64 - 1
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [(b >> 64) ^ counter[1] ^ key[0], b & mask, (a >> 64) ^ counter[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_words_are_the_documented_ones() -> None:
    seed, use, epoch, pile = 2**63 + 5, 2, 2**64 - 1, 7
    expected = [w for block in (4, 5) for w in _philox([block, pile, epoch, 0], [seed, use])]
    assert words(seed, use, 12, 20, epoch, pile).tolist() == expected


def test_philox_gives_the_published_answers() -> None:
    # Random123's known-answer vectors: all zeros, and the digits of π.
    assert _philox([0] * 4, [0] * 2)[:2] == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC]
    digits = [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89]
    assert _philox(digits, [0x452821E638D01377, 0xBE5466CF34E90C6C])[0] == 0xA528F45403E61D95


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 1), (3, 9), (4, 8), (997, 1000)])
def test_any_range_of_rows_is_computed_by_itself(start: int, stop: int) -> None:
    assert (piles_of(11, start, stop, 5) == piles_of(11, 0, 1000, 5)[start:stop]).all()


@pytest.mark.parametrize("piles", [1, 3, 40_000, 2**32 - 1])
def test_the_pile_is_the_word_scaled_without_rounding(piles: int) -> None:
    exact = [int(word) * piles >> 64 for word in words(2, TO_PILE, 0, 500)]
    assert piles_of(2, 0, 500, piles).tolist() == exact


def test_streams_differ_in_every_coordinate() -> None:
    streams = [(0, TO_PILE, 0, 0), (1, TO_PILE, 0, 0), (0, PILE_ORDER, 0, 0), (0, ROW_ORDER, 0, 0)]
    streams += [(0, ROW_ORDER, 1, 0), (0, ROW_ORDER, 0, 1), (0, ROW_ORDER, 1, 1)]
    drawn = [w for seed, use, epoch, pile in streams for w in words(seed, use, 0, 100, epoch, pile).tolist()]
    assert len(set(drawn)) == 700


def test_orders_are_permutations() -> None:
    assert sorted(pile_order(5, 1, 33)) == list(range(33))
    assert sorted(row_order(5, 1, 2, 101)) == list(range(101))
    assert (row_order(5, 1, 2, 101) != row_order(5, 2, 2, 101)).any()


@pytest.mark.check("store U1", formula="|(χ² − df)/√(2 df)|, χ² of rows per pile against rows/piles", tolerance=4.0)
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("piles", [2, 37, 1000])
def test_piles_are_equally_likely(seed: int, piles: int, measured: Callable[[float], None]) -> None:
    counts = np.bincount(piles_of(seed, 0, 200_000, piles), minlength=piles)
    chi2 = ((counts - 200_000 / piles) ** 2).sum() * piles / 200_000
    measured(abs(chi2 - (piles - 1)) / (2 * (piles - 1)) ** 0.5)


def _served(seed: int, rows: int, piles: int, epoch: int = 0) -> tuple[int, ...]:
    """The order in which an epoch serves `rows` rows, from the definition; writer and reader have one seed."""
    pile = piles_of(seed, 0, rows, piles)
    members = [np.flatnonzero(pile == p) for p in range(piles)]
    orders = (members[p][row_order(seed, epoch, p, len(members[p]))] for p in pile_order(seed, epoch, piles))
    return tuple(int(i) for order in orders for i in order)


@pytest.mark.check("store U2", formula="|(χ² − 23)/√46|, χ² of the 24 orders of 4 rows over seeds", tolerance=4.0)
@pytest.mark.parametrize("piles", [1, 2, 5])
def test_every_order_is_equally_likely(piles: int, measured: Callable[[float], None]) -> None:
    seeds = 24 * 150
    counts = Counter(_served(seed, 4, piles) for seed in range(seeds))
    assert len(counts) == 24
    chi2 = sum((c - 150) ** 2 / 150 for c in counts.values())
    measured(abs(chi2 - 23) / 46**0.5)


@pytest.mark.check(
    "store U4", formula="√(k/2)·|mean(n−1)r² − 1|, r rank correlation of id and place, k seeds", tolerance=4.0
)
@pytest.mark.parametrize("epoch", [0, 1])
def test_the_place_does_not_depend_on_the_id(epoch: int, measured: Callable[[float], None]) -> None:
    r = np.array([np.corrcoef(_served(seed, 300, 4, epoch), np.arange(300))[0, 1] for seed in range(800)])
    measured(abs((299 * r**2).mean() - 1) * 400**0.5)
