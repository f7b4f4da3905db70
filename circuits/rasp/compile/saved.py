"""Compiled models on disk: model.safetensors, config.json, and the program, so that the weights can be verified against it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from circuits.rasp.compile.build import Compiled, Component
from circuits.rasp.compile.circuit import circuit_json
from circuits.rasp.compile.model import CompiledTransformer
from circuits.rasp.compile.stream import Variable
from circuits.rasp.compile.values import distinct
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Node, SOp
from circuits.rasp.interpreter import PACKAGED, Interpreter, find_file, read_program
from circuits.rasp.parser import parse
from circuits.rasp.syntax import Load, walk
from circuits.rasp.variants import LAYER_NORM, NormedTransformer
from interp.errors import WrongUse, check_keys, nearest
from interp.files import read_json, read_tensors, save_tensors, write_json, write_text

FIELDS = (
    "interp_model",
    "format",
    "vocabulary",
    "length",
    "causal",
    "heads",
    "outputs",
    "variables",
    "components",
    "variant",
)
FORMAT = 2
PROGRAM = "program.rasp"
KIND = "rasp"  # the entry point of the group `interp.models` that opens such a folder


def program_sops(file: Path, names: list[str]) -> dict[str, SOp]:
    """The s-ops that a program file binds to names. Raises `WrongUse` for a name without one, `RaspError` for a program that fails."""
    interpreter = Interpreter()
    interpreter.run_file(file)
    return {name: _sop(interpreter, file, name) for name in names}


def _sop(interpreter: Interpreter, file: Path, name: str) -> SOp:
    known = interpreter.scope.known()
    if name not in known and interpreter.problems:
        raise interpreter.problems[0]
    if name not in known:
        raise WrongUse(f"{file} has no {name!r}.{nearest(name, known)}")
    value = interpreter.value(name)
    if not isinstance(value, SOp):
        what = "a selector" if isinstance(value, Node) else "a value of the program itself"
        raise WrongUse(f"{name!r} is {what}; s-ops are compiled")
    return value


def check_empty(folder: Path) -> None:
    """Raises `WrongUse` for a folder that is in use."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(f"{folder} is not empty: give -o another folder")


def loaded_files(file: Path) -> dict[str, str]:
    """The texts of the files that a program loads, and that these load, by their places beside it.

    Not those that are packaged, nor those from outside its folder, which stay where they are. Raises `WrongUse` for a
    file called as the program will be.
    """
    found: dict[str, str] = {}
    waiting = [(file.resolve(), Path())]
    while waiting:
        loader, folder = waiting.pop()
        with contextlib.suppress(RaspError):  # whoever runs the program is told
            for node in walk(parse(read_program(loader), str(loader))):
                if not isinstance(node, Load):
                    continue
                loaded, place = find_file(node.path, loader.parent), folder / f"{node.path}.rasp"
                if loaded.parent == PACKAGED or place.is_absolute() or ".." in place.parts or str(place) in found:
                    continue
                if str(place) == PROGRAM:
                    raise WrongUse(f"{file} loads a file called {PROGRAM}, and so is the program's copy: rename it")
                found[str(place)] = read_program(loaded)
                waiting.append((loaded, place.parent))
    return found


def save(compiled: Compiled, folder: Path, program: str, loaded: Mapping[str, str] | None = None) -> None:
    """Write the model, what its numbers mean, the true circuit, and the text of the program and of the files it loads.

    Raises `WrongUse` for a folder in use.
    """
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = compiled.model
    config = {
        "interp_model": KIND,
        "format": FORMAT,
        "vocabulary": compiled.vocabulary,
        "length": compiled.length,
        "causal": compiled.causal,
        "heads": model.sizes()["heads_per_layer"],
        "outputs": compiled.outputs,
        "variables": [asdict(variable) for variable in compiled.variables],
        "components": [asdict(component) for component in compiled.components],
        "variant": compiled.variant,
    }
    circuit = circuit_json(compiled) | {"basis": None if compiled.basis is None else compiled.basis.tolist()}
    for place, text in {PROGRAM: program, **(loaded or {})}.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / place, text)
    save_tensors(folder / "model.safetensors", model.state_dict())
    write_json(folder / "config.json", config)
    write_json(folder / "circuit.json", circuit)


def load(folder: Path) -> Compiled:
    """The saved model. Raises `WrongUse` for a folder that holds none, `RaspError` for one of another format."""
    if not (folder / "config.json").is_file():
        raise WrongUse(
            f"{folder} holds no compiled program: make one with `interp rasp compile FILE --var NAME -o {folder}`"
        )
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise RaspError(f"{folder} has format {config.get('format')}, this version reads {FORMAT}: compile it again")
    check_keys(config, FIELDS, f"{folder}/config.json")
    weights = read_tensors(folder / "model.safetensors")
    model, variant = CompiledTransformer.of(weights, config["heads"], config["causal"]), config.get("variant", "")
    if variant == LAYER_NORM:
        model = NormedTransformer(model, weights["norm.weight"][0].item())
    variables = [Variable(**variable) for variable in config["variables"]]
    components = [Component(**component) for component in config["components"]]
    rows = read_json(folder / "circuit.json").get("basis") if variant else None
    basis = None if rows is None else torch.tensor(rows)
    return Compiled(
        model, config["vocabulary"], config["length"], config["outputs"], variables, components, variant, basis
    )


def parsed_vocabulary(text: str) -> list[Any]:
    """`abc` is three letters; a list of tokens is written as JSON. Raises `WrongUse` for an empty one."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    tokens = distinct(value if isinstance(value, list) and value else text)
    if not tokens:
        raise WrongUse("the vocabulary needs at least one token")
    return tokens
