"""The true circuit of a machine, read off its weights: they are zero wherever a part does not look or write."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from circuits.machines.machine import Machine
from circuits.rasp.compile.build import Component
from circuits.rasp.compile.circuit import Edge
from circuits.rasp.compile.model import Block

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def components(machine: Machine) -> list[Component]:
    """The parts in the order they run, with the variables that each reads (q, k, v; else "in") and writes.

    An MLP that sets a variable back to zero reads and writes it.
    """
    holder = {d: v.name for v in machine.variables for d in v.directions}

    def named(weight: Float[Tensor, "d_model columns"]) -> list[str]:
        return list(dict.fromkeys(holder[int(d)] for d in weight.ne(0).any(-1).nonzero()))

    model, (ids, *_) = machine.model, machine.example.values()
    found = [Component("embed", {}, named(model.embed(ids)[0].T))]
    if model.pos_embed is not None:
        found.append(Component("pos_embed", {}, named(model.pos_embed(torch.arange(ids.shape[1])).T)))
    for i, block in enumerate(block for block in model.blocks if isinstance(block, Block)):
        weights = block.weights()
        for h in range(block.attn.heads if block.attn else 0):
            reads = {part: named(weights[f"W_{part.upper()}"][h]) for part in "qkv"}
            found.append(Component(f"blocks.{i}.attn.{h}", reads, named(weights["W_O"][h].T)))
        if block.mlp is not None:
            found.append(Component(f"blocks.{i}.mlp", {"in": named(weights["W_in"])}, named(weights["W_out"].T)))
    return [*found, Component("logits", {"in": named(model.unembed.weight.T)}, ["logits"])]


def edges(machine: Machine) -> list[Edge]:
    """Who reads at which part what another has written: earlier in the same loop, or, where the variable stays, in one before."""
    parts = components(machine)
    stays = {v.name for v in machine.variables if not v.until} if machine.model.loops > 1 else set()
    return [
        Edge(sender.name, receiver.name, part, variable)
        for place, receiver in enumerate(parts)
        for part, names in receiver.reads.items()
        for variable in names
        for earlier, sender in enumerate(parts)
        if variable in sender.writes and (earlier < place or variable in stays)
    ]


def circuit_json(machine: Machine) -> dict[str, Any]:
    """Components, edges and variables, as a compiled program's circuit.json has them."""
    return {
        "components": [asdict(component) for component in components(machine)],
        "edges": [asdict(edge) for edge in edges(machine)],
        "variables": [asdict(variable) for variable in machine.variables],
    }
