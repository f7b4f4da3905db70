"""The store on disk: names of the files, the index, and what makes them whole (docs/formats.md, "Activation store")."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

from interp.errors import Failed, WrongUse, check_keys
from interp.files import write_json

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped
    from torch import Tensor

FORMAT, VERSION = "interp activation store", 1
INDEX, JOURNAL, LOCK = "index.json", "journal.json", ".lock"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
IDS = "ids"  # the column that goes with every row: global row id and document number
SHARD = re.compile(r"\d{5,}\.(ids|.+\.rows)")
PILE_BYTES = 256 << 20
ORDER_BYTES = (
    24  # a row of a pile in memory needs its words, its place in the order, and that of the pile before: 8 bytes each
)
PART_BYTES = 8 << 20  # files are read, hashed and written in parts of this size


@dataclass(frozen=True)
class Index:
    """What a store is and what is in it: the content of `index.json`, and of `journal.json` up to the last commit."""

    dtype: str
    """Of all rows: bfloat16, float16 or float32."""
    widths: dict[str, int]
    """Row width of each site."""
    seed: int
    """Of the throw of rows into piles."""
    piles: list[int]
    """Rows in each pile."""
    shards: dict[str, dict[str, Any]]
    """File name to `{"bytes": size, "sha256": checksum}`."""
    cursor: dict[str, Any] | None
    """Where the source had got to when these rows had been taken from it; null if the writer did not say."""
    meta: dict[str, Any]
    """Whatever the writer was given: the command line, the model, the text."""

    @property
    def rows(self) -> int:
        """Rows in all piles."""
        return sum(self.piles)

    @property
    def bytes(self) -> int:
        """Bytes in all shards."""
        return sum(shard["bytes"] for shard in self.shards.values())

    def columns(self) -> dict[str, tuple[int, torch.dtype]]:
        """Width and dtype of each column; a pile has one shard of each."""
        rows = {column_of(site): (width, DTYPES[self.dtype]) for site, width in self.widths.items()}
        return {**rows, IDS: (2, torch.int64)}

    def empty(self, columns: Iterable[str], rows: int) -> dict[str, Shaped[Tensor, "rows width"]]:
        """Memory for that many rows of the columns."""
        known = self.columns()
        return {column: torch.empty(rows, known[column][0], dtype=known[column][1]) for column in columns}

    def write(self, path: Path) -> None:
        """Write atomically and durably, with a checksum of its own. Raises `OSError`."""
        body = {"format": FORMAT, "version": VERSION, **vars(self)}
        write_json(path, {**body, "sha256": _sha256(body)})
        sync_folder(path.parent)


def read_index(path: Path) -> Index:
    """Read an index or a journal.

    Raises `Failed` naming the file if it is damaged, of a newer version, or not an index at all.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        kind, version, checksum = body.pop("format"), body.pop("version"), body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Failed(f"{path} is damaged, or no index of an activation store ({error!r}). Restore it.") from error
    if kind != FORMAT or not isinstance(version, int) or version > VERSION:
        raise Failed(f"{path} has format {kind!r}, version {version!r}; this interp-kit reads {FORMAT!r}, {VERSION}.")
    if checksum != _sha256({"format": kind, "version": version, **body}):
        raise Failed(f"{path} was altered: its own sha256 does not fit its content. Restore it.")
    return _parsed(body, path)


def _parsed(body: dict[str, Any], path: Path) -> Index:
    """The index in `body`, if it has the right keys and its sizes fit each other."""
    known = [field.name for field in fields(Index)]
    try:
        check_keys(body, known, str(path))
        check_keys(known, body, str(path))
        check_keys([body["dtype"]], DTYPES, f"{path}: dtype")
    except WrongUse as error:
        raise Failed(f"{error} It was written by another version of interp-kit.") from error
    index = Index(**body)
    if {name: shard.get("bytes") for name, shard in index.shards.items()} != _sizes(index):
        raise Failed(f"{path} contradicts itself: its shards do not have the sizes of its piles.")
    return index


def _sizes(index: Index) -> dict[str, int]:
    """Bytes of every shard, from the rows of the piles. An empty pile has no shards."""
    columns = {column: width * dtype.itemsize for column, (width, dtype) in index.columns().items()}
    piles = [(pile, rows) for pile, rows in enumerate(index.piles) if rows]
    return {shard_name(pile, column): rows * size for pile, rows in piles for column, size in columns.items()}


def column_of(site: str) -> str:
    """The column of a site, safe as part of a file name whatever the site is called."""
    return f"{quote(site, safe='')}.rows"


def shard_name(pile: int, column: str) -> str:
    """File name of one column of one pile."""
    return f"{pile:05d}.{column}"


def row_bytes(widths: Mapping[str, int], dtype: str) -> int:
    """Bytes a row takes on disk: Σ widths · itemsize + 16 (row id and document number)."""
    return sum(widths.values()) * DTYPES[dtype].itemsize + 16


def pile_count(widths: Mapping[str, int], dtype: str, rows: int, pile_bytes: int) -> int:
    """⌈rows · bytes of a row in memory / pile_bytes⌉, at least 1."""
    return max(1, -(-rows * (row_bytes(widths, dtype) + ORDER_BYTES) // pile_bytes))


def raw(x: Shaped[Tensor, "n w"]) -> memoryview:
    """The bytes of a contiguous tensor, shared with it."""
    return x.flatten().view(torch.uint8).numpy().data


def gather(x: Shaped[Tensor, "n w"], rows: Int64[Tensor, " k"], out: Shaped[Tensor, "k w"]) -> None:
    """out[i] = x[rows[i]], for contiguous `x` and `out` of one dtype, in the widest words a row divides into."""
    size = x.shape[1] * x.element_size()
    word = next(w for w in (torch.int64, torch.int32, torch.int16) if size % w.itemsize == 0)
    torch.index_select(x.view(word), 0, rows, out=out.view(word))


def sync(path: Path) -> None:
    """Have the content of a file on the disk before going on."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path, advice: str) -> Iterator[None]:
    """Turn an `OSError` (disk full, for one) into `Failed` with the path and what to do."""
    try:
        yield
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}. {advice}") from error


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
