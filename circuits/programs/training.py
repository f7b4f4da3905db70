"""Training of many seeds at once, from random parameters to the best seed's program.

    L = Σ_seeds mean CE(label, logits),   τ falls from `hot` to `cold` geometrically,   Adam

A seed that begins to read the wrong variables seldom finds the right ones, and one that begins well is soon seen: three times the
quarter with the least loss goes on, with the time it takes growing (successive halving; Jamieson & Talwalkar 2016). The next
generation begins from what is left, each copy with a step or two drawn anew, at the first temperature again.
At the end every choice is made, and the readout is fitted anew to the program's own variables (`readout.py`).
What a step draws is a function of (seed, generation, step): a run that was stopped goes on to the same bytes.
Source: Friedman, Wettig & Chen 2023, section 3.4; lengths are balanced here.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from circuits.programs.model import Relaxed, Shape, gumbel, initial, redrawn, total
from circuits.programs.program import Program, load
from circuits.programs.readout import drawn_for_fitting, everything, fitted, refitted
from circuits.programs.tasks import Batch, Task
from interp.errors import Failed, WrongUse
from interp.files import check_run, command_line, load_tensors, save_tensors, write_json, write_rows

if TYPE_CHECKING:
    from jaxtyping import Float

NOISE, INPUTS, CHECKS, STARTS = range(4)  # streams of random numbers
RUNGS = (1 / 8, 3 / 8, 3 / 4)  # parts of a generation's steps after which a quarter goes on
KEPT = 8  # seeds that are left at least
SMOOTH = 0.95  # what is left, a step later, of a loss in the mean that seeds are compared by
SAVE_EVERY = 250
CHECKED = 2000  # inputs that seeds are compared on
COMPARED = 500  # inputs that each seed's readout is fitted to before


@dataclass(frozen=True)
class Recipe:
    """Settings of one run."""

    seed: int = 0
    seeds: int = 512
    """trained at once at first; with 8 or fewer, all go on to the end"""
    generations: int = 4
    """at most: a program that is always right ends the run"""
    copies: int = 256
    """with a step drawn anew, that a later generation begins with"""
    steps: int = 480
    """a generation"""
    batch: int = 16
    """inputs a step, the same for all seeds"""
    lr: float = 0.05
    hot: float = 1.0
    """the temperature at first"""
    cold: float = 0.1
    """and at the end"""
    noise: float = 0.3
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
    readable: bool = False
    """the label is read from one variable, not voted for by all"""

    def __post_init__(self) -> None:
        if min(self.seeds, self.generations, self.steps, self.batch, self.layers, self.closest) < 1:
            raise WrongUse("seeds, generations, steps, batch, layers and closest must be at least 1.")
        if min(self.copies, self.count, self.tables, self.count_tables, self.words, self.kinds, self.seed) < 0:
            raise WrongUse("copies, count, tables, count_tables, words, kinds and seed must not be negative.")
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
        return Shape(*made, *sizes, task.causal, self.readable, self.words, self.kinds)


class Learner:
    """All that a step changes: parameters [seed, parameter], Adam's moments, and the mean loss of each seed."""

    def __init__(self, task: Task, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        self.task, self.recipe, self.generation, self.step = task, recipe, 0, 0
        self.shape = recipe.shape(task)
        self.model = Relaxed(self.shape, dtype)
        self.rungs = {max(round(part * recipe.steps), 1) for part in RUNGS}
        self._begin(initial(self.shape, self._random(STARTS), recipe.seeds).to(dtype))

    def _begin(self, parameters: Float[Tensor, "seed parameters"]) -> None:
        """These parameters, with nothing known of them."""
        zero = torch.zeros_like(parameters)
        self._put(parameters, {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero.clone()})
        self.mean = torch.zeros(len(parameters), dtype=parameters.dtype)

    def _put(self, parameters: Tensor, moments: dict[str, Tensor]) -> None:
        self.parameters = parameters.detach().clone().requires_grad_(True)
        self.adam = torch.optim.Adam([self.parameters], lr=self.recipe.lr, fused=True)
        self.adam.state[self.parameters] = moments

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, stream, self.generation, self.step])

    def noise(self) -> Float[Tensor, "seed choices"]:
        """This step's Gumbel noise."""
        shape = (len(self.parameters), total(self.shape.choices()))
        drawn = torch.from_numpy(self._random(NOISE).random(shape, dtype=np.float32))
        return self.recipe.noise * gumbel(drawn.to(self.parameters.dtype).clamp(1e-6, 1 - 1e-6))

    def loss(self, batch: Batch) -> Float[Tensor, "seed"]:
        """The cross-entropy of each seed, in nats a label, with this step's noise."""
        logits = self.model(self.parameters, *_tensors(batch), self.recipe.temperature(self.step), self.noise())
        labels = torch.from_numpy(batch.labels).expand(len(logits), -1, -1)
        lost = nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=-1, reduction="none")
        return lost.view(len(logits), -1).sum(1) / int((batch.labels >= 0).sum())

    def update(self) -> None:
        """One step on inputs drawn for it; at a rung, all but the best quarter go."""
        lost = self.loss(self.task.encode(self.task.draw(self._random(INPUTS), self.recipe.batch)))
        self.adam.zero_grad(set_to_none=True)
        lost.sum().backward()
        self.adam.step()
        self.mean = lost.detach() if self.step == 0 else SMOOTH * self.mean + (1 - SMOOTH) * lost.detach()
        self.step += 1
        if self.step in self.rungs:
            self.keep(max(len(self.parameters) // 4, KEPT))

    def keep(self, count: int) -> None:
        """Only the `count` seeds with the least loss, in this order."""
        best = self.mean.argsort(stable=True)[:count]
        state = self.adam.state[self.parameters]
        moments = {name: t if name == "step" else t[best] for name, t in state.items()}
        self.mean = self.mean[best]
        self._put(self.parameters[best], moments)

    def renew(self) -> None:
        """The next generation."""
        self.generation, self.step = self.generation + 1, 0
        parents = self.parameters.detach()[:KEPT]
        self._begin(redrawn(self.shape, parents, self._random(STARTS), self.recipe.copies))

    def program(self, place: int) -> Program:
        """The program of the seed at this place."""
        return self.model.program(self.parameters, place, self.task)

    def save(self, path: Path) -> None:
        """All that the next step depends on."""
        state = self.adam.state[self.parameters]
        tensors = {"parameters": self.parameters, "mean": self.mean}
        tensors |= {"first": state["exp_avg"], "second": state["exp_avg_sq"]}
        save_tensors(path, tensors, {"generation": self.generation, "step": self.step})

    def load(self, path: Path) -> None:
        """Put back what `save` wrote. Raises `Failed` for a damaged file, or one of another shape."""
        try:
            tensors, meta = load_tensors(path)
            if tensors["parameters"].shape[1:] != self.parameters.shape[1:]:
                raise ValueError("it has other sizes")
            self.generation, self.step = int(meta["generation"]), int(meta["step"])
            moments = {"exp_avg": tensors["first"], "exp_avg_sq": tensors["second"]}
            self._put(tensors["parameters"], {"step": torch.tensor(float(self.step))} | moments)
            self.mean = tensors["mean"]
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

    At the end of a generation the best seeds are compared on 2,000 inputs drawn beside training, each with its own readout and with
    one fitted to 500 others; the best of all generations has its readout fitted in full.
    Writes recipe.json, and metrics.csv: rows for the best eight seeds whenever others are left behind, and at the end of a
    generation. Stops early when a program has all of the 2,000 right, and all inputs there are where these can be run. A finished run
    is not repeated. Raises `WrongUse` for a folder of another run.
    """
    from tqdm.auto import tqdm

    out = Path(out)
    settings = {"task": task.name} | asdict(recipe)
    check_run(out, settings, resume)
    if (out / "program.json").exists():
        return load(out / "program.json")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", settings | {"command": command_line(out)})
    learner, state, best, rows = Learner(task, recipe), out / "state.safetensors", out / "best.json", []
    if state.exists():
        learner.load(state)
        rows = _rows(out / "metrics.csv", learner)
    checks = task.encode(task.checked(np.random.default_rng([CHECKS]), CHECKED))
    few = drawn_for_fitting(task, COMPARED)
    done = learner.generation * recipe.steps + learner.step
    bar = tqdm(initial=done, total=recipe.generations * recipe.steps, desc=out.name, mininterval=5)
    while True:
        while learner.step < recipe.steps:
            learner.update()
            bar.update()
            if learner.step in learner.rungs:
                rows += _told(learner, checks)
            if learner.step % SAVE_EVERY == 0:
                write_rows(out / "metrics.csv", rows)
                learner.save(state)
        learner.keep(KEPT)
        rows += _told(learner, checks)
        write_rows(out / "metrics.csv", rows)
        found = [learner.program(i) for i in range(len(learner.parameters))]
        found += [refitted(program, few) for program in found] + ([load(best)] if best.exists() else [])
        shares = [accuracy(program, checks) for program in found]
        right = max(shares)
        top = found[shares.index(right)]
        top.save(best)
        bar.set_postfix(loss=f"{learner.mean[0]:.3f}", right=f"{right:.3f}")
        if learner.generation + 1 == recipe.generations or (right == 1 and _perfect(top, task)):
            break
        learner.renew()
        learner.save(state)
    bar.close()
    top = max((top, fitted(top, task)), key=lambda program: accuracy(program, checks))
    top.save(out / "program.json")
    best.unlink()
    state.unlink(missing_ok=True)
    return top


def _perfect(program: Program, task: Task) -> bool:
    """Whether all inputs have all labels right; of tasks with too many inputs nothing more is known."""
    return not task.countable or accuracy(program, everything(task)) == 1


def _told(learner: Learner, checks: Batch) -> list[dict[str, Any]]:
    at: dict[str, Any] = {"generation": learner.generation, "step": learner.step, "seeds": len(learner.parameters)}
    at["temperature"] = f"{learner.recipe.temperature(learner.step - 1):.4f}"
    programs = [learner.program(i) for i in range(min(KEPT, len(learner.parameters)))]
    right = [f"{accuracy(program, checks):.4f}" for program in programs]
    return [at | {"place": i, "loss": f"{learner.mean[i]:.4f}", "right": share} for i, share in enumerate(right)]


def _rows(path: Path, learner: Learner) -> list[dict[str, Any]]:
    """The rows written before the state that is gone on from."""
    with open(path, newline="", encoding="utf-8") as file:
        at = (learner.generation, learner.step)
        return [row for row in csv.DictReader(file) if (int(row["generation"]), int(row["step"])) <= at]
