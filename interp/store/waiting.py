"""Rows waiting to be written, each already in its pile: one copy from the caller's memory to where the disk takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from interp.store.layout import Index, words

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped
    from torch import Tensor

SPARE = 2  # regions that are being written while their piles fill others


class Waiting:
    """Regions of memory for `room` rows each: one for every pile, and two spare ones.

    Rows of a pile keep the order in which they came.
    """

    def __init__(self, index: Index, room: int) -> None:
        piles = len(index.piles)
        self.room = room
        self.counts = np.zeros(piles, dtype=np.int64)
        self._region = np.arange(piles)
        self._spare = [*range(piles, piles + SPARE)]
        self._columns = index.empty(index.columns(), (piles + SPARE) * room)

    def full(self, piles: Int64[np.ndarray, " n"]) -> Iterator[int]:
        """The piles that must be taken before these rows find room; n is at most `room`."""
        coming = np.bincount(piles, minlength=len(self.counts))
        yield from np.flatnonzero(self.counts + coming > self.room).tolist()

    def put(self, columns: dict[str, Shaped[Tensor, "n w"]], piles: Int64[np.ndarray, " n"]) -> None:
        """Row i goes behind the rows of pile `piles[i]`. Floor: each byte read once and written once."""
        small = np.uint16 if len(self.counts) <= 1 << 16 else np.uint32  # 16-bit keys are sorted by radix
        order = np.argsort(piles.astype(small), kind="stable")
        coming = np.bincount(piles, minlength=len(self.counts))
        slots = np.empty_like(order)  # place in the region: as many as are there, and as come before
        slots[order] = np.arange(len(order)) + np.repeat(self.counts - (np.cumsum(coming) - coming), coming)
        slots += self._region[piles] * self.room
        for name, values in columns.items():
            words(self._columns[name]).numpy()[slots] = words(values).numpy()
        self.counts += coming

    def take(self, pile: int) -> tuple[dict[str, Shaped[Tensor, "n w"]], int]:
        """The rows of one pile, and the region they lie in until it is freed; the pile goes on in a spare one."""
        region, count = int(self._region[pile]), int(self.counts[pile])
        self._region[pile], self.counts[pile] = self._spare.pop(), 0
        first = region * self.room
        return {name: values[first : first + count] for name, values in self._columns.items()}, region

    def free(self, region: int) -> None:
        """Its rows are written."""
        self._spare.append(region)
