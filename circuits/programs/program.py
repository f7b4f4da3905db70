"""A program: variables at every position, each made by a head or a table from variables before it, and votes for labels.

A categorical variable has one of `size` values, written as 0, 1, …; a count is a number. Heads:

    closest   x_i = value[the nearest j with key_j = wanted(query_i)]     the position itself only if no other has it; of two
                                                                          equally near the earlier; without any, j = 0
    count     x_i = Σ_j number_j [key_j = wanted(query_i)]

A table gives a value for each pair of values; counts above `length` are read as `length`. The label is the one with most
votes, of equals the first. Source: Friedman, Wettig & Chen 2023, sections 3.1-3.3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from circuits.programs.tasks import END, START, UNKNOWN
from interp.errors import WrongUse, check_keys
from interp.files import write_text

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Int

TOKENS, POSITIONS, ONES = "tokens", "positions", "ones"
CLOSEST, COUNT = "closest", "count"
NOTHING, NEVER = -1, -2  # sought: no key at all; the query has this value on no input
CHUNK = 4096  # inputs run at once


@dataclass(frozen=True)
class Head:
    """`wanted[v]` is the key that a query of value v seeks."""

    name: str
    kind: str
    query: str
    key: str
    value: str
    wanted: tuple[int, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The variables it depends on."""
        return (self.query, self.key, self.value)

    @property
    def branches(self) -> int:
        """Queries that occur."""
        return sum(w != NEVER for w in self.wanted)

    @property
    def sort(self) -> str:
        """What kind of step it is."""
        return self.kind


