"""What a program's variables say of the label, fitted once all choices are made.

    min_W  Σ_rows w (-log softmax(x W)_label) / Σ w + λ |W|²,   x: one-hots of the variables at a position, counts, and 1

by L-BFGS on drawn inputs, equal rows taken together with w the root of how often they occur; where all inputs can be run, rows
of those that are still wrong are added and it is fitted again. A variable without which there are no more errors has no votes.
If one variable alone is read: the commonest label at each of its values, and the variable with which that is right most often.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from circuits.programs.program import CHUNK, Program
from circuits.programs.tasks import Batch, Task

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

FITTED, STREAM = 1500, 1_000_002  # inputs that are drawn, and the stream of random numbers they come from
NEAR = 0.05  # errors on drawn inputs above which all inputs are not looked at: the variables do not suffice
WRONG = 3000  # rows that are still wrong, the commonest, fitted beside them
ROUNDS, STEPS, DECAY = 3, 100, 1e-6
VOTE = 100  # votes are weights in hundredths


def drawn_for_fitting(task: Task, count: int) -> Batch:
    """Inputs that the comparison of seeds does not draw."""
    return task.encode(task.draw(np.random.default_rng([STREAM]), count))


@dataclass(frozen=True)
class Rows:
    """Distinct rows of (values of the variables that vote, label) at the positions that are asked for, and how often each is."""

    names: tuple[str, ...]
    values: Int[np.ndarray, "row variable_or_label"]
    often: Int[np.ndarray, "row"]

    def of(self, names: Iterable[str]) -> Rows:
        """The same of fewer variables."""
        kept = [i for i, n in enumerate(self.names) if n in names]
        return Rows(tuple(self.names[i] for i in kept), *_distinct(self.values[:, [*kept, -1]], self.often))


def _distinct(values: np.ndarray, often: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, place = np.unique(values, axis=0, return_inverse=True)
    return found, np.bincount(place.ravel(), often, len(found)).astype(np.int64)


def _rows(program: Program, batch: Batch) -> Rows:
    parts = []
    for i in range(0, len(batch.tokens), CHUNK):
        at, asked = slice(i, i + CHUNK), batch.labels[i : i + CHUNK] >= 0
        found = program.variables(batch.tokens[at], batch.real[at])
        rows = np.stack([*(found[n][asked] for n in program.votes), batch.labels[at][asked]], axis=1)
        parts.append(_distinct(rows, np.ones(len(rows), np.int64)))
    return Rows(tuple(program.votes), *_distinct(*(np.concatenate(part) for part in zip(*parts, strict=True))))


def refitted(program: Program, batch: Batch) -> Program:
    """The program with votes fitted to this batch, once: enough to compare programs by."""
    if len(program.votes) == 1:
        return _best_variable(program, batch)
    rows = _rows(program, batch)
    return _voting(program, rows.values, rows.often)


def fitted(program: Program, task: Task) -> Program:
    """The program with the votes that suit its variables best, of as few variables as are as often right."""
    batch = drawn_for_fitting(task, FITTED)
    if len(program.votes) == 1:
        return _best_variable(program, batch)
    drawn = _rows(program, batch)
    near = _errors(_voting(program, drawn.values, drawn.often), drawn) <= NEAR * drawn.often.sum()
    every = _rows(program, everything(task)) if near and task.countable and task.drawn is None else drawn
    program = _fitted(program, drawn, every)
    least, wrong = _errors(program, drawn), _errors(program, every)
    for name in sorted(program.votes, key=lambda n: np.ptp(program.votes[n])):
        if len(program.votes) > 1:
            fewer = replace(program, votes={n: v for n, v in program.votes.items() if n != name})
            fewer = _fitted(fewer, drawn, every, least)
            if _errors(fewer, drawn) <= least and _errors(fewer, every) <= wrong:
                program, drawn, every = fewer, drawn.of(fewer.votes), every.of(fewer.votes)
    return program


def _fitted(program: Program, drawn: Rows, every: Rows, most: int | None = None) -> Program:
    """Fit, and fit again with what is wrong; not again if there are more than `most` errors on the drawn inputs."""
    drawn, every = drawn.of(program.votes), every.of(program.votes)
    values, often = drawn.values, drawn.often
    for _ in range(ROUNDS):
        program = _voting(program, values, often)
        wrong = np.flatnonzero(_wrong(program, every))
        if not len(wrong) or (most is not None and _errors(program, drawn) > most):
            break
        wrong = wrong[np.argsort(-every.often[wrong], kind="stable")][:WRONG]
        more = np.maximum(every.often[wrong] * drawn.often.sum() // every.often.sum(), 1)
        values, often = _distinct(np.concatenate([values, every.values[wrong]]), np.concatenate([often, more]))
    return program


def _wrong(program: Program, rows: Rows) -> Bool[np.ndarray, "row"]:
    """Whether the label of a row is another than the program's."""
    score = np.zeros((len(rows.values), len(program.labels)), np.int64) + np.array(program.bias)
    for i, name in enumerate(rows.names):
        if name in program.votes:
            votes, value = np.array(program.votes[name]), rows.values[:, i]
            score += value[:, None] * votes[0] if program.is_count(name) else votes[value]
    return score.argmax(-1) != rows.values[:, -1]


