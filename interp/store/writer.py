"""Writing a store: rows are thrown into piles as they come, and every commit is a point to go on from."""

from __future__ import annotations

import contextlib
import fcntl
import json
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from interp.errors import Failed, WrongUse, check_keys
from interp.kernels.record_rows import record_rows
from interp.store.disk import sync, sync_folder, writes_direct
from interp.store.int8 import LOST, Coding, begun
from interp.store.layout import (
    DTYPES,
    IDS,
    INDEX,
    JOURNAL,
    LOCK,
    PILE_BYTES,
    REGION_BYTES,
    SHARD,
    Index,
    columns_of,
    naming,
    pile_count,
    read_index,
    row_bytes,
    shard_name,
)
from interp.store.memory import raw
from interp.store.placing import Sent, elsewhere, sent
from interp.store.shards import Shard, block_rows, cut_back
from interp.store.shuffle import piles_of
from interp.store.waiting import SPARE, Waiting

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Int64
    from torch import Tensor

SYNCS = 8  # shards brought to the disk at a time: the disk's journal is written once for all of them
MAX_FVU = 1e-3  # int8 rows that lose more of the variance are refused unless asked for


class StoreWriter:
    """Appends rows to a store that can be killed at any moment and go on from its last commit.

    The files at the end depend on the rows, the seed and `expected_rows`, not on where it was committed or killed; those
    of int8 rows also on how the rows were cut into appends, since the pivot is the mean of the first.

        writer = StoreWriter(path, widths={"blocks.3.resid_post": 256}, expected_rows=10**6, resume=True)
        for rows, documents, cursor in source(writer.cursor):
            writer.append({"blocks.3.resid_post": rows}, documents=documents)
            writer.commit(cursor)
        writer.close()

    `expected_rows` sets the number of piles so that one takes `pile_bytes` of memory to read; the writer itself takes no
    more than that. `meta` (JSON) is kept in the index; on resume, that of the first run stands. int8 rows that lose more
    than `max_fvu` of the variance of a site (1e-3 if not said) are refused.

    Raises `WrongUse` if the folder is not empty (unless `resume`), or holds a store of other widths, dtype, seed or
    number of piles; `Failed` if another process is writing there, or naming a file that is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        widths: Mapping[str, int],
        dtype: str = "bfloat16",
        seed: int = 0,
        expected_rows: int,
        meta: Mapping[str, Any] | None = None,
        resume: bool = False,
        pile_bytes: int = PILE_BYTES,
        max_fvu: float | None = None,
    ) -> None:
        self.path = Path(path)
        self._max_fvu = _max_fvu(max_fvu, dtype)
        asked = _asked(widths, dtype, seed, expected_rows, meta, pile_bytes)
        self._lock = _lock(self.path)
        self._shards: dict[str, Shard] = {}
        self._index = asked
        room = max(1, min(REGION_BYTES, pile_bytes // len(asked.piles)) // row_bytes(widths, asked.dtype))
        self._direct = room >= 2 * block_rows(asked) and writes_direct(self.path)
        self._waiting = Waiting(asked, room, block_rows(asked) if self._direct else 1)
        try:
            self._index = self._begin(asked, resume)
        except BaseException:
            self._lock.close()
            raise
        self._piles = np.array(self._index.piles) - self._waiting.counts  # rows that are written for good
        self._codings = {site: Coding.from_json(told) for site, told in self._index.int8.items()}
        self._rows = self._index.rows
        self._torn = False
        self._thread, self._summing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: deque[tuple[Future[None], int]] = deque()  # what the thread does, and the region it does it from

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows appended so far; after `resume=True`, those of the last commit."""
        return self._rows

    @property
    def cursor(self) -> dict[str, Any] | None:
        """What the last commit was given: where the source goes on. None before the first."""
        return self._index.cursor

    @property
    def complete(self) -> bool:
        """Whether the store is closed: nothing more can be appended."""
        return (self.path / INDEX).exists()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the store; after an error only let go of it, to be resumed."""
        if kind is None:
            self.close()
        else:
            self._release()

    # -- writing -------------------------------------------------------------------------------------------------

    def send(
        self, rows: Mapping[str, Float[Tensor, "n width"] | Sent], kept: Int[Tensor, " r"] | None = None
    ) -> dict[str, Float[Tensor, "n width"] | Sent]:
        """Have rows of a GPU come over while it goes on; `append` takes what is returned, with the same `kept`.

        Other rows stay as they are, and int8 rows before the first append, which says around what they are coded.
        """
        if self._index.dtype == "int8" and not self._codings:
            return dict(rows)
        return self._sent(rows, kept, self._codings)

    def append(
        self,
        rows: Mapping[str, Float[Tensor, "n width"] | Sent],
        documents: Int[Tensor, " r"],
        kept: Int[Tensor, " r"] | None = None,
    ) -> None:
        """Append rows of every site, converted to the store's dtype; they get the next row ids.

        `documents` numbers the text each row comes from. `kept`: the rows that are meant, by number; without it all, r = n.
        Raises `WrongUse` for a wrong site or shape, and `Failed` for NaN, inf, or a number too large for the dtype (naming
        the site and the row), for int8 rows that lose too much (naming the site and its FVU; nothing of this append is then
        written), and naming the file if the disk is full.
        """
        self._check_open()
        whole = {site: values.values if isinstance(values, Sent) else values for site, values in rows.items()}
        count = self._check_shapes(whole, documents, kept)
        if not count:
            return
        ids = torch.stack([torch.arange(self.rows, self.rows + count), documents.detach().to("cpu", torch.int64)], 1)
        piles = piles_of(self._index.seed, self.rows, self.rows + count, len(self._piles))
        source = torch.arange(count) if kept is None else kept.detach().to("cpu", torch.int64)
        parts, codings = self._waiting.parts(piles), self._begun(whole, source)
        rows = self._sent(rows, source, codings)
        for part in parts:  # into memory where they do not count yet: a row that is refused leaves nothing behind
            self._place(rows, source, part, self._slots(piles[part]), codings)
        for site, coding in codings.items():
            if isinstance(values := rows[site], Sent) and values.sums is not None:
                coding.sums.add_(values.sums)
            self._check_lost(site, coding, self.rows + count)
        with self._whole():
            self._codings = codings
            for part in parts:
                slots = self._slots(piles[part])
                if len(parts) > 1:  # they lay one over another
                    self._place(rows, source, part, slots, {s: c.copy() for s, c in codings.items()})
                self._waiting.put({IDS: ids[part]}, slots)
                self._waiting.count(piles[part])
            self._rows += count

    def commit(self, cursor: Mapping[str, Any] | None) -> None:
        """Make all rows so far durable, and with them `cursor` (JSON): where the source has got to.

        Raises `Failed` naming the file if the disk is full: the commit before is then intact.
        """
        if self.complete:  # a resumed run of a complete store has nothing to append, and nothing to commit
            return
        self._check_open()
        self._commit(JOURNAL, None if cursor is None else _plain(cursor, "cursor"))

    def close(self) -> None:
        """Commit what is left and complete the store: the journal gives way to the index. Closing twice does no harm.

        Rows appended after the last commit leave no cursor in the index; commit last to have one.
        """
        if not self.complete:
            self._check_open()
            # Not by a commit of its own: killed after that, the source could not be told where to go on.
            self._commit(INDEX, self.cursor if self.rows == self._index.rows else None)
            (self.path / JOURNAL).unlink()
        self._release()

    # -- inside --------------------------------------------------------------------------------------------------

    def _begin(self, asked: Index, resume: bool) -> Index:
        """The index to go on from: that of the last commit, or a new one."""
        _remove_temporaries(self.path)
        found = next((self.path / name for name in (INDEX, JOURNAL) if (self.path / name).exists()), None)
        if found is None:
            with self._naming(self.path / JOURNAL):
                asked.write(self.path / JOURNAL)
            return asked
        index = read_index(found)
        state = "a complete" if found.name == INDEX else "an unfinished"
        if not resume:
            raise WrongUse(
                f"{self.path} holds {state} store of {index.rows} rows. "
                "Go on with resume=True (--resume), or give an empty folder."
            )
        _check_same(index, asked, self.path)
        if found.name == JOURNAL:
            self._recover(index)
        else:
            (self.path / JOURNAL).unlink(missing_ok=True)  # left where closing was killed
        return index

    def _commit(self, name: str, cursor: dict[str, Any] | None) -> None:
        """Have all rows on the disk, then say so in the index or journal `name`."""
        with self._whole():
            for pile in np.flatnonzero(self._waiting.counts >= self._waiting.block).tolist():
                self._flush(pile)
            while self._writing:
                self._written()
            for pile in np.flatnonzero(self._waiting.counts + self._piles).tolist():
                for column, rows in self._waiting.rows(pile).items():
                    shard = self._shard(pile, column)
                    with self._naming(shard.path):
                        shard.end(raw(rows))
            with ThreadPoolExecutor(SYNCS) as syncing:
                list(syncing.map(self._sync, self._shards.values()))
            int8 = {site: coding.as_json(self.rows) for site, coding in self._codings.items()}
            piles = (self._piles + self._waiting.counts).tolist()
            index = replace(self._index, piles=piles, shards=self._sums(), cursor=cursor, int8=int8)
            with self._naming(self.path / name):
                sync_folder(self.path)  # the names of new shards
                index.write(self.path / name)
            self._index = index

    def _recover(self, index: Index) -> None:
        """Cut every shard back to the last commit, verify what is left, and have its last rows wait for more."""
        for file in self.path.iterdir():
            if SHARD.fullmatch(file.name) and file.name not in index.shards:
                file.unlink()
        for pile, rows in enumerate(index.piles):
            if rows:
                rest = index.empty(index.columns(), rows % self._waiting.block)
                for column, values in rest.items():
                    name, keep = shard_name(pile, column), (rows - len(values)) * values.shape[1] * values.itemsize
                    self._shards[name], raw(values)[:] = cut_back(self.path / name, index.shards[name], keep)
                piles = np.full(rows % self._waiting.block, pile)
                self._waiting.put(rest, self._waiting.slots(piles))
                self._waiting.count(piles)

    def _check_open(self) -> None:
        if self.complete:
            raise WrongUse(f"{self.path} is complete with {self._index.rows} rows: give an empty folder for more.")
        if self._lock.closed or self._torn:
            raise Failed(f"Writing {self.path} was broken off. {self._advice()}")

    def _check_shapes(self, rows: Mapping[str, Tensor], documents: Tensor, kept: Tensor | None) -> int:
        """The number of rows to append, if every site has them, of its width."""
        check_keys(rows, self._index.widths, f"The store {self.path}")
        check_keys(self._index.widths, rows, "This append")
        count = len(documents)
        if documents.ndim != 1 or documents.is_floating_point():
            raise WrongUse(f"documents must be whole numbers of shape [{count}], not {documents.dtype}.")
        there = count if kept is None else len(next(iter(rows.values())))
        for site, values in rows.items():
            shape = (there, self._index.widths[site])
            if tuple(values.shape) != shape or not values.is_floating_point():
                raise WrongUse(f"{site} must be real numbers {shape}, not {values.dtype} {tuple(values.shape)}.")
        if kept is not None:
            whole = kept.shape == documents.shape and kept.dtype == torch.int64
            if not whole or (count and not 0 <= int(kept.min()) <= int(kept.max()) < there):
                raise WrongUse(f"kept must be {count} int64 numbers of rows below {there}.")
        return count

    def _begun(self, rows: Mapping[str, Tensor], source: Int[Tensor, " r"]) -> dict[str, Coding]:
        """The coding of every int8 site, to count these rows in; for the first rows with their mean as pivot."""
        if self._index.dtype != "int8":
            return {}
        if self._codings:
            return {site: coding.copy() for site, coding in self._codings.items()}
        first = {site: _gathered(values, source).float() for site, values in rows.items()}
        for site, x in first.items():
            self._check_finite(site, x, x)
        return {site: begun(x) for site, x in first.items()}

    def _sent(
        self, rows: Mapping[str, Tensor | Sent], source: Int[Tensor, " r"] | None, codings: Mapping[str, Coding]
    ) -> dict[str, Tensor | Sent]:
        """Rows that are elsewhere on their way, of all sites before any is waited for."""
        gone = dict(rows)
        for site, values in rows.items():
            if isinstance(values, torch.Tensor) and elsewhere(values):
                own = torch.arange(len(values)) if source is None else source
                columns = columns_of(site, values.shape[1], self._index.dtype)
                own = own.detach().to("cpu", torch.int64)
                gone[site] = sent(values.detach(), own, [*columns.values()], codings.get(site))
        return gone

    def _place(
        self,
        rows: Mapping[str, Tensor | Sent],
        source: Int[Tensor, " r"],
        part: slice,
        slots: Int64[np.ndarray, " p"],
        codings: Mapping[str, Coding],
    ) -> None:
        """A part of the rows of every site into their slots, and into the sums of its coding. Raises `Failed` for NaN and inf."""
        places, dtype = torch.from_numpy(slots), DTYPES[self._index.dtype]
        most = torch.finfo(torch.float32 if codings else dtype).max
        for site, values in rows.items():
            ring = [self._waiting.columns[c] for c in columns_of(site, self._index.widths[site], self._index.dtype)]
            if isinstance(values, Sent):
                norms = values.put(part, places, ring)
            else:
                about = (codings[site].pivot, codings[site].sums) if codings else ()
                norms = record_rows(values.detach().cpu(), source[part], places, *ring, *about)
            if not (norms <= most).all():  # NaN, inf, or a number that may be too large
                x = _gathered(values.values if isinstance(values, Sent) else values, source)
                self._check_finite(site, x, x.float() - codings[site].pivot if codings else x.to(dtype))

    def _check_finite(self, site: str, values: Float[Tensor, "n w"], stored: Float[Tensor, "n w"]) -> None:
        """Raise `Failed` unless all that is to be stored of these values is finite."""
        bad = ~torch.isfinite(stored).all(1)
        if bad.any():
            lost = torch.isfinite(values).all(1) & bad
            why = f"a number too large for {self._index.dtype}" if lost.any() else "NaN or inf"
            first = self.rows + int(bad.int().argmax())
            raise Failed(
                f"{why} at {site}, in {int(bad.sum())} of {len(stored)} rows, first in row {first}. None was kept."
            )

    def _check_lost(self, site: str, coding: Coding, count: int) -> None:
        """Raise `Failed` if the int8 rows so far lose more than is allowed; warn if the first lose all of some features."""
        width = len(coding.pivot)
        if (fvu := coding.fvu(count)) > self._max_fvu:
            raise Failed(
                f"int8 rows lose {fvu:.2g} of the variance of {site} (FVU), and may lose {self._max_fvu:g}. "
                "None of this append was kept. Rows far from the mean of the first append lose most. Store bfloat16 "
                f"(--dtype bfloat16), or allow more: max_fvu={2 * fvu:.1g} (--max-fvu {2 * fvu:.1g})."
                + f" {self._advice()}"
                * bool(self._index.rows)
            )
        if not self._codings and (lost := coding.lost(count)):
            warnings.warn(
                f"int8 rows lose over {LOST:.0%} of the variance of {lost} of the {width} features of {site}, though only "
                f"{fvu:.1g} of all: larger features of their groups drown them. bfloat16 rows would keep them.",
                stacklevel=3,
            )

    def _slots(self, piles: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Where these rows go, once there is room for them."""
        with self._whole():
            for pile in self._waiting.full(piles):
                self._flush(pile)
        return self._waiting.slots(piles)

    def _flush(self, pile: int) -> None:
        """Have the waiting rows of a pile written, by a thread: disk, checksum and the caller's next rows overlap."""
        while len(self._writing) >= SPARE:
            self._written()
        columns, region = self._waiting.take(pile)
        self._writing.append((self._thread.submit(self._extend, pile, columns), region))
        self._piles[pile] += len(columns[IDS])

    def _written(self) -> None:
        """Wait for the oldest rows that are being written. Raises what went wrong with them."""
        job, region = self._writing.popleft()
        job.result()
        self._waiting.free(region)

    def _extend(self, pile: int, columns: dict[str, Tensor]) -> None:
        """Append to the shards of a pile. Floor: each byte read twice, once by the disk."""
        for column, rows in columns.items():
            shard, data = self._shard(pile, column), raw(rows)
            summed = self._summing.submit(shard.digest.update, data)
            with self._naming(shard.path):
                shard.extend(data, self._direct)
            summed.result()

    def _shard(self, pile: int, column: str) -> Shard:
        name = shard_name(pile, column)
        return self._shards.get(name) or self._shards.setdefault(name, Shard(self.path / name))

    def _sync(self, shard: Shard) -> None:
        if not shard.synced:
            with self._naming(shard.path):
                sync(shard.path)
            shard.synced = True

    def _sums(self) -> dict[str, dict[str, Any]]:
        return {name: {"bytes": shard.size, "crc32": shard.sum} for name, shard in sorted(self._shards.items())}

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What is broken off inside, by an error or by Ctrl-C, leaves a writer that writes no more."""
        before, self._torn = self._torn, True
        yield
        self._torn = before

    def _naming(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return naming(path, self._advice())

    def _advice(self) -> str:
        return f"The last commit, of {self._index.rows} rows, is intact: go on with resume=True (--resume)."

    def _release(self) -> None:
        self._thread.shutdown()
        self._summing.shutdown()
        self._lock.close()


def _gathered(values: Tensor, source: Int[Tensor, " r"]) -> Tensor:
    return values.detach()[source.to(values.device)].cpu()


def _asked(
    widths: Mapping[str, int],
    dtype: str,
    seed: int,
    expected_rows: int,
    meta: Mapping[str, Any] | None,
    pile_bytes: int,
) -> Index:
    """The index of an empty store as asked for."""
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise WrongUse(f"dtype {dtype!r} cannot be stored; one of {', '.join(DTYPES)} can.")
    if not widths or min(widths.values()) < 1:
        raise WrongUse(f"widths must name at least one site, each at least 1 wide, not {dict(widths)}.")
    if not 0 <= seed < 2**64 or expected_rows < 0 or pile_bytes < 1:
        raise WrongUse(f"seed={seed}, expected_rows={expected_rows}, pile_bytes={pile_bytes}: one is out of range.")
    piles = [0] * pile_count(widths, dtype, expected_rows, pile_bytes)
    return Index(
        dtype,
        {site: int(width) for site, width in widths.items()},
        int(seed),
        piles,
        {},
        None,
        _plain(meta or {}, "meta"),
    )


def _max_fvu(asked: float | None, dtype: str) -> float:
    if asked is not None and not str(dtype).endswith("int8"):
        raise WrongUse(f"max_fvu={asked} is for int8 rows; {dtype} rows are kept as they are. Leave it out.")
    if asked is not None and not asked >= 0:
        raise WrongUse(f"max_fvu={asked} must be 0 or more: the share of the variance that int8 rows may lose.")
    return MAX_FVU if asked is None else asked


def _plain(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`value` as it will be read back from JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise WrongUse(f"{what} must be made of what JSON knows: {error}.") from error


def _lock(folder: Path) -> IO[str]:
    """Hold a folder for writing until the file returned is closed, or this process ends."""
    ours = any((folder / name).exists() for name in (INDEX, JOURNAL, LOCK))
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise WrongUse(f"{folder} is not empty, and holds no store. Give an empty folder, or one that does not exist.")
    with naming(folder, "No store can be made there."):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115  (held until the writer is done)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Failed(f"Another process is writing into {folder}. Wait for it, or give another folder.") from None
    return file


def _remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer had not yet renamed."""
    for name in (INDEX, JOURNAL):
        for file in folder.glob(f".{name}.*.tmp"):
            file.unlink()


def _check_same(there: Index, asked: Index, path: Path) -> None:
    for what in ("widths", "dtype", "seed"):
        old, new = getattr(there, what), getattr(asked, what)
        if old != new:
            raise WrongUse(f"{path} was begun with {what} {old!r}; resuming with {new!r} would mix two stores.")
    if len(there.piles) != len(asked.piles):
        raise WrongUse(
            f"{path} was begun with {len(there.piles)} piles; this expected_rows (and pile_bytes) asks for "
            f"{len(asked.piles)}. Resume with the same."
        )
