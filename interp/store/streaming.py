"""Rows straight from a model: what a recorded store would serve, with nothing on disk."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.errors import WrongUse, check_keys
from interp.store.recording import batches, kept_rows
from interp.store.shuffle import row_order

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from interp.model import Model, Together

BLOCK_BYTES = 2**28  # of float32 rows that are shuffled together


class Stream:
    """The rows of a model's sites over `texts`, computed when they are asked for; to train on it is a `Store`.

    Rows are those that `record_text` appends, numbered in that order. Block b holds the rows bB to (b+1)B − 1, as many
    as fit `block_bytes`; epoch e of a reader with seed s serves the blocks in order, and the rows of block b in the order
    that sorts the first words of (s, use 2, e, b), one for each row. So any batch can be computed by itself: from the
    windows of text that its block takes. `texts` is called once to count rows, and once for each epoch. `digest` is a
    checksum of all token ids. `meta` is kept as that of a store is.

    Raises `WrongUse` if there is no text.
    """

    def __init__(
        self,
        model: Model | Together,
        sites: Sequence[str],
        texts: Callable[[], Iterable[str]],
        *,
        tokens: int | None = None,
        batch: int = 16,
        context: int = 512,
        block_bytes: int = BLOCK_BYTES,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._texts, self._batch, self._context = model, texts, batch, context
        self.sites = model.names(sites)
        self.widths = {site: model.width(site) for site in self.sites}
        self.meta = {"model": model.id, "sites": self.sites, "context": context, "tokens": tokens, **(meta or {})}
        counts, self.digest = self._counted(tokens)
        self._ends = np.cumsum(counts)  # rows up to the end of every group of windows
        self.rows = int(min(self._ends[-1], tokens or self._ends[-1])) if counts else 0
        if not self.rows:
            raise WrongUse("There is no text to stream.")
        self.block = min(self.rows, max(1, block_bytes // (4 * sum(self.widths.values()))))
        self._ready: tuple[int, list[str], dict[str, Tensor]] | None = None  # the block that was computed last

    def _counted(self, tokens: int | None) -> tuple[list[int], str]:
        """Rows of every group of windows, up to `tokens`, and the checksum of their ids."""
        from tqdm.auto import tqdm

        counts, sum_of = [], 0
        start = getattr(self._model.tokenizer, "bos_token_id", None)
        with tqdm(total=tokens, desc="counting", unit=" rows", mininterval=1, disable=None, leave=False) as bar:
            for _, group in batches(self._model, self._texts(), self._context, self._batch):
                counts.append(sum(len(ids) - (ids[0] == start) for ids in group))
                sum_of = zlib.crc32(np.concatenate(group).astype("<i8").tobytes(), sum_of)
                bar.update(counts[-1])
                if tokens is not None and bar.n >= tokens:
                    break
        return counts, f"{sum_of:08x}"

    def batches(
        self,
        size: int,
        seed: int = 0,
        sites: Sequence[str] | None = None,
        epochs: int = 1,
        start: int = 0,
        drop_last: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """As `Store.batches`: every row once per epoch, dicts site → [size, width], from batch number `start` on.

        Nothing before the block of that batch is computed, though its text is tokenised. Memory: three blocks, at most, and a batch.
        """
        chosen = self.sites if sites is None else list(sites)
        check_keys(chosen, self.sites, "The stream")
        each = self.rows // size if drop_last else -(-self.rows // size)
        for epoch in range(start // each if each else epochs, epochs):
            first = max(0, start - epoch * each) * size
            yield from self._epoch(size, seed, epoch, chosen, first, min(each * size, self.rows))

    def _epoch(
        self, size: int, seed: int, epoch: int, sites: list[str], first: int, stop: int
    ) -> Iterator[dict[str, Tensor]]:
        """The rows `first` to `stop` of an epoch's order, in batches; a batch may take rows of several blocks."""
        blocks = self._blocks(sites, first // self.block)
        number, order = -1, torch.empty(0, dtype=torch.int64)
        block: dict[str, Tensor] = {}
        for begin in range(first, stop, size):
            at, end, parts = begin, min(begin + size, stop), []
            while at < end:
                if at // self.block != number:
                    number, block = next(blocks)
                    order = torch.from_numpy(row_order(seed, epoch, number, len(block[sites[0]])))
                rows = order[at - number * self.block : end - number * self.block]
                parts.append({site: block[site][rows] for site in sites})
                at += len(rows)
            yield {site: torch.cat([part[site] for part in parts]) for site in sites}

    def _blocks(self, sites: list[str], first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Blocks from number `first` on; the one that was computed last is not computed again."""
        if self._ready and self._ready[:2] == (first, sites):
            yield first, self._ready[2]
            first += 1
        waiting = self._from(sites, first * self.block)
        rest: dict[str, Tensor] = {}
        for number in range(first, -(-self.rows // self.block)):
            size = min(self.block, self.rows - number * self.block)
            self._ready = None
            parts, there = [rest] if rest else [], len(rest[sites[0]]) if rest else 0
            while there < size:
                parts.append(next(waiting))
                there += len(parts[-1][sites[0]])
            whole = {site: torch.cat([part[site] for part in parts]) for site in sites}
            rest = {site: rows[size:].clone() for site, rows in whole.items()}
            self._ready = number, sites, {site: rows[:size] for site, rows in whole.items()}
            yield number, self._ready[2]

    def _from(self, sites: list[str], row: int) -> Iterator[dict[str, Float[Tensor, "n width"]]]:
        """The rows from number `row` on, in the order of the text, as many at a time as a group of windows has."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        skip = row - (int(self._ends[group - 1]) if group else 0)
        for _, windows in batches(self._model, self._texts(), self._context, self._batch, group * self._batch):
            rows = kept_rows(self._model, sites, windows)[0]
            yield {site: rows[site][skip:] for site in sites}
            skip = 0
