"""Shards while they are written: whole blocks past the page cache, and behind them the last rows, until more come.

Rows that fill no block stay in memory, and every commit lays them behind the shard; the next block is written over them,
and begins with the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import Failed
from interp.store.disk import PART_BYTES, write
from interp.store.layout import CHECKSUMS, Crc32, Index, checksum_of
from interp.store.memory import BLOCK


@dataclass
class Shard:
    """A shard being written: what is in it for good, and with the rows laid behind that."""

    path: Path
    digest: Crc32 = field(default_factory=Crc32)
    bytes: int = 0
    size: int = 0
    sum: str = ""
    synced: bool = False

    def extend(self, data: memoryview, direct: bool) -> None:
        """Append for good. Raises `OSError`. `digest` is the caller's to update: by another thread, at the same time."""
        write(self.path, data, self.bytes, direct)
        self.bytes += len(data)
        self.sum, self.synced = "", False

    def end(self, data: memoryview) -> None:
        """Lay the last rows behind, if there are any, until `extend` writes over them. Raises `OSError`."""
        if self.sum and self.size == self.bytes + len(data):
            return
        if data:
            write(self.path, data, self.bytes, False)
        digest = Crc32(self.digest.value)
        digest.update(data)
        self.size, self.sum, self.synced = self.bytes + len(data), digest.hexdigest(), False


def block_rows(index: Index) -> int:
    """The fewest rows that fill whole blocks in every column: a power of 2, at most 4096."""
    sizes = [width * dtype.itemsize for width, dtype in index.columns().values()]
    return math.lcm(*(BLOCK // math.gcd(BLOCK, size) for size in sizes))


def cut_back(path: Path, told: Mapping[str, Any], keep: int) -> tuple[Shard, bytes]:
    """Cut a shard to its committed size; its first `keep` bytes, to go on from, and those behind them.

    Raises `Failed` if it is shorter than that, or another.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < told["bytes"]:
        raise Failed(f"The shard {path} is cut: {size} of the {told['bytes']} committed bytes are there. Restore it.")
    kind, shard = checksum_of(told), Shard(path, bytes=keep)
    with open(path, "r+b") as file:
        file.truncate(told["bytes"])
        for at in range(0, keep, PART_BYTES):
            shard.digest.update(file.read(min(PART_BYTES, keep - at)))
        rest = file.read()
        whole = Crc32(shard.digest.value)
        whole.update(rest)
        found = whole.hexdigest()
        if kind != "crc32":  # begun by an older version
            file.seek(0)
            found = hashlib.file_digest(file, CHECKSUMS[kind]).hexdigest()
    if found != told[kind]:
        raise Failed(f"The shard {path} was altered since it was committed: its {kind} differs. Restore it.")
    shard.size, shard.sum, shard.synced = told["bytes"], whole.hexdigest(), True
    return shard, rest
