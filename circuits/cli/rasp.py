"""`interp rasp`: RASP programs. Alone it is a REPL; `run` gives a program's value on an input, `compile` makes it a transformer."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson
from interp.errors import WrongUse

app = typer.Typer(invoke_without_command=True, help=__doc__)

WARNINGS = typer.Option(True, "--warn/--no-warn", help="Warn where RASP's precedence may surprise.")

CAUSAL = typer.Option(False, "--causal", help="No position selects a later one.")


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
    causal: bool = CAUSAL,
    warn: bool = WARNINGS,
    as_json: AsJson = False,
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
        result = _result(value, _input(tokens or ""), causal)
        print(json.dumps(result, ensure_ascii=False) if as_json else _shown(result))
        return
    results = []
    for each in _inputs(inputs):
        try:
            results.append(_result(value, each, causal))
        except RaspError as error:
            results.append({"error": str(error)})
    print(json.dumps(results, ensure_ascii=False) if as_json else "\n".join(map(_shown, results)))


@app.command("compile")
@guarded
def compile_program(
    file: Path = typer.Argument(..., help="The program, a .rasp file."),
    var: str = typer.Option(..., "--var", help="The s-op that the model computes; several with commas between."),
    vocab: str = typer.Option(..., "--vocab", help="The tokens: letters, or a list written as JSON."),
    max_len: int = typer.Option(..., "--max-len", help="The greatest number of tokens in an input.", min=1),
    causal: bool = CAUSAL,
    output: Path = typer.Option(..., "-o", "--output", help="The folder to write, new or empty."),
    as_json: AsJson = False,
) -> None:
    """Write a transformer whose weights compute a program's variables on every input."""
    from circuits.rasp.compile import compile_program
    from circuits.rasp.compile.saved import check_empty, loaded_files, parsed_vocabulary, program_sops, save
    from circuits.rasp.interpreter import read_program

    check_empty(output)
    started = time.perf_counter()
    nodes = program_sops(file, [name.strip() for name in var.split(",")])
    compiled = compile_program(nodes, parsed_vocabulary(vocab), max_len, causal)
    seconds = time.perf_counter() - started
    save(compiled, output, read_program(file), loaded_files(file))
    answer({"folder": str(output), **compiled.model.sizes(), "seconds": round(seconds, 4)}, as_json, _listed)


FOLDER = typer.Argument(..., help="The folder of a compiled program.")


@app.command("apply")
@guarded
def apply_weights(
    folder: Path = FOLDER,
    tokens: str = typer.Option(..., "--input", help="A string, or a list written as JSON."),
    as_json: AsJson = False,
) -> None:
    """Run the saved weights on an input: values and type, of several variables by name."""
    from circuits.rasp.compile.saved import load
    from circuits.rasp.ops import sequence_type

    compiled = load(folder)
    found = {name: compiled.apply(_input(tokens), name) for name in compiled.outputs}
    results = {name: {"values": values, "type": sequence_type(values)} for name, values in found.items()}
    answer(results if len(results) > 1 else next(iter(results.values())), as_json, _listed)


@app.command("draw")
@guarded
def draw(
    folder: Path = FOLDER,
    tokens: str = typer.Option(..., "--input", help="A string, or a list written as JSON."),
    output: Path = typer.Option(..., "-o", "--output", help="The HTML file to write."),
    as_json: AsJson = False,
) -> None:
    """Write a page: what each head's selector selects beside where the head attends, and every value at every position."""
    from circuits.rasp.compile.saved import load, program_sops
    from circuits.rasp.pictures import picture

    compiled = load(folder)
    nodes = program_sops(folder / "program.rasp", list(compiled.outputs))
    seen = picture(nodes, compiled, _input(tokens))
    seen.write(output, f"{', '.join(nodes)} of {tokens}")
    answer({"page": str(output), "heads": len(seen.heads), "off": seen.off}, as_json, _listed)


