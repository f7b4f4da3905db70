"""`interp rasp`: RASP programs. Alone it is a REPL; `interp rasp run` gives a program's value on an input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from interp.cli import guarded
from interp.errors import WrongUse

app = typer.Typer(invoke_without_command=True, help=__doc__)

WARNINGS = typer.Option(True, "--warn/--no-warn", help="Warn where RASP's precedence may surprise.")


@app.callback()
def main(context: typer.Context, warn: bool = WARNINGS) -> None:
    if context.invoked_subcommand is None:
        from circuits.rasp.repl import repl

        repl(warn)


@app.command()
@guarded
def run(
    file: Path = typer.Argument(..., help="The program, a .rasp file."),
    var: str = typer.Option(..., "--var", help="The s-op or selector that is asked for."),
    tokens: str | None = typer.Option(None, "--input", help="A string, or a list written as JSON."),
    inputs: Path | None = typer.Option(None, "--inputs", help="A file with a JSON list of inputs; prints a list."),
    warn: bool = WARNINGS,
    as_json: bool = typer.Option(False, "--json", help="Print JSON on standard output."),
) -> None:
    """Print the value of a variable on an input. Exit status 1 if the program or the input fails.

    With --inputs every result says for itself whether it failed. Statements that fail are reported on standard error.
    """
    from circuits.rasp.errors import RaspError

    if (tokens is None) == (inputs is None):
        raise WrongUse("give one of --input TEXT and --inputs FILE")
    interpreter = _executed(file, warn)
    value = _asked(interpreter, var)
    if inputs is None:
        result = _result(value, _input(tokens or ""))
        print(json.dumps(result, ensure_ascii=False) if as_json else _shown(result))
        return
    results = []
    for each in _inputs(inputs):
        try:
            results.append(_result(value, each))
        except RaspError as error:
            results.append({"error": str(error)})
    print(json.dumps(results, ensure_ascii=False) if as_json else "\n".join(map(_shown, results)))


def _executed(file: Path, warn: bool) -> Any:
    from circuits.rasp.interpreter import Interpreter
    from circuits.rasp.traps import traps

    interpreter = Interpreter()
    program = interpreter.run_file(file)
    for span, message in traps(program) if warn else ():
        print(f"{span}: warning: {message}\n{span.picture()}", file=sys.stderr)
    for problem in interpreter.problems:
        print(f"{problem}", file=sys.stderr)
    return interpreter


def _asked(interpreter: Any, var: str) -> Any:
    from circuits.rasp.errors import RaspError
    from circuits.rasp.graph import Node

    try:
        value = interpreter.value(var)
    except RaspError as error:
        if interpreter.problems:
            raise interpreter.problems[0] from None
        raise WrongUse(str(error)) from None
    if not isinstance(value, Node):
        raise WrongUse(f"{var!r} is no s-op or selector, but a value of the program itself")
    return value


def _input(text: str) -> Any:
    """A JSON list of atoms as a list, anything else as a string: `[()]` and `[]` are strings of brackets."""
    from circuits.rasp.ops import is_atom

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list) and value and all(map(is_atom, value)) else text


def _inputs(file: Path) -> list[Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WrongUse(f"{file} is not JSON: {error}") from None
    if not isinstance(values, list):
        raise WrongUse(f'{file} should hold a JSON list of inputs, such as ["hello", [1, 2, 3]]')
    return values


def _result(value: Any, tokens: Any) -> dict[str, Any]:
    from circuits.rasp.analysis import cost
    from circuits.rasp.display import result_text
    from circuits.rasp.evaluate import Sequence, evaluate

    found, needs = evaluate(value, tokens), cost(value)
    if isinstance(found, Sequence):
        known: dict[str, Any] = {"values": list(found.values), "type": found.type}
    else:
        known = {"matrix": [list(row) for row in found.rows], "type": "selector"}
    return {
        **known,
        "display": result_text(found),
        "layers": needs.layers,
        "heads_per_layer": {str(layer): heads for layer, heads in needs.heads_per_layer.items()},
    }


def _shown(result: dict[str, Any]) -> str:
    return str(result.get("error") or result["display"])
