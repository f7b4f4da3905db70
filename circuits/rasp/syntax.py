"""The typed syntax tree of a RASP program. Every node knows where it stands in the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from circuits.rasp.errors import Span

Atom = bool | int | float | str


@dataclass(frozen=True, eq=False)
class Node:
    at: Span = field(repr=False)


@dataclass(frozen=True, eq=False)
class Expression(Node):
    grouped: bool = field(default=False, kw_only=True, repr=False)  # stands in parentheses of its own


@dataclass(frozen=True, eq=False)
class Literal(Expression):
    value: Atom


@dataclass(frozen=True, eq=False)
class Name(Expression):
    id: str


@dataclass(frozen=True, eq=False)
class Unary(Expression):
    op: str  # not - + round indicator
    operand: Expression


@dataclass(frozen=True, eq=False)
class Binary(Expression):
    op: str  # ^ * / % + - == <= >= < > and or in
    left: Expression
    right: Expression


@dataclass(frozen=True, eq=False)
class Ternary(Expression):
    value: Expression
    condition: Expression
    other: Expression


@dataclass(frozen=True, eq=False)
class Index(Expression):
    target: Expression
    index: Expression


@dataclass(frozen=True, eq=False)
class Call(Expression):
    function: Expression
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Builtin(Expression):
    name: str  # range zip len
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Select(Expression):
    key: Expression
    query: Expression
    op: str  # == != <= >= < >


@dataclass(frozen=True, eq=False)
class Aggregate(Expression):
    selector: Expression
    value: Expression
    default: Expression | None


@dataclass(frozen=True, eq=False)
class List(Expression):
    items: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Dict(Expression):
    pairs: tuple[tuple[Expression, Expression], ...]


@dataclass(frozen=True, eq=False)
class Comprehension(Expression):
    """`[item for names in iterable]`, or `{key: item for names in iterable}`."""

    key: Expression | None
    item: Expression
    names: tuple[Name, ...]
    iterable: Expression


@dataclass(frozen=True, eq=False)
class Statement(Node):
    pass


@dataclass(frozen=True, eq=False)
class Evaluate(Statement):
    expression: Expression


@dataclass(frozen=True, eq=False)
class Assign(Statement):
    names: tuple[Name, ...]
    values: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Define(Statement):
    name: Name
    parameters: tuple[Name, ...]
    body: tuple[Statement, ...]
    returns: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Loop(Statement):
    names: tuple[Name, ...]
    iterable: Expression
    body: tuple[Statement, ...]


@dataclass(frozen=True, eq=False)
class Load(Statement):
    path: str


@dataclass(frozen=True, eq=False)
class Draw(Statement):
    value: Expression
    input: Expression | None


@dataclass(frozen=True, eq=False)
class SetExample(Statement):
    kind: str | None  # s-op, selector, or None: both
    value: Expression


@dataclass(frozen=True, eq=False)
class ShowExample(Statement):
    kind: str | None


@dataclass(frozen=True, eq=False)
class Switch(Statement):
    what: str | None  # s-op, selector or None: both kinds of example; full: every element of a sequence
    on: bool


@dataclass(frozen=True, eq=False)
class Quit(Statement):
    pass


@dataclass(frozen=True, eq=False)
class Program:
    statements: tuple[Statement, ...]


def walk(node: Node | Program) -> Iterator[Node | Program]:
    """The node and all below it, in the order of the text; without recursion."""
    stack: list[Any] = [node]
    while stack:
        here = stack.pop()
        if isinstance(here, tuple):
            stack.extend(reversed(here))
        elif isinstance(here, Node | Program):
            yield here
            stack.extend(getattr(here, f.name) for f in reversed(fields(here)) if f.name not in ("at", "grouped"))
