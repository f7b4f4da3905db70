"""Warnings where RASP reads an expression otherwise than most languages would."""

from __future__ import annotations

from collections.abc import Iterator

from circuits.rasp.errors import Span
from circuits.rasp.syntax import Binary, Expression, Program, Ternary, Unary, walk

COMPARISONS = {"==", "<=", ">=", "<", ">"}
LOGIC = {"and", "or"}


def traps(program: Program) -> list[tuple[Span, str]]:
    """Where and how the program's precedence may surprise; parentheses make it plain and silence the warning."""
    found = []
    for node in walk(program):
        if isinstance(node, Binary):
            found += [(node.at, message) for message in _binary(node)]
        if isinstance(node, Ternary) and _bare(node.value, Ternary):
            found.append((node.at, "`a if b else c if d else e` is `(a if b else c) if d else e`"))
    return found


def _bare(node: Expression, kind: type[Expression], ops: set[str] | None = None) -> bool:
    return isinstance(node, kind) and not node.grouped and (ops is None or getattr(node, "op", "") in ops)


def _binary(node: Binary) -> Iterator[str]:
    op, left, right = node.op, node.left, node.right
    if op not in LOGIC and _bare(left, Unary, {"not"}):
        yield f"`not` binds tighter than `{op}`: `not a {op} b` is `(not a) {op} b`"
    if op in LOGIC and _bare(left, Binary, LOGIC - {op}):
        yield "`and` and `or` bind alike, from left to right: `a or b and c` is `(a or b) and c`"
    if op in COMPARISONS and _bare(left, Binary, COMPARISONS):
        yield "comparisons do not chain: `a < b < c` is `(a < b) < c`"
    if op == "^" and _bare(left, Binary, {"^"}):
        yield "`^` groups to the left: `a^b^c` is `(a^b)^c`"
    if op == "^" and _bare(left, Unary, {"-"}):
        yield "`-` binds tighter than `^`: `-a^b` is `(-a)^b`"
    if op == "%" and _bare(right, Binary, {"*", "/"}):
        yield "`%` binds looser than `*` and `/`: `a%b*c` is `a%(b*c)`"
    if op == "in" and any(_bare(side, Binary, LOGIC | COMPARISONS) or _bare(side, Ternary) for side in (left, right)):
        yield "`in` binds loosest of all: `x in l and y` is `x in (l and y)`, `y and x in l` is `(y and x) in l`"