def _errors(program: Program, rows: Rows) -> int:
    return int(rows.often[_wrong(program, rows)].sum())


_KNOWN: dict[str, Batch] = {}


def everything(task: Task) -> Batch:
    """Every input of a task that can be counted, kept for the next time."""
    key = f"{task.name} {task.longest} {task.letters}"
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = task.encode(list(task.everything()))
    return _KNOWN[key]


def _voting(program: Program, rows: np.ndarray, counts: np.ndarray) -> Program:
    x = torch.cat([torch.from_numpy(_columns(program, n, rows[:, i])) for i, n in enumerate(program.votes)], 1)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    label, weight = torch.from_numpy(rows[:, -1]), torch.from_numpy(counts).double().sqrt()
    weight /= weight.sum()
    W = torch.cat([torch.tensor(v, dtype=x.dtype) for v in (*program.votes.values(), [program.bias])]) / VOTE
    W.requires_grad_(True)
    search = torch.optim.LBFGS(
        [W], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        lost = weight @ nn.functional.cross_entropy(x @ W, label, reduction="none") + DECAY * W.square().sum()
        lost.backward()
        return lost

    search.step(loss)
    whole = (W.detach() * VOTE).round().long().tolist()
    votes, at = {}, 0
    for name, old in program.votes.items():
        votes[name] = tuple(map(tuple, whole[at : at + len(old)]))
        at += len(old)
    return replace(program, votes=votes, bias=tuple(whole[-1]))


def _columns(program: Program, name: str, values: np.ndarray) -> np.ndarray:
    return values[:, None].astype(float) if program.is_count(name) else np.eye(program.size)[values]


def _best_variable(program: Program, batch: Batch) -> Program:
    names = [n for n in program.variables(batch.tokens[:1], batch.real[:1]) if not program.is_count(n)]
    rows = _rows(replace(program, votes=dict.fromkeys(names, ())), batch)
    values = rows.values
    tables = [np.zeros((int(values[:, i].max()) + 1, len(program.labels)), np.int64) for i in range(len(names))]
    for i, table in enumerate(tables):
        np.add.at(table, (values[:, i], values[:, -1]), rows.often)
    best = max(range(len(names)), key=lambda i: tables[i].max(1).sum())
    most = np.zeros((max(program.size, len(tables[best])), len(program.labels)), np.int64)
    most[np.arange(len(tables[best])), tables[best].argmax(1)] = 1
    return replace(program, votes={names[best]: tuple(map(tuple, most.tolist()))}, bias=(0,) * len(program.labels))