@app.command("verify")
@guarded
def verify_weights(folder: Path = FOLDER, as_json: AsJson = False) -> None:
    """Compare saved weights with the interpreter on every input. Exit status 1 if a position is wrong.

    Lengths with more than two million inputs are tried on some: equal, different, and every count of one token.
    """
    from circuits.rasp.compile import verify
    from circuits.rasp.compile.saved import load, program_sops

    compiled = load(folder)
    nodes = program_sops(folder / "program.rasp", list(compiled.outputs))
    verdict = verify(nodes, compiled, progress=True)
    margin = verdict.worst_margin if math.isfinite(verdict.worst_margin) else None
    told = {name: value for name, value in vars(verdict).items() if name != "positions"}
    answer(told | {"worst_margin": margin}, as_json, _listed)
    if verdict.wrong:
        raise typer.Exit(1)


KINDS = "rotated, layer-norm, compressed or mimic"


@app.command("vary")
@guarded
def vary(
    folder: Path = FOLDER,
    kind: str = typer.Option(..., "--as", help=f"What to make of it: {KINDS}."),
    d_model: int | None = typer.Option(
        None, "--d-model", help="The width of the stream of one that is trained.", min=1
    ),
    steps: int | None = typer.Option(None, "--steps", help="How long one is trained.", min=1),
    seed: int = typer.Option(0, "--seed", help="Of what is drawn.", min=0),
    output: Path | None = typer.Option(None, "-o", "--output", help="The folder to write, new or empty."),
    as_json: AsJson = False,
) -> None:
    """Make another model of a compiled program: turned, with norms, narrower, or learnt; say how often it is right.

    `right` is the share of positions, over the inputs that `verify` runs. Attention is compared with the compiled model's: half
    the sum of the differences of a row, its mean and its greatest value.
    """
    from circuits.rasp.compile import verify
    from circuits.rasp.compile.saved import check_empty, load, loaded_files, program_sops, save
    from circuits.rasp.interpreter import read_program
    from circuits.rasp.trained import attention_off

    if output is not None:
        check_empty(output)
    compiled, started = load(folder), time.process_time()
    variant = _varied(compiled, kind, {"d_model": d_model, "steps": steps}, seed)
    seconds = time.process_time() - started
    verdict = verify(program_sops(folder / "program.rasp", list(compiled.outputs)), variant, progress=True)
    found = {"variant": kind, "d_model": variant.model.unembed.in_features, "of": compiled.model.unembed.in_features}
    found |= {"inputs": verdict.inputs, "wrong": verdict.wrong, "right": 1 - verdict.wrong / max(verdict.positions, 1)}
    found |= {f"attention_{name}": value for name, value in attention_off(compiled, variant).items()}
    if output is not None:
        save(variant, output, read_program(folder / "program.rasp"), loaded_files(folder / "program.rasp"))
    answer({**found, "cpu_seconds": round(seconds, 1)}, as_json, _listed)


def _varied(compiled: Any, kind: str, given: dict[str, int | None], seed: int) -> Any:
    """The variant; `given` are settings of those that are trained."""
    from circuits.rasp.trained import compressed, mimic
    from circuits.rasp.variants import rotated, with_layer_norm

    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if kind not in KINDS.replace(" or ", ", ").split(", "):
        raise WrongUse(f"there is no variant {kind!r}: give --as {KINDS}")
    if kind in ("rotated", "layer-norm"):
        if settings:
            raise WrongUse(
                f"--{'-'.join(next(iter(settings)).split('_'))} is for variants that are trained, and {kind} is not"
            )
        return rotated(compiled, seed) if kind == "rotated" else with_layer_norm(compiled)
    if kind == "mimic":
        return mimic(compiled, seed=seed, **settings)
    if "d_model" not in settings:
        raise WrongUse(f"give --d-model, below the {compiled.model.unembed.in_features} that the stream has")
    return compressed(compiled, seed=seed, **settings)


def _listed(result: dict[str, Any]) -> None:
    for key, value in result.items():
        print(f"{key:18} {value}")


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


def _result(value: Any, tokens: Any, causal: bool) -> dict[str, Any]:
    from circuits.rasp.analysis import cost
    from circuits.rasp.display import result_text
    from circuits.rasp.evaluate import Sequence, evaluate

    found, needs = evaluate(value, tokens, causal), cost(value)
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
