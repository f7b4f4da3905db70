"""One step for everything that is computed alike: selectors and s-ops that a program makes twice become one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Input, Node, Select, SOp, Width

TOKENS = Input("tokens_asis")
INDICES = Input("indices")


def reads(step: Node) -> Iterable[Node]:
    """What a step is computed from; a width from its selector, however the library spells it."""
    return (step.selector,) if isinstance(step, Width) else step.parents()


def share(node: SOp) -> SOp:
    """The same s-op with equal steps merged and names kept. Raises `RaspError` for a step that no compiler knows."""
    made: dict[Any, Node] = {}
    new: dict[Node, Node] = {}
    for step in _order(node):
        built = _rebuilt(step, new)
        key = _key(built)
        new[step] = made.setdefault(key, built)
        if new[step].name is None and not isinstance(built, Input):
            new[step].name, new[step].at = step.name, step.at
    result = new[node]
    assert isinstance(result, SOp)
    return result


def _order(node: Node) -> list[Node]:
    """Parents first; the spelling of a width is left out."""
    found, stack = {node}, [node]
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
