"""One step for everything that is computed alike: selectors and s-ops that a program makes twice become one.

And three identities, each of which saves a layer:

    aggregate(s,a,c) ± aggregate(s,b,d) = aggregate(s, a ± b, c ± d)        if a and b read one input
    x·a ± x·b = x·(a ± b)
    aggregate(s or first, is_first) = 1/(1 + selector_width(s and not first))       first: position 0, a query always sees it
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from circuits.rasp import ops
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Input, Node, Select, SOp, Width

TOKENS = Input("tokens_asis")
INDICES = Input("indices")


def reads(step: Node) -> Iterable[Node]:
    """What a step is computed from; a width from its selector, however the library spells it."""
    return (step.selector,) if isinstance(step, Width) else step.parents()


def share(nodes: list[SOp]) -> list[SOp]:
    """The same s-ops with equal steps merged and names kept. Raises `RaspError` for a step that no compiler knows."""
    made: dict[Any, Node] = {}
    new: dict[Node, Node] = {}
    for step in _order(nodes):
        built = _simpler(_rebuilt(step, new), made)
        new[step] = _once(built, made)
        if new[step].name is None and not isinstance(built, Input):
            new[step].name, new[step].at = step.name, step.at
    return [new[node] for node in nodes]  # type: ignore[misc]


def _order(nodes: list[SOp]) -> list[Node]:
    """Parents first; the spelling of a width is left out."""
    found: set[Node] = set(nodes)
    stack: list[Node] = list(nodes)
    while stack:
        for parent in reads(stack.pop()):
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return sorted(found, key=lambda n: n.serial)


def _rebuilt(step: Node, new: dict[Node, Node]) -> Node:
    def of(value: Any) -> Any:
        return new[value] if isinstance(value, Node) else value

    match step:
        case Input(source="indices"):
            return INDICES
        case Input(source="tokens_asis"):
            return TOKENS
        case Input(source=source):
            return Elementwise(source, (TOKENS,))
        case Elementwise(op=op, arguments=arguments):
            return Elementwise(op, tuple(of(a) for a in arguments))
        case Aggregate(selector=selector, value=value, default=default):
            return Aggregate(of(selector), of(value), default)
        case Width(selector=selector, by=by):
            return Width(of(selector), by)
        case Select(key=key, query=query, op=op):
            return Select(of(key), of(query), op)
        case Combine(op=op, parts=parts):
            return Combine(op, tuple(of(p) for p in parts))
    raise RaspError(f"cannot compile {type(step).__name__}", step.at)


def _once(step: Node, made: dict[Any, Node]) -> Node:
    """The step that computes the same and was made first."""
    return made.setdefault(_key(step), step)


def _simpler(step: Node, made: dict[Any, Node]) -> Node:
    """By the identities above; the step itself where none applies."""
    match step:
        case Elementwise(op="+" | "-" as op, arguments=(Aggregate() as a, Aggregate() as b)):
            if a.selector is b.selector and all(type(d) in (int, float) for d in (a.default, b.default)):
                value = Elementwise(op, (a.value, b.value))
                if len(_inputs(value)) <= 1:
                    return Aggregate(a.selector, _once(value, made), ops.apply(op, a.default, b.default))  # type: ignore[arg-type]
        case Elementwise(op="+" | "-" as op, arguments=(Elementwise(op="*") as a, Elementwise(op="*") as b)):
            for x, y in itertools.product(range(2), repeat=2):
                if isinstance(a.arguments[x], SOp) and a.arguments[x] is b.arguments[y]:
                    rest = _simpler(Elementwise(op, (a.arguments[1 - x], b.arguments[1 - y])), made)
                    return Elementwise("*", (a.arguments[x], _once(rest, made)))  # type: ignore[arg-type]
        case Aggregate(selector=Combine(op="or", parts=parts), value=value):
            for rest, first in (parts, parts[::-1]):
                if _is_first(first, Select) and _is_first(value, Elementwise):
                    others = Combine("and", (rest, _once(Combine("not", (first,)), made)))  # type: ignore[arg-type]
                    width = _once(Width(_once(others, made), step), made)  # type: ignore[arg-type]
                    return Elementwise("/", (1, _once(Elementwise("+", (1, width)), made)))  # type: ignore[arg-type]
    return step


def _is_first(step: Any, kind: type) -> bool:
    """`select(indices,0,==)`, or `indicator(indices==0)`."""
    match step:
        case Select(key=key, query=0, op="==") if kind is Select:
            return key is INDICES and type(step.query) is int
        case Elementwise(op="indicator", arguments=(Elementwise(op="==", arguments=(at, 0)),)) if kind is Elementwise:
            return at is INDICES
    return False


def _inputs(step: Any) -> set[Node]:
    """What an s-op is computed from without attention; an aggregate or width stands for itself."""
    found: set[Node] = set()
    stack = [step]
    while stack:
        here = stack.pop()
        if isinstance(here, Elementwise):
            stack += here.arguments
        elif isinstance(here, SOp):
            found.add(here)
    return found


def _key(step: Node) -> Any:
    """Equal for steps that compute the same: their kind, constants by type and value, and parents by identity."""

    def part(value: Any) -> Any:
        return id(value) if isinstance(value, Node) else (type(value).__name__, repr(value))

    match step:
        case Elementwise(op=op, arguments=arguments):
            return (op, *map(part, arguments))
        case Aggregate(selector=selector, value=value, default=default):
            return ("aggregate", id(selector), part(value), part(default))
        case Width(selector=selector):
            return ("width", id(selector))
        case Select(key=key, query=query, op=op):
            return ("select", part(key), part(query), op)
        case Combine(op=op, parts=parts):
            return ("combine", op, *map(id, parts))
    return id(step)
