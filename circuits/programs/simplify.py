"""A smaller program with the same label at every position that is asked for, on every input.

Where all inputs can be run (at most a million) what is removed is what makes no difference on any: votes of a variable, then
steps that no vote depends on, steps equal to an earlier one, branches whose condition never holds, keys that are never found; a
branch that no label depends on is made like most others.
Of other tasks the values that a variable can take are bounded step by step, and what lies outside is removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.programs.program import (
    CHUNK,
    COUNT,
    NEVER,
    NOTHING,
    ONES,
    POSITIONS,
    TOKENS,
    Head,
    Program,
    Step,
    Table,
    Words,
    instead,
)
from circuits.programs.tasks import Batch, Task

if TYPE_CHECKING:
    from jaxtyping import Int

FEW = 2000  # inputs that show most differences


@dataclass(frozen=True)
class Simplified:
    """The program, how it was made smaller, and the size of both."""

    program: Program
    inputs: int
    """all inputs were run; 0: values were bounded"""
    before: dict[str, int]
    after: dict[str, int]


def size_of(program: Program) -> dict[str, int]:
    """Heads, tables, branches (values that a head or table treats by themselves) and variables with votes."""
    heads = sum(isinstance(s, Head) for s in program.steps)
    tables = sum(isinstance(s, Table) for s in program.steps)
    branches = sum(s.branches for s in program.steps)
    return {"heads": heads, "tables": tables, "branches": branches, "votes": len(program.votes)}


def simplify(program: Program, task: Task) -> Simplified:
    """The smaller program; see above."""
    small, inputs = alive(program), 0
    if task.countable:
        batch = task.encode(list(task.everything()))
        inputs = len(batch.tokens)
        small = _without_copies(_without_votes(small, batch), batch)
        small = shorter(small, batch)
    else:
        small = _bounded(small)
    return Simplified(small, inputs, size_of(program), size_of(small))


def alive(program: Program) -> Program:
    """Without the steps that no vote depends on, and without votes that favour no label."""
    votes = {n: rows for n, rows in program.votes.items() if any(len(set(row)) > 1 for row in rows)}
    program = replace(program, votes=votes)
    live = program.live()
    return replace(program, steps=tuple(s for s in program.steps if s.name in live))


def _all_variables(program: Program, batch: Batch) -> dict[str, np.ndarray]:
    """Every variable on every input, a chunk at a time."""
    found: dict[str, list[np.ndarray]] = {}
    for i in range(0, len(batch.tokens), CHUNK):
        for name, values in program.variables(batch.tokens[i : i + CHUNK], batch.real[i : i + CHUNK]).items():
            found.setdefault(name, []).append(values.astype(np.int16))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _score(program: Program, name: str, values: Int[np.ndarray, "places"]) -> Int[np.ndarray, "places label"]:
    votes = np.array(program.votes[name], dtype=np.int32)
    return values[:, None].astype(np.int32) * votes[0] if program.is_count(name) else votes[values]


def _without_votes(program: Program, batch: Batch) -> Program:
    """Take votes away, the weakest first, wherever no label changes."""
    asked = batch.labels >= 0
    found = {n: v[asked] for n, v in _all_variables(program, batch).items()}
    program = _folded(program, found)
    values = {n: v for n, v in found.items() if n in program.votes}
    score = np.array(program.bias, dtype=np.int32) + sum(_score(program, n, v) for n, v in values.items())
    label, few = score.argmax(-1), slice(None, None, max(len(score) // FEW, 1))
    for name in sorted(values, key=lambda n: np.ptp(_score(program, n, values[n][few]), -1).sum()):
        votes = _score(program, name, values[name])
        for part in (few, slice(None)):
            if ((score[part] - votes[part]).argmax(-1) != label[part]).any():
                break
        else:
            score -= votes
            program = replace(program, votes={n: v for n, v in program.votes.items() if n != name})
    return alive(program)


def _folded(program: Program, found: dict[str, np.ndarray]) -> Program:
    """Move votes of a variable that another categorical one determines to that one; of a constant, to the bias."""
    before = [TOKENS, POSITIONS, *(s.name for s in program.steps if not program.is_count(s.name))]
    for name in [n for n in reversed([*before, *found]) if n in program.votes]:
        if name not in program.votes:
            continue
        votes = {n: rows for n, rows in program.votes.items() if n != name}
        score, values = np.array(program.votes[name]), found[name]
        if (values == values[:1]).all():
            told = score[0] * int(values[0]) if program.is_count(name) else score[values[0]]
            program = replace(program, votes=votes, bias=tuple((np.array(program.bias) + told).tolist()))
            continue
        for other in before[: before.index(name)] if name in before else before:
            if not _depends(program, other, name):
                first = np.zeros(program.size, dtype=np.int64)
                first[found[other]] = values
                if (first[found[other]] == values).all():
                    told = first[:, None] * score[0] if program.is_count(name) else score[first]
                    rows = np.array(votes.get(other, np.zeros_like(told))) + told
                    votes[other] = tuple(map(tuple, rows.tolist()))
                    program = replace(program, votes=votes)
                    break
    return program


def _depends(program: Program, name: str, on: str) -> bool:
    """Whether a variable is computed from another."""
    live = replace(program, votes={name: ()}).live()
    return on in live


def _without_copies(program: Program, batch: Batch) -> Program:
    """Read an earlier variable in place of a step that equals it at every real position, named alike."""
    found = {n: v[batch.real] for n, v in _all_variables(program, batch).items()}
    for i, step in enumerate(program.steps):
        for other in (TOKENS, POSITIONS, ONES, *(s.name for s in program.steps[:i])):
            alike = program.is_count(other) == program.is_count(step.name)
            if alike and not program.is_count(other):
                alike = program.names(other) == program.names(step.name)
            if alike and np.array_equal(found[other], found[step.name]):
                return _without_copies(alive(instead(program, step.name, other)), batch)
    return program


def _without_branches(program: Program, batch: Batch) -> Program:
    """Mark what occurs on no input."""
    found = {n: v[batch.real] for n, v in _all_variables(program, batch).items()}
    present = {n: set(np.unique(v).tolist()) for n, v in found.items()}
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Words):
            steps.append(step)
            continue
        if isinstance(step, Head):
            steps.append(_trimmed(step, present[step.query], present[step.key]))
            continue
        a, b = (program.as_read(name, found[name]).astype(np.int64) for name in step.reads)
        wide = len(step.values[0])
        pairs = set(np.unique(a * wide + b).tolist())
        rows = enumerate(step.values)
        values = tuple(tuple(v if i * wide + j in pairs else NEVER for j, v in enumerate(row)) for i, row in rows)
        steps.append(replace(step, values=values))
    return replace(program, steps=tuple(steps))


def shorter(program: Program, batch: Batch) -> Program:
    """With branches marked that occur on no input, and those made like others that no label depends on."""
    return _without_branches(_alike(_without_branches(program, batch), batch), batch)


def _alike(program: Program, batch: Batch) -> Program:
    """Give branches the commonest value of their step wherever no label changes."""
    asked, few = batch.labels >= 0, slice(None, None, max(len(batch.tokens) // FEW, 1))
    label = program.run(batch.tokens, batch.real)
    program = replace(program, steps=tuple(map(_filled, program.steps)))  # a change may reach what occurred on no input
    for i, step in enumerate(program.steps):
        for other in _made_alike(step):
            changed = replace(program, steps=(*program.steps[:i], other(program.steps[i]), *program.steps[i + 1 :]))
            for part in (few, slice(None)):
                if (changed.run(batch.tokens[part], batch.real[part]) != label[part])[asked[part]].any():
                    break
            else:
                program = changed
    return program


def _made_alike(step: Step) -> list[Callable[[Any], Step]]:
    """For each branch that is unlike most: the step with it made like them."""
    if isinstance(step, Words):
        return []
    rows, most = _rows(step), _most(step)

    def at(i: int, j: int) -> Callable[[Any], Step]:
        def changed(now: Any) -> Step:
            if isinstance(now, Head):
                return replace(now, wanted=(*now.wanted[:j], most, *now.wanted[j + 1 :]))
            row = (*now.values[i][:j], most, *now.values[i][j + 1 :])
            return replace(now, values=(*now.values[:i], row, *now.values[i + 1 :]))

        return changed

    return [at(i, j) for i, row in enumerate(rows) for j, v in enumerate(row) if v != most]


def _rows(step: Head | Table) -> tuple[tuple[int, ...], ...]:
    return (step.wanted,) if isinstance(step, Head) else step.values


def _most(step: Head | Table) -> int:
    """The commonest value of its branches that occur."""
    return Counter(v for row in _rows(step) for v in row if v != NEVER).most_common(1)[0][0]


def _filled(step: Step) -> Step:
    """With the commonest value where none occurred."""
    if isinstance(step, Words):
        return step
    most = _most(step)
    rows = tuple(tuple(most if v == NEVER else v for v in row) for row in _rows(step))
    return replace(step, wanted=rows[0]) if isinstance(step, Head) else replace(step, values=rows)


def _trimmed(head: Head, queries: set[int], keys: set[int]) -> Head:
    wanted = [(w if w in keys else NOTHING) if q in queries else NEVER for q, w in enumerate(head.wanted)]
    return replace(head, wanted=tuple(wanted))


def _bounded(program: Program) -> Program:
    """The same from what each variable could be, taken by itself."""
    could: dict[str, set[int]] = {TOKENS: set(range(len(program.vocabulary))), ONES: {1}}
    could[POSITIONS] = set(range(program.length))
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Words):
            steps.append(step)
            could[step.name] = set(step.kinds)
            continue
        if isinstance(step, Table):
            a, b = (set(program.as_read(name, np.array(list(could[name]))).tolist()) for name in step.reads)
            same = step.first == step.second
            values = tuple(
                tuple(v if i in a and j in b and (i == j or not same) else NEVER for j, v in enumerate(row))
                for i, row in enumerate(step.values)
            )
            steps.append(replace(step, values=values))
            could[step.name] = {v for row in values for v in row} - {NEVER}
            continue
        steps.append(_trimmed(step, could[step.query], could[step.key]))
        values_of = could[step.value]
        could[step.name] = set(range(max(values_of) * program.length + 1)) if step.kind == COUNT else values_of
    return replace(program, steps=tuple(steps))
