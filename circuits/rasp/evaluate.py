"""The value of an s-op or selector on an input, as the RASP paper defines it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from circuits.rasp import ops
from circuits.rasp.errors import Budget, RaspError
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Input, Node, Select, Selector, SOp, Width, order
from circuits.rasp.syntax import Atom

LONGEST = 1_000  # tokens of an input

Tokens = str | Seq[Atom]


@dataclass(frozen=True)
class Sequence:
    """The value of an s-op: an atom per position, all of the type that `type` names."""

    values: tuple[Atom, ...]
    type: str
    tokens: Tokens = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Matrix:
    """The value of a selector: a row per query, with 1 for each key it selects."""

    rows: tuple[bytes, ...]
    tokens: tuple[Atom, ...]


def evaluate(node: SOp | Selector, tokens: Tokens, causal: bool = False) -> Sequence | Matrix:
    """The value of `node` on the input; a causal query selects no later position.

    Raises `RaspError` where the program does not define a value.
    """
    return Run(tokens, causal=causal).result(node)


class Run:
    """The values of steps on one input; what was computed is kept as long as the step lives.

    Raises `RaspError` for an input that is empty, longer than `LONGEST` tokens, or not made of atoms.
    """

    def __init__(self, tokens: Tokens, budget: Budget | None = None, causal: bool = False) -> None:
        if not isinstance(tokens, str | list | tuple) or not tokens:
            raise RaspError(f"an input is a string or list with at least one token, got: {ops.brief(tokens)}")
        if not all(ops.is_atom(token) for token in tokens):
            raise RaspError(f"the tokens of an input are atoms, got: {ops.brief(tokens)}")
        if len(tokens) > LONGEST:
            raise RaspError(f"an input of {len(tokens):,} tokens is longer than the {LONGEST:,} that can be run")
        self.tokens, self.causal = tokens, causal
        self.budget = budget or Budget()
        self._values: WeakKeyDictionary[Node, Any] = WeakKeyDictionary()
        self._types: WeakKeyDictionary[Node, str] = WeakKeyDictionary()

    def result(self, node: SOp | Selector) -> Sequence | Matrix:
        """The value of `node`. Raises `RaspError`, placed at the step that fails."""
        for step in order(node, self._values.__contains__):
            try:
                self._values[step] = self._computed(step)
            except RaspError as error:
                raise (error.placed(step.at) if step.at else error) from None
        if isinstance(node, Selector):
            return Matrix(tuple(self._seen(self._values[node])), tuple(self.tokens))
        return Sequence(tuple(self._values[node]), self._types[node], self.tokens)

    def _computed(self, step: Node) -> list[Any]:
        n = len(self.tokens)
        self.budget.spend(n if isinstance(step, SOp) else n * n // 4)
        if isinstance(step, Selector):
            return self._matrix(step)
        values = self._sequence(step)
        self._types[step] = ops.sequence_type(values)
        self.budget.spend(sum(len(v) // 8 for v in values if isinstance(v, str)))
        return values

    def _sequence(self, step: Node) -> list[Any]:
        match step:
            case Input(source="indices"):
                return list(range(len(self.tokens)))
            case Input(source=source):
                return [self._cast(source, token) for token in self.tokens]
            case Elementwise(op=op, arguments=arguments):
                sizes = [ops.size(a) for a in arguments if isinstance(a, list | dict) and op != "index"]
                self.budget.spend(len(self.tokens) * sum(sizes))
                return [ops.apply(op, *row) for row in zip(*map(self._column, arguments), strict=True)]
            case Width(by=by):
                return self._column(by)
            case Aggregate():
                return self._aggregate(step)
        raise TypeError(f"no s-op: {step!r}")

    def _column(self, argument: Any) -> list[Any]:
        if isinstance(argument, Node):
            return self._values[argument]
        return [argument] * len(self.tokens)

    def _cast(self, source: str, token: Atom) -> Atom:
        try:
            return ops.checked(ops.CASTS[source](token))
        except (ValueError, OverflowError):
            raise RaspError(f"the token {ops.brief(token)} is no {source.removeprefix('tokens_')}") from None

    def _matrix(self, step: Selector) -> list[bytes]:
        """M[q, k] = key[k] op query[q]; `and`, `or`, `not` cell by cell."""
        match step:
            case Select(key=key, query=query, op=op):
                keys = self._column(key)
                return [ops.compare(op, keys, q) for q in self._column(query)]
            case Combine(op="not", parts=(part,)):
                return [bytes(1 - cell for cell in row) for row in self._values[part]]
            case Combine(op=op, parts=(left, right)):
                rows = zip(self._values[left], self._values[right], strict=True)
                both = op == "and"
                return [bytes(a & b if both else a | b for a, b in zip(r, s, strict=True)) for r, s in rows]
        raise TypeError(f"no selector: {step!r}")

    def _seen(self, rows: list[bytes]) -> list[bytes]:
        """What each query selects of what it can see."""
        return [row[: q + 1].ljust(len(row), b"\0") for q, row in enumerate(rows)] if self.causal else rows

    def _aggregate(self, step: Aggregate) -> list[Any]:
        values, rows = self._column(step.value), self._seen(self._values[step.selector])
        numeric = ops.sequence_type(values) in ("int", "float")
        self.budget.spend(len(values) ** 2 // 4)
        chosen = [[v for v, on in zip(values, row, strict=True) if on] for row in rows]
        if not numeric and any(len(picked) > 1 for picked in chosen):
            raise RaspError(f"asked to average several values, but they are not numbers: {ops.brief(values)}")
        return [_mean(picked) if picked else step.default for picked in chosen]


def _mean(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else ops.apply("/", sum(values), len(values))
