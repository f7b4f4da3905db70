"""Machines among other models: files, sites, labels, the doctor, circuits, commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import interp
from circuits.cli.machine import SUMMARIES, app
from circuits.machines import MACHINES, build, load, save, wrapped
from circuits.machines.machine import Machine
from circuits.machines.subleq import ids_of, numbers
from circuits.rasp.compile.circuit import edges
from interp.errors import Failed, WrongUse
from interp.model.proof import by_letter, doctor

SMALL = {
    "parity": {},
    "first": {"layer_norm": True},
    "subleq": {"bits": 6, "addresses": 4, "loops": 2},
    "graphs": {"nodes": 5, "loops": 2},
    "permutation": {"n": 3, "scratch": True},
    "descent": {"steps": 2},
    "connectivity": {"nodes": 5},
}


def small(name: str) -> Machine:
    return build(name, **SMALL[name])


@pytest.mark.parametrize("name", MACHINES)
def test_a_folder_holds_the_same_machine(tmp_path, name):
    machine = small(name)
    save(machine, tmp_path / "m")
    again = load(tmp_path / "m")
    assert (again.name, again.options, again.variables) == (machine.name, machine.options, machine.variables)
    torch.testing.assert_close(again.model(**machine.example), machine.model(**machine.example), rtol=0, atol=0)
    model = interp.load(tmp_path / "m")
    torch.testing.assert_close(model(dict(machine.example)), machine.model(**machine.example), rtol=0, atol=0)
    assert interp.load(tmp_path / "m", dtype="float64").dtype == torch.float64
    circuit = json.loads((tmp_path / "m" / "circuit.json").read_text())
    assert {"components", "edges", "possible_edges", "variables"} == set(circuit)
    with pytest.raises(WrongUse, match="not empty"):
        save(machine, tmp_path / "m")


@pytest.mark.parametrize("name", MACHINES)
def test_every_direction_has_one_label(name):
    machine = small(name)
    assert len(machine.labels) == len(set(machine.labels)) == machine.model.sizes()["d_model"]
    assert sorted(d for v in machine.variables for d in v.directions) == list(range(len(machine.labels)))


@pytest.mark.parametrize("name", MACHINES)
def test_the_doctor(name):
    model = wrapped(small(name))
    proofs = by_letter(doctor(model, gradients=2))
    assert not {letter: p["reason"] for letter, p in proofs.items() if p["status"] == "fail"}
    assert {letter for letter, p in proofs.items() if p["status"] == "pass"} >= {"a", "b", "d", "e"}


def test_a_live_machine_is_loaded_as_it_is():
    machine = small("graphs")
    model = interp.load(machine.model)
    cache = model.record(dict(machine.example), ["blocks.1.resid_post"])
    assert cache["blocks.1.resid_post"].shape == (1, 5, 11)


def test_variables_are_sites_and_hold_what_they_say():
    machine = build("parity")
    model = wrapped(machine)
    found = model.record(torch.tensor([[2, 0, 1, 1, 0, 1]]), ["[i=ones]/n", "ones/n", "token", "odd"])
    assert found["ones/n"][0, :, 0].tolist() == pytest.approx([0.5] * 6)
    assert found["[i=ones]/n"][0, :, 0].tolist() == pytest.approx([0, 0, 0, 1 / 6, 0, 0], abs=1e-7)
    assert found["token"][0].argmax(-1).tolist() == [2, 0, 1, 1, 0, 1]
    assert found["odd"][0, 0, 0] > 0
    torch.testing.assert_close(model("01101"), machine.model(torch.tensor([[2, 0, 1, 1, 0, 1]])), rtol=0, atol=0)


def test_patching_a_variable_is_computing_with_another_value():
    """memory[b] - memory[a] with the memory[a] of another run: the true causal variable of the looped computer."""
    machine = build("subleq", bits=9, addresses=8)
    model = wrapped(machine)
    word = 1 + 8 * 2 + 64 * 5  # memory[2] -= memory[1]
    base, other = (ids_of([[word, a, 100, 0, 0, 0, 0, 0]], [0], 9) for a in (30, 77))
    given = model.record(other, ["memory[a]"])
    with model.edit(interp.Patch("memory[a]", given)):
        ((counter, memory),) = numbers(model(base), 3)
    assert (counter, memory[1], memory[2]) == (1, 30, 100 - 77)


def test_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "machines.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)\n```", page, re.DOTALL))
    exec(code, {})
    for line in re.findall(r"^interp machine run (.*)$", page, re.MULTILINE):
        if not line.startswith("NAME"):
            assert said("run", *line.split())[0] == 0, line


def test_the_true_circuit_is_what_the_equations_say():
    machine = build("parity")
    parts = {part.name: part for part in machine.components}
    assert parts["blocks.0.mlp"].reads == {"in": ["i/n", "ones/n", "1/n"]}
    assert parts["blocks.1.attn.1"].reads == {"q": ["token"], "k": ["even"], "v": ["[i=ones]/n"]}
    found = {(edge.sender, edge.receiver, edge.variable) for edge in edges(machine)}
    assert ("blocks.0.mlp", "blocks.1.attn.0", "[i=ones]/n") in found
    assert ("blocks.1.attn.0", "logits", "odd") in found
    looped = {(edge.sender, edge.receiver, edge.variable) for edge in edges(small("graphs"))}
    assert ("blocks.1.mlp", "blocks.0.attn.0", "visited") in looped  # in the next loop
    assert ("blocks.1.mlp", "blocks.0.attn.0", "hot") not in looped  # set back to zero in this one


def test_taking_away_what_is_no_edge_changes_nothing():
    """Zeroing what a part does not read leaves its output, to the bit: on all machines, every variable, every MLP."""
    for name in MACHINES:
        machine = small(name)
        parts = {part.name: part for part in machine.components}
        h = torch.randn(2, 4, machine.model.sizes()["d_model"], generator=torch.Generator().manual_seed(0))
        for i, block in enumerate(machine.model.blocks):
            if block.mlp is None:
                continue
            unread = [d for v in machine.variables for d in v.directions]
            unread = [
                d for d in unread if not any(d in machine.directions(n) for n in parts[f"blocks.{i}.mlp"].reads["in"])
            ]
            without = h.index_fill(-1, torch.tensor(unread, dtype=torch.long), 0.0)
            torch.testing.assert_close(block.mlp(without), block.mlp(h), rtol=0, atol=0)


def test_names_and_options_that_are_not_there():
    with pytest.raises(WrongUse, match="Did you mean 'parity'"):
        build("party")
    with pytest.raises(WrongUse, match="Did you mean 'sharpness'"):
        build("parity", sharpnes=2.0)
    with pytest.raises(WrongUse, match="no variable 'ones'"):
        build("parity").directions("ones")


def test_folders_that_hold_no_machine(tmp_path):
    with pytest.raises(WrongUse, match="holds no machine"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"interp_model": "machine", "format": 99}')
    with pytest.raises(Failed, match="no machine of format"):
        load(tmp_path)
    save(build("parity"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["options"]["layer_norm"] = True
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Failed, match="do not fit its options"):
        load(tmp_path / "m")


def said(*words: str) -> tuple[int, object]:
    found = CliRunner().invoke(app, [*words, "--json"])
    return found.exit_code, json.loads(found.stdout.strip().splitlines()[-1]) if found.stdout.strip() else None


def test_commands(tmp_path):
    assert set(SUMMARIES) == set(MACHINES)
    code, made = said("first", "--set", "log_n=true", "--set", "sharpness=2", "-o", str(tmp_path / "m"))
    assert code == 0
    assert made["options"] == {"layer_norm": False, "log_n": True, "sharpness": 2, "eps": 1e-5}
    code, answer = said("run", str(tmp_path / "m"), "1000")
    assert (code, answer["answer"]) == (0, 1)
    assert answer["margin"] == pytest.approx(25 / (25 + 4) / 2, rel=1e-5)
    code, rows = said("check", "connectivity", "--set", "nodes=6", "--set", "layers=1")
    assert (code, rows[0]["said_connected_beyond"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "parrity", "01"], "Did you mean 'parity'"),
        (["run", "parity"], "takes STRING"),
        (["parity", "--set", "log_n=1"], "log_n is true or false"),
        (["graphs", "--set", "loops=1.5"], "loops is a number (int)"),
        (["parity", "--set", "log_n"], "should be a number, true or false"),
        (["parity", "--set", "logn=true"], "Did you mean 'log_n'"),
        (["parity", "--set", "sharpness=NaN"], "give a finite number"),
        (["first", "--set", "sharpness=1000"], "at most 80"),
        (["permutation", "--set", "sharpness=1000"], "at most 500"),
        (["check", "permutation", "--set", "n=20"], "more than 1,000,000 inputs"),
        (["descent", "--set", "x=100000"], "more than 16,384 directions"),
        (["descent", "--set", "x=7000"], "weights of 7002 x 14002"),
        (["descent", "--set", "steps=1001"], "at most 1,000"),
    ],
)
def test_wrong_use_is_said_in_one_line(words, message):
    code, answer = said(*words)
    assert code == 2
    assert message in answer["error"]
