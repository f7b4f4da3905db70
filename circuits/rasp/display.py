"""Values as the reference implementation prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from circuits.rasp import ops, syntax
from circuits.rasp.analysis import cost, depths
from circuits.rasp.errors import RaspError
from circuits.rasp.evaluate import Matrix, Run, Sequence
from circuits.rasp.graph import Node, Selector, SOp, order
from circuits.rasp.interpreter import Drawn, Function, Interpreter, Shown

LISTED = 1_000  # elements of a list of lists, over all its levels


def sequence_text(value: Sequence, full: bool = False) -> str:
    """`[0.333, 1.0] (floats)`: three digits, T and F; a repeated value as `[v]*n` unless `full`."""
    atoms = [_atom(v) for v in value.values]
    if len(atoms) > 1 and len(set(value.values)) == 1 and not full:
        return f"[{atoms[0]}]*{len(atoms)} ({value.type}s)"
    return f"[{', '.join(atoms)}] ({value.type}s)"


def matrix_text(value: Matrix) -> str:
    """A line per query, with a 1 under each key it selects."""
    heads = [str(token) for token in value.tokens]
    widths = [max(1, len(head)) for head in heads]
    left = max(widths)

    def line(first: str, bar: str, cells: Iterable[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f" \t\t\t {first.rjust(left)} {bar} {' '.join(padded)}"

    rows = [line(h, "|", ["1" if c else " " for c in r]) for h, r in zip(heads, value.rows, strict=True)]
    return "\n".join([line("", " ", heads), *rows])


def result_text(value: Sequence | Matrix) -> str:
    """The display of either kind of value."""
    return sequence_text(value) if isinstance(value, Sequence) else matrix_text(value)


def _atom(value: Any) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    return str(round(value, 3)) if isinstance(value, float) else str(value)


@dataclass
class Display:
    """What is printed, and how: the switches of the REPL."""

    interpreter: Interpreter
    examples: dict[str, bool] = field(default_factory=lambda: {"s-op": True, "selector": True})
    full: bool = False

    def flush(self) -> list[str]:
        """The texts of all that was shown since the last time, with errors of loaded files."""
        texts = [error_text(problem) for problem in self.interpreter.problems]
        for item in self.interpreter.shown:
            texts += self._text(item)
        self.interpreter.problems.clear()
        self.interpreter.shown.clear()
        return texts

    def _text(self, item: Shown | Drawn | syntax.ShowExample | syntax.Switch) -> list[str]:
        match item:
            case Shown(name=name, value=value):
                return [self._value(name, value, [LISTED])]
            case Drawn(value=value, run=run):
                return [_drawing(value, run)]
            case syntax.ShowExample(kind=kind):
                return [f"     {k} example: {_quoted(self.interpreter.examples[k].tokens)}" for k in _kinds(kind)]
            case syntax.Switch(what="full", on=on):
                self.full = on
            case syntax.Switch(what=what, on=on):
                self.examples |= dict.fromkeys(_kinds(what), on)
        return []

    def _value(self, name: str, value: Any, left: list[int], level: int = 0) -> str:
        """`left` counts down how many elements may still be listed."""
        if isinstance(value, Node):
            return self._step(name or value.name or "out", value)
        if isinstance(value, Function):
            return f"     console function: {value.name}({', '.join(value.parameters)})"
        if isinstance(value, Sequence | Matrix):
            bar = "\n" if isinstance(value, Matrix) else " "
            return f"\t{'' if name == 'out' else ' ' + name} = {bar}{self._result(value)}"
        named = f"{name} = " if name else ""
        if isinstance(value, list | dict):
            return self._container(named, value, left, level)
        return f"    value: {named + ' ' if named else ''}{_quoted(value)}"

    def _container(self, named: str, value: list[Any] | dict[Any, Any], left: list[int], level: int) -> str:
        kind, (start, end) = ("dict", "{}") if isinstance(value, dict) else ("list", "[]")
        items = list(value.values()) if isinstance(value, dict) else value
        if all(map(ops.is_atom, items)):
            return f"     {kind}: {named}{value}"
        left[0] -= len(items)
        if left[0] < 0 or level > 20:
            return f"     {kind}: {named}{start}...{end}"
        keys = [f"{_quoted(k)}: " for k in value] if isinstance(value, dict) else [""] * len(items)
        lines = [k + self._value("", item, left, level + 1) for k, item in zip(keys, items, strict=True)]
        inner = "\n".join(f"\t\t{line}" for item in lines for line in item.split("\n"))
        return f"     {kind}: {named}{' ' if named else ''}{start}\n{inner}\n                 {end}"

    def _step(self, name: str, value: Node) -> str:
        kind = "selector" if isinstance(value, Selector) else "s-op"
        if not self.examples[kind]:
            return f"     {kind}: {name}"
        run = self.interpreter.examples[kind]
        try:
            shown = self._result(run.result(value))  # type: ignore[arg-type]
        except RaspError as error:  # the example was changed since the step was made
            shown = f"undefined on this example: {error.message}"
        if isinstance(value, Selector):
            return f"     {kind}: {name}\n \t Example:\n{shown}"
        return f"     {kind}: {name}\n \t Example: {name}({_quoted(run.tokens)}) = {shown}"

    def _result(self, value: Sequence | Matrix) -> str:
        return sequence_text(value, self.full) if isinstance(value, Sequence) else matrix_text(value)


def error_text(error: RaspError) -> str:
    """An error as the REPL prints it."""
    return f"\t\t!!ignoring input:\n\t {error}"


def _kinds(kind: str | None) -> list[str]:
    return [kind] if kind else ["s-op", "selector"]


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _drawing(value: Node, run: Run) -> str:
    """Named steps by layer, with their values, and the heads of each layer."""
    at, heads = depths(value), cost(value).heads_per_layer  # type: ignore[arg-type]
    lines = [f"     draw: {value.name or 'out'}({_quoted(run.tokens)})"]
    for layer in range(at[value] + 1):
        lines.append(f"\t layer {layer}" + (f": {heads[layer]} heads" if layer in heads else ""))
        for step in order(value):
            if at[step] == layer and isinstance(step, SOp) and (step.name or step is value):
                lines.append(f"\t\t {step.name or 'out'} = {result_text(run.result(step))}")
    return "\n".join(lines)
