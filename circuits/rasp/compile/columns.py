"""Steps and selectors on many rows at once: an operator is asked once for every combination of values that occurs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.rasp import ops
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Combine, Elementwise, Select, Selector, SOp

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

TUPLE = "tuple"  # op of a step that holds several values at once
Column = tuple[list[Any], "Int[np.ndarray, 'row']"]  # a row's value is values[codes[row]]


def mark(value: Any) -> Any:
    """Equal for values that count as one: floats that agree in ten digits or twelve places do; 1 and True are two."""
    if isinstance(value, tuple):
        return tuple(map(mark, value))
    return isinstance(value, bool), _rounded(value) if isinstance(value, float) else value


@lru_cache(2**18)
def _rounded(value: float) -> float:
    return float(f"{round(value, 12):.10g}")


def column(values: Sequence[Any]) -> Column:
    """The rows' values with each listed once; 1 and 1.0 are listed apart."""
    known: dict[Any, int] = {}
    codes = [known.setdefault((type(v), repr(v) if isinstance(v, tuple) else v), len(known)) for v in values]
    first = dict(zip(reversed(codes), reversed(values), strict=True))
    return [first[i] for i in range(len(known))], np.array(codes, dtype=np.int64)


def compute(step: Elementwise, arguments: list[Any]) -> Any:
    """The value of an elementwise step. Raises `RaspError` where it has none."""
    if step.op == TUPLE:
        return tuple(arguments)
    if step.op in ops.CASTS:
        try:
            return ops.checked(ops.CASTS[step.op](arguments[0]))
        except (ValueError, OverflowError) as error:
            raise RaspError(str(error), step.at) from None
    return ops.apply(step.op, *arguments)


def values_of(step: SOp, roots: dict[SOp, Column], rows: int) -> list[Any]:
    """The step's value in each row, given its roots'; None where it or what it is computed from has none."""
    known, failed = dict(roots), np.zeros(rows, dtype=bool)
    for each in _between(step, roots):
        columns = [known[a] if isinstance(a, SOp) else ([a], np.zeros(rows, dtype=np.int64)) for a in each.arguments]
        values, codes = _mapped(columns, rows, lambda *row, each=each: compute(each, list(row)))
        failed |= codes < 0
        known[each] = values or [None], np.maximum(codes, 0)
    values, codes = known[step]
    return [None if bad else values[code] for bad, code in zip(failed.tolist(), codes.tolist(), strict=True)]


def selected(selector: Selector, keys: dict[SOp, Column], queries: dict[SOp, Column]) -> Bool[np.ndarray, "query key"]:
    """Which key rows each query row selects; none where the program has no value."""
    size = tuple(len(next(iter(side.values()))[1]) if side else 1 for side in (queries, keys))
    chosen, failed = _chosen(selector, keys, queries, size)
    return np.broadcast_to(chosen & ~failed, size)


def _chosen(selector: Selector, keys: dict[SOp, Column], queries: dict[SOp, Column], size: Any) -> tuple[Any, Any]:
    match selector:
        case Select(key=key, query=query, op=op):
            (ks, k), (qs, q) = _side(key, keys, size[1]), _side(query, queries, size[0])
            cells = np.array([[_compared(op, a, b) for a in ks] for b in qs])[q[:, None], k[None, :]]
            return cells > 0, cells < 0
        case Combine(op=op, parts=parts):
            sides = [_chosen(part, keys, queries, size) for part in parts]
            failed = np.logical_or.reduce([bad for _, bad in sides])
            if op == "not":
                return ~sides[0][0], failed
            join = np.logical_and if op == "and" else np.logical_or
            return join.reduce([chosen for chosen, _ in sides]), failed
    raise TypeError(selector)


def _side(value: Any, columns: dict[SOp, Column], size: int) -> Column:
    return columns[value] if isinstance(value, SOp) else ([value], np.zeros(size, dtype=np.int64))


def _compared(op: str, key: Any, query: Any) -> int:
    """1 or 0, -1 where the two cannot be compared."""
    try:
        return int(bool(ops.apply(op, key, query)))
    except RaspError:
        return -1


def _between(step: SOp, roots: dict[SOp, Column]) -> list[Elementwise]:
    """The steps that lead from the roots to `step`, parents first."""
    found, stack = set(), [step]
    while stack:
        here = stack.pop()
        if here not in roots and here not in found:
            assert isinstance(here, Elementwise)
            found.add(here)
            stack += [a for a in here.arguments if isinstance(a, SOp)]
    return sorted(found, key=lambda each: each.serial)


def _mapped(columns: list[Column], rows: int, function: Callable[..., Any]) -> Column:
    """The function of the columns' values; code -1 where it raises `RaspError`."""
    joint = np.zeros(rows, dtype=np.int64)
    for values, codes in columns:
        joint = joint * len(values) + codes
    combinations, inverse = np.unique(joint, return_inverse=True)
    found: list[Any] = []
    for combination in combinations.tolist():
        row: list[Any] = []
        for values, _ in reversed(columns):
            combination, code = divmod(combination, len(values))
            row.append(values[code])
        try:
            found.append(function(*reversed(row)))
        except RaspError:
            found.append(None)
    values, codes = column([value for value in found if value is not None])
    places = np.full(len(found), -1)
    places[[value is not None for value in found]] = codes
    return values, places[inverse.reshape(rows)]
