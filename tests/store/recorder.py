"""Recordings that are killed, starved, and weighed: `python recorder.py FOLDER` prints JSON.

One process imports torch and forks a child for every trial, because starting anew would take seconds each.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from interp.kernels import record_rows
from interp.store import StoreWriter, open_store

WIDTHS = {"a": 6, "b": 3}
BATCHES, ROWS = 20, 37
FILES = tuple(f"interp/{name}.py" for name in ("store/writer", "store/waiting", "store/int8", "store/layout", "files"))


def record(path: Path, pile_bytes: int = 9000, dtype: str = "float16") -> None:
    """20 batches of 37 rows; a commit after every third, and none after the last two."""
    settings: dict[str, Any] = {"widths": WIDTHS, "dtype": dtype, "expected_rows": BATCHES * ROWS, "seed": 5}
    writer = StoreWriter(path, **settings, pile_bytes=pile_bytes, resume=True, meta={"command": ["interp", "record"]})
    for batch in range((writer.cursor or {"batch": 0})["batch"], 0 if writer.complete else BATCHES):
        generator = torch.Generator().manual_seed(batch)
        rows = {site: torch.randn(ROWS, width, generator=generator) for site, width in WIDTHS.items()}
        writer.append(rows, documents=torch.full((ROWS,), batch))
        if batch % 3 == 2:
            writer.commit({"batch": batch + 1})
    writer.close()


def sums(path: Path) -> dict[str, str]:
    """sha256 of every file, hidden ones too."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """`work()` in a child: its exit status (negative: the signal) and what it returned or raised."""
    get, put = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            told, code = work(), 0
        except Exception as error:
            told, code = f"{type(error).__name__}: {error}", 1
        os.write(put, json.dumps(told).encode())
        os._exit(code)
    os.close(put)
    with open(get, "rb") as file:
        told = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), json.loads(told or b"null")


def traced(path: Path, last: int = -1) -> list[str]:
    """Record, and list the functions of the writer line by line as they run; kill this process before line `last`."""
    lines: list[str] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        if event == "line":
            if len(lines) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            lines.append(frame.f_code.co_name)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    record(path, dtype="int8")  # all that float rows do, and pivots and sums of errors to go on from
    sys.settrace(None)
    return lines


def state(path: Path) -> str:
    """How a killed writer left its folder."""
    if (path / "index.json").exists():
        return "closing" if (path / "journal.json").exists() else "complete"
    if not (path / "journal.json").exists():
        return "nothing"
    return "renaming" if list(path.glob(".*.tmp")) else "begun"


def spoil(path: Path, chance: random.Random) -> None:
    """Bytes after the last commit are anyone's: half-written blocks, shards of piles not yet committed."""
    if not (path / "index.json").exists():
        for shard in path.glob("0*"):
            with open(shard, "ab") as file:
                file.write(chance.randbytes(chance.randrange(50)))
        if state(path) != "nothing":
            (path / "00001.late.rows").write_bytes(b"x")


