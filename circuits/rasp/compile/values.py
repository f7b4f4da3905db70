"""Which values every step can take, given a vocabulary and a greatest length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.rasp.compile.columns import Column, column, mark, selected, values_of
from circuits.rasp.compile.shared import INDICES, TOKENS
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Select, Selector, SOp, Width
from circuits.rasp.syntax import Atom

if TYPE_CHECKING:
    from jaxtyping import Int

COMBINATIONS = 20_000  # rows of a table
MEANS = 5_000  # different means of an aggregate
CELLS = 2**24  # pairs of values that a selector is asked for
ALL = 2**30  # later than anything


def distinct(values: Iterable[Any]) -> list[Any]:
    """Without repetitions, in order; 1 and 1.0 are one value, 1 and True are two."""
    return list({mark(v): v for v in reversed(list(values))}.values())[::-1]


Row = tuple[tuple[Any, ...], Any]


class Values:
    """The values a step can take at every context: a length L and a position i < L.

    A step is a function of its roots: inputs, what attention makes, and the steps that are `held`, those an MLP has written
    to the stream. A selector whose keys and queries are settled by the context selects known positions; of any other it is
    only known which positions it may select at most. A `causal` query selects no later position.
    """

    def __init__(self, vocabulary: list[Atom], length: int, causal: bool = False) -> None:
        self.length, self.causal = length, causal
        self.contexts = [(n, i) for n in range(1, length + 1) for i in range(n)]
        self.held: dict[SOp, int] = {}  # and when it can be read
        self._tuples: dict[str, tuple[Any, ...]] = {}
        self._known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._at: dict[SOp, list[tuple[Any, ...]]] = {
            TOKENS: [self._same(vocabulary)] * len(self.contexts),
            INDICES: [self._same((i,)) for _, i in self.contexts],
        }
        self._of: dict[SOp, list[Any]] = {}
        self._roots: dict[tuple[SOp, int, int], tuple[SOp, ...]] = {}
        self._tables: dict[tuple[SOp, tuple[SOp, ...]], list[Row]] = {}
        self._allowed: dict[Selector, tuple[list[Int[np.ndarray, "key"]], bool]] = {}

    def _same(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """One object for equal tuples, so that contexts that are alike are seen to be. (1,) and (True,) are not equal."""
        values = tuple(values)
        return self._tuples.setdefault(repr(values), values)

    def _once(self, function: Callable[..., Iterable[Any]], *arguments: Any) -> tuple[Any, ...]:
        """The function's value, computed once for arguments that are the same objects, numbers or constants."""
        key = (function.__name__, *(id(a) if isinstance(a, tuple) else (type(a), a) for a in arguments))
        if key not in self._known:
            self._known[key] = self._same(function(*arguments))
        return self._known[key]

    def of(self, step: SOp) -> list[Any]:
        """All values of the step. Raises `RaspError` if there are too many to list."""
        if step not in self._of:
            sets = {id(values): values for values in self.at(step)}
            self._of[step] = distinct(itertools.chain(*sets.values()))
        return self._of[step]

    def at(self, step: SOp) -> list[tuple[Any, ...]]:
        """The values of the step at each context."""
        if step not in self._at:
            if isinstance(step, Width):
                allowed, known = self.allowed(step.selector)
                self._at[step] = [self._once(_widths, len(keys), known) for keys in allowed]
            elif isinstance(step, Aggregate):
                self._at[step] = self._aggregated(step)
            else:
                self._at[step] = self._images(step)
        return self._at[step]

    def is_number(self, step: SOp) -> bool:
        """Whether attention writes it as one number, since several positions with different values can be chosen."""
        if isinstance(step, Width):
            return True
        if not isinstance(step, Aggregate) or not isinstance(step.value, SOp) or self.at_most_one(step.selector):
            return False
        return len(self.of(step.value)) > 1 and self._has_means(step)

    def level(self, root: SOp, value: Any) -> float:
        """The number that attention writes for the value: a width as 1/(w + 1), a mean as itself.

        What is no number and yet found among means (a default, a string where it is the only one) stands above all of them.
        """
        if isinstance(root, Width):
            return 1.0 / (value + 1)
        if _number(value):
            return float(value)
        numbers, others = (list(filter(kind, self.of(root))) for kind in (_number, lambda v: not _number(v)))
        top, at = max(numbers, default=0.0), [mark(v) for v in others]
        return top + (at.index(mark(value)) + 1) * max(1.0, abs(top) / 1000) if mark(value) in at else 0.0

    def roots(self, step: SOp, before: int = ALL) -> tuple[SOp, ...]:
        """What the step is a function of; what is held only from time `before` on is looked through."""
        key = (step, len(self.held), before)
        if key not in self._roots:
            if self.held.get(step, ALL) < before or not isinstance(step, Elementwise):
                self._roots[key] = (step,)
            else:
                parts = [self.roots(a, before) for a in step.arguments if isinstance(a, SOp)]
                self._roots[key] = tuple(dict.fromkeys(itertools.chain(*parts)))
        return self._roots[key]

    def numbers(self, roots: tuple[SOp, ...], before: int = ALL) -> list[SOp]:
        """Those of the roots that are read as numbers."""
        return [root for root in roots if self.is_number(root) and self.held.get(root, ALL) >= before]

    def _alike(self, roots: tuple[SOp, ...]) -> list[tuple[tuple[Any, ...], ...]]:
        """The roots' values, once for contexts that are alike; a context for a step without roots."""
        if not roots:
            return [()]
        found = {tuple(map(id, sets)): sets for sets in zip(*(self.at(root) for root in roots), strict=True)}
        return list(found.values())

    def rows(self, roots: tuple[SOp, ...]) -> int:
        """How many combinations of the roots' values there are at most."""
        return sum(math.prod(map(len, sets)) for sets in self._alike(roots))

    def table(self, step: SOp, roots: tuple[SOp, ...]) -> list[Row]:
        """(values of the roots, value of the step) for all that occur together, wherever the step has a value."""
        key = (step, roots)
        if key not in self._tables:
            rows: dict[Any, tuple[Any, ...]] = {}
            for sets in self._alike(roots):
                marks = itertools.product(*(map(mark, values) for values in sets))
                rows |= dict(zip(marks, itertools.product(*sets), strict=True))
            columns = {
                root: column(values) for root, values in zip(roots, zip(*rows.values(), strict=True), strict=True)
            }
            values = values_of(step, columns, len(rows))
            self._tables[key] = [row for row in zip(rows.values(), values, strict=True) if row[1] is not None]
        return self._tables[key]

    def _images(self, step: SOp) -> list[tuple[Any, ...]]:
        roots = self.roots(step)
        if self.rows(roots) > 10 * COMBINATIONS:
            raise RaspError(f"a table of more than {COMBINATIONS:,} rows would be needed", step.at)
        known = {tuple(map(mark, values)): value for values, value in self.table(step, roots)}
        images: dict[tuple[int, ...], tuple[Any, ...]] = {}
        result = []
        for sets in zip(*(self.at(root) for root in roots), strict=True) if roots else [()] * len(self.contexts):
            key = tuple(map(id, sets))
            if key not in images:
                marks = (tuple(map(mark, values)) for values in itertools.product(*sets))
                images[key] = self._same(distinct(known[m] for m in marks if m in known))
            result.append(images[key])
        return result

    # ---- attention

    def _has_means(self, step: Aggregate) -> bool:
        """Whether there are numbers to average. Raises `RaspError` for bools among them: a mean takes them as 1 and 0, a single
        one stays what it is."""
        kinds = {type(v) for v in self.of(step.value)} if isinstance(step.value, SOp) else {type(step.value)}
        if bool in kinds and kinds & {int, float} and not self.at_most_one(step.selector):
            raise RaspError("means of numbers with bools among them are not compiled: use indicator(", step.at)
        return bool(kinds & {int, float})

    def at_most_one(self, selector: Selector) -> bool:
        """Whether it is certain that no query selects two positions."""
        allowed, _ = self.allowed(selector)
        return all(len(keys) <= 1 for keys in allowed) or any(map(self._one_index, conjuncts(selector)))

    def _one_index(self, part: Selector) -> bool:
        """`==` with a key that tells all positions apart."""
        if not (isinstance(part, Select) and part.op == "==" and isinstance(part.key, SOp)):
            return False
        return self.roots(part.key) == (INDICES,) and len(self.of(part.key)) == len(self.of(INDICES))

    def allowed(self, selector: Selector) -> tuple[list[Int[np.ndarray, "key"]], bool]:
        """The positions each context may select, and whether it selects all of them."""
        if selector not in self._allowed:
            parts = conjuncts(selector)
            settled = [part for part in parts if self._settled(part)]
            every = np.arange(self.length)
            rows = [every[: i + 1 if self.causal else n] for n, i in self.contexts]
            for part in settled:
                rows = self._narrowed(rows, part)
            self._allowed[selector] = rows, len(settled) == len(parts)
        return self._allowed[selector]

    def _settled(self, part: Selector) -> bool:
        return all(len(values) == 1 for side in sides(part) for step in side for values in self.at(step))

    def _narrowed(self, rows: list[Int[np.ndarray, "key"]], part: Selector) -> list[Int[np.ndarray, "key"]]:
        (keys, key_at), (queries, query_at) = (self._alone(side) for side in sides(part))
        size = math.prod(len(next(iter(side.values()))[1]) if side else 1 for side in (keys, queries))
        if size > CELLS:
            raise RaspError(f"a selector of more than {CELLS:,} pairs of values is too large to compile")
        chosen = selected(part, keys, queries)
        narrowed = []
        for at, (n, _), row in zip(query_at, self.contexts, rows, strict=True):
            first = _context(n, 0)
            narrowed.append(row[chosen[at][key_at[first : first + n]][row]])
        return narrowed

    def _alone(self, steps: list[SOp]) -> tuple[dict[SOp, Column], Int[np.ndarray, "context"]]:
        """Each combination of the steps' settled values once, and which one a context has."""
        columns = [column([values[0] for values in self.at(step)]) for step in steps]
        joint = np.zeros(len(self.contexts), dtype=np.int64)
        for values, codes in columns:
            joint = joint * len(values) + codes
        _, first, which = np.unique(joint, return_index=True, return_inverse=True)
        return {s: (values, codes[first]) for s, (values, codes) in zip(steps, columns, strict=True)}, which

    def _aggregated(self, step: Aggregate) -> list[tuple[Any, ...]]:
        allowed, known = self.allowed(step.selector)
        alike: dict[tuple[int, bytes], tuple[Any, ...]] = {}
        for (n, _), keys in zip(self.contexts, allowed, strict=True):
            if (n, keys.tobytes()) not in alike:
                alike[n, keys.tobytes()] = self._of_keys(step, n, keys.tolist(), known)
        return [alike[n, keys.tobytes()] for (n, _), keys in zip(self.contexts, allowed, strict=True)]

    def _of_keys(self, step: Aggregate, length: int, keys: list[int], known: bool) -> tuple[Any, ...]:
        """The values of an aggregate that selects these positions (`known`) or some of them."""
        if not keys:
            return self._same((step.default,))
        value = step.value
        sets = [self.at(value)[_context(length, j)] if isinstance(value, SOp) else self._same((value,)) for j in keys]
        if known and len(keys) > 1:
            return self._mean_of_each(sets)
        union = self._same(distinct(itertools.chain(*{id(values): values for values in sets}.values())))
        several = self._has_means(step) and not self.at_most_one(step.selector)
        values = self._once(_any_means, union, len(keys) if several else 1)
        return values if known else self._once(_with, values, step.default)

    def _mean_of_each(self, sets: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Means of one number from each set."""
        sums = self._same((0,))
        for values in sets:
            sums = self._once(_sums, sums, self._same(filter(_number, values)))
        return self._once(_shares, sums, len(sets))


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _widths(most: int, known: bool) -> Iterable[int]:
    return (most,) if known else range(most + 1)


def _with(values: tuple[Any, ...], default: Atom) -> list[Any]:
    return distinct([default, *values])


def _sums(sums: tuple[Any, ...], values: tuple[Any, ...]) -> list[Any]:
    return _few(s + v for s in sums for v in values)


def _shares(sums: tuple[Any, ...], count: int) -> list[Any]:
    return distinct(s / count for s in sums)


def _any_means(values: tuple[Any, ...], most: int) -> list[Any]:
    """The values, and all means of 2 ... `most` numbers among them."""
    means, sums = list(values), list(filter(_number, values))
    numbers = list(sums)
    for count in range(2, most + 1):
        sums = _few(s + v for s in sums for v in numbers)
        means = _few(means + [s / count for s in sums])
    return means


def _few(values: Iterable[Any]) -> list[Any]:
    found = distinct(values)
    if len(found) > MEANS:
        raise RaspError(f"a mean that can take more than {MEANS:,} values")
    return found


def _context(length: int, position: int) -> int:
    """The place of (length, position) among the contexts."""
    return length * (length - 1) // 2 + position


def conjuncts(selector: Selector, negated: bool = False) -> list[Selector]:
    """Selectors that hold together exactly where this one holds (where it does not, if `negated`)."""
    match selector:
        case Combine(op="not", parts=(part,)):
            return conjuncts(part, not negated)
        case Combine(op=op, parts=parts) if (op == "and") != negated:
            return [each for part in parts for each in conjuncts(part, negated)]
        case Select(key=key, query=query, op="==" | "!=" as op) if negated:
            return [Select(key, query, "!=" if op == "==" else "==")]
    return [Combine("not", (selector,))] if negated else [selector]


def sides(selector: Selector) -> tuple[list[SOp], list[SOp]]:
    """The s-ops that a selector reads at keys, and at queries."""
    keys, queries, stack = [], [], [selector]
    while stack:
        part = stack.pop()
        if isinstance(part, Select):
            keys += [part.key] if isinstance(part.key, SOp) else []
            queries += [part.query] if isinstance(part.query, SOp) else []
        elif isinstance(part, Combine):
            stack += part.parts
    return _in_order(keys), _in_order(queries)


def _in_order(steps: list[Any]) -> list[Any]:
    return sorted(set(steps), key=lambda n: n.serial)
