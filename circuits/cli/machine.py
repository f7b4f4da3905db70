"""`interp machine`: transformers built by hand. NAME makes one, `run` shows what it computes, `check` measures it against what is true."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson
from interp.errors import WrongUse

app = typer.Typer(no_args_is_help=True, help=__doc__)

OPTIONS = typer.Option([], "--set", metavar="KEY=VALUE", help="An option of the machine; may be given again.")

NAME = typer.Argument(..., metavar="NAME", help="A machine, or the folder of a saved one.")


def _made(name: str, given: list[str]) -> Any:
    """The machine of a name with its options, or of a folder."""
    from circuits.machines import build, load
    from circuits.machines.machine import module_of

    if (Path(name) / "config.json").is_file():
        if given:
            raise WrongUse(f"{name} is made already: --set is for a machine that is named")
        return load(Path(name))
    options = inspect.signature(module_of(name).build).parameters
    return build(name, **dict(_parsed(pair, options) for pair in given))


def _parsed(pair: str, options: Any) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON of the kind that the option's default is of."""
    key, _, text = pair.partition("=")
    try:
        value = json.loads(text)
    except ValueError:
        raise WrongUse(f"--set {pair!r}: the value should be a number, true or false") from None
    default = options[key].default if key in options else value
    kind = int if default is None else type(default)
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise WrongUse(f"--set {pair!r}: {key} is {'true or false' if kind is bool else f'a number ({kind.__name__})'}")
    return key, value


def _maker(name: str) -> Callable[..., None]:
    @guarded
    def make(
        output: Path | None = typer.Option(None, "-o", "--output", help="The folder to write, new or empty."),
        options: list[str] = OPTIONS,
        as_json: AsJson = False,
    ) -> None:
        from circuits.machines import save

        machine = _made(name, options)
        if output is not None:
            save(machine, output)
        sizes = {"loops": machine.model.loops, **machine.model.sizes()}
        folder = {} if output is None else {"folder": str(output)}
        answer({**folder, "options": machine.options, **sizes, "directions": machine.labels}, as_json, _listed)

    return make


SUMMARIES = {
    "parity": "Is the number of ones odd? With and without LayerNorm and log n.",
    "first": "Is the first bit a one? With and without LayerNorm and log n.",
    "subleq": "A computer of one instruction, in a looped transformer.",
    "graphs": "Shortest paths, in a looped transformer whose heads read the graph.",
    "permutation": "A list put back in order: not causally, but with scratch tokens.",
    "descent": "Gradient descent in context, by linear attention.",
    "connectivity": "Which nodes are connected, to the distance 3^L.",
}

for each, summary in SUMMARIES.items():
    app.command(each, help=f"{summary} Prints its sizes; with -o writes it.")(_maker(each))


@app.command()
@guarded
def run(
    name: str = NAME,
    arguments: list[str] = typer.Argument(None, help="What it computes on; without any, what it takes is said."),
    options: list[str] = OPTIONS,
    as_json: AsJson = False,
) -> None:
    """Show what a machine computes. Numbers below zero come after --."""
    from circuits.machines.machine import module_of

    machine = _made(name, options)
    module = module_of(machine.name)
    if not arguments:
        raise WrongUse(f"{machine.name} takes {module.run.__doc__}")
    answer(module.run(machine, arguments), as_json, _listed)


@app.command()
@guarded
def check(name: str = NAME, options: list[str] = OPTIONS, as_json: AsJson = False) -> None:
    """Measure a machine against what is true, on every input or on many: the tables of docs/machines.md."""
    from circuits.machines.machine import module_of

    machine = _made(name, options)
    answer(module_of(machine.name).check(machine), as_json, _table)


def _listed(result: dict[str, Any]) -> None:
    for key, value in result.items():
        print(f"{key:18} {value}")


def _table(rows: list[dict[str, Any]]) -> None:
    """Rows as a table that Markdown reads."""
    print("| " + " | ".join(rows[0]) + " |")
    print("| " + " | ".join("---" for _ in rows[0]) + " |")
    for row in rows:
        print("| " + " | ".join(map(_cell, row.values())) + " |")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
