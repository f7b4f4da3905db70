"""Rows waiting to be written, each already in its pile: one way from the model's memory to where the disk takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from interp.store.layout import IDS, Index
from interp.store.memory import words

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped
    from torch import Tensor

SPARE = 2  # regions that are being written while their piles fill others


class Waiting:
    """Regions of memory for `size` rows each: one for every pile, and two spare ones.

    Rows of a pile keep the order in which they came, and are taken in whole multiples of `block` rows. `columns` is all of
    that memory: who asks where rows go (`slots`) puts them there and then counts them (`count`).
    """

    def __init__(self, index: Index, room: int, block: int) -> None:
        piles = len(index.piles)
        self.block, self.size = block, room // block * block
        self.counts = np.zeros(piles, dtype=np.int64)
        self._region = np.arange(piles)
        self._spare = [*range(piles, piles + SPARE)]
        self.columns = index.empty(index.columns(), (piles + SPARE) * self.size)

    def parts(self, piles: Int64[np.ndarray, " n"]) -> list[slice]:
        """Rows in as many runs as it takes for each to find room beside the rows that fill no block."""
        step = len(piles)
        while any(
            np.bincount(piles[at : at + step]).max() > self.size - self.block + 1 for at in range(0, len(piles), step)
        ):
            step = -(-step // 2)
        return [slice(at, at + step) for at in range(0, len(piles), step)]

    def full(self, piles: Int64[np.ndarray, " n"]) -> list[int]:
        """The piles that must be taken before these rows find room: one of `parts`."""
        coming = np.bincount(piles, minlength=len(self.counts))
        return np.flatnonzero(self.counts + coming > self.size).tolist()

    def slots(self, piles: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Where row i goes: behind the rows of pile `piles[i]`."""
        small = np.uint16 if len(self.counts) <= 1 << 16 else np.uint32  # 16-bit keys are sorted by radix
        order = np.argsort(piles.astype(small), kind="stable")
        coming = np.bincount(piles, minlength=len(self.counts))
        slots = np.empty_like(order)  # place in the region: as many as are there, and as come before
        slots[order] = np.arange(len(order)) + np.repeat(self.counts - (np.cumsum(coming) - coming), coming)
        return slots + self._region[piles] * self.size

    def count(self, piles: Int64[np.ndarray, " n"]) -> None:
        """The rows that were put are there."""
        self.counts += np.bincount(piles, minlength=len(self.counts))

    def put(self, columns: Mapping[str, Shaped[Tensor, "n w"]], slots: Int64[np.ndarray, " n"]) -> None:
        """Rows as they are stored, each into its slot. Floor: each byte read once and written once."""
        for name, values in columns.items():
            words(self.columns[name]).numpy()[slots] = words(values).numpy()

    def rows(self, pile: int) -> dict[str, Shaped[Tensor, "n w"]]:
        """All that wait for a pile."""
        first = int(self._region[pile]) * self.size
        return {name: values[first : first + int(self.counts[pile])] for name, values in self.columns.items()}

    def take(self, pile: int) -> tuple[dict[str, Shaped[Tensor, "n w"]], int]:
        """The rows of a pile that fill blocks, and the region they lie in until it is freed; the pile goes on in a spare one."""
        rows, region, rest = self.rows(pile), int(self._region[pile]), int(self.counts[pile]) % self.block
        self._region[pile], self.counts[pile] = self._spare.pop(), rest
        whole = len(rows[IDS]) - rest
        for name, values in self.rows(pile).items():
            values[:] = rows[name][whole:]
        return {name: values[:whole] for name, values in rows.items()}, region

    def free(self, region: int) -> None:
        """Its rows are written."""
        self._spare.append(region)
