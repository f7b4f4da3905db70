"""A lens in the making: steps over text, written down as they go, and gone on with where they stopped."""

from __future__ import annotations

import csv
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.files import load_tensors, save_tensors, write_json
from interp.lenses.affine import AffineLens
from interp.model.model import Model, Tokens
from interp.store.recording import windows

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

STATE, METRICS, ABOUT = "state.safetensors", "metrics.csv", "recipe.json"
EVERY = 60.0  # seconds between two points to go on from
HELD = 10  # one window in so many is kept out of a fit that reads its text once, to be measured on
WIDE = 8192  # tokens a forward pass


class Fitting(Protocol):
    """What makes a lens of one kind."""

    lens: AffineLens

    def step(self, group: list[Tokens]) -> dict[str, float]:
        """Take in one group of windows; what it says of each row, to be written down."""

    def state(self) -> dict[str, Tensor]:
        """All that the steps so far have left."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be where `state` was taken."""

    def finish(self) -> None:
        """Put the lens's maps in place."""


@dataclass(frozen=True, eq=False)
class Job:
    """A lens to be made: how, from which steps, and what is written down about it."""

    fitting: Fitting
    steps: Iterable[list[Tokens]]
    about: Mapping[str, Any]

    def run(self, out: str | Path | None = None, resume: bool = False) -> None:
        """Take all steps and leave `fitting.lens` made. With `out`, leave recipe.json (`about`) and metrics.csv there as it
        goes, and the lens at the end.

        Interrupted, it leaves what `resume` goes on from, to the same lens. Raises `WrongUse` if there is no step, if the
        folder holds a lens or a part of one and `resume` is not asked for, or if that part was made another way.
        """
        folder = None if out is None else Path(out)
        begun = 0 if folder is None else _begin(folder, self.fitting, self.about, resume)
        if begun is None:
            return
        if self._taken(folder, begun) == 0:
            raise WrongUse("the text is empty: there is nothing to make a lens of.")
        self.fitting.finish()
        if folder is not None:
            self.fitting.lens.save(folder)
            (folder / STATE).unlink(missing_ok=True)

    def _taken(self, folder: Path | None, begun: int) -> int:
        """All steps after the first `begun`; how many there are."""
        from tqdm.auto import tqdm

        done, saved, lens = begun, time.monotonic(), self.fitting.lens
        try:
            for group in tqdm(itertools.islice(self.steps, begun, None), desc=f"{lens.kind} lens", mininterval=1):
                told = self.fitting.step(group)
                done += 1
                if folder is not None:
                    _log(folder / METRICS, done - 1, told)
                    if time.monotonic() - saved > EVERY:
                        self._save(folder, done)
                        saved = time.monotonic()
        except BaseException:
            if folder is not None and done > begun:
                self._save(folder, done)
            raise
        return done

    def _save(self, folder: Path, steps: int) -> None:
        save_tensors(folder / STATE, self.fitting.state(), {"steps": steps, "about": dict(self.about)})

    def plan(self) -> dict[str, float]:
        """Tokens that will be read ("rows"), bytes of the lens, minutes: one step is made and timed. Raises as `run` does."""
        rows, minutes = 0, 0.0
        for group in self.steps:
            count = sum(int(t.mask.sum()) for t in group)
            if not rows:
                begin = time.perf_counter()
                self.fitting.step(group)
                minutes = (time.perf_counter() - begin) / 60 / count
            rows += count
        if not rows:
            raise WrongUse("the text is empty: there is nothing to make a lens of.")
        size = sum(t.nbytes for t in (*self.fitting.lens.W, *self.fitting.lens.b))
        return {"rows": rows, "bytes": size, "minutes": round(minutes * rows, 2)}


def _begin(folder: Path, fitting: Fitting, about: Mapping[str, Any], resume: bool) -> int | None:
    """Make the folder, or go on from what it holds; how many steps are done. None: all, and the lens is loaded."""
    if not resume and any((folder / name).exists() for name in (STATE, METRICS, "config.json")):
        raise WrongUse(
            f"{folder} already holds a lens, or a part of one: go on with --resume, or choose another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    before = json.loads((folder / ABOUT).read_text(encoding="utf-8")) if (folder / ABOUT).is_file() else dict(about)
    if before != dict(about):
        raise WrongUse(f"what {folder} holds was made by {before}, not by {dict(about)}: say the same again.")
    if (folder / "config.json").is_file():
        whole = type(fitting.lens).load(folder, fitting.lens.model)
        fitting.lens.W, fitting.lens.b = whole.W, whole.b
        return None
    write_json(folder / ABOUT, dict(about))
    steps = 0
    if (folder / STATE).is_file():
        state, meta = load_tensors(folder / STATE)
        fitting.restore(state)
        steps = meta["steps"]
    _cut(folder / METRICS, steps)
    return steps


def _log(path: Path, step: int, told: Mapping[str, float]) -> None:
    if not told:
        return
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", *told])
        writer.writerow([step, *(f"{value:.6g}" for value in told.values())])


def _cut(path: Path, steps: int) -> None:
    """Rows of metrics that come after the point gone on from were written by what was interrupted."""
    if path.exists():
        head, *rows = path.read_bytes().splitlines(keepends=True)
        kept = [row for row in rows if int(row.split(b",")[0]) < steps]
        path.write_bytes(b"".join([head, *kept]))
        if not kept:
            path.unlink()


# ---------------------------------------------------------------- text


def once(
    model: Model,
    texts: Iterable[str],
    context: int,
    tokens: int | None,
    held_out: bool | None = False,
    wide: int = WIDE,
) -> Iterator[list[Tokens]]:
    """Windows in batches of `wide` tokens, in order, up to `tokens` tokens: all but every tenth, with `held_out` these
    alone, with None all.
    """
    left: float = tokens or float("inf")
    group: list[list[int]] = []
    for number, (_, ids) in enumerate(windows(model, texts, context)):
        left -= len(ids)
        if held_out is None or (number % HELD == HELD - 1) == held_out:
            group.append(ids)
        if len(group) == max(1, wide // context):
            yield [model.pad(group)]
            group = []
        if left <= 0:
            break
    if group:
        yield [model.pad(group)]


def shifted(mask: Bool[Tensor, "batch pos"], ahead: int) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Which tokens have one `ahead` positions further on, and which those are, in the same order (padded on the right)."""
    now, then, ahead = torch.zeros_like(mask), torch.zeros_like(mask), min(ahead, mask.shape[1])
    now[:, : mask.shape[1] - ahead] = then[:, ahead:] = mask[:, ahead:]
    return now, then


@torch.no_grad()
def pairs(lens: AffineLens, tokens: Tokens) -> Iterator[tuple[str, Float[Tensor, "n m"], Float[Tensor, "n d"]]]:
    """(Row, its states, the last stream as many tokens further on as the row looks ahead), of real tokens, in float64."""
    last, states = lens.states(lens.model.inputs(tokens), lens.sites)
    for row in lens.sites:
        now, then = shifted(tokens.mask.to(last.device), lens.ahead(row))
        yield row, states[row][now].double(), last[then].double()
