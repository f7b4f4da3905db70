"""What a program makes: s-ops and selectors, a graph of steps that says what each is computed from.

Nothing here is a Python function: a compiler can walk it. Constants stand where s-ops may stand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from circuits.rasp.errors import Span
from circuits.rasp.syntax import Atom

LABEL = 30  # letters of a label

_serial = itertools.count()


@dataclass(eq=False, repr=False)
class Node:
    """One step. `serial` grows, so that a step's parents have smaller ones; `name` is the variable it was bound to."""

    serial: int = field(default_factory=lambda: next(_serial), init=False)
    name: str | None = field(default=None, init=False)
    inner: bool = field(default=False, init=False)  # the name was given inside a function
    label: str | None = field(default=None, init=False)  # the name or call that it was shown as last
    at: Span | None = field(default=None, init=False)

    def parents(self) -> Iterable[Node]:
        """The steps this one reads."""
        return ()

    def __repr__(self) -> str:
        return label(self)


@dataclass(eq=False, repr=False)
class SOp(Node):
    """A sequence operator: a sequence of atoms, given an input."""


@dataclass(eq=False, repr=False)
class Selector(Node):
    """A matrix of bools [query, key], given an input."""


@dataclass(eq=False, repr=False)
class Input(SOp):
    """`indices`, or the tokens: `tokens_asis`, `tokens_str`, `tokens_int`, `tokens_float`, `tokens_bool`."""

    source: str


@dataclass(eq=False, repr=False)
class Elementwise(SOp):
    """`op` at every position: an operator of `ops.OPS`. Arguments are s-ops, atoms, and for `in` and `index` a list or dict."""

    op: str
    arguments: tuple[SOp | Atom | list[Any] | dict[Atom, Any], ...]

    def parents(self) -> Iterable[Node]:
        return [a for a in self.arguments if isinstance(a, Node)]


@dataclass(eq=False, repr=False)
class Aggregate(SOp):
    """Per query: no key selected: default; one: its value; more: the mean of their values."""

    selector: Selector
    value: SOp | Atom
    default: Atom

    def parents(self) -> Iterable[Node]:
        return [self.selector, self.value] if isinstance(self.value, Node) else [self.selector]


@dataclass(eq=False, repr=False)
class Width(SOp):
    """How many keys a query selects: the library's `selector_width`, which computes it `by` two attention heads."""

    selector: Selector
    by: SOp

    def parents(self) -> Iterable[Node]:
        return [self.by]


@dataclass(eq=False, repr=False)
class Select(Selector):
    """M[q, k] = key[k] op query[q], with op one of == != < <= > >=."""

    key: SOp | Atom
    query: SOp | Atom
    op: str

    def parents(self) -> Iterable[Node]:
        return [a for a in (self.key, self.query) if isinstance(a, Node)]


@dataclass(eq=False, repr=False)
class Combine(Selector):
    """`and` or `or` of two selectors, `not` of one."""

    op: str
    parts: tuple[Selector, ...]

    def parents(self) -> Iterable[Node]:
        return self.parts


def order(node: Node, known: Callable[[Node], bool] = lambda _: False) -> list[Node]:
    """The node and all it is computed from, parents first, without those that are `known`."""
    found, stack = {id(node): node}, [node]
    while stack:
        here = stack.pop()
        for parent in here.parents():
            if id(parent) not in found and not known(parent):
                found[id(parent)] = parent
                stack.append(parent)
    return sorted((n for n in found.values() if not known(n)), key=lambda n: n.serial)


def label(step: Node, deepest: int = LABEL // 4) -> str:
    """What a step is shown as: the name or the call it had last, or how it is computed where that is short."""
    if step.label is not None or isinstance(step, Input):
        return step.label or step.name or ""
    if isinstance(step, Selector):
        return "plain select"
    if not isinstance(step, Elementwise) or deepest == 0:
        return "s-op"
    text = _formula(step.op, [label(a, deepest - 1) if isinstance(a, Node) else str(a) for a in step.arguments])
    return text if len(text) <= LABEL else "s-op"


def _formula(op: str, arguments: list[str]) -> str:
    match op, arguments:
        case "indicator", [value]:
            return f"I({value})"
        case "if", [condition, value, other]:
            return f"{value} if {condition} else {other}"
        case "in", [value, container]:
            return f"{value} in {container}"
        case "index", [_, place]:
            return f"out[{place}]"
        case "and" | "or", [left, right]:
            return f"( {left} {op} {right})"
        case _, [left, right]:
            return f"( {left} {'pow' if op == '^' else op} {right} )"
    return f"( {({'minus': '-', 'plus': '+'}).get(op, op)} {' '.join(arguments)} )"
