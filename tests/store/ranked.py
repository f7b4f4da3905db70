"""Recordings by several processes against one: `python ranked.py FOLDER MODEL` prints JSON. One process imports torch and forks."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from interp import ranks
from interp.kernels import record_rows
from interp.model import Model, load
from interp.store import recording
from interp.store.recording import record_text
from tests.dictionaries.ranked import both, fork

SITES = ["blocks.1.resid_post", "blocks.0.mlp.in"]
TEXTS = [f"{n}: " + " ".join(f"the {i}th of {i * n} words" for i in range(5 + n % 7)) for n in range(40)]
IDS = torch.arange(7 * 12).view(7, 12) % 90 + 5
INPUTS = {"input_ids": IDS, "attention_mask": (torch.arange(6, 13)[:, None] > IDS % 12).long()}
SMALL: dict[str, Any] = {
    "batch": 3,
    "context": 24,
    "seed": 4,
    "expected_rows": 2000,
    "meta": {"command": "interp record"},
}
CASES: dict[str, dict[str, Any]] = {  # what is recorded, and in how many processes
    "float32": {"dtype": "float32"},
    "bfloat16": {"tokens": 501},  # the last group is cut
    "float16": {"dtype": "float16", "ranks": 3},
    "int8": {"dtype": "int8", "max_fvu": 0.5},  # bytes depend on how rows are cut into appends
    "inputs": {"texts": INPUTS, "ranks": 3},
    "first": {"tokens": 20},  # all rows are of the first group
    "few": {"texts": TEXTS[:1], "batch": 16, "ranks": 3},  # fewer groups than processes
    "none": {"texts": []},
}


def record(model: Model, out: Path, texts: Any = TEXTS, **change: Any) -> int:
    """Commits after every second group."""
    recording.COMMIT_EVERY = 2
    return record_text(model, SITES, texts, out, **{"resume": True, **SMALL, **change}).rows


def sums(out: Path) -> dict[str, str]:
    """sha256 of every file, hidden ones too."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())}


def equal(folder: Path, model: Model) -> dict[str, Any]:
    told = {}
    for name, case in CASES.items():
        one, many, change = folder / f"{name}1", folder / f"{name}2", dict(case)
        count = change.pop("ranks", 2)
        rows = [both(out, lambda: record(model, out, **change), c) for out, c in ((one, 1), (many, count))]  # noqa: B023
        told[name] = {"rows": rows, "same": sums(one) == sums(many)}
    return told


def dies(model: Model, out: Path, rank: int) -> None:
    """That rank is killed in the seventh group it runs the model on."""
    forward, seen = recording._states, [0]

    def killed(*args: Any) -> Any:
        seen[0] += 1
        if ranks.rank() == rank and seen[0] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(*args)

    recording._states = killed
    record(model, out)


def killed(folder: Path, model: Model) -> list[dict[str, Any]]:
    """What the other rank says, how soon, where the store stands, and whether going on ends as if nothing had happened."""
    both(folder / "straight", lambda: record(model, folder / "straight"), 1)
    told = []
    for rank, again in ((1, 2), (0, 2), (1, 1), (1, 3)):
        out = folder / f"killed{rank}{again}"
        pids = fork(out, lambda: dies(model, out, rank))  # noqa: B023
        os.waitpid(pids[rank], 0)
        begin = time.monotonic()
        os.waitpid(pids[1 - rank], 0)
        seconds = time.monotonic() - begin
        said = json.loads(Path(f"{out}.{1 - rank}.json").read_text())
        kept = sum(json.loads((out / "journal.json").read_text())["piles"])
        rows = both(out, lambda: record(model, out), again)  # noqa: B023
        same = sums(out) == sums(folder / "straight")
        told.append({"said": said, "seconds": seconds, "kept": kept, "rows": rows, "same": same})
    return told


def refused(folder: Path, model: Model) -> dict[str, Any]:
    """Other settings, another text, a text that ends sooner, and a folder that holds a store."""

    def told(name: str, work: Any) -> list[Any]:
        return both(folder / name, lambda: work(folder / name, int(os.environ["RANK"])))

    both(folder / "there", lambda: record(model, folder / "there"), 1)
    return {
        "tokens": told("tokens", lambda out, rank: record(model, out, tokens=100 + rank)),
        "text": told("text", lambda out, rank: record(model, out, [*TEXTS[:20], f"word {rank}", *TEXTS[20:]])),
        "shorter": told("shorter", lambda out, rank: record(model, out, TEXTS[: 40 - 20 * rank])),
        "there": told("there", lambda out, rank: record(model, out, resume=False)),
        "complete": told("there", lambda out, rank: record(model, out)),
    }


def main() -> None:
    folder, source = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    for name in ("torch.distributed", "tqdm.auto", "safetensors.torch"):
        importlib.import_module(name)
    model = load(str(source))
    model.record(torch.tensor([[5, 6, 7]]), SITES)
    for rows in (torch.empty(64, 32), torch.empty(64, 32, dtype=torch.bfloat16)):  # numba, which every child would load
        record_rows(torch.ones(64, 32), None, torch.arange(64), rows)
    told = {}
    for work in (equal, killed, refused):
        (folder / work.__name__).mkdir()
        told[work.__name__] = work(folder / work.__name__, model)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
