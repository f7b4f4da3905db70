"""Machines on disk, and as `interp.Model`: model.safetensors, config.json and circuit.json, as of compiled programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import interp
from circuits.machines.machine import Machine, build
from circuits.rasp.compile.circuit import circuit_json
from circuits.rasp.compile.saved import check_empty
from circuits.rasp.compile.stream import Variable
from circuits.rasp.compile.wrapped import letters_tokenizer
from interp.errors import Failed, WrongUse, check_keys
from interp.files import read_json, read_tensors, save_tensors, write_json
from interp.model import Model

KIND, FORMAT = "machine", 1  # the entry point of the group `interp.models` that opens such a folder
FIELDS = ("interp_model", "format", "machine", "options", "variables")


def save(machine: Machine, folder: Path) -> None:
    """Write weights, options, what the directions hold, and the true circuit. Raises `WrongUse` for a folder that is in use."""
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", machine.model.state_dict())
    write_json(
        folder / "config.json",
        {
            "interp_model": KIND,
            "format": FORMAT,
            "machine": machine.name,
            "options": machine.options,
            "variables": [asdict(variable) for variable in machine.variables],
        },
    )
    write_json(folder / "circuit.json", circuit_json(machine))


def load(folder: Path) -> Machine:
    """The saved machine, with the weights of the folder. Raises `WrongUse` for a folder that holds none, `Failed` for another format."""
    if not (folder / "config.json").is_file():
        raise WrongUse(f"{folder} holds no machine: make one with `interp machine NAME -o {folder}`")
    config = read_json(folder / "config.json")
    if config.get("interp_model") != KIND or config.get("format") != FORMAT:
        raise Failed(f"{folder} holds no machine of format {FORMAT}: make it again with `interp machine NAME -o DIR`")
    check_keys(config, FIELDS, f"{folder}/config.json")
    machine = build(config["machine"], **config["options"])
    weights = read_tensors(folder / "model.safetensors")
    try:
        machine.model.load_state_dict(weights)
    except RuntimeError as error:
        raise Failed(f"the weights of {folder} do not fit its options: {error}") from error
    machine.variables = [Variable(**variable) for variable in config["variables"]]
    return machine


def opened(folder: Path) -> Model:
    """What `interp.load` makes of the folder of a machine."""
    return wrapped(load(folder))


def wrapped(machine: Machine) -> Model:
    """The model with a site for each variable, [batch, pos, value] or, of a number, [batch, pos, 1], and for each vector.

    Machines over letters take text.
    """
    model = interp.load(machine.model, tokenizer=letters_tokenizer(list(machine.letters)) if machine.letters else None)
    names = [*(v.name for v in machine.variables), *machine.vectors]
    model.name_parts({name: (machine.named(name)[0].ready, machine.directions(name)) for name in names})
    model.id = machine.name
    return model