@dataclass(frozen=True)
class Table:
    """`values[a][b]` for values (or counts) a, b of the two variables; `NEVER` where they occur on no input together."""

    name: str
    first: str
    second: str
    values: tuple[tuple[int, ...], ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The variables it depends on."""
        return (self.first, self.second)

    @property
    def branches(self) -> int:
        """Pairs that occur."""
        return sum(v != NEVER for row in self.values for v in row)

    sort: ClassVar[str] = "table"


@dataclass(frozen=True)
class Words:
    """`kinds[t]` is the value of token t: words are sorted into kinds where there are too many to tell them all apart."""

    name: str
    kinds: tuple[int, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The variables it depends on."""
        return (TOKENS,)

    @property
    def branches(self) -> int:
        """Tokens that it sorts."""
        return len(self.kinds)

    sort: ClassVar[str] = "words"


Step = Words | Head | Table


@dataclass(frozen=True)
class Program:
    """Steps in order, and votes[variable][value][label]; a count has one row of votes, which it multiplies."""

    task: str
    vocabulary: tuple[str, ...]
    labels: tuple[str, ...]
    length: int
    size: int
    causal: bool
    steps: tuple[Step, ...]
    votes: dict[str, tuple[tuple[int, ...], ...]]
    bias: tuple[int, ...]

    def is_count(self, name: str) -> bool:
        """Whether the variable is a number."""
        return name == ONES or any(s.name == name and isinstance(s, Head) and s.kind == COUNT for s in self.steps)

    def is_sum(self, name: str) -> bool:
        """Whether the variable is a sum of other counts, which may be above the length."""
        return any(s.name == name and isinstance(s, Head) and s.kind == COUNT and s.value != ONES for s in self.steps)

    def as_read(self, name: str, values: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """What a table reads of a variable."""
        return np.minimum(values, self.length) if self.is_count(name) else values

    def variables(
        self, tokens: Int[np.ndarray, "batch pos"], real: Bool[np.ndarray, "batch pos"]
    ) -> dict[str, Int[np.ndarray, "batch pos"]]:
        """Every variable at every position; what stands at positions that are not real means nothing."""
        n = tokens.shape[1]
        seen = real[:, None, :] & (np.tri(n, dtype=bool) if self.causal else True)
        near = (n - nearness(n)).astype(np.int8)
        tokens = tokens.astype(np.int32)
        found = {
            TOKENS: tokens,
            POSITIONS: np.broadcast_to(np.arange(n, dtype=np.int32), tokens.shape),
            ONES: np.ones_like(tokens),
        }
        for step in self.steps:
            if isinstance(step, Words):
                found[step.name] = np.array(step.kinds, np.int32)[tokens]
                continue
            if isinstance(step, Table):
                a, b = (self.as_read(name, found[name]) for name in step.reads)
                found[step.name] = np.array(step.values, np.int32)[a, b]
                continue
            wanted = np.array(step.wanted, np.int32)[found[step.query]]
            match = (wanted[:, :, None] == found[step.key][:, None, :]) & seen
            if step.kind == COUNT:
                found[step.name] = np.einsum("bqk,bk->bq", match, found[step.value], dtype=np.int32)
            else:
                found[step.name] = np.take_along_axis(found[step.value], (match * near).argmax(-1), axis=1)
        return found

    def run(
        self, tokens: Int[np.ndarray, "batch pos"], real: Bool[np.ndarray, "batch pos"]
    ) -> Int[np.ndarray, "batch pos"]:
        """The label at every position, as a place in `labels`."""
        parts = [self._labels(tokens[i : i + CHUNK], real[i : i + CHUNK]) for i in range(0, len(tokens), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(tokens.shape, np.int64)

    def _labels(self, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
        found = self.variables(tokens, real)
        score = np.zeros((*tokens.shape, len(self.labels)), np.int64) + np.array(self.bias, np.int64)
        for name, rows in self.votes.items():
            votes = np.array(rows)
            score += found[name][..., None] * votes[0] if self.is_count(name) else votes[found[name]]
        return score.argmax(-1)

    def lookup(self) -> tuple[str, dict[Any, str]] | None:
        """The variable that alone has votes, and the label at each of its values; None if several have, or a sum of counts."""
        name = next(iter(self.votes), "")
        if len(self.votes) != 1 or name == ONES or self.is_sum(name):
            return None
        values = range(self.length + 1) if self.is_count(name) else self.names(name)
        rows = np.array(self.votes[name])
        scores = np.arange(self.length + 1)[:, None] * rows if self.is_count(name) else rows
        best = (scores + np.array(self.bias)).argmax(-1)
        return name, {value: self.labels[i] for value, i in zip(values, best, strict=False)}

    def names(self, name: str) -> tuple[Any, ...]:
        """What the values of a categorical variable are called: tokens, positions, or numbers of a table's own."""
        step = next((s for s in self.steps if s.name == name), None)
        if isinstance(step, Head):
            return self.names(step.value)
        return self.vocabulary if name == TOKENS else tuple(range(self.size))

    def check(self, body: Sequence[str]) -> None:
        """Raise `WrongUse` for a body that is empty, too long, or has a token that the program does not know."""
        inner = [token for token in self.vocabulary if token not in (START, END)]
        longest = self.length - (len(self.vocabulary) - len(inner))
        if not 1 <= len(body) <= longest:
            raise WrongUse(f"{self.task} takes 1 to {longest} tokens, not {len(body)}.")
        for token in body:
            if token not in inner and UNKNOWN not in inner:
                raise WrongUse(f"{self.task} has no token {token!r}. It has: {' '.join(inner)}.")

    def live(self) -> set[str]:
        """The variables that votes depend on."""
        needed = set(self.votes)
        for step in reversed(self.steps):
            if step.name in needed:
                needed.update(step.reads)
        return needed

    def to_frame(self) -> pd.DataFrame:
        """A row a step: what it is, what it reads, how many values it treats by themselves, whether it votes."""
        import pandas as pd

        rows = [
            {"step": s.name, "kind": s.sort, "reads": ", ".join(s.reads), "branches": s.branches} for s in self.steps
        ]
        return pd.DataFrame([row | {"votes": row["step"] in self.votes} for row in rows])

    def save(self, path: str | Path) -> None:
        """Write the program as JSON."""
        write_text(path, json.dumps(_plain(self), ensure_ascii=False) + "\n")


def nearness(length: int) -> Int[np.ndarray, "query key"]:
    """The place of a key in a query's order of preference: nearer first, of two the earlier, the position itself last."""
    order = [sorted(range(length), key=lambda j: (j == i, abs(i - j), j)) for i in range(length)]
    return np.argsort(np.array(order), axis=1)


def _plain(program: Program) -> dict[str, Any]:
    return {"format": 1, **asdict(program)}


def load(path: str | Path) -> Program:
    """Read what `save` wrote. Raises `WrongUse` for anything else."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongUse(f"{path} is no program.json: {error}") from None
    if not isinstance(told, dict) or told.pop("format", None) != 1:
        raise WrongUse(f"{path} is no program.json of format 1.")
    check_keys(told, Program.__dataclass_fields__, str(path))
    read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    read["steps"] = tuple(_step(step) for step in told["steps"])
    read["votes"] = {name: tuple(map(tuple, rows)) for name, rows in told["votes"].items()}
    return Program(**read)


def _step(told: dict[str, Any]) -> Step:
    if "kinds" in told:
        return Words(told["name"], tuple(told["kinds"]))
    if "kind" in told:
        return Head(**(told | {"wanted": tuple(told["wanted"])}))
    return Table(**(told | {"values": tuple(map(tuple, told["values"]))}))


def instead(program: Program, name: str, other: str) -> Program:
    """The program with `other` read and voting in place of the step `name`, which is gone."""
    votes = {k: v for k, v in program.votes.items() if k != name}
    if name in program.votes:
        both = zip(program.votes[name], votes.get(other, program.votes[name]), strict=True)
        added = tuple(tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in both)
        votes[other] = added if other in votes else program.votes[name]
    steps = tuple(_renamed(step, name, other) for step in program.steps if step.name != name)
    return replace(program, steps=steps, votes=votes)


def _renamed(step: Step, name: str, other: str) -> Step:
    if isinstance(step, Words):
        return step
    fields = ("query", "key", "value") if isinstance(step, Head) else ("first", "second")
    changed: dict[str, Any] = {f: other for f in fields if getattr(step, f) == name}
    return replace(step, **changed)
