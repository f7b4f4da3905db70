"""The folder of a training run: metrics as they come, checkpoints that are whole or not there, and the way back in."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from interp.dictionaries.dictionary import check_tensors
from interp.errors import Failed, WrongUse
from interp.files import load_tensors, save_tensors, write_json

if TYPE_CHECKING:
    from interp.dictionaries.kinds import Loss
    from interp.dictionaries.trainer import Trainer
    from interp.dictionaries.watch import Log, Watch

METRICS = ("step", "loss", "fvu", "l0", "dead", "sparsity", "aux", "lr")


def check_free(folder: Path, resume: bool) -> None:
    """Raise `WrongUse` if a folder holds a training run that is not to be gone on with."""
    if not resume and any((folder / name).exists() for name in ("state.safetensors", "metrics.csv")):
        raise WrongUse(f"{folder} already holds a training run: go on with --resume, or choose another folder.")


class Run:
    """What a trainer leaves on disk, all of it in one folder."""

    def __init__(self, folder: Path, trainer: Trainer, command: str, watch: Sequence[Watch] = ()):
        self.folder, self.trainer, self.command, self.watch = folder, trainer, command, watch
        self.state, self.metrics, self.speed = (folder / n for n in ("state.safetensors", "metrics.csv", "speed.csv"))
        self.saved: int | None = None  # the step of the last checkpoint
        self.last: dict[str, Any] = {}  # the last row of metrics
        self._files: dict[Path, IO[bytes]] = {}
        self._logs: list[Log] = []
        self._kept_bytes = 0  # of metrics.csv, at the last checkpoint
        self._logged = 0, 0.0  # the step and the time of the last row of metrics

    def restored(self, resume: bool) -> bool:
        """Make the folder; put the trainer where the last checkpoint was, if there is one to go on from."""
        check_free(self.folder, resume)
        with self._writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink()
        if resume and self.state.exists():
            self._restore()
        return self.saved is not None

    def begin(self) -> None:
        """Open the files that rows are appended to, cut back to the checkpoint, and say what is run."""
        self._open(self.metrics, self._kept_bytes, ",".join(METRICS))
        self._open(self.speed, None if self._kept_bytes else 0, "step,tokens_per_second")
        about = self._describe()
        for watch in self.watch if self.trainer.step < self.trainer.config.steps else ():
            self._logs.append(watch(self.folder, about, self.trainer.step))
        self._logged = self.trainer.step, time.perf_counter()

    def log(self, loss: Loss) -> None:
        """Append a row to metrics.csv, which equal runs share byte for byte, and the speed to speed.csv."""
        t = self.trainer
        active, dead = t.counts(loss)
        row = {
            "step": t.step,
            "loss": loss.total.item(),
            "fvu": loss.fvu.item(),
            "l0": active,
            "dead": dead,
            "sparsity": loss.sparsity.item(),
            "aux": loss.aux.item(),
            "lr": t.optimiser.param_groups[0]["lr"],
        }
        self._append(self.metrics, ",".join(f"{value:.7g}" for value in row.values()))
        (step, then), self._logged = self._logged, (t.step, time.perf_counter())
        self._append(self.speed, f"{t.step},{(t.step - step) * t.config.batch / (self._logged[1] - then):.0f}")
        self.last = row
        for log in self._logs:
            log.log(t.step, {name: value for name, value in row.items() if name != "step"})

    def save(self) -> None:
        """A checkpoint: the state first, in one file, then the dictionary as it stands."""
        t = self.trainer
        with self._writing(self.state):
            for file in self._files.values():
                os.fsync(file.fileno())
            meta = self._made() | {
                "step": t.step,
                "scales": t.scales,
                "dead_window": t.window,
                "source": self._source(),
                "metrics_bytes": self._files[self.metrics].tell(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            save_tensors(self.state, t.state(), meta)
        self.saved = t.step
        self.publish()

    def publish(self) -> None:
        """The dictionary of the last checkpoint, for those who would use it."""
        t = self.trainer
        with self._writing(self.folder / "weights.safetensors"):
            t.finished().save(self.folder, self._made() | {"step": t.step})

    def kept(self) -> str:
        """One sentence on what is left when training stops."""
        if self.saved is None:
            return f"No checkpoint had been written to {self.folder} yet."
        return f"The checkpoint of step {self.saved} in {self.folder} is whole."

    def close(self) -> None:
        """Close what rows are written to."""
        for file in self._files.values():
            file.close()
        for log in self._logs:
            log.close()

    def _made(self) -> dict[str, Any]:
        return {"command": self.command, "seed": self.trainer.config.seed, "train": self.trainer.config.to_dict()}

    def _source(self) -> dict[str, Any]:
        s = self.trainer.source
        where = {"reads": list(s.reads), "writes": list(s.writes), "rows": s.rows, "d_in": s.d_in, "d_out": s.d_out}
        return where | ({"text": s.digest} if s.digest else {})

    def _describe(self) -> dict[str, Any]:
        t = self.trainer
        about = {
            "command": shlex.join(sys.argv),
            "seed": t.config.seed,
            "train": t.config.to_dict(),
            "lr": t.lr,
            "dead_window": t.window,
            "source": self._source(),
            "meta": t.source.meta,
            "device": str(t.device),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        with self._writing(self.folder / "run.json"):
            write_json(self.folder / "run.json", about)
        return about

    def _restore(self) -> None:
        try:
            tensors, meta = load_tensors(self.state)
        except ValueError as error:
            raise Failed(str(error)) from error
        if "train" not in meta:
            raise Failed(f"{self.state} is no checkpoint of a training run: its metadata says nothing of one.")
        self._check_same("train", meta["train"], self.trainer.config.to_dict())
        self._check_same("source", meta["source"], self._source())
        now = (torch.get_num_threads(), torch.__version__)
        if now != (meta["threads"], meta["torch"]):
            then = f"{meta['threads']} threads and torch {meta['torch']}, not {now[0]} and {now[1]}"
            print(f"interp: the checkpoint was made with {then}: as good, but not the same bits.", file=sys.stderr)
        self.command, self.saved = meta["command"], meta["step"]
        check_tensors(self.state, tensors, self.trainer.state())
        self.trainer.restore(tensors, meta["step"], (tuple(meta["scales"][0]), tuple(meta["scales"][1])))
        self._kept_bytes = meta["metrics_bytes"]
        self.publish()  # a run may have been killed between the two files

    def _check_same(self, what: str, then: dict[str, Any], now: dict[str, Any]) -> None:
        for name, value in now.items():
            if then.get(name) != value:
                raise WrongUse(
                    f"{self.folder} was trained with {what} {name}={then.get(name)}, not {value}: "
                    f"resume with the same settings, or choose another folder."
                )

    def _open(self, path: Path, keep: int | None, header: str) -> None:
        """Open for appending after the first `keep` bytes (None: all of them); an empty file gets its header."""
        with self._writing(path):
            file = self._files[path] = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)
            if keep is not None:
                if file.tell() < keep:
                    raise Failed(f"{path} is shorter than at the checkpoint of step {self.saved}: it was changed.")
                file.truncate(keep)
                file.seek(keep)
            if not file.tell():
                self._append(path, header)

    def _append(self, path: Path, line: str) -> None:
        with self._writing(path):
            self._files[path].write(f"{line}\n".encode())

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Failed(f"{path} could not be written: {error.strerror or error}. {self.kept()}") from error
