"""Metrics shown elsewhere as they come: TensorBoard and Weights & Biases, each imported only where it is asked for.

A `Watch` is called when a run begins or goes on, with its folder, what run.json holds, and the step it stands at.
metrics.csv is written whether or not anyone watches, and stays the record.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from interp.errors import WrongUse
from interp.files import write_json


class Log(Protocol):
    """Where the rows of one run go."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """A row of metrics, and the step it belongs to."""

    def close(self) -> None:
        """The run has ended, or stopped."""


Watch = Callable[[Path, Mapping[str, Any], int], Log]


def tensorboard() -> Watch:
    """Event files in the folder `tensorboard` of each run; what was written after the checkpoint is hidden on resuming.

    Raises `WrongUse` if the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise WrongUse("--tensorboard needs the package tensorboard: pip install 'interp-kit[tensorboard]'.") from error

    def watch(folder: Path, about: Mapping[str, Any], step: int) -> Log:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        writer.add_text("run", f"```\n{json.dumps(about, indent=1)}\n```", step)
        return _Scalars(writer)

    return watch


class _Scalars:
    def __init__(self, writer: Any):
        self._writer = writer

    def log(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def wandb(project: str) -> Watch:
    """A run of Weights & Biases for each of ours, named as its folder and grouped by the folder that holds it.

    Its id is kept in wandb.json, so that a resumed run goes on there. Raises `WrongUse` if the package is not installed.
    """
    try:
        import wandb as client
    except ImportError as error:
        raise WrongUse("--wandb needs the package wandb: pip install 'interp-kit[wandb]'.") from error

    def watch(folder: Path, about: Mapping[str, Any], step: int) -> Log:
        path = folder / "wandb.json"
        if not (step and path.exists()):
            write_json(path, {"id": secrets.token_hex(4)})
        known = json.loads(path.read_text(encoding="utf-8"))["id"]
        run = client.init(
            project=project, name=folder.name, group=folder.absolute().parent.name, id=known, resume="allow",
            config=dict(about), dir=str(folder), reinit="create_new",
        )  # fmt: skip
        return _Run(run)

    return watch


class _Run:
    def __init__(self, run: Any):
        self._run = run

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()
