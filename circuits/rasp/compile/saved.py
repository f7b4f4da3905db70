"""Compiled models on disk: model.safetensors, config.json, and the program, so that the weights can be verified against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import CompiledTransformer
from circuits.rasp.compile.values import distinct
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Node, SOp
from circuits.rasp.interpreter import Interpreter
from interp.errors import WrongUse, check_keys, nearest

FIELDS = ("format", "variable", "vocabulary", "length", "values", "labels")
FORMAT = 1


def program_sop(file: Path, name: str) -> SOp:
    """The s-op that a program file binds to a name. Raises `WrongUse` for a name without one, `RaspError` for a program that fails."""
    interpreter = Interpreter()
    interpreter.run_file(file)
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


def save(compiled: Compiled, folder: Path, file: Path, name: str) -> None:
    """Write the model, what its numbers mean, and a copy of the program. Raises `WrongUse` for a folder that is in use."""
    if folder.exists() and any(folder.iterdir()):
        raise WrongUse(f"{folder} is not empty: give -o another folder")
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(
        zip(FIELDS, (FORMAT, name, compiled.vocabulary, compiled.length, compiled.values, compiled.labels), strict=True)
    )
    (folder / "program.rasp").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in compiled.model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> tuple[Compiled, str]:
    """The saved model and the name of the variable it computes. Raises `WrongUse` for a folder that holds none."""
    if not (folder / "config.json").is_file():
        raise WrongUse(
            f"{folder} holds no compiled program: make one with `interp rasp compile FILE --var NAME -o {folder}`"
        )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    check_keys(config, FIELDS, f"{folder}/config.json")
    if config.get("format") != FORMAT:
        raise RaspError(f"{folder} has format {config.get('format')}, this version reads {FORMAT}")
    weights = load_file(folder / "model.safetensors")
    blocks: dict[int, dict[str, Any]] = {}
    for name, weight in weights.items():
        if name.startswith("blocks."):
            _, index, part = name.split(".")
            blocks.setdefault(int(index), {})[part] = weight
    model = CompiledTransformer(weights["W_E"], weights["W_pos"], [blocks[i] for i in sorted(blocks)], weights["W_U"])
    fields = (config[k] for k in ("vocabulary", "length", "values", "labels"))
    return Compiled(model, *fields), config["variable"]


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
