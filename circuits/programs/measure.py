"""How often a printed program is right, run alone by Python."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.programs.tasks import Body, Task
from interp.errors import Failed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scores:
    """Shares of right labels over all inputs, of inputs with all labels right, and of the commonest label."""

    inputs: int
    every: bool
    """whether these are all inputs there are"""
    tokens: float
    whole: float
    majority: float
    by_length: dict[int, float]

    def to_frame(self) -> pd.DataFrame:
        """The share of right labels by the length of the body."""
        import pandas as pd

        return pd.DataFrame({"length": list(self.by_length), "right": list(self.by_length.values())})

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def outputs(file: Path, bodies: Sequence[Body]) -> list[list[str]]:
    """What a printed program says of each body, from a Python of its own. Raises `Failed` with its error."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as asked:
        asked.writelines(json.dumps(body, ensure_ascii=False) + "\n" for body in bodies)
        asked.seek(0)
        done = subprocess.run([sys.executable, "-I", str(file)], stdin=asked, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Failed(f"{file} stopped: {done.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure(file: Path, task: Task, bodies: Sequence[Body] | None = None) -> Scores:
    """Run a printed program on `bodies`: by default on every input of the task, or on 50,000 fresh ones where these are drawn."""
    bodies = list(task.tested()) if bodies is None else bodies
    labels: Counter[str] = Counter()
    right, asked = Counter[int](), Counter[int]()
    whole = 0
    for body, found in zip(bodies, outputs(file, bodies), strict=True):
        truth = task.answer(body)
        hits = [a == b for a, b in zip(truth, found, strict=True) if a is not None]
        labels.update(a for a in truth if a is not None)
        right[len(body)] += sum(hits)
        asked[len(body)] += len(hits)
        whole += all(hits)
    return Scores(
        len(bodies),
        task.drawn is None,
        right.total() / asked.total(),
        whole / len(bodies),
        max(labels.values()) / labels.total(),
        {n: right[n] / asked[n] for n in sorted(asked)},
    )
