"""Reading a store: whole piles in random order, permuted in memory, cut into batches."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.errors import Failed, WrongUse, check_keys
from interp.model.memory import available
from interp.store.disk import read
from interp.store.int8 import Coding, decode
from interp.store.layout import (
    CHECKSUMS,
    DTYPES,
    IDS,
    INDEX,
    JOURNAL,
    Index,
    checksum_of,
    columns_of,
    read_index,
    shard_name,
)
from interp.store.memory import raw, words
from interp.store.shuffle import pile_order, row_order

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped
    from torch import Tensor

SAMPLE_EPOCH = 2**64 - 1  # `sample` draws from an epoch that no training run gets to


class Store:
    """A complete store of rows, opened for reading; `open_store` makes it. Any number of processes may read at once."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self.index = index
        self.rows: int = index.rows
        self.widths: dict[str, int] = dict(index.widths)
        self.sites: list[str] = list(index.widths)
        self.dtype: torch.dtype = torch.float32 if index.dtype == "int8" else DTYPES[index.dtype]
        self.meta: dict[str, Any] = index.meta
        self._pivots = {site: Coding.from_json(told).pivot for site, told in index.int8.items()}

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {self.rows:,} rows, {self.index.dtype}, {self.widths})"

    def batches(
        self,
        size: int,
        seed: int = 0,
        with_ids: bool = False,
        sites: Sequence[str] | None = None,
        epochs: int = 1,
        start: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Any]:
        """Serve every row once per epoch: dicts site → [size, width], in an exactly uniform order.

        Rows have the dtype of the store; int8 rows come as float32.

        With `with_ids`, pairs `(rows, ids)` with `ids` int64 [size]. The last batch of an epoch may be smaller;
        `drop_last` leaves it out. `start` is the number of batches served before: the rest is the same as without the
        interruption, and no pile before it is read. Tensors are the caller's to keep. Memory: two piles (of the
        sites asked for) and one batch. Epochs share the piles: each is uniform, but two of them are not
        independent, since rows of one pile stay near each other. One epoch is read past the page cache, several
        through it where the store fits in half of the free memory.

        Raises `WrongUse` for an unknown site or a senseless number, `Failed` naming a shard that was altered.
        Source: Rao 1961, Sandelius 1962.
        """
        for name, value, least in (("size", size, 1), ("seed", seed, 0), ("epochs", epochs, 0), ("start", start, 0)):
            if not least <= value < SAMPLE_EPOCH:
                raise WrongUse(f"batches(): {name} is {value}, and must be at least {least} and below 2⁶⁴ - 1.")
        chosen = self._chosen(sites)
        return self._serve(size, seed, with_ids, chosen, epochs, start, drop_last)

    def _chosen(self, sites: Sequence[str] | None) -> list[str]:
        chosen = self.sites if sites is None else list(sites)
        check_keys(chosen, self.sites, f"The store {self.path}")
        return chosen

    def _serve(
        self, size: int, seed: int, with_ids: bool, sites: list[str], epochs: int, start: int, drop_last: bool
    ) -> Iterator[Any]:
        each = self.rows // size if drop_last else -(-self.rows // size)
        columns = self._columns(sites) + [IDS] * with_ids
        free = available(torch.device("cpu"))
        direct = (
            epochs == 1 or free is None or 2 * self.index.bytes > free
        )  # else the kernel keeps it for the next epoch
        for epoch in range(start // each if each else epochs, epochs):
            first = max(0, start - epoch * each)
            for batch in self._epoch(size, seed, epoch, columns, first * size, min(each * size, self.rows), direct):
                rows = self._rows(batch, sites)
                yield (rows, batch[IDS][:, 0].clone()) if with_ids else rows

    def _columns(self, sites: list[str]) -> list[str]:
        return [column for site in sites for column in columns_of(site, self.widths[site], self.index.dtype)]

    def _rows(self, batch: dict[str, Tensor], sites: list[str]) -> dict[str, Tensor]:
        """Columns to rows."""
        rows = {}
        for site in sites:
            values, *scales = (batch[column] for column in self._columns([site]))
            rows[site] = decode(values, scales[0], self._pivots[site]) if scales else values
        return rows

    def _epoch(
        self, size: int, seed: int, epoch: int, columns: list[str], first: int, stop: int, direct: bool
    ) -> Iterator[dict[str, Tensor]]:
        """The rows `first` to `stop` of one epoch's order, in batches; a batch may take rows of several piles."""
        batch: dict[str, Tensor] = {}
        filled = 0
        for piled, order in self._piles(seed, epoch, columns, first, stop, direct):
            while len(order) and first < stop:
                if not filled:
                    size = min(size, stop - first)
                    batch = self.index.empty(columns, size)
                part, order = order.split([n := min(len(order), size - filled), len(order) - n])
                for column in columns:
                    out = words(batch[column][filled : filled + n])
                    torch.index_select(words(piled[column]), 0, part, out=out)
                filled, first = filled + n, first + n
                if filled == size:
                    yield batch
                    filled = 0

    def _piles(
        self, seed: int, epoch: int, columns: list[str], first: int, stop: int, direct: bool
    ) -> Iterator[tuple[dict[str, Tensor], Int64[Tensor, " k"]]]:
        """Each pile with rows from `first` to `stop` of the epoch in memory, and the order of those rows.

        While the rows of one are served, a thread loads the next; two buffers take turns.
        """
        wanted = self._wanted(seed, epoch, first, stop)
        if not wanted:
            return
        buffers = [self.index.empty(columns, max(rows for _, rows, _ in wanted)) for _ in wanted[:2]]

        def load(turn: int) -> tuple[dict[str, Tensor], Int64[Tensor, " k"]]:
            pile, rows, skip = wanted[turn]
            piled = {column: buffer[:rows] for column, buffer in buffers[turn % 2].items()}
            for column in columns:
                self._load(shard_name(pile, column), piled[column], direct)
            return piled, torch.from_numpy(row_order(seed, epoch, pile, rows)[skip:])

        thread = ThreadPoolExecutor(1)
        try:
            loading = thread.submit(load, 0)
            for turn in range(1, len(wanted) + 1):
                ready = loading.result()
                if turn < len(wanted):
                    loading = thread.submit(load, turn)
                yield ready
        finally:
            thread.shutdown(wait=False)

    def _wanted(self, seed: int, epoch: int, first: int, stop: int) -> list[tuple[int, int, int]]:
        """The piles that hold rows `first` to `stop` of the epoch: pile, its rows, how many of them come before."""
        order = pile_order(seed, epoch, len(self.index.piles))
        rows = np.array(self.index.piles)[order]
        ends = np.cumsum(rows)
        begins = ends - rows
        wanted = (ends > first) & (begins < stop) & (rows > 0)
        each = (x[wanted].tolist() for x in (order, rows, (first - begins).clip(0)))
        return list(zip(*each, strict=True))

    def _load(self, name: str, out: Shaped[Tensor, "n w"], direct: bool = False) -> None:
        """Fill `out` from a shard and verify the checksum. Floor: each byte written once, by the disk, and read once."""
        data, kind = raw(out), checksum_of(self.index.shards[name])
        digest = CHECKSUMS[kind]()
        why = _size_error(self.path / name, len(data))
        if not why:
            with ThreadPoolExecutor(1) as summing:  # a part is summed while the next is read
                for part in read(self.path / name, data, direct):
                    summing.submit(digest.update, part)
            why = _sum_error(digest.hexdigest(), self.index.shards[name])
        if why:
            raise Failed(_bad_shard(self.path / name, why))

    def sample(self, n: int, seed: int, sites: Sequence[str] | None = None) -> dict[str, Shaped[Tensor, "n width"]]:
        """`n` rows drawn uniformly without replacement, site → [n, width], from as few piles as hold them.

        The start of a uniform permutation is a uniform sample. It shares no randomness with `batches` of that seed.
        Raises `WrongUse` if the store has fewer than `n` rows, or no such site.
        """
        chosen = self._chosen(sites)
        if not 1 <= n <= self.rows:
            raise WrongUse(f"sample(): {n} rows asked of the {self.rows} in {self.path}.")
        return self._rows(next(self._epoch(n, seed, SAMPLE_EPOCH, self._columns(chosen), 0, n, False)), chosen)

    @functools.cached_property
    def documents(self) -> Int64[Tensor, " rows"]:
        """Document number of every row, by global row id: `store.documents[ids]`. Read at first use, 8 bytes a row."""
        documents = torch.empty(self.rows, dtype=torch.int64)
        for pile, rows in enumerate(self.index.piles):
            if rows:
                piled = self.index.empty([IDS], rows)[IDS]
                self._load(shard_name(pile, IDS), piled)
                documents[piled[:, 0]] = piled[:, 1]
        return documents

    def check(self) -> dict[str, Any]:
        """Read every byte: `{"rows": int, "shards": int, "bad": [{"shard": name, "why": text}]}`."""
        return check_store(self.path)


def open_store(path: str | Path) -> Store:
    """Open a complete store. Sizes are checked now, checksums whenever a shard is read.

    Raises `WrongUse` if there is no store at `path`, and `Failed` if it is not complete, or naming a shard that is
    missing or cut.
    """
    path = Path(path)
    index = _complete_index(path)
    for name, shard in index.shards.items():
        why = _size_error(path / name, shard["bytes"])
        if why:
            raise Failed(_bad_shard(path / name, why))
    return Store(path, index)


def check_store(path: str | Path) -> dict[str, Any]:
    """Read every byte of a store, whatever its state: `{"rows": int, "shards": int, "bad": [{"shard", "why"}]}`.

    Raises `WrongUse` if there is no store at `path`.
    """
    from tqdm.auto import tqdm

    path = Path(path)
    try:
        index = _complete_index(path)
    except Failed as error:
        return {"rows": 0, "shards": 0, "bad": [{"shard": INDEX, "why": str(error)}]}
    shards = tqdm(index.shards.items(), desc="checking", unit="shard", disable=None, leave=False)
    found = [(name, _shard_error(path / name, shard)) for name, shard in shards]
    bad = [{"shard": name, "why": why} for name, why in found if why]
    return {"rows": index.rows, "shards": len(index.shards), "bad": bad}


def _complete_index(path: Path) -> Index:
    if (path / INDEX).exists():
        return read_index(path / INDEX)
    if not (path / JOURNAL).exists():
        raise WrongUse(f"{path} is no activation store: it has no {INDEX}. `interp record` makes one.")
    rows = read_index(path / JOURNAL).rows
    raise Failed(f"{path} is not complete: {rows} rows so far. Finish it with the same command and --resume.")


def _shard_error(path: Path, shard: dict[str, Any]) -> str:
    why = _size_error(path, shard["bytes"])
    if why:
        return why
    with open(path, "rb") as file:
        return _sum_error(hashlib.file_digest(file, CHECKSUMS[checksum_of(shard)]).hexdigest(), shard)


def _size_error(path: Path, size: int) -> str:
    if not path.is_file():
        return "it is missing"
    found = path.stat().st_size
    return "" if found == size else f"it has {found} bytes, and should have {size}"


def _sum_error(found: str, shard: dict[str, Any]) -> str:
    kind = checksum_of(shard)
    return "" if found == shard[kind] else f"it was altered: its {kind} is {found}, and should be {shard[kind]}"


def _bad_shard(path: Path, why: str) -> str:
    return f"The shard {path} is bad: {why}. Restore it, or record again; `interp store check {path.parent}` lists all."
