"""What a program's variables say of the label, fitted once all choices are made.

    min_W  Σ_rows w (-log softmax(x W)_label) / Σ w + λ |W|²,   x: one-hots of the variables at a position, counts, and 1

by L-BFGS on drawn inputs, equal rows taken together with w the root of how often they occur; where all inputs can be run, rows
of those that are still wrong are added and it is fitted again. A variable without which there are no more errors has no votes.
If one variable alone is read: the commonest label at each of its values, and the variable with which that is right most often.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from circuits.programs.program import CHUNK, Program
from circuits.programs.tasks import Batch, Task

if TYPE_CHECKING:
    from jaxtyping import Int

FITTED, STREAM = 4000, 1_000_002  # inputs that are drawn, and the stream of random numbers they come from
ROUNDS, STEPS, DECAY = 3, 150, 1e-6
VOTE = 100  # votes are weights in hundredths


def fitted(program: Program, task: Task) -> Program:
    """The program with the votes that suit its variables best, of as few variables as are as often right."""
    batch = task.encode(task.draw(np.random.default_rng([STREAM]), FITTED))
    if len(program.votes) == 1:
        return _best_variable(program, batch)
    program = _fitted(program, task, batch)
    least, wrong = _errors(program, batch), _all_errors(program, task)
    for name in sorted(program.votes, key=lambda n: np.ptp(program.votes[n])):
        if len(program.votes) > 1:
            fewer = _fitted(
                replace(program, votes={n: v for n, v in program.votes.items() if n != name}), task, batch, least
            )
            if _errors(fewer, batch) <= least and _all_errors(fewer, task) <= wrong:
                program = fewer
    return program


def _fitted(program: Program, task: Task, batch: Batch, most: int | None = None) -> Program:
    """Fit, and fit again with what is wrong; not again if there are more than `most` errors on the drawn inputs."""
    rows = _rows(program, batch)
    for _ in range(ROUNDS):
        program = _voting(program, *np.unique(rows, axis=0, return_counts=True))
        if not task.countable or (most is not None and _errors(program, batch) > most):
            break
        wrong = _wrong(program, task)
        if not len(wrong.tokens):
            break
        rows = np.concatenate([rows, _rows(program, wrong)])
    return program


def _errors(program: Program, batch: Batch) -> int:
    return int(((program.run(batch.tokens, batch.real) != batch.labels) & (batch.labels >= 0)).sum())


def _all_errors(program: Program, task: Task) -> int:
    return _errors(program, everything(task)) if task.countable else 0


def _rows(program: Program, batch: Batch) -> Int[np.ndarray, "row variable"]:
    """The values of the variables that vote at each position that is asked for, and the label."""
    asked = batch.labels >= 0
    parts = []
    for i in range(0, len(asked), CHUNK):
        at = slice(i, i + CHUNK)
        found = program.variables(batch.tokens[at], batch.real[at])
        parts.append(np.stack([*(found[n][asked[at]] for n in program.votes), batch.labels[at][asked[at]]], axis=1))
    return np.concatenate(parts)


def _wrong(program: Program, task: Task) -> Batch:
    """Inputs of all that have a wrong label, at most as many as are drawn."""
    batch = everything(task)
    bad = ((program.run(batch.tokens, batch.real) != batch.labels) & (batch.labels >= 0)).any(1)
    few = np.flatnonzero(bad)[:: max(int(bad.sum()) // FITTED, 1)]
    return Batch(batch.tokens[few], batch.real[few], batch.labels[few])


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
        [W], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
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
    tables = [np.zeros((int(rows[:, i].max()) + 1, len(program.labels)), np.int64) for i in range(len(names))]
    for i, table in enumerate(tables):
        np.add.at(table, (rows[:, i], rows[:, -1]), 1)
    best = max(range(len(names)), key=lambda i: tables[i].max(1).sum())
    most = np.zeros((max(program.size, len(tables[best])), len(program.labels)), np.int64)
    most[np.arange(len(tables[best])), tables[best].argmax(1)] = 1
    return replace(program, votes={names[best]: tuple(map(tuple, most.tolist()))}, bias=(0,) * len(program.labels))
