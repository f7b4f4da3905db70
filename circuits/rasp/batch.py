"""The interpreter on many inputs of one length at once: values are codes into a list of the values that occur.

The same operators as `evaluate` (`ops.apply`, `ops.compare`), each asked once for every combination of values that occurs.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.rasp import ops
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Input, Node, Select, Selector, SOp, Width, order
from circuits.rasp.syntax import Atom

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

EXACT = 2**40  # integers up to here have exact sums in float64
FAILED = -1  # where the program has no value


@dataclass
class Codes:
    """The value at [input, position] is `values[at[input, position]]`; it is undefined on inputs marked so."""

    values: list[Any]
    at: Int[np.ndarray, "batch pos"]
    undefined: Bool[np.ndarray, "batch"]


def evaluate_batch(node: SOp, inputs: Seq[Seq[Atom]], causal: bool = False) -> Codes:
    """The value of `node` on inputs of one length, as `evaluate` gives it for each; `undefined` where that raises.

    Raises `RaspError` for inputs of several lengths and for numbers whose sums would not be exact.
    """
    if len({len(tokens) for tokens in inputs}) != 1:
        raise RaspError("a batch has inputs of one length")
    batch = _Batch(inputs, causal)
    for step in order(node):
        batch.compute(step)
    values, at = batch.codes[node]
    return Codes(values, at, batch.undefined)


class _Batch:
    def __init__(self, inputs: Seq[Seq[Atom]], causal: bool) -> None:
        self.shape = (len(inputs), len(inputs[0]))
        self.seen = np.tri(self.shape[1], dtype=bool) if causal else np.ones((self.shape[1],) * 2, dtype=bool)
        self.undefined = np.zeros(self.shape[0], dtype=bool)
        tokens: dict[tuple[type, Atom], int] = {}
        flat = [tokens.setdefault((type(t), t), len(tokens)) for row in inputs for t in row]
        self.tokens = [token for _, token in tokens], np.array(flat).reshape(self.shape)
        self.codes: dict[Node, tuple[list[Any], np.ndarray]] = {}
        self.chosen: dict[Node, np.ndarray] = {}  # selectors: [input, query, key]

    def compute(self, step: Node) -> None:
        """Put the step's codes or choices beside those of its parents, and mark inputs on which it is undefined."""
        if isinstance(step, Selector):
            self.chosen[step] = self._selector(step)
        else:
            values, at = self._sequence(step)
            failed = (at == FAILED).any(axis=1)
            text = np.array([isinstance(v, str) for v in values] or [False])[at]
            self.undefined |= failed | (text != text[:, :1]).any(axis=1)
            self.codes[step] = values or [0], np.where(at == FAILED, 0, at)

    def _sequence(self, step: Node) -> tuple[list[Any], np.ndarray]:
        match step:
            case Input(source="indices"):
                return list(range(self.shape[1])), np.broadcast_to(np.arange(self.shape[1]), self.shape)
            case Input(source=source):
                return _mapped([self.tokens], lambda token: ops.checked(_cast(source, token)))
            case Elementwise(op=op, arguments=arguments):
                return _mapped([self._column(a) for a in arguments], lambda *row: ops.apply(op, *row))
            case Width(selector=selector):
                return list(range(self.shape[1] + 1)), (self.chosen[selector] & self.seen).sum(axis=2)
            case Aggregate():
                return self._aggregate(step)
        raise TypeError(f"no s-op: {step!r}")

    def _column(self, value: Any) -> tuple[list[Any], np.ndarray]:
        return self.codes[value] if isinstance(value, Node) else ([value], np.zeros(self.shape, dtype=int))

    def _selector(self, step: Selector) -> np.ndarray:
        match step:
            case Select(key=key, query=query, op=op):
                (keys, key_at), (queries, query_at) = self._column(key), self._column(query)
                cells = np.array([[_compared(op, k, q) for k in keys] for q in queries])
                found = cells[query_at[:, :, None], key_at[:, None, :]]
                self.undefined |= (found == FAILED).any(axis=(1, 2))
                return found == 1
            case Combine(op="not", parts=(part,)):
                return ~self.chosen[part]
            case Combine(op=op, parts=(left, right)):
                a, b = self.chosen[left], self.chosen[right]
                return a & b if op == "and" else a | b
        raise TypeError(f"no selector: {step!r}")

    def _aggregate(self, step: Aggregate) -> tuple[list[Any], np.ndarray]:
        """None: the default; one: its code; more: the mean, summed from the first position on as Python does."""
        (values, at), chosen = self._column(step.value), self.chosen[step.selector] & self.seen
        count = chosen.sum(axis=2)
        numeric, numbers = np.array([(not isinstance(v, str), type(v) in (int, float)) for v in values]).T
        several = count > 1
        self.undefined |= several.any(axis=1) & ~(numeric[at].all(axis=1) & numbers[at].any(axis=1))
        if any(abs(v) > EXACT for v in values if not isinstance(v, str)):
            raise RaspError("numbers too large to be summed exactly in a batch")
        floats = np.array([float(v) if n else 0.0 for v, n in zip(values, numeric, strict=True)])[at]
        total = np.zeros(count.shape)
        for position in range(self.shape[1]):
            total += np.where(chosen[:, :, position], floats[:, None, position], 0.0)
        means, mean_at = np.unique(total / np.maximum(count, 1), return_inverse=True)
        one = np.take_along_axis(at, chosen.argmax(axis=2), axis=1)
        known = [*values, step.default, *means.tolist()]
        mean_at = mean_at.reshape(count.shape) + len(values) + 1
        return known, np.where(several, mean_at, np.where(count == 1, one, len(values)))


def _mapped(columns: list[tuple[list[Any], np.ndarray]], function: Any) -> tuple[list[Any], np.ndarray]:
    """The function of the columns' values, asked once for each combination."""
    joint = np.zeros(columns[0][1].shape, dtype=np.int64)
    for values, at in columns:
        joint = joint * len(values) + at
    combinations, inverse = np.unique(joint, return_inverse=True)
    known: dict[tuple[type, Any], int] = {}
    places = []
    for combination in combinations.tolist():
        row: list[Any] = []
        for values, _ in reversed(columns):
            combination, code = divmod(combination, len(values))
            row.insert(0, values[code])
        try:
            value = function(*row)
            places.append(known.setdefault((type(value), value), len(known)) if ops.is_atom(value) else FAILED)
        except RaspError:
            places.append(FAILED)
    return [value for _, value in known], np.array(places)[inverse].reshape(joint.shape)


def _cast(source: str, token: Atom) -> Atom:
    try:
        return ops.CASTS[source](token)
    except (ValueError, OverflowError) as error:
        raise RaspError(str(error)) from None


def _compared(op: str, key: Any, query: Any) -> int:
    try:
        return ops.compare(op, [key], query)[0]
    except RaspError:
        return FAILED
