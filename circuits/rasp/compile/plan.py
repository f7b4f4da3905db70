"""Which step is computed where: attention at even half-layers 2l, MLPs at odd ones 2l + 1, inputs at -1."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.rasp.compile.columns import TUPLE, Column, column, mark, selected
from circuits.rasp.compile.shared import INDICES, TOKENS
from circuits.rasp.compile.values import ALL, COMBINATIONS, Values, conjuncts, distinct, sides
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Selector, SOp, Width
from circuits.rasp.syntax import Atom

if TYPE_CHECKING:
    from jaxtyping import Bool

RESOLVED = 64.0  # two levels must be this many roundings of float32 apart
SQUARED = 16.0  # ... and the squares of their distances this many, where an unembedding takes squares
EPSILON = 2.0**-23


@dataclass(frozen=True)
class View:
    """A function of one one-hot in the stream: `values[i]` is its value where the root has its i-th; None: it has none."""

    root: SOp
    values: list[Any]


@dataclass(frozen=True)
class Scale:
    """A function of a number that tells all its levels apart: `values[i]` is its value where the number is `levels[i]`."""

    root: SOp
    levels: list[float]
    values: list[Any]

    def gap(self) -> float:
        """The least distance of two levels."""
        levels = sorted(self.levels)
        return min((b - a for a, b in itertools.pairwise(levels)), default=1.0)


@dataclass(frozen=True, eq=False)
class Table:
    """An MLP that writes the one-hot of `step`, given the values of its roots, one of which may be a `number`."""

    step: SOp
    roots: tuple[SOp, ...]
    number: SOp | None
    rows: list[tuple[tuple[Any, ...], Any]]
    time: int


@dataclass(frozen=True)
class Match:
    """`holds[q, k]`: whether the query's q-th value selects the key's k-th."""

    key: View
    query: View
    holds: Bool[np.ndarray, "query key"]


@dataclass(frozen=True, eq=False)
class Head:
    """A key is selected where all matches hold. Writes aggregates, or for a width the share 1/(w + 1) of the first position.

    A value is a view, or a number that is in the stream already.
    """

    matches: list[Match]
    writes: list[tuple[Aggregate, View | Aggregate]]
    width: Width | None
    time: int


class Plan:
    """Tables and heads for some s-ops, each as early as it can be; `outputs` are read from the stream at the end.

    Raises `RaspError` for programs whose tables would be too large.
    """

    def __init__(self, outputs: list[SOp], vocabulary: list[Atom], length: int, causal: bool) -> None:
        self.values = Values(vocabulary, length, causal)
        self.tables: list[Table] = []
        self.heads: list[Head] = []
        self._ready: dict[tuple[SOp, bool], int] = {(TOKENS, False): -1, (INDICES, False): -1}  # (step, as a number)
        self._tuples: dict[tuple[SOp, ...], Elementwise] = {}
        self._alike: dict[SOp, SOp] = {}  # numbers, and what is held that tells all their levels apart
        self.outputs = [self._scale(output) or self._view(output) for output in outputs]
        times = [table.time for table in self.tables] + [head.time for head in self.heads]
        self.blocks = 1 + max(times, default=-1) // 2

    def _time(self, root: SOp, before: int = ALL) -> int:
        """When the root can be read, as it is read now. Plans the attention that makes it."""
        number = bool(self.values.numbers((root,), before))
        if (root, number) not in self._ready:
            assert isinstance(root, Aggregate | Width)
            self._attend(root)
        return self._ready[(root, number)]

    def _view(self, step: SOp | Atom) -> View:
        """The step as a function of one one-hot, which an MLP makes if nothing else does."""
        if not isinstance(step, SOp) or not self.values.roots(step):
            value = self.values.of(step)[0] if isinstance(step, SOp) else step
            return View(TOKENS, [value] * len(self.values.of(TOKENS)))
        roots = self.values.roots(step)
        if len(roots) == 1 and self.values.numbers(roots) and roots[0] in self._alike:
            return self._through(step, self._alike[roots[0]])
        if len(roots) > 1 or self.values.numbers(roots):
            self._hold(step)
            roots = (step,)
        self._time(roots[0])
        if roots == (step,):
            return View(step, self.values.of(step))
        return self._through(step, roots[0])

    def _through(self, step: SOp, held: SOp) -> View:
        """The step as a function of what is held, which tells the step's root apart or is it."""
        (root,) = self.values.roots(step)
        there = {mark(key): mark(value) for (key,), value in self.values.table(held, (root,))}
        found = {there[mark(key)]: value for (key,), value in self.values.table(step, (root,)) if mark(key) in there}
        return View(held, [found.get(mark(v)) for v in self.values.of(held)])

    def _scale(self, step: SOp) -> Scale | None:
        """The step as a function of one number, if float32 can tell the squares of its levels apart."""
        roots = self.values.roots(step)
        if len(roots) != 1 or not self.values.numbers(roots):
            return None
        rows = self.values.table(step, roots)
        scale = Scale(roots[0], [self.values.level(roots[0], v) for (v,), _ in rows], [value for _, value in rows])
        resolved = SQUARED * EPSILON * max(x * x for x in scale.levels) < scale.gap() ** 2
        if not resolved or len(distinct(scale.values)) < len(rows):
            return None
        self._time(roots[0])
        return scale

    def _hold(self, step: SOp) -> None:
        """Have an MLP write the one-hot of the step: from at most one number, and in a table that is not too large."""
        if step in self.values.held:
            return
        while not self._fits(self.values.roots(step)):
            self._split(step)
        time, before = min((self._mlp(step, before), -before) for before in self._cuts(step))
        roots = self.values.roots(step, -before)
        numbers = self.values.numbers(roots, -before)
        rows = self.values.table(step, roots)
        self.tables.append(Table(step, roots, numbers[0] if numbers else None, rows, time))
        self.values.of(step)
        self.values.held[step] = self._ready[(step, False)] = time
        if len(roots) == 1 and numbers and len(distinct(value for _, value in rows)) == len(self.values.of(roots[0])):
            self._alike.setdefault(roots[0], step)

    def _cuts(self, step: SOp) -> list[int]:
        """Times from which on what is held may be looked through, so that the step is ready earlier."""
        times = {*self.values.held.values(), ALL}
        return [t for t in times if self._fits(self.values.roots(step, t), t)]

    def _mlp(self, step: SOp, before: int) -> int:
        """The first MLP that can make the step."""
        ready = max(self._time(root, before) for root in self.values.roots(step, before))
        return ready + 1 + ready % 2

    def _split(self, step: SOp) -> None:
        """Hold a part of the step, so that it has fewer rows or fewer numbers: the deepest part that needs it."""
        arguments = step.arguments if isinstance(step, Elementwise) else ()
        parts = [a for a in arguments if isinstance(a, SOp) and a not in self.values.held]
        parts = [a for a in parts if len(self.values.roots(a)) > 1 or self.values.numbers(self.values.roots(a))]
        if not parts:
            raise RaspError(f"a table of more than {COMBINATIONS:,} rows would be needed", step.at)
        deeper = [a for a in parts if not self._fits(self.values.roots(a))]
        if deeper:
            self._split(deeper[0])
        elif len(numbers := self.values.numbers(self.values.roots(step))) > 1:
            latest = max(numbers, key=self._time)  # can be read by the MLP that makes the step
            others = [part for part in parts if latest not in self.values.roots(part)]
            for part in others or parts:
                self._hold(part)
        else:
            self._hold(max(parts, key=lambda a: self.values.rows(self.values.roots(a))))

    def _fits(self, roots: tuple[SOp, ...], before: int = ALL) -> bool:
        return self.values.rows(roots) <= COMBINATIONS and len(self.values.numbers(roots, before)) <= 1

    # ---- attention

    def _attend(self, step: Aggregate | Width) -> None:
        matches = [self._match(group) for group in self._groups(step.selector)]
        times = [self._time(side.root) for match in matches for side in (match.key, match.query)]
        value: View | Aggregate | None = None
        if isinstance(step, Aggregate):
            value = self._value(step)
            times.append(self._time(value.root if isinstance(value, View) else value))
        time = 2 * (max([-1, *times]) // 2 + 1)
        self._ready[(step, self.values.is_number(step))] = time
        self._put(step, matches, value, time)

    def _value(self, step: Aggregate) -> View | Aggregate:
        value = step.value
        if not isinstance(value, Aggregate) or not self.values.is_number(step) or not self.values.numbers((value,)):
            return self._view(value)
        plain = all(type(v) in (int, float) for v in self.values.of(value))  # no number stands for something else
        return value if plain else self._view(value)

    def _put(self, step: Aggregate | Width, matches: list[Match], value: View | Aggregate | None, time: int) -> None:
        """Into a head that attends alike at the same time, or a new one."""
        if isinstance(step, Width):
            self.heads.append(Head(matches, [], step, time))
            return
        assert value is not None
        for head in self.heads:
            if head.time == time and head.writes and head.writes[0][0].selector is step.selector:
                head.writes.append((step, value))
                return
        self.heads.append(Head(matches, [(step, value)], None, time))

    def _groups(self, selector: Selector) -> list[Selector]:
        """Selectors that must all hold; those that read the same roots on both sides become one."""
        groups: dict[Any, Selector] = {}
        for part in conjuncts(selector):
            reads = tuple(tuple(dict.fromkeys(r for s in side for r in self.values.roots(s))) for side in sides(part))
            alike = reads if all(len(roots) <= 1 for roots in reads) else part
            groups[alike] = Combine("and", (groups[alike], part)) if alike in groups else part
        return list(groups.values())

    def _match(self, selector: Selector) -> Match:
        keys, queries = sides(selector)
        key, query = self._joint(keys), self._joint(queries)
        known = [[i for i, value in enumerate(view.values) if value is not None] for view in (query, key)]
        holds = np.zeros((len(query.values), len(key.values)), dtype=bool)
        holds[np.ix_(*known)] = selected(selector, _columns(keys, key), _columns(queries, query))
        return Match(key, query, holds)

    def _joint(self, steps: list[SOp]) -> View:
        """All the values a selector reads at one position, as a tuple."""
        if len(steps) == 1:
            view = self._view(steps[0])
            return View(view.root, [None if value is None else (value,) for value in view.values])
        if not steps:
            return self._view(())  # type: ignore[arg-type]
        joint = self._tuples.setdefault(tuple(steps), Elementwise(TUPLE, tuple(steps)))
        return self._view(joint)


def _columns(steps: list[SOp], joint: View) -> dict[SOp, Column]:
    """The columns of a view of several steps, where it has values."""
    rows = [value for value in joint.values if value is not None]
    return {step: column([row[i] for row in rows]) for i, step in enumerate(steps)}
