"""The activation store against the disk it lies on, the buffers of SAELens and dictionary_learning, and a forward pass.

    python -m benchmarks.store [--d 512 --rows 1048576 --batch 4096 --rounds 5 --folder runs --no-peers]

Every writer is fed ready rows, without a model, and is done when they are on the disk (`fsync`). Every reader serves all
rows once, shuffled, after what it reads was dropped from the page cache. Turns alternate; ratios are taken within a
round, and their median, least and greatest are told. Peers run in environments of their own: `make bench-peers`.

Floors, s a GB. The disk: what `disk_MB_a_second` says, through the page cache. A core (EPYC, in memory already given to the
process), for bfloat16 rows: to write them, 0.04 to look for NaN, 0.1 to scatter into piles, 0.15 for CRC-32, 0.02 for a write
past the page cache (through it: 0.25); to read them, 0.15 for CRC-32, 0.13 to gather, 0.02 for the order, 0.01 past the
cache. int8 rows take 1.2 more to encode and 0.3 more to decode. Sums, reads, writes and rows go on in threads of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from interp.model import load
from interp.store import StoreWriter, open_store, row_bytes

PART = 8 << 20
APPEND = 8192  # rows an append
BUFFER = 1 << 17  # rows in the buffers of the peers
ROOT = Path(__file__).parent.parent
Turn = dict[str, float]


def timed(work: Callable[[], object], size: int, folder: Path) -> Turn:
    """Seconds of wall and of all threads' CPU that `work` takes for `size` bytes.

    Before, a file of that size is written into `folder` and deleted: the memory of a virtual machine must first be given
    to it, and that would be counted as the work of whoever touches it first.
    """
    plain_write(folder / "warm", memoryview(bytes(PART)), size)
    (folder / "warm").unlink()
    gc.collect()
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
    told = {"disk write": timed(lambda: plain_write(plain, data, size), size, folder)}
    plain.unlink()
    told["write"] = timed(lambda: store_write(store, x, rows, dtype), size, folder)
    shards = sorted(store.glob("*.rows")) + sorted(store.glob("*.scales"))
    size, into = sum(shard.stat().st_size for shard in shards), memoryview(bytearray(PART))
    drop(store)
    told["disk read"] = timed(lambda: plain_read(shards, into), size, folder)
    drop(store)
    told["read"] = timed(lambda: store_read(store, batch), size, folder)
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


def peer(name: str, *arguments: object) -> dict[str, Any]:
    """What a peer's script prints, run by the Python of its own environment."""
    python, script = ROOT / ".bench" / name / "bin" / "python", ROOT / "benchmarks" / "peers" / f"store_{name}.py"
    command = [str(python), "-W", "ignore", str(script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_peers(rounds: list[dict[str, dict[str, Any]]], ours: list[dict[str, Turn]], rows: int) -> dict[str, Any]:
    """Ratios of rows a second, ours over theirs in the same round; and the peers' rates."""
    told: dict[str, Any] = {}
    for name, first in rounds[0].items():
        told[name] = {"version": first["version"], "torch": first["torch"]}
        for what in first["rows_a_second"]:
            mine = [rows / turns["write" if what == "write" else "read"]["wall"] for turns in ours]
            theirs = [turns[name]["rows_a_second"][what] for turns in rounds]
            ratios = [m / t for m, t in zip(mine, theirs, strict=True)]
            told[name][what] = {"ours_over_theirs": spread(ratios), "rows_a_second": spread(theirs)}
    return told


def with_a_model(folder: Path, rounds: int, forwards: int = 4) -> dict[str, Any]:
    """Six layers, 512 wide, 8×256 tokens: all six residual streams recorded and stored, over the bare layers without head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(n_layer=6, n_embd=512, n_head=8, vocab_size=8192, n_positions=256)
    bare = GPT2LMHeadModel(shape).eval()
    model, tokens = load(bare), torch.randint(8192, (8, 256))
    sites = model.names("blocks.*.resid_post")
    ratios, seconds = [], []
    with (
        StoreWriter(folder / "model", widths=dict.fromkeys(sites, 512), expected_rows=1 << 17) as writer,
        torch.no_grad(),
    ):
        documents = torch.arange(8).repeat_interleave(256)

        def stored() -> None:
            for _ in range(forwards):
                cache = model.record(tokens, sites)
                writer.append({site: cache[site].flatten(0, 1) for site in sites}, documents=documents)
            writer.commit(None)

        for turn in range(rounds + 1):
            took = {}
            for name, work in (
                ("bare", lambda: [bare.transformer(tokens, use_cache=False) for _ in range(forwards)]),
                ("stored", stored),
            ):
                begin = time.perf_counter()
                work()
                took[name] = (time.perf_counter() - begin) / forwards
            if turn:  # the first warms up
                ratios.append(took["stored"] / took["bare"])
                seconds.append(took["bare"])
    return {"stored_over_bare": spread(ratios), "bare_s": spread(seconds), "bytes_a_forward": 6 * 2048 * 1024}


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in about if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return {"cpu": names[0], "cores": cores, "threads": torch.get_num_threads(), "kernel": platform.release(),
            "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{'':34}{'median':>10}{'least':>10}{'greatest':>10}")
    for dtype in ("bfloat16", "int8"):
        for what in ("write", "read"):
            for key in ("share_of_disk", "MB_a_second", "disk_MB_a_second", "cpu_s_a_gb"):
                row(f"{dtype} {what}: {key}", result[dtype][what][key])
    for name, told in result["peers"].items():
        for what in told.keys() - {"version", "torch"}:
            row(f"{what}: ours over {name}", told[what]["ours_over_theirs"])
    row("with a model: stored over bare", result["model"]["stored_over_bare"])


def row(label: str, told: dict[str, float]) -> None:
    """One line of it."""
    print(f"{label:34}" + "".join(f"{told[key]:10.3g}" for key in ("median", "least", "greatest")))


def measured(folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """All rounds: ours in both dtypes, the peers, and ours with a model in the loop."""
    x = torch.randn(1 << 16, a.d, generator=torch.Generator().manual_seed(0)).bfloat16()
    rounds: dict[str, list[dict[str, Turn]]] = {"bfloat16": [], "int8": []}
    peers: list[dict[str, dict[str, Any]]] = []
    for _ in range(a.rounds):
        for dtype, told in rounds.items():
            told.append(against_the_disk(folder, x, a.rows, a.batch, dtype))
        if not a.no_peers:
            peers.append({"dictionary_learning": peer("dictionary_learning", a.d, a.batch, BUFFER)})
            peers[-1]["saelens"] = peer("saelens", a.d, 2 * BUFFER, a.batch, BUFFER, folder / "saelens")
            shutil.rmtree(folder / "saelens")
    result: dict[str, Any] = {dtype: shares(told, a.rows) for dtype, told in rounds.items()}
    result["peers"] = of_peers(peers, rounds["bfloat16"], a.rows) if peers else {}
    return result | {"model": with_a_model(folder, a.rounds)}


def main() -> None:
    """Print one JSON object and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("d", 512), ("rows", 1 << 20), ("batch", 4096), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs", help="on the disk to measure; nothing in it is touched"
    )
    parser.add_argument("--no-peers", action="store_true")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        result = measured(Path(folder), a)
    result |= {"machine": machine(), "asked": {name: str(value) for name, value in vars(a).items()}}
    print(json.dumps(result, indent=1))
    show(result)


if __name__ == "__main__":
    main()
