"""The store on disk: names of the files, the index, and what makes them whole (docs/formats.md, "Activation store")."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

from interp.errors import Failed, WrongUse, check_keys
from interp.files import write_json
from interp.kernels.record_rows import GROUP
from interp.store.disk import sync_folder
from interp.store.int8 import Coding
from interp.store.memory import memory

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import Tensor

FORMAT, VERSION = "interp activation store", 2
INDEX, JOURNAL, LOCK = "index.json", "journal.json", ".lock"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}
IDS = "ids"  # the column that goes with every row: global row id and document number
SHARD = re.compile(r"\d{5,}\.(ids|.+\.rows|.+\.scales)")
PILE_BYTES = 256 << 20
ORDER_BYTES = (
    24  # a row of a pile in memory needs its words, its place in the order, and that of the pile before: 8 bytes each
)
REGION_BYTES = 32 << 20  # files are written in parts of this size


class Crc32:
    """CRC-32 with the methods of hashlib. Damage is all it has to find, at 4 GB/s a core where SHA-256 makes 1.8."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def update(self, data: Any) -> None:
        """Go on with more bytes."""
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        """Eight hexadecimal digits."""
        return f"{self.value:08x}"


CHECKSUMS: dict[str, Any] = {"crc32": Crc32, "sha256": hashlib.sha256}  # sha256: shards of version 1


@dataclass(frozen=True)
class Index:
    """What a store is and what is in it: the content of `index.json`, and of `journal.json` up to the last commit."""

    dtype: str
    """Of all rows: bfloat16, float16, float32 or int8."""
    widths: dict[str, int]
    """Row width of each site."""
    seed: int
    """Of the throw of rows into piles."""
    piles: list[int]
    """Rows in each pile."""
    shards: dict[str, dict[str, Any]]
    """File name to `{"bytes": size, "crc32": checksum}`."""
    cursor: dict[str, Any] | None
    """Where the source had got to when these rows had been taken from it; null if the writer did not say."""
    meta: dict[str, Any]
    """Whatever the writer was given: the command line, the model, the text."""
    int8: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Site to what its codes mean and lose (`Coding.as_json`); empty before the first row, and for other dtypes."""

    @property
    def rows(self) -> int:
        """Rows in all piles."""
        return sum(self.piles)

    @property
    def bytes(self) -> int:
        """Bytes in all shards."""
        return sum(shard["bytes"] for shard in self.shards.values())

    def told(self, what: str) -> dict[str, Any]:
        """Of the int8 rows of each site: the `fvu`, or how many features are `lost` (`Coding`)."""
        return {site: coding[what] for site, coding in self.int8.items()}

    def columns(self) -> dict[str, tuple[int, torch.dtype]]:
        """Width and dtype of each column; a pile has one shard of each."""
        sites = [columns_of(site, width, self.dtype) for site, width in self.widths.items()]
        return {column: kind for columns in sites for column, kind in columns.items()} | {IDS: (2, torch.int64)}

    def empty(self, columns: Collection[str], rows: int) -> dict[str, Shaped[Tensor, "rows width"]]:
        """Memory for that many rows of the columns; each begins at a block."""
        sizes = {column: kind for column, kind in self.columns().items() if column in columns}
        return {c: memory(rows * w * d.itemsize).view(d).view(rows, w) for c, (w, d) in sizes.items()}

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
    known = [each.name for each in fields(Index)]
    body.setdefault("int8", {})  # version 1 had none
    try:
        check_keys(body, known, str(path))
        check_keys(known, body, str(path))
        check_keys([body["dtype"]], DTYPES, f"{path}: dtype")
    except WrongUse as error:
        raise Failed(f"{error} It was written by another version of interp-kit.") from error
    index = Index(**body)
    summed = {name: shard.get("bytes") for name, shard in index.shards.items() if CHECKSUMS.keys() & shard.keys()}
    if summed != _sizes(index):
        raise Failed(f"{path} contradicts itself: its shards do not have the sizes of its piles, or have no checksums.")
    coded = index.widths if index.dtype == "int8" and index.rows else {}
    if {site: len(Coding.from_json(coding).pivot) for site, coding in index.int8.items()} != coded:
        raise Failed(f"{path} contradicts itself: its int8 codings are not those of its sites.")
    return index


def _sizes(index: Index) -> dict[str, int]:
    """Bytes of every shard, from the rows of the piles. An empty pile has no shards."""
    columns = {column: width * dtype.itemsize for column, (width, dtype) in index.columns().items()}
    piles = [(pile, rows) for pile, rows in enumerate(index.piles) if rows]
    return {shard_name(pile, column): rows * size for pile, rows in piles for column, size in columns.items()}


def columns_of(site: str, width: int, dtype: str) -> dict[str, tuple[int, torch.dtype]]:
    """Width and dtype of the columns a site has: its rows, and the scales of int8 rows.

    Their names are safe as parts of file names whatever the site is called.
    """
    name = quote(site, safe="")
    scales = {f"{name}.scales": (-(-width // GROUP), torch.bfloat16)} if dtype == "int8" else {}
    return {f"{name}.rows": (width, DTYPES[dtype])} | scales


def checksum_of(shard: Mapping[str, Any]) -> str:
    """Which checksum a shard has."""
    return next(kind for kind in CHECKSUMS if kind in shard)


def shard_name(pile: int, column: str) -> str:
    """File name of one column of one pile."""
    return f"{pile:05d}.{column}"


def row_bytes(widths: Mapping[str, int], dtype: str) -> int:
    """Bytes a row takes on disk: Σ width · itemsize [+ 2 ⌈width/128⌉ for int8] + 16 (row id and document number)."""
    columns = [kind for site, width in widths.items() for kind in columns_of(site, width, dtype).values()]
    return sum(width * kind.itemsize for width, kind in columns) + 16


def pile_count(widths: Mapping[str, int], dtype: str, rows: int, pile_bytes: int) -> int:
    """⌈rows · bytes of a row in memory / pile_bytes⌉, at least 1."""
    return max(1, -(-rows * (row_bytes(widths, dtype) + ORDER_BYTES) // pile_bytes))


@contextlib.contextmanager
def naming(path: Path, advice: str) -> Iterator[None]:
    """Turn an `OSError` (disk full, for one) into `Failed` with the path and what to do."""
    try:
        yield
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}. {advice}") from error


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
