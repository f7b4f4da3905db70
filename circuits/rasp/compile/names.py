"""What a step is called: its variable's name, or how it would be written."""

from __future__ import annotations

import json
from typing import Any

from circuits.rasp.compile.columns import TUPLE
from circuits.rasp.compile.shared import INDICES, TOKENS
from circuits.rasp.graph import Aggregate, Combine, Elementwise, Node, Select, Width

LONGEST = 60  # letters of a name
CALLED = ("round", "indicator", "tokens_str", "tokens_int", "tokens_float", "tokens_bool")


def spelled(step: Any, whole: bool = True) -> str:
    """A step in RASP's words, cut after `LONGEST` letters; where it is part of another (`whole` is false), by its name if it has one."""
    if step is TOKENS or step is INDICES:
        return "tokens" if step is TOKENS else "indices"
    if not isinstance(step, Node):
        return json.dumps(step, ensure_ascii=False)
    if step.name and not whole:
        return step.name
    text = _written(step)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _written(step: Node) -> str:
    def of(part: Any) -> str:
        return spelled(part, whole=False)

    match step:
        case Aggregate(selector=selector, value=value, default=default):
            return f"aggregate({of(selector)},{of(value)},{of(default)})"
        case Width(selector=selector):
            return f"selector_width({of(selector)})"
        case Select(key=key, query=query, op=op):
            return f"select({of(key)},{of(query)},{op})"
        case Combine(op="not", parts=(part,)):
            return f"not {of(part)}"
        case Combine(op=op, parts=parts):
            return "(" + f" {op} ".join(map(of, parts)) + ")"
        case Elementwise(op=op, arguments=arguments):
            return _operated(op, [of(a) for a in arguments])
    return type(step).__name__


def _operated(op: str, parts: list[str]) -> str:
    if op == TUPLE:
        return f"({','.join(parts)})"
    if op == "if":
        return f"({parts[1]} if {parts[0]} else {parts[2]})"
    if op == "index":
        return f"{parts[0]}[{parts[1]}]"
    if op in CALLED:
        return f"{op.removeprefix('tokens_')}({parts[0]})"
    if len(parts) == 1:
        return f"{ {'minus': '-', 'plus': '+'}.get(op, op + ' ') }{parts[0]}".strip()
    return f"({parts[0]}{op if not op.isalpha() else f' {op} '}{parts[1]})"
