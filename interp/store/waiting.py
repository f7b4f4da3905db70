"""Rows waiting to be written, each already in its pile: one copy from the caller's memory to where the disk takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from interp.store.layout import Index, words

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped
    from torch import Tensor


class Waiting:
    """Memory for `room` rows of every pile, column by column. Rows of a pile keep the order in which they came."""

    def __init__(self, index: Index, room: int) -> None:
        self.room = room
        self.counts = np.zeros(len(index.piles), dtype=np.int64)
        self._columns = index.empty(index.columns(), len(index.piles) * room)

    def full(self, piles: Int64[np.ndarray, " n"]) -> Iterator[int]:
        """The piles that must be taken before these rows find room; n is at most `room`."""
        coming = np.bincount(piles, minlength=len(self.counts))
        yield from np.flatnonzero(self.counts + coming > self.room).tolist()

    def put(self, columns: dict[str, Shaped[Tensor, "n w"]], piles: Int64[np.ndarray, " n"]) -> None:
        """Row i goes behind the rows of pile `piles[i]`. Floor: each byte read once and written once."""
        small = np.uint16 if len(self.counts) <= 1 << 16 else np.uint32  # 16-bit keys are sorted by radix
        order = np.argsort(piles.astype(small), kind="stable")
        coming = np.bincount(piles, minlength=len(self.counts))
        slots = np.empty_like(order)  # place in the pile: as many as are there, and as come before
        slots[order] = np.arange(len(order)) + np.repeat(self.counts - (np.cumsum(coming) - coming), coming)
        slots += piles * self.room
        for name, values in columns.items():
            words(self._columns[name]).numpy()[slots] = words(values).numpy()
        self.counts += coming

    def take(self, pile: int) -> dict[str, Shaped[Tensor, "n w"]]:
        """The rows of one pile, good until the next `put`; their room is free again."""
        first, count = pile * self.room, self.counts[pile]
        self.counts[pile] = 0
        return {name: values[first : first + count] for name, values in self._columns.items()}
