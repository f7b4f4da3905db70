"""The true circuit of a compiled model: who reads what from whom, and where every value lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import Block


@dataclass(frozen=True)
class Edge:
    """The receiver reads, at its q, k, v or (an MLP, the logits) "in", what the sender wrote; "erased" is read to be taken away."""

    sender: str
    receiver: str
    part: str
    variable: str


def edges(compiled: Compiled) -> list[Edge]:
    """The edges of the true circuit: a component reads a variable that another has written."""
    writer = {variable.name: variable.writer for variable in compiled.variables}
    return [
        Edge(writer[variable], component.name, part, variable)
        for component in compiled.components
        for part, names in component.reads.items()
        for variable in names
    ]


def possible_edges(compiled: Compiled) -> list[tuple[str, str, str]]:
    """(sender, receiver, part) for every component and each part of a later one: what a circuit finder can choose from."""
    found, before = [], list[str]()
    for stage in _stages(compiled):
        for component in stage:
            parts = ("q", "k", "v") if ".attn." in component else () if component.endswith("embed") else ("in",)
            found += [(sender, component, part) for part in parts for sender in before]
        before += stage
    return found


def circuit_json(compiled: Compiled) -> dict[str, Any]:
    """Components, edges, and for each variable the site and the directions that hold it, as JSON can hold them."""
    return {
        "components": [asdict(component) for component in compiled.components],
        "edges": [asdict(edge) for edge in edges(compiled)],
        "possible_edges": len(possible_edges(compiled)),
        "variables": [asdict(variable) for variable in compiled.variables],
    }


def _stages(compiled: Compiled) -> Iterator[list[str]]:
    """Components in the order they run; those of a stage do not see each other."""
    yield ["embed", "pos_embed"]
    for i, block in enumerate(compiled.model.blocks):
        assert isinstance(block, Block)
        if block.attn is not None:
            yield [f"blocks.{i}.attn.{h}" for h in range(block.attn.heads)]
        if block.mlp is not None:
            yield [f"blocks.{i}.mlp"]
    yield ["logits"]
