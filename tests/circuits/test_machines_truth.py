"""The equations of machines as causal models: right by themselves, and what the weights do, whichever variable is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuits.machines import build, wrapped
from circuits.machines.connectivity import distances
from circuits.machines.graphs import shortest
from circuits.machines.programs import Integers
from circuits.machines.truth import KINDS, truth
from circuits.rasp.compile.circuit import edges, possible_edges
from circuits.rasp.scores import edge_ranking, node_ranking, upstream
from circuits.rasp.truth import interchange_accuracy, true_alignment
from interp.errors import WrongUse

OPTIONS = {
    "parity": {},
    "first": {"log_n": True},
    "subleq": {"bits": 9, "addresses": 8},
    "graphs": {"nodes": 5},
    "permutation": {"n": 4, "symbols": 3},
    "connectivity": {"nodes": 6},
}


def stepped(memory: list[int], counter: int) -> dict[str, list[int]]:
    machine = Integers(list(memory), 9, counter)
    machine.step()
    return {"memory": machine.memory, "counter after": [machine.counter]}


RIGHT = {
    "parity": lambda bits: {"answer": [bits.count("1") % 2]},
    "first": lambda bits: {"answer": [int(bits[0])]},
    "subleq": lambda given: stepped(*given),
    "graphs": lambda given: {"distances": shortest(*given)},
    "permutation": lambda given: {"answer": [given[1][given[0].index(i)] for i in range(4)]},
    "connectivity": lambda graph: {"answer": (distances(graph[None])[0] <= 9).flatten().tolist()},
}


@pytest.mark.parametrize("name", KINDS)
def test_the_equations_say_what_is_true(name):
    equations = truth(build(name, **OPTIONS[name]))
    for example, _ in equations.pairs(20):
        found = equations.values(example)
        assert {key: found[key] for key in RIGHT[name](example)} == RIGHT[name](example)


@pytest.mark.parametrize("name", KINDS)
def test_every_variable_passes_interchange(name):
    machine = build(name, **OPTIONS[name])
    equations, model = truth(machine), wrapped(machine)
    pairs = equations.pairs(6, seed=1)
    moved = 0
    for variable in set(equations.values(pairs[0][0])) - set(equations.outputs):
        found = interchange_accuracy(equations, model, variable, true_alignment(machine, variable), pairs)
        assert found["positions"] == found["inputs"] == 1.0, variable
        moved += found["changed"] > 0
    assert moved >= 2


def test_a_wrong_place_does_not_pass():
    machine = build("subleq", bits=9, addresses=8)
    equations, model = truth(machine), wrapped(machine)
    found = interchange_accuracy(equations, model, "b", true_alignment(machine, "c"), equations.pairs(12, seed=2))
    assert found["inputs"] < 0.5 < found["changed"] * 10


def test_edges_and_components_of_machines_are_ranked_as_those_of_programs():
    machine = build("parity")
    true = {(e.sender, e.receiver, e.part) for e in edges(machine)}
    assert edge_ranking(machine, dict.fromkeys(true, 1.0)).auc == 1.0
    rng = np.random.default_rng(0)
    chance = [edge_ranking(machine, {e: rng.random() for e in possible_edges(machine)}).auc for _ in range(100)]
    assert abs(np.mean(chance) - 0.5) < 0.05
    assert upstream(machine, "[i=ones]/n") == {"embed", "pos_embed", "blocks.0.attn.0", "blocks.0.mlp"}
    assert node_ranking(machine, "ones/n", {"embed": 1.0, "blocks.0.attn.0": 1.0}).auc == 1.0
    looped = build("graphs", nodes=4)
    assert {(e.sender, e.receiver, e.part) for e in edges(looped)} < set(possible_edges(looped))
    assert ("blocks.2.mlp", "blocks.0.attn.0", "k") in possible_edges(looped)  # in the next loop


def test_what_has_no_causal_model_says_so():
    for machine, message in (
        (build("descent"), "no causal model"),
        (build("parity", layer_norm=True), "take one without"),
        (build("permutation", causal=True), "does not put a list in order"),
        (build("subleq", loops=2), "loops=1"),
    ):
        with pytest.raises(WrongUse, match=message):
            truth(machine)
    with pytest.raises(WrongUse, match="have no 'flags'"):
        truth(build("subleq", bits=6, addresses=4)).values(([1, 2, 3, 4], 0), {"flags": 1})


def test_a_variable_that_is_set_is_what_follows_from_it():
    """memory[b] - memory[a] with another memory[a], in integers."""
    equations = truth(build("subleq", bits=9, addresses=8))
    word = 1 + 8 * 2 + 64 * 5  # memory[2] -= memory[1]
    found = equations.values(([word, 30, 100, 0, 0, 0, 0, 0], 0), {"memory[a]": 77})
    assert (found["memory"][2], found["counter after"]) == (23, [1])
    assert torch.equal(equations.inputs(([word, 30, 100, 0, 0, 0, 0, 0], 3))[0, :2], torch.tensor([512 + 3, word]))
