"""Training runs that are killed, starved and interrupted: `python killed.py FOLDER` prints JSON.

One process imports torch and forks a child for every run, because starting anew would take seconds each. The parent
computes nothing itself, so no thread of its own is lost in the fork.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interp.dictionaries import L1, BatchTopK, RowsSource, TopK, TrainConfig, train, train_many
from interp.dictionaries.planted import superposed
from interp.errors import Failed
from interp.files import load_tensors

FILES = ("weights.safetensors", "config.json", "state.safetensors", "metrics.csv")
CONFIG = TrainConfig(TopK(2), latents=40, steps=100, batch=64, lr=3e-3, log_every=4, save_every=7)
MANY = {  # unequal in length, and in when they are saved
    "one": replace(CONFIG, steps=60),
    "two": replace(CONFIG, kind=BatchTopK(3), steps=50, save_every=10, seed=3, data_seed=0),
    "three": replace(CONFIG, kind=L1(sparsity=0.5), steps=60),
}
ROOM = 5000  # bytes a file: enough for weights.safetensors and metrics.csv, not for state.safetensors


def run(out: Path, before: Callable[[], None] = lambda: None, many: bool = False) -> int:
    """Train (or go on) in a child of its own; returns its pid. Its standard error goes into OUT.err."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with open(f"{out}.err", "w", encoding="utf-8") as said:
        os.dup2(said.fileno(), 2)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
        torch.set_num_threads(1)
        os.fsync = lambda handle: None  # only a power cut tells the difference
        x = superposed(500, seed=1, d=8, features=12, l0=1.5).x
        before()
        if many:
            train_many(MANY, RowsSource(x), out, resume=True, command="interp train")
        else:
            train(CONFIG, RowsSource(x), out, resume=True, command="interp train")
        status = 0
    except Failed as error:
        os.write(2, f"Failed: {error}".encode())
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The child's exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digests(out: Path) -> dict[str, str]:
    """sha256 of the files that must agree."""
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}


def step(out: Path) -> int:
    """The step of the checkpoint in `out`; -1 without one."""
    path = out / "state.safetensors"
    return int(load_tensors(path)[1]["step"]) if path.exists() else -1


def halfway(name: str, count: int) -> Callable[[], None]:
    """A patch for the child: the `count`-th time that NAME is written, half of it is, and the process dies."""

    def patch() -> None:
        whole, seen = Path.write_bytes, [0]

        def write(path: Path, data: bytes) -> int:
            seen[0] += f".{name}." in path.name
            if seen[0] < count:
                return whole(path, data)
            whole(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        Path.write_bytes = write  # type: ignore[method-assign, assignment]

    return patch


def killed(folder: Path, wanted: dict[str, str], seconds: float) -> dict[str, Any]:
    """Six kills by the clock and seven while a checkpoint is written, spread over four runs that then end."""
    draw = random.Random(0)
    by_point = [
        ("state.safetensors", 1),
        ("state.safetensors", 4),
        ("weights.safetensors", 2),
        ("weights.safetensors", 6),
    ]
    plans: list[list[tuple[str, int] | float]] = [
        [draw.uniform(0, 0.4 * seconds) for _ in range(3)],
        [("weights.safetensors", 15)],  # the last time: the state is that of the end, the dictionary is not
        [*by_point],
        [by_point[1], *(draw.uniform(0, 0.3 * seconds) for _ in range(3)), by_point[2]],
    ]
    differing, steps, ends = [], [], []
    for number, plan in enumerate(plans):
        out = folder / f"killed{number}"
        for moment in plan:
            if isinstance(moment, tuple):
                pid = run(out, halfway(*moment))
            else:
                pid = run(out)
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)
            ends.append(wait(pid))
            steps.append(step(out))
        if wait(run(out)) or digests(out) != wanted or list(out.glob(".*")):
            differing.append(number)
    return {"differing": differing, "steps": steps, "ends": ends}


def starved(folder: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """A disk that fills up while the third checkpoint is written; then there is room again."""
    out = folder / "starved"
    wait(run(out, halfway("state.safetensors", 3)))
    before = hashlib.sha256((out / "state.safetensors").read_bytes()).hexdigest()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))  # noqa: E731
    status = wait(run(out, limit))
    return {
        "status": status,
        "said": Path(f"{out}.err").read_text(encoding="utf-8"),
        "path": str(out / "state.safetensors"),
        "size": (out / "state.safetensors").stat().st_size,
        "intact": before == hashlib.sha256((out / "state.safetensors").read_bytes()).hexdigest(),
        "resumed": wait(run(out)),
        "same": digests(out) == wanted,
    }


def interrupted(folder: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """Ctrl-C just after the third checkpoint, whose last file is the dictionary."""
    out = folder / "interrupted"

    def patch() -> None:
        whole, seen = os.replace, [0]

        def renamed(old: Any, new: Any) -> None:
            whole(old, new)
            seen[0] += str(new).endswith("weights.safetensors")
            if seen[0] == 3:
                seen[0] += 1
                signal.raise_signal(signal.SIGINT)

        os.replace = renamed  # type: ignore[assignment]

    status, at = wait(run(out, patch)), step(out)
    said = Path(f"{out}.err").read_text(encoding="utf-8")
    return {"status": status, "said": said, "step": at, "resumed": wait(run(out)), "same": digests(out) == wanted}


def swept(folder: Path) -> dict[str, Any]:
    """Three dictionaries in one pass, killed at six points of their files and four times by the clock."""
    parts = lambda out: {name: digests(out / name) for name in MANY}  # noqa: E731
    begin = time.perf_counter()
    assert wait(run(folder / "many", many=True)) == 0, Path(f"{folder / 'many'}.err").read_text()
    seconds = time.perf_counter() - begin
    draw, out, steps = random.Random(1), folder / "killed_many", []
    files = [("state.safetensors", n) for n in (1, 2, 3, 5)] + [("weights.safetensors", n) for n in (2, 4)]
    for moment in [*files, *(draw.uniform(0, seconds) for _ in range(4))]:
        if isinstance(moment, tuple):
            pid = run(out, halfway(*moment), many=True)
        else:
            pid = run(out, many=True)
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        wait(pid)
        steps.append([step(out / name) for name in MANY])
    status = wait(run(out, many=True))
    return {"steps": steps, "status": status, "same": parts(out) == parts(folder / "many")}


def main() -> None:
    """Everything, into one object."""
    folder = Path(sys.argv[1])
    # what a run imports on its way, once for all children
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
    for name in ("safetensors.torch", "tqdm.auto"):
        importlib.import_module(name)
    assert wait(run(folder / "whole")) == 0, Path(f"{folder / 'whole'}.err").read_text()
    wanted = digests(folder / "whole")
    begin = time.perf_counter()
    assert wait(run(folder / "again")) == 0
    seconds = time.perf_counter() - begin
    told = {
        "again": digests(folder / "again") == wanted,
        "killed": killed(folder, wanted, seconds),
        "starved": starved(folder, wanted),
        "interrupted": interrupted(folder, wanted),
        "swept": swept(folder),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
