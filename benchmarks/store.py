"""The activation store against the disk it lies on, and against the buffers of SAELens and dictionary_learning.

    python -m benchmarks.store [--d 512 --rows 1048576 --batch 4096 --rounds 5 --folder runs/bench --no-peers]

Every writer is fed ready rows, without a model, and is done when they are on the disk (`fsync`). Every reader serves all
rows once, shuffled, after what it reads was dropped from the page cache. Turns alternate; ratios are taken within a
round, and their median, least and greatest are told. Peers run in environments of their own: `make bench-peers`.

Floors, s a GB on the disk: the disk's own time, or the CPU's, whichever is longer. One core: writing bfloat16 checks,
scatters, sums and copies each byte; reading copies, sums and gathers it; int8 arithmetic comes on top. `cpu_s_a_gb` tells
what it took here.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from interp.store import StoreWriter, open_store, row_bytes

PART = 8 << 20
APPEND = 8192  # rows an append
PEERS = {"saelens": "sae-lens", "dictionary_learning": "dictionary-learning"}
ROOT = Path(__file__).parent.parent
Turn = dict[str, float]


def timed(work: Callable[[], object], size: int) -> Turn:
    """Seconds of wall and of all threads' CPU that `work` takes for `size` bytes."""
    gc.collect()
    torch.ones(
        size // 8, dtype=torch.int64
    )  # memory that a virtual machine must first be given is handed over before the clock runs
    cpu, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime, "bytes": size}


def plain_write(path: Path, data: memoryview, size: int) -> None:
    """One file, in parts of 8 MB, then `fsync`: what the disk takes."""
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size, PART):
            file.write(data[at % len(data) :][: min(PART, size - at)])
        os.fsync(file.fileno())


def plain_read(files: Iterable[Path], into: memoryview) -> None:
    """Every byte in order, in parts of 8 MB: what the disk gives."""
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(into):
                continue


def drop(folder: Path) -> None:
    """Take what lies in a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def store_write(path: Path, x: torch.Tensor, rows: int, dtype: str) -> None:
    """All rows into a store, on the disk at the end."""
    with StoreWriter(path, widths={"rows": x.shape[1]}, dtype=dtype, expected_rows=rows) as writer:
        for at in range(0, rows, APPEND):
            part = x[at % len(x) :][: min(APPEND, rows - at)]
            writer.append({"rows": part}, documents=torch.zeros(len(part), dtype=torch.int64))


def store_read(path: Path, batch: int) -> None:
    """One epoch of shuffled batches."""
    for rows in open_store(path).batches(batch):
        assert len(rows["rows"])


def against_the_disk(folder: Path, x: torch.Tensor, rows: int, batch: int, dtype: str) -> dict[str, Turn]:
    """One round: plain write, store write, plain read, store read."""
    size = rows * row_bytes({"rows": x.shape[1]}, dtype)
    data = memoryview(x.flatten().view(torch.uint8).numpy())
    plain, store = folder / "plain", folder / "store"
    told = {"disk write": timed(lambda: plain_write(plain, data, size), size)}
    plain.unlink()
    told["write"] = timed(lambda: store_write(store, x, rows, dtype), size)
    shards = sorted(store.glob("*.rows")) + sorted(store.glob("*.scales"))
    size, into = sum(shard.stat().st_size for shard in shards), memoryview(bytearray(PART))
    drop(store)
    told["disk read"] = timed(lambda: plain_read(shards, into), size)
    drop(store)
    told["read"] = timed(lambda: store_read(store, batch), size)
    shutil.rmtree(store)
    return told


def spread(numbers: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(numbers), "least": min(numbers), "greatest": max(numbers)}


def shares(rounds: list[dict[str, Turn]], rows: int) -> dict[str, Any]:
    """What share of the disk's rate the store reached, rates, and CPU."""
    told: dict[str, Any] = {}
    for what in ("write", "read"):
        turns, disk = [r[what] for r in rounds], [r[f"disk {what}"] for r in rounds]
        told[what] = {
            "share_of_disk": spread([d["wall"] / t["wall"] for d, t in zip(disk, turns, strict=True)]),
            "rows_a_second": spread([rows / t["wall"] for t in turns]),
            "MB_a_second": spread([t["bytes"] / t["wall"] / 1e6 for t in turns]),
            "disk_MB_a_second": spread([d["bytes"] / d["wall"] / 1e6 for d in disk]),
            "cpu_s_a_gb": spread([t["cpu"] / t["bytes"] * 1e9 for t in turns]),
            "disk_cpu_s_a_gb": spread([d["cpu"] / d["bytes"] * 1e9 for d in disk]),
        }
    return told


def main() -> None:
    """Print one JSON object and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("d", 512), ("rows", 1 << 20), ("batch", 4096), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--no-peers", action="store_true")
    a = parser.parse_args()
    x = torch.randn(1 << 16, a.d, generator=torch.Generator().manual_seed(0)).bfloat16()
    shutil.rmtree(a.folder, ignore_errors=True)
    a.folder.mkdir(parents=True)
    rounds: dict[str, list[dict[str, Turn]]] = {"bfloat16": [], "int8": []}
    for _ in range(a.rounds):
        for dtype, told in rounds.items():
            told.append(against_the_disk(a.folder, x, a.rows, a.batch, dtype))
    result = {dtype: shares(told, a.rows) for dtype, told in rounds.items()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
