"""Connectivity by powers of the adjacency matrix: exact to the distance 3^L, blind beyond."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.csgraph import shortest_path

from circuits.machines import build
from circuits.machines.connectivity import chain, check, connected, distances, random_graphs, run
from interp.errors import WrongUse


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_chain_is_seen_to_3_to_the_layers_and_no_further(layers):
    nodes = 3**layers + 3
    machine = build("connectivity", nodes=nodes, layers=layers)
    (said,) = connected(machine, chain(nodes).unsqueeze(0))
    place = torch.arange(nodes)
    assert torch.equal(said, (place - place.unsqueeze(1)).abs() <= 3**layers)


@pytest.mark.parametrize("layers", [1, 2])
def test_every_graph_of_five_nodes(layers):
    pairs = torch.triu_indices(5, 5, 1)
    graphs = torch.zeros(1024, 5, 5, dtype=torch.long)
    graphs[:, pairs[0], pairs[1]] = (torch.arange(1024).unsqueeze(1) >> torch.arange(10)) & 1
    graphs = graphs + graphs.mT
    said = connected(build("connectivity", nodes=5, layers=layers), graphs)
    assert torch.equal(said, distances(graphs) <= 3**layers)


@pytest.mark.parametrize(("layers", "nodes"), [(1, 24), (2, 24), (3, 40)])
def test_random_graphs(layers, nodes):
    graphs = torch.cat([random_graphs(20, nodes, p, torch.Generator().manual_seed(1)) for p in (0.05, 0.1, 0.6)])
    truth = torch.stack([torch.from_numpy(shortest_path(graph.numpy(), unweighted=True)) for graph in graphs])
    torch.testing.assert_close(distances(graphs).double(), truth)
    assert torch.equal(connected(build("connectivity", nodes=nodes, layers=layers), graphs), truth <= 3**layers)


def test_the_stream_holds_the_powers_that_its_labels_say():
    machine = build("connectivity", nodes=6, layers=2)
    machine.model.double()
    (graph,) = random_graphs(1, 6, 0.4, torch.Generator().manual_seed(2)).double()
    graph = torch.maximum(graph, torch.eye(6, dtype=torch.float64))
    h = machine.model.loop(machine.model.stream(graph.unsqueeze(0)))[0]
    for power in (1, 3, 7, 9):
        held, wanted = h[:, machine.directions(f"A^{power}")], torch.linalg.matrix_power(graph, power)
        assert torch.allclose(held * wanted.max() / held.max(), wanted, rtol=1e-12)
    assert [machine.model.sizes()["d_model"]] == [6 * 4]
    assert all(bool((p >= 0).all()) for p in machine.model.parameters())  # no weight is negative


def test_a_single_node_is_connected_to_itself():
    assert connected(build("connectivity", nodes=1), torch.zeros(1, 1, 1, dtype=torch.long)).tolist() == [[[True]]]


def test_bfloat16_says_the_same():
    """A sign needs no precision, and bfloat16 reaches as far as float32."""
    machine = build("connectivity", nodes=12, layers=2)
    graph = torch.maximum(chain(12).float(), torch.eye(12)).unsqueeze(0)
    said = machine.model(graph) > 0
    machine.model.bfloat16()
    assert torch.equal(machine.model(graph.bfloat16()) > 0, said)


def test_in_words_and_sizes_that_are_refused():
    machine = build("connectivity", nodes=6, layers=1)
    found = run(machine, ["0-1", "1-2", "2-3", "3-4"])
    assert found["connected"][0] == [0, 1, 2, 3]
    assert found["unseen"] == [[0, 4]]
    with pytest.raises(WrongUse, match="no edge between nodes 0 … 5"):
        run(machine, ["0-6"])
    with pytest.raises(WrongUse, match="too many for float32"):
        build("connectivity", nodes=20, layers=4)
    assert all(row["said_connected"] == row["pairs_within"] for row in check(machine))
    assert all(row["said_connected_beyond"] == row["said_connected_apart"] == 0 for row in check(machine))
