"""Values as the reference implementation prints them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from circuits.rasp import ops, syntax
from circuits.rasp.analysis import cost, depths
from circuits.rasp.errors import RaspError
from circuits.rasp.evaluate import Matrix, Run, Sequence
from circuits.rasp.graph import Node, Selector, SOp, label, order
from circuits.rasp.interpreter import Drawn, Function, Interpreter, Shown

LISTED = 1_000  # elements of a list of lists, over all its levels


def sequence_text(value: Sequence) -> str:
    """`[0.333, 1.0] (floats)`: three digits, T and F; a repeated value as `[v]*n`."""
    atoms = [_atom(v) for v in value.values]
    if len(atoms) > 1 and len(set(value.values)) == 1:
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


def full_text(value: Sequence, called: str = "", tab: str = "") -> str:
    """Input and output under each other, unrounded, of bools the rarer; a repeated value as ever, after what was `called`."""
    if len(set(value.values)) == 1:
        return f" {called} {sequence_text(value)} [skipped full display: identical values]"
    rows = [_cells(list(value.tokens)), _cells(list(value.values))]
    width = max(len(cell) for row in rows for cell in row)
    lines = [" ".join(cell.rjust(width) for cell in row) for row in rows]
    return f"\n{tab} \t\tinput:   {lines[0]} \t (strings)\n{tab} \t\toutput:  {lines[1]} \t ({value.type}s)"


def _cells(values: list[Any]) -> list[str]:
    if not isinstance(values[0], bool):
        return list(map(str, values))
    shown = {True: values.count(True) <= values.count(False), False: values.count(False) <= values.count(True)}
    return [("T" if value else "F") if shown[bool(value)] else "" for value in values]


@dataclass
class Display:
    """What is printed, and how: the switches of the REPL."""

    interpreter: Interpreter
    examples: dict[str, bool] = field(default_factory=lambda: {"s-op": True, "selector": True})
    full: bool = False

    def flush(self) -> list[str]:
        """The texts of all that was shown since the last time, with errors of loaded files among it."""
        texts = [text for item in self.interpreter.shown for text in self._text(item)]
        self.interpreter.problems.clear()
        self.interpreter.shown.clear()
        return texts

    def _text(self, item: Shown | Drawn | syntax.ShowExample | syntax.Switch | RaspError) -> list[str]:
        match item:
            case RaspError():
                return [error_text(item)]
            case Shown(name=None, value=value):
                return [f"\t ={self._applied(value)}"]
            case Shown(name=name, value=value, example=example):
                return ["\n".join(self._value(name, value, _Level(example=example)))]
            case Drawn(value=value, run=run):
                return [_drawing(value, run)]
            case syntax.ShowExample(kind=kind):
                return [f"\t{k} example: {_quoted(self.interpreter.examples[k].tokens)}" for k in _kinds(kind)]
            case syntax.Switch(what="full", on=on):
                self.full = on
            case syntax.Switch(what=what, on=on):
                self.examples |= dict.fromkeys(_kinds(what), on)
        return []

    def _applied(self, value: Sequence | Matrix) -> str:
        if isinstance(value, Matrix):
            return f" \n{matrix_text(value)}"
        return full_text(value, " ") if self.full else f"  {sequence_text(value)}"

    def _value(self, name: str | None, value: Any, level: _Level) -> Iterator[str]:
        """Lines; `name` is None for what stands in a list or dict."""
        tab, start = level.tab, f"{level.tab} {level.key} "
        if isinstance(value, Node):
            yield from self._step(name or label(value), value, level)
        elif isinstance(value, Function):
            text = f"{value.scope.name} function: {value.name}({', '.join(value.parameters)})"
            yield f"{start}   {text}"
        elif isinstance(value, list | dict):
            yield from self._container("" if name is None else f"{name} = ", value, level)
        else:
            text = result_text(value) if isinstance(value, Sequence | Matrix) else _quoted(value)
            yield f"{tab}    value: {'' if name is None else f'{name} = '} {text}"

    def _container(self, named: str, value: list[Any] | dict[Any, Any], level: _Level) -> Iterator[str]:
        kind, (start, end) = ("dict", "{}") if isinstance(value, dict) else ("list", "[]")
        items = list(value.values()) if isinstance(value, dict) else value
        named = f"   {kind}: {named}"
        first = f"{level.tab} {level.key} {named}"
        if all(map(ops.is_atom, items)):
            yield f"{first}{value}"
            return
        level.left[0] -= len(items)
        if level.left[0] < 0 or len(level.tab) > 60:
            yield f"{first}{start}...{end}"
            return
        yield f"{first}{level.tab} {start}"
        keys = [f"{_quoted(key)} : " for key in value] if isinstance(value, dict) else [""] * len(items)
        tab = level.tab + "\t" * (3 if isinstance(value, dict) else 2)
        for key, item in zip(keys, items, strict=True):
            yield from self._value(None, item, replace(level, tab=tab, key=key))
        yield f"{level.tab}{' ' * (len(named) + 2)}{end}"

    def _step(self, name: str, value: Node, level: _Level) -> Iterator[str]:
        kind = "selector" if isinstance(value, Selector) else "s-op"
        yield f"{level.tab} {level.key}    {kind}: {name}"
        if not (self.examples[kind] and level.example):
            return
        run = self.interpreter.examples[kind]
        called, before = f"{name}({_quoted(run.tokens)}) =", f"{level.tab} \t Example:"
        try:
            shown = run.result(value)  # type: ignore[arg-type]
        except RaspError as error:  # the example was changed since the step was made
            yield f"{before} {called} undefined on this example: {error.message}"
            return
        if isinstance(shown, Matrix):
            yield before
            yield from (level.tab + line for line in matrix_text(shown).split("\n"))
        elif self.full:
            yield before + full_text(shown, called, level.tab)
        else:
            yield f"{before} {called} {sequence_text(shown)}"


@dataclass(frozen=True)
class _Level:
    """Where a value stands among lists and dicts: tabs before it, its key, and (`left`) how many elements may still be listed."""

    example: bool
    tab: str = ""
    key: str = ""
    left: list[int] = field(default_factory=lambda: [LISTED])


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
