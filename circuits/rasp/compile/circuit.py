"""The true circuit of a model whose weights are known: who reads what from whom, and where every value lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from circuits.rasp.compile.build import Component
from circuits.rasp.compile.model import Block, Stack
from circuits.rasp.compile.stream import Variable

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Circuit(Protocol):
    """Components that read and write variables of a stream: a compiled program, or a machine built by hand."""

    @property
    def model(self) -> Stack:
        """The weights."""

    @property
    def variables(self) -> list[Variable]:
        """What the directions of the stream hold."""

    @property
    def components(self) -> list[Component]:
        """The parts, in the order they run."""

    def named(self, name: str) -> list[Variable]:
        """A variable, or the parts of one. Raises `WrongUse` for a name that is none."""

    def place(self, variable: str) -> tuple[str, Float[Tensor, "k d_model"]]:
        """The first site that holds a variable, and an orthonormal basis of the subspace that it has there."""


@dataclass(frozen=True)
class Edge:
    """The receiver reads, at its q, k, v or (an MLP, the logits) "in", what the sender wrote; "erased" is read to be taken away."""

    sender: str
    receiver: str
    part: str
    variable: str


def edges(circuit: Circuit) -> list[Edge]:
    """Who reads what another has written: earlier, or, in a looped model, in a loop before where the variable stays."""
    parts = circuit.components
    stays = {v.name for v in circuit.variables if not v.until} if circuit.model.loops > 1 else set()
    return [
        Edge(sender.name, receiver.name, part, variable)
        for receiver in parts
        for part, names in receiver.reads.items()
        for variable in names
        for sender in parts
        if variable in sender.writes and (_stage(sender.name) < _stage(receiver.name) or variable in stays)
    ]


def possible_edges(circuit: Circuit) -> list[tuple[str, str, str]]:
    """(sender, receiver, part) for every component and each part of a later one: what a circuit finder can choose from.

    In a looped model a block's components can read what any block's wrote in the loop before.
    """
    names, looped = list(_names(circuit.model)), circuit.model.loops > 1
    return [
        (sender, receiver, part)
        for receiver in names
        for part in _parts(receiver)
        for sender in names[:-1]
        if _stage(sender) < _stage(receiver) or (looped and "." in sender and "." in receiver)
    ]


def circuit_json(circuit: Circuit) -> dict[str, Any]:
    """Components, edges, and for each variable the site and the directions that hold it, as JSON can hold them."""
    return {
        "components": [asdict(component) for component in circuit.components],
        "edges": [asdict(edge) for edge in edges(circuit)],
        "possible_edges": len(possible_edges(circuit)),
        "variables": [asdict(variable) for variable in circuit.variables],
    }


def _names(model: Stack) -> Iterator[str]:
    """All components in the order they run, also those that do nothing."""
    yield "embed"
    if model.pos_embed is not None:
        yield "pos_embed"
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        yield from (f"blocks.{i}.attn.{h}" for h in range(block.attn.heads if block.attn else 0))
        if block.mlp is not None:
            yield f"blocks.{i}.mlp"
    yield "logits"


def _parts(name: str) -> tuple[str, ...]:
    return ("q", "k", "v") if ".attn." in name else () if name.endswith("embed") else ("in",)


def _stage(name: str) -> float:
    """When a component runs; those of a stage do not see each other."""
    if "." not in name:
        return float("inf") if name == "logits" else -1.0
    _, block, sublayer, *_ = name.split(".")
    return 2.0 * int(block) + (sublayer == "mlp")
