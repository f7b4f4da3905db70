"""Training of many seeds at once, from random parameters to the best seed's program.

    L = Σ_seeds mean CE(label, logits),   τ falls from `hot` to `cold` geometrically,   Adam

At the end every choice is made, and the readout is fitted anew to the program's own variables (`readout.py`).
What a step draws is a function of (seed, step), the inputs of the step alone: a run that was stopped goes on to the same bytes, and a
seed learns the same among others as alone. Source: Friedman, Wettig & Chen 2023, section 3.4; lengths are balanced here.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from circuits.programs.model import Relaxed, Shape, gumbel, initial, total
from circuits.programs.program import Program, load
from circuits.programs.readout import drawn_for_fitting, everything, fitted, refitted
from circuits.programs.tasks import Batch, Task
from interp.errors import Failed, WrongUse
from interp.files import check_run, command_line, load_tensors, save_tensors, write_json, write_rows

if TYPE_CHECKING:
    from jaxtyping import Float

INPUTS, CHECKS = 1_000_000, 1_000_001  # streams of random numbers that are no seed's
SAVE_EVERY = 250
CHECKED = 2000  # inputs that seeds are compared on
COMPARED = 500  # inputs that each seed's readout is fitted to before


@dataclass(frozen=True)
class Recipe:
    """Settings of one run."""

    seed: int = 0
    """the first; the others follow"""
    seeds: int = 8
    """trained at once"""
    steps: int = 4000
    batch: int = 128
    """inputs a step, the same for all seeds"""
    lr: float = 0.05
    hot: float = 3.0
    """the temperature at first"""
    cold: float = 0.01
    """and at the end"""
    noise: float = 1.0
    """how much of the Gumbel noise there is: 1 samples choices, 0 takes their mean"""
    layers: int = 2
    closest: int = 2
    """heads a layer that pick the closest match"""
    count: int = 2
    """heads a layer that count matches"""
    tables: int = 1
    """tables a layer of two categorical variables"""
    count_tables: int = 1
    """tables a layer of two counts"""
    words: int = 0
    """variables that sort tokens into kinds, each anew; 0: tokens are told apart"""
    kinds: int = 0
    """how many kinds; at least as many as there are positions"""
    counts_vote: bool = True
    """counts have votes beside the categorical variables; if not, they are of use through tables alone"""
    readable: bool = False
    """the label is read from one variable, not voted for by all"""

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps, self.batch, self.layers, self.closest) < 1:
            raise WrongUse("seeds, steps, batch, layers and closest must be at least 1.")
        if min(self.count, self.tables, self.count_tables, self.words, self.kinds, self.seed) < 0:
            raise WrongUse("count, tables, count_tables, words, kinds and seed must not be negative.")
        if bool(self.words) != bool(self.kinds):
            raise WrongUse("words and kinds go together: both 0, or both not.")
        if not 0 < self.cold <= self.hot or self.lr <= 0:
            raise WrongUse("the temperatures need 0 < cold <= hot, and lr must be positive.")
        if self.noise < 0:
            raise WrongUse("noise must not be negative.")

    def temperature(self, step: int) -> float:
        """τ at a step."""
        return self.hot * (self.cold / self.hot) ** (step / max(self.steps - 1, 1))

    def shape(self, task: Task) -> Shape:
        """The sizes of the model for a task."""
        made = (self.layers, self.closest, self.count, self.tables, self.count_tables)
        sizes = (len(task.vocabulary), task.length, len(task.labels))
        return Shape(*made, *sizes, task.causal, self.readable, self.words, self.kinds, self.counts_vote)


def uniform(seeds: range, step: int, count: int, dtype: torch.dtype) -> Float[Tensor, "seed count"]:
    """Uniform numbers inside (0, 1), a row a seed, that depend on (seed, step) alone; step -1 is the start's."""
    rows = [np.random.default_rng([seed, step + 1]).random(count, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).to(dtype).clamp(1e-6, 1 - 1e-6)


class Learner:
    """All that a step changes: parameters [seed, parameter] and Adam's moments."""

    def __init__(self, task: Task, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        self.task, self.recipe, self.step = task, recipe, 0
        self.shape = recipe.shape(task)
        self.model = Relaxed(self.shape, dtype)
        self.seeds = range(recipe.seed, recipe.seed + recipe.seeds)
        learnt = total(self.shape.choices() | self.shape.weights())
        self.parameters = initial(self.shape, uniform(self.seeds, -1, learnt, dtype)).requires_grad_(True)
        self.adam = torch.optim.Adam([self.parameters], lr=recipe.lr, fused=True)
        self.drawn = total(self.shape.noise())

    def loss(self, batch: Batch) -> Float[Tensor, "seed"]:
        """The cross-entropy of each seed, in nats a label, with this step's noise."""
        at = self.recipe.temperature(self.step)
        noise = self.recipe.noise * gumbel(uniform(self.seeds, self.step, self.drawn, self.parameters.dtype))
        logits = self.model(self.parameters, *_tensors(batch), at, noise)
        labels = torch.from_numpy(batch.labels).expand(len(logits), -1, -1)
        lost = nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=-1, reduction="none")
        return lost.view(len(logits), -1).sum(1) / int((batch.labels >= 0).sum())

    def update(self) -> list[float]:
        """One step on inputs drawn for it; the loss of each seed before it."""
        bodies = self.task.draw(np.random.default_rng([INPUTS, self.step]), self.recipe.batch)
        lost = self.loss(self.task.encode(bodies))
        self.adam.zero_grad(set_to_none=True)
        lost.sum().backward()
        self.adam.step()
        self.step += 1
        return lost.tolist()

    def program(self, place: int) -> Program:
        """The program of the seed at this place."""
        return self.model.program(self.parameters, place, self.task)

    def save(self, path: Path) -> None:
        """All that the next step depends on."""
        state = self.adam.state[self.parameters]
        tensors = {"parameters": self.parameters, "first": state["exp_avg"], "second": state["exp_avg_sq"]}
        save_tensors(path, tensors, {"step": self.step})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Put back what `save` wrote. Raises `Failed` for a damaged file, or one of another shape."""
        try:
            tensors, meta = load_tensors(path)
            self.parameters.copy_(tensors["parameters"])
            self.step = int(meta["step"])
            self.adam.state[self.parameters] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors["first"],
                "exp_avg_sq": tensors["second"],
            }
        except (ValueError, KeyError, RuntimeError) as error:
            raise Failed(f"{path} cannot be gone on with: {error}. Delete the folder to begin again.") from error


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.tokens), torch.from_numpy(batch.real)


def accuracy(program: Program, batch: Batch) -> float:
    """The share of right labels."""
    asked = batch.labels >= 0
    return float((program.run(batch.tokens, batch.real) == batch.labels)[asked].mean())


def train(task: Task, out: str | Path, recipe: Recipe = Recipe(), resume: bool = False) -> Program:
    """Train all seeds and leave the best one's program in `out/program.json`; with `resume`, go on with what is there.

    Seeds are compared on 2,000 inputs drawn beside training, each with a readout fitted to 500 others; then the best seed's is
    fitted in full.
    Writes recipe.json, and metrics.csv with a row every 250 steps: temperature, each seed's loss and its program's accuracy.
    Stops early when a program has all of them right, and all inputs there are where these can be run. A finished run is not
    repeated. Raises `WrongUse` for a folder of another run.
    """
    from tqdm.auto import tqdm

    out = Path(out)
    settings = {"task": task.name} | asdict(recipe)
    check_run(out, settings, resume)
    if (out / "program.json").exists():
        return load(out / "program.json")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", settings | {"command": command_line(out)})
    learner, state, rows = Learner(task, recipe), out / "state.safetensors", []
    if state.exists():
        learner.load(state)
        rows = _rows(out / "metrics.csv", learner.step)
    checks = task.encode(task.checked(np.random.default_rng([CHECKS]), CHECKED))
    bar = tqdm(
        range(learner.step, recipe.steps), initial=learner.step, total=recipe.steps, desc=out.name, mininterval=5
    )
    for _ in bar:
        lost = learner.update()
        if learner.step % SAVE_EVERY and learner.step != recipe.steps:
            continue
        right = [accuracy(learner.program(i), checks) for i in range(recipe.seeds)]
        bar.set_postfix(loss=f"{min(lost):.3f}", right=f"{max(right):.3f}", refresh=False)
        rows.append(_row(learner, lost, right))
        write_rows(out / "metrics.csv", rows)
        learner.save(state)
        if max(right) == 1 and _perfect(learner.program(int(np.argmax(right))), task):
            break
    best = _best([learner.program(i) for i in range(recipe.seeds)], task, checks)
    best.save(out / "program.json")
    state.unlink()
    return best


def _best(programs: list[Program], task: Task, checks: Batch) -> Program:
    """The program that is most often right, with its readout as trained, fitted in haste, or fitted in full."""
    few = drawn_for_fitting(task, COMPARED)
    ranked = max(programs, key=lambda p: max(accuracy(p, checks), accuracy(refitted(p, few), checks)))
    return max((fitted(ranked, task), refitted(ranked, few), ranked), key=lambda p: accuracy(p, checks))


def _perfect(program: Program, task: Task) -> bool:
    """Whether all inputs have all labels right; of tasks with too many inputs nothing more is known."""
    return not task.countable or accuracy(program, everything(task)) == 1


def _row(learner: Learner, lost: list[float], right: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": learner.step, "temperature": f"{learner.recipe.temperature(learner.step - 1):.4f}"}
    for seed, loss, share in zip(learner.seeds, lost, right, strict=True):
        row |= {f"loss_{seed}": f"{loss:.4f}", f"right_{seed}": f"{share:.4f}"}
    return row


def _rows(path: Path, step: int) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