def killed(folder: Path) -> dict[str, Any]:
    """Kill before a random line, resume, kill again, resume, finish; one of two kills in a commit's last steps."""
    chance = random.Random(0)
    lines = traced(folder / "whole")
    reference = sums(folder / "whole")
    last_steps = [i for i, name in enumerate(lines) if name in ("write_atomic", "sync_folder", "close")]
    moments = [(chance.randrange(len(lines)), chance.choice(last_steps)) for _ in range(12)]
    moments += [(chance.choice(last_steps), chance.randrange(len(lines) // 2)) for _ in range(10)]
    states, differing = [], []
    for trial, kills in enumerate([*moments, *((len(lines) - back, 0) for back in range(1, 20))]):
        path = folder / f"killed{trial}"
        for line in kills:
            forked(lambda line=line, path=path: traced(path, line))
            states.append(state(path))
            spoil(path, chance)
        forked(lambda path=path: record(path, dtype="int8"))
        if sums(path) != reference:
            differing.append(kills)
    return {"states": states, "differing": differing, "by_clock": by_clock(folder, reference, chance)}


def by_clock(folder: Path, reference: dict[str, str], chance: random.Random) -> list[int]:
    """Kills at random times: which trials ended differently."""
    differing = []
    for trial in range(5):
        path = folder / f"clock{trial}"
        pid = os.fork()
        if not pid:
            record(path, dtype="int8")
            os._exit(0)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        forked(lambda path=path: record(path, dtype="int8"))
        if sums(path) != reference:
            differing.append(trial)
    return differing


def full(folder: Path) -> list[dict[str, Any]]:
    """Record where no file may be longer than a limit; then without it."""
    record(folder / "whole", 25_000)
    results = []
    for limit in (100, 700, 1500, 3000, 5000, 8000):
        path = folder / f"full{limit}"

        def starved(path: Path = path, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            record(path, 25_000)

        status, told = forked(starved)
        journal = path / "journal.json"
        rows = sum(json.loads(journal.read_text())["piles"]) if journal.exists() else 0
        forked(lambda path=path: record(path, 25_000))
        same = sums(path) == sums(folder / "whole")
        results.append({"path": str(path), "status": status, "told": told, "rows": rows, "same": same})
    return results


def second(folder: Path) -> list[Any]:
    """A writer in this process, another in a child; then the child alone."""
    writer = StoreWriter(folder / "two", widths={"a": 1}, expected_rows=1)

    def other() -> int:
        return StoreWriter(folder / "two", widths={"a": 1}, expected_rows=1, resume=True).rows

    both = forked(other)
    with writer:
        pass
    return [both, forked(other)]


def handles(folder: Path) -> Any:
    """300 shards with 24 file handles; the number of shards."""

    def starved() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
        widths = {"a": 1, "b": 1}
        with StoreWriter(folder / "many", widths=widths, expected_rows=400_000, pile_bytes=176_000) as writer:
            rows = {site: torch.ones(4000, 1) for site in widths}
            writer.append(rows, documents=torch.zeros(4000, dtype=torch.int64))
        store = open_store(folder / "many")
        assert sum(len(ids) for _, ids in store.batches(100, with_ids=True)) == 4000
        return len(store.index.shards)

    return forked(starved)


def peak() -> int:
    """Most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(folder: Path) -> dict[str, Any]:
    """Bytes that writing, reading and sampling a store of 400 MB in piles of 32 MB take."""
    widths, rows, step = {"a": 256, "b": 128}, 520_000, 8192

    def write() -> int:
        piece = {site: torch.randn(step, width).bfloat16() for site, width in widths.items()}
        before = peak()
        with StoreWriter(folder / "big", widths=widths, expected_rows=rows, pile_bytes=32 << 20) as writer:
            for at in range(0, rows, step):
                count = min(step, rows - at)
                writer.append({s: x[:count] for s, x in piece.items()}, documents=torch.full((count,), at))
        return peak() - before

    def read() -> int:
        store = open_store(folder / "big")
        before = peak()
        assert sum(len(ids) for _, ids in store.batches(4096, with_ids=True)) == rows
        return peak() - before

    def sample() -> int:
        store = open_store(folder / "big")
        before = peak()
        store.sample(4096, seed=0)
        return peak() - before

    told = {work.__name__: forked(work) for work in (write, read, sample)}
    index = open_store(folder / "big").index
    pile = max(index.piles) * (index.bytes // index.rows)
    return {**told, "pile": pile, "bytes": index.bytes}


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    record(where / "once", dtype="int8")  # what every child would load anew, numba too
    record_rows(torch.ones(64, 32).bfloat16(), None, torch.arange(64), torch.empty(64, 32).bfloat16())
    results = {"memory": memory(where)}
    os.fsync = lambda _: None  # only a power cut tells the difference, and hundreds of trials would wait for the disk
    results |= {work.__name__: work(where / work.__name__) for work in (killed, full, second, handles)}
    print(json.dumps(results))
    shutil.rmtree(where)
