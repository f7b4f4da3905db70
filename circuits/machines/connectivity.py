"""Graph connectivity by a disentangled transformer: exact to the distance 3^L (Ye et al. 2025, arXiv 2510.19753).

The tokens are the rows of the adjacency matrix A with ones on its diagonal. What attention finds is not added to what is
there but written beside it, so that the width doubles with every layer; there is no softmax and no MLP, and no weight is
negative:

    h_0 = A    h_l = [h_(l-1), X Xᵀ h_(l-1)/n], X the last n directions of h_(l-1)

X is a positive multiple of A, A³, A⁹, …: after L layers the last n directions hold A^(3^L)/n^((3^L - 1)/2). Entry ij counts
the walks of 3^L steps from i to j, and since a step may stay where it is, is above 0 exactly where j is at most 3^L edges away.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from circuits.machines.layers import LinearAttention
from circuits.machines.machine import Machine, Names
from circuits.rasp.compile.model import Block, Stack, linear
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def build(nodes: int = 10, layers: int = 2) -> Machine:
    """The machine for undirected graphs of so many nodes.

    Raises `WrongUse` for sizes at which a count may be too large, or too small, for float32.
    """
    if nodes < 1 or layers < 1:
        raise WrongUse(f"nodes={nodes} and layers={layers} are asked for: give at least 1 of both")
    if (3**layers - 1) / 2 * math.log(nodes) > 87:
        raise WrongUse(
            f"{layers} layers on {nodes} nodes count up to {nodes}^{(3**layers - 1) // 2}: too many for float32"
        )
    names, powers = Names(), [1]
    names.numbers("A^1", nodes)
    for layer in range(layers):
        names.at(f"blocks.{layer}.attn.0", f"blocks.{layer}.resid_post")
        new = [2 * 3**layer + power for power in powers]
        for power in new:
            names.numbers(f"A^{power}", nodes)
        powers += new
    blocks = []
    for layer in range(layers):
        width = nodes * 2**layer
        last, fresh = range(width - nodes, width), range(width, 2 * width)
        head = {"W_Q": names.zeros(1, -1, nodes), "W_K": names.zeros(1, -1, nodes)}
        head |= {"W_V": names.zeros(1, -1, width), "W_O": names.zeros(1, width, -1)}
        head["W_Q"][0, last, range(nodes)] = 1 / nodes
        head["W_K"][0, last, range(nodes)] = 1.0
        head["W_V"][0, range(width), range(width)] = 1.0
        head["W_O"][0, range(width), fresh] = 1.0
        blocks.append(Block(head, False, LinearAttention))
    unembed = names.zeros(-1, nodes)
    unembed[names.width - nodes :] = torch.eye(nodes, dtype=torch.float64)
    embed = linear(torch.eye(nodes, names.width, dtype=torch.float64))
    model = Stack(embed, None, blocks, linear(unembed), causal=False)
    example = torch.ones(1, nodes, nodes)
    return Machine("connectivity", {"nodes": nodes, "layers": layers}, model, names.variables, {"input_ids": example})


@torch.no_grad()
def connected(machine: Machine, graphs: Int[Tensor, "graph node node"]) -> Bool[Tensor, "graph node node"]:
    """Which pairs the machine says are connected. `graphs` are symmetric, 1 for an edge; the diagonal is set here."""
    eye = torch.eye(graphs.shape[-1])
    return machine.model(torch.maximum(graphs.float(), eye)) > 0


def distances(graphs: Int[Tensor, "graph node node"]) -> Float[Tensor, "graph node node"]:
    """Edges between each two nodes, ∞ where there is no path: a step more as long as any node is new."""
    n = graphs.shape[-1]
    near = ((graphs > 0) | torch.eye(n, dtype=torch.bool)).float()
    reached, found = torch.eye(n).expand(graphs.shape), torch.full(graphs.shape, torch.inf)
    for step in range(n):
        found = torch.where((reached > 0) & found.isinf(), float(step), found)
        reached = ((reached @ near) > 0).float()
    return found


def chain(nodes: int) -> Int[Tensor, "node node"]:
    """0 - 1 - 2 - …"""
    ones = torch.ones(nodes - 1, dtype=torch.long)
    return torch.diag(ones, 1) + torch.diag(ones, -1)


def random_graphs(count: int, nodes: int, density: float, generator: torch.Generator) -> Int[Tensor, "graph node node"]:
    """Each edge is there with the probability `density` (Erdős & Rényi)."""
    upper = (torch.rand(count, nodes, nodes, generator=generator) < density).long().triu(1)
    return upper + upper.mT


def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """A-B…, the edges, such as 0-1 1-2: the components, and pairs too far apart to be seen."""
    nodes = machine.options["nodes"]
    graph = torch.zeros(nodes, nodes, dtype=torch.long)
    for text in arguments:
        try:
            a, b = map(int, text.split("-"))
            graph[a, b] = graph[b, a] = 1
        except (ValueError, IndexError) as error:
            raise WrongUse(f"{text!r} is no edge between nodes 0 … {nodes - 1}: give edges such as 0-1") from error
    said, true = connected(machine, graph.unsqueeze(0))[0], distances(graph.unsqueeze(0))[0]
    unseen = (true.isfinite() & ~said).triu(1).nonzero().tolist()
    return {
        "connected": [row.nonzero().flatten().tolist() for row in said],
        "reach": 3 ** machine.options["layers"],
        "unseen": unseen,
    }


def check(machine: Machine, graphs: int = 200) -> list[dict[str, Any]]:
    """Random graphs and a chain, by distance: pairs that the machine says are connected, out of all that are."""
    nodes, generator = machine.options["nodes"], torch.Generator().manual_seed(0)
    reach = 3 ** machine.options["layers"]
    sets = {"chain": chain(nodes).unsqueeze(0)}
    sets |= {f"random, {density}": random_graphs(graphs, nodes, density, generator) for density in (0.1, 0.2, 0.5)}
    rows = []
    for name, batch in sets.items():
        said, true = connected(machine, batch), distances(batch)
        near, far = true <= reach, (true > reach) & true.isfinite()
        rows.append(
            {
                "graphs": name,
                "reach": reach,
                "pairs_within": int(near.sum()),
                "said_connected": int((said & near).sum()),
                "pairs_beyond": int(far.sum()),
                "said_connected_beyond": int((said & far).sum()),
                "pairs_apart": int(true.isinf().sum()),
                "said_connected_apart": int((said & true.isinf()).sum()),
            }
        )
    return rows
