"""Shortest paths from a node, Dijkstra's way, in a looped transformer whose heads read the graph (after de Luca & Fountoulakis 2024).

A position is a node i; G_ij is the length of the edge from i to j, `FAR` where there is none. Each node holds its distance
(at first 0 at the source, `FAR` elsewhere), whether it was visited, and its parent. The width is the same for every graph;
only logits grow with the number of nodes. One loop visits one node u:

    layer 1   every node attends to the unvisited node with the least distance, of several the first: the logit of j is
              -β (R distance_j + j) - V visited_j, R above every index; it copies u's distance and index
              MLP: hot = [i = u]
    layer 2   a head that reads the graph: node i attends to itself (-β (i-j)²) and sends hot along its edges; node j
              receives edge_j = Σ_i G_ij hot_i = G_uj
              MLP: gain = relu(distance - distance_u - edge), distance -= gain, better = [gain ≥ 1], visited = 1 at u
    layer 3   MLP: parent = u where better

After as many loops as there are nodes all distances are right, and further loops change nothing. With all lengths 1 this is
breadth-first search. Lengths are whole numbers; the paper finds the least by a loop over nodes, here one head does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from circuits.machines.layers import GraphBlock, Places
from circuits.machines.machine import Machine, Names
from circuits.machines.neurons import Layer, Neurons
from circuits.rasp.compile.model import Block, Stack, linear
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

FAR = 1024.0  # the length of no edge; distances are below it
SHARP = 32.0  # β: what is read is right to n e^-β, e^-β = 1e-14


class Finder(Stack):
    """A stack that gets the source (1 there, 0 elsewhere) and the graph; its output is [distance, parent] at every node."""

    def forward(  # type: ignore[override]
        self, input_ids: Float[Tensor, "batch node 1"], graph: Float[Tensor, "batch node node"]
    ) -> Float[Tensor, "batch node 2"]:
        """Distances from the source, `FAR` where there is no path, and the node before on the way."""
        h = self.stream(input_ids)
        for _ in range(self.loops):
            h = self.visit(h, graph)
        return self.logits(h)

    def visit(
        self, h: Float[Tensor, "batch node d_model"], graph: Float[Tensor, "batch node node"]
    ) -> Float[Tensor, "batch node d_model"]:
        """The stream after one more node was visited."""
        for block in self.blocks:
            h = block(h, graph) if isinstance(block, GraphBlock) else block(h)
        return h


class Parts:
    """The directions of the stream, and the layers in their terms."""

    def __init__(self, nodes: int) -> None:
        self.nodes, self.names = nodes, Names()
        names = self.names
        self.distance = names.number("distance")
        names.writer = "pos_embed"
        self.index, self.square, self.one = names.number("index"), names.number("index²"), names.bit("one")
        self.parent = names.number("parent")
        names.at("blocks.1.mlp", "blocks.1.resid_post")
        self.visited = names.bit("visited")
        names.at("blocks.0.attn.0", "blocks.0.resid_mid", "blocks.2.resid_pre")
        self.u = names.number("u")
        names.until = "blocks.1.resid_mid"
        self.at_u = names.number("distance[u]")
        names.at("blocks.0.mlp", "blocks.0.resid_post", "blocks.1.resid_mid")
        self.hot = names.bit("hot")
        names.at("blocks.1.attn.0", "blocks.1.resid_mid", "blocks.1.resid_mid")
        self.edge = names.number("edge")
        names.at("blocks.1.mlp", "blocks.1.resid_post", "blocks.2.resid_pre")
        self.better = names.bit("better")

    def choose(self) -> Layer:
        """Layer 1: the unvisited node u with the least distance, and whether it is this one: [i - u = 0]."""
        head = {"W_Q": self.names.zeros(1, -1, 1), "W_K": self.names.zeros(1, -1, 1)}
        head |= {"W_V": self.names.zeros(1, -1, 2), "W_O": self.names.zeros(1, 2, -1)}
        head["W_Q"][0, self.one] = SHARP
        order = torch.tensor([self.nodes, 1.0, 2 * self.nodes * FAR], dtype=torch.float64)
        head["W_K"][0, [self.distance, self.index, self.visited], 0] = -order
        head["W_V"][0, [self.index, self.distance], [0, 1]] = 1.0
        head["W_O"][0, [0, 1], [self.u, self.at_u]] = 1.0
        mlp = Neurons(self.names.width)
        mlp.step({self.index: 1.0, self.u: -1.0}, 0.0, 0, {self.hot: 1.0})
        mlp.step({self.index: 1.0, self.u: -1.0}, 0.0, 1, {self.hot: -1.0})
        return head | mlp.weights()

    def relax(self) -> Layer:
        """Layer 2: the edges from u, and the distances by way of them."""
        head = {"W_Q": self.names.zeros(1, -1, 2), "W_K": self.names.zeros(1, -1, 2)}
        head |= {"W_V": self.names.zeros(1, -1, 1), "W_O": self.names.zeros(1, 1, -1)}
        head["W_Q"][0, [self.index, self.one], [0, 1]] = torch.tensor([2 * SHARP, -SHARP], dtype=torch.float64)
        head["W_K"][0, [self.index, self.square], [0, 1]] = 1.0  # 2β i j - β j²
        head["W_V"][0, self.hot] = head["W_O"][0, 0, self.edge] = 1.0
        mlp = Neurons(self.names.width)
        gain = {self.distance: 1.0, self.at_u: -1.0, self.edge: -1.0}
        mlp.add(gain, 0.0, {self.distance: -1.0, self.better: 1.0})
        mlp.add(gain, -1.0, {self.better: -1.0})
        mlp.add({self.hot: 1.0, self.visited: -1.0}, 0.0, {self.visited: 1.0})
        for gone in (self.hot, self.edge, self.at_u):
            mlp.copy(gone, {gone: -1.0})
        return head | mlp.weights()

    def follow(self) -> Layer:
        """Layer 3: u - parent, shut off by 1 - [better]."""
        mlp = Neurons(self.names.width)
        for sign in (1.0, -1.0):
            reads = {self.u: sign, self.parent: -sign, self.better: float(self.nodes)}
            mlp.add(reads, -float(self.nodes), {self.parent: sign})
        for gone in (self.u, self.better):
            mlp.copy(gone, {gone: -1.0})
        return mlp.weights()


def build(nodes: int = 16, loops: int | None = None) -> Machine:
    """The machine for graphs of at most `nodes` nodes; `loops` is how many it visits, all if not given.

    Raises `WrongUse` for sizes at which float32 could not tell two nodes apart.
    """
    if not 1 <= nodes <= 128:
        raise WrongUse(f"{nodes} nodes are asked for: give 1 to 128, so that float32 tells their logits apart")
    parts = Parts(nodes)
    names = parts.names
    blocks = [Block(parts.choose(), False), GraphBlock(parts.relax()), Block(parts.follow(), False)]
    unembed = names.zeros(-1, 2)
    unembed[[parts.distance, parts.parent], [0, 1]] = 1.0
    start = names.zeros(1, -1)
    start[0, parts.distance] = -FAR
    places = Places({"index": parts.index, "square": parts.square, "one": parts.one}, names.width)
    places.table[0, parts.parent] = 1.0  # at first a node is its own parent
    places.table[2, parts.distance] = FAR
    options = {"nodes": nodes, "loops": nodes if loops is None else loops}
    model = Finder(linear(start), places, blocks, linear(unembed), causal=False, loops=options["loops"])
    graph = torch.full((1, min(nodes, 6), min(nodes, 6)), FAR)
    example = {"input_ids": torch.ones(1, len(graph[0]), 1), "graph": graph}
    return Machine("graphs", options, model, names.variables, example)


def inputs_of(lengths: list[Int[Tensor, "node node"]], sources: list[int]) -> dict[str, Tensor]:
    """What the model takes: graphs of one size as matrices of lengths, 0 where there is no edge, and their sources."""
    graph = torch.stack(lengths).float()
    source = torch.zeros(len(graph), graph.shape[1], 1)
    source[range(len(graph)), sources] = 1.0
    return {"input_ids": source, "graph": torch.where(graph == 0, FAR, graph)}


def shortest(lengths: Int[Tensor, "node node"], source: int) -> list[float]:
    """Distances by relaxing every edge as often as there are nodes (Bellman 1958, Ford 1956): what the machine is compared with."""
    graph = torch.where(lengths == 0, torch.inf, lengths.double())
    distance = torch.full((len(graph),), torch.inf, dtype=torch.float64)
    distance[source] = 0.0
    for _ in range(len(graph)):
        distance = torch.minimum(distance, (distance.unsqueeze(1) + graph).min(0).values)
    return [d if d < FAR else FAR for d in distance.tolist()]


def random_graph(nodes: int, greatest: int, density: float, generator: torch.Generator) -> Int[Tensor, "node node"]:
    """Directed edges with lengths 1 … `greatest`, each there with the probability `density`."""
    lengths = torch.randint(1, greatest + 1, (nodes, nodes), generator=generator)
    there = torch.rand(nodes, nodes, generator=generator) < density
    return lengths * there * (1 - torch.eye(nodes, dtype=torch.long))


@torch.no_grad()
def found(
    machine: Machine, lengths: list[Int[Tensor, "node node"]], sources: list[int]
) -> Float[Tensor, "graph node 2"]:
    """Distance and parent of every node. Raises `WrongUse` for graphs too large, or lengths that it does not take."""
    if any(len(graph) > machine.options["nodes"] for graph in lengths):
        raise WrongUse(f"the machine was made for {machine.options['nodes']} nodes: set nodes={max(map(len, lengths))}")
    if any(bool((graph < 0).any()) or int(graph.max()) * (len(graph) - 1) >= FAR for graph in lengths):
        raise WrongUse(f"lengths are whole numbers from 1 on, and distances below {FAR:.0f}")
    return machine.model(**inputs_of(lengths, sources))


def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """SOURCE FROM-TO[:LENGTH]…: the distance and the shortest path to every node that can be reached."""
    try:
        source, edges = int(arguments[0]), [_edge(text) for text in arguments[1:]]
    except (ValueError, IndexError) as error:
        raise WrongUse(
            f"{' '.join(arguments)!r} is no graph: give the source and its edges, such as 0 0-1:3 1-2"
        ) from error
    size = 1 + max([source, *(node for a, b, _ in edges for node in (a, b))])
    lengths = torch.zeros(size, size, dtype=torch.long)
    for a, b, length in edges:
        lengths[a, b] = length
    (answer,) = found(machine, [lengths], [source])
    distance, parent = answer.round().long().unbind(-1)
    paths = {}
    for node in range(size):
        path = [node]
        while path[0] != source and int(parent[path[0]]) != path[0]:
            path.insert(0, int(parent[path[0]]))
        if path[0] == source:
            paths[str(node)] = {"distance": int(distance[node]), "path": path}
    return paths


def _edge(text: str) -> tuple[int, int, int]:
    ends, _, length = text.partition(":")
    a, b = map(int, ends.split("-"))
    if min(a, b) < 0 or int(length or 1) < 1:
        raise ValueError(text)
    return a, b, int(length or 1)


def check(machine: Machine, graphs: int = 50) -> list[dict[str, Any]]:
    """Random graphs: distances that are wrong, and how far any is from a whole number; lengths 1 are breadth-first search."""
    generator, rows = torch.Generator().manual_seed(0), []
    for size in sorted({2, machine.options["nodes"] // 2, machine.options["nodes"]} - {0, 1}):
        for greatest in (1, int((FAR - 1) // max(size - 1, 1) if size > 8 else 100)):
            lengths = [
                random_graph(size, greatest, density, generator) for density in (0.1, 0.3, 0.8) for _ in range(graphs)
            ]
            sources = [int(s) for s in torch.randint(size, (len(lengths),), generator=generator)]
            answer = found(machine, lengths, sources)
            truth = torch.tensor([shortest(graph, source) for graph, source in zip(lengths, sources, strict=True)])
            rows.append(
                {
                    "nodes": size,
                    "greatest_length": greatest,
                    "graphs": len(lengths),
                    "wrong": int((answer[..., 0].round() != truth).sum()),
                    "largest_difference": (answer[..., 0] - truth).abs().max().item(),
                    "d_model": machine.model.sizes()["d_model"],
                }
            )
    return rows
