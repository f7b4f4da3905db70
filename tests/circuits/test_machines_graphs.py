"""Shortest paths of the looped machine against scipy's Dijkstra, and one loop against what it should do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import dijkstra

from circuits.machines import build
from circuits.machines.graphs import FAR, found, inputs_of, random_graph, run, shortest
from interp.errors import WrongUse


def graphs_of(size: int, greatest: int, count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [random_graph(size, greatest, density, generator) for density in (0.05, 0.2, 0.6) for _ in range(count)]


@pytest.mark.parametrize(
    ("size", "greatest"), [(1, 1), (2, 7), (9, 1), (9, 100), (16, 60), (40, 1), (40, 25), (128, 8)]
)
def test_distances_and_parents(size, greatest):
    machine = build("graphs", nodes=size)
    graphs = graphs_of(size, greatest, 2 if size > 40 else 8, size)
    sources = [i % size for i in range(len(graphs))]
    answers = found(machine, graphs, sources)
    for graph, source, answer in zip(graphs, sources, answers, strict=True):
        truth = dijkstra(graph.numpy(), indices=source)
        truth[np.isinf(truth)] = FAR
        distance, parent = answer.double().unbind(-1)
        np.testing.assert_array_equal(distance.round().numpy(), truth)
        assert (distance - distance.round()).abs().max() < 1e-3
        assert shortest(graph, source) == truth.tolist()
        for node in range(size):
            before = round(parent[node].item())
            if node == source or truth[node] == FAR:
                assert before == node
            else:  # the edge from the parent is on a shortest path
                assert graph[before, node] > 0
                assert truth[before] + graph[before, node] == truth[node]


def test_the_width_is_the_same_for_every_size():
    assert {build("graphs", nodes=n).model.sizes()["d_model"] for n in (2, 16, 128)} == {11}
    assert {build("graphs", nodes=n).model.sizes()["parameters"] for n in (2, 16, 128)} == {635}


def test_each_loop_visits_one_node_in_order_of_distance():
    machine = build("graphs", nodes=9)
    (graph, *_) = graphs_of(9, 10, 1, 4)[2:]
    truth = dijkstra(graph.numpy(), indices=0)
    inputs = inputs_of([graph], [0])
    h, (visited,) = machine.model.stream(inputs["input_ids"]), machine.directions("visited")
    order = []
    for _ in range(9):
        before = h[0, :, visited].clone()
        h = machine.model.visit(h, inputs["graph"])
        (new,) = (h[0, :, visited] - before).round().nonzero().flatten().tolist()
        order.append(truth[new])
    assert order == sorted(order)
    scratch = [d for v in machine.variables if v.until for d in v.directions]
    assert h[..., scratch].abs().max() < 1e-3  # e^-32 times some thousands, and float32's rounding of them
    again = machine.model.visit(h, inputs["graph"])
    torch.testing.assert_close(again, h, rtol=0, atol=1e-3)  # all are visited: nothing changes any more


def test_fewer_loops_than_nodes_leave_far_nodes_unfound():
    chain = torch.diag(torch.ones(7, dtype=torch.long), 1)
    machine = build("graphs", nodes=8, loops=3)
    assert found(machine, [chain], [0])[0, :, 0].round().tolist() == [0, 1, 2, 3, FAR, FAR, FAR, FAR]


def test_the_path_in_words_and_what_is_no_graph():
    machine = build("graphs", nodes=5)
    answer = run(machine, ["0", "0-1:3", "1-2", "0-2:9", "2-3:2", "4-0"])
    assert answer["3"] == {"distance": 6, "path": [0, 1, 2, 3]}
    assert "4" not in answer
    for arguments, message in (
        (["x"], "no graph"),
        (["0", "0-1:0"], "no graph"),
        (["0", "0-7"], "set nodes=8"),
        (["0", "0-1:900", "1-2"], "distances below 1024"),
    ):
        with pytest.raises(WrongUse, match=message):
            run(machine, arguments)
    with pytest.raises(WrongUse, match="give 1 to 128"):
        build("graphs", nodes=129)
