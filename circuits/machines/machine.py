"""What a machine is: a model whose weights are set by hand, and what each direction of its stream holds."""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.build import Component
from circuits.rasp.compile.model import Block, Stack
from circuits.rasp.compile.stream import Variable
from interp.errors import WrongUse, check_keys, nearest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MACHINES = ("parity", "first", "subleq", "graphs", "permutation", "descent", "connectivity")
WIDEST = 2**14  # directions of a stream
LARGEST = 2**25  # elements of a weight


class Names:
    """Directions of a stream, given out one after another, each to a named variable.

    A variable is there from the site `ready` on, until the site `until` if its directions are set back to zero; `writer`
    is the part that writes it.
    """

    def __init__(self) -> None:
        self.variables: list[Variable] = []
        self.width = 0  # how many directions were given out
        self.writer, self.ready, self.until = "embed", "blocks.0.resid_pre", ""

    def at(self, writer: str, ready: str, until: str = "") -> None:
        """Who writes the variables that are named next, and between which sites they are there."""
        self.writer, self.ready, self.until = writer, ready, until

    def number(self, name: str) -> int:
        """The direction of a number."""
        return self._add(name, True, [], [])[0]

    def one_hot(self, name: str, values: list[Any]) -> list[int]:
        """A direction for each value: 1 there, 0 at the others."""
        return self._add(name, False, values, [])

    def bit(self, name: str) -> int:
        """The direction of a number that is 0 or 1."""
        return self._add(name, True, [0, 1], [0.0, 1.0])[0]

    def bits(self, name: str, count: int) -> list[int]:
        """A direction for each bit NAME.0, NAME.1, …, the lowest first: -1 for 0, 1 for 1."""
        return [self._add(f"{name}.{i}", True, [0, 1], [-1.0, 1.0])[0] for i in range(count)]

    def numbers(self, name: str, count: int) -> list[int]:
        """A direction for each entry NAME.0, NAME.1, … of a vector."""
        return [self.number(f"{name}.{i}") for i in range(count)]

    def zeros(self, *shape: int) -> Float[Tensor, "..."]:
        """Float64 zeros of a shape in which -1 stands for the stream's width. Raises `WrongUse` for more than `LARGEST`."""
        sizes = [self.width if size == -1 else size for size in shape]
        if math.prod(sizes) > LARGEST:
            raise WrongUse(f"weights of {' x '.join(map(str, sizes))} would be needed: give smaller options")
        return torch.zeros(sizes, dtype=torch.float64)

    def _add(self, name: str, number: bool, values: list[Any], levels: list[float]) -> list[int]:
        if self.width >= WIDEST:
            raise WrongUse(f"a stream of more than {WIDEST:,} directions would be needed: give smaller options")
        directions = list(range(self.width, self.width + (1 if number else len(values))))
        self.width += len(directions)
        self.variables.append(
            Variable(name, number, values, directions, self.writer, self.ready, self.until or None, levels)
        )
        return directions


@dataclass
class Machine:
    """A model, what it is called and with which `options` it was made, and what the directions of its stream hold.

    `example` is an input of the kinds that its forward takes, by name. Where its tokens are letters, `letters` are those of
    the ids 0, 1, …, and the id after them stands first.
    """

    name: str
    options: dict[str, Any]
    model: Stack
    variables: list[Variable]
    example: dict[str, Tensor] = field(repr=False)
    letters: str = ""

    def __post_init__(self) -> None:
        self.model.float().eval()
        self.model.example = self.example  # type: ignore[assignment]  # `interp.load(machine.model)` reads it

    @property
    def labels(self) -> list[str]:
        """What each direction of the stream says."""
        said = {direction: v.label(direction) for v in self.variables for direction in v.directions}
        return [said[direction] for direction in range(self.model.sizes()["d_model"])]  # type: ignore[arg-type]

    @property
    def vectors(self) -> dict[str, list[Variable]]:
        """The variables NAME.0, NAME.1, … by NAME."""
        found: dict[str, list[Variable]] = {}
        for variable in self.variables:
            name, _, index = variable.name.rpartition(".")
            if index.isdigit():
                found.setdefault(name, []).append(variable)
        return found

    @property
    def components(self) -> list[Component]:
        """The parts in the order they run, and what each reads (q, k, v; else "in") and writes: where its weights are not zero.

        An MLP that sets a variable back to zero reads and writes it.
        """
        holder = {d: v.name for v in self.variables for d in v.directions}

        def named(weight: Float[Tensor, "d_model columns"]) -> list[str]:
            return list(dict.fromkeys(holder[int(d)] for d in weight.ne(0).any(-1).nonzero()))

        model, (ids, *_) = self.model, self.example.values()
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

    def place(self, variable: str) -> tuple[str, Float[Tensor, "k d_model"]]:
        """The first site that holds a variable, or a vector of them, and the directions that it has there, as rows."""
        return self.named(variable)[0].ready, torch.eye(self.model.unembed.in_features)[self.directions(variable)]

    def directions(self, name: str) -> list[int]:
        """The directions of a variable, or of a vector of them."""
        return [d for v in self.named(name) for d in v.directions]

    def named(self, name: str) -> list[Variable]:
        """A variable, or those of a vector. Raises `WrongUse` for a name that is neither."""
        found = {v.name: [v] for v in self.variables} | self.vectors
        if name not in found:
            raise WrongUse(f"{self.name} has no variable {name!r}.{nearest(name, found)}")
        return found[name]


def held(x: float) -> float:
    """x as weights in float32 hold it: what closed forms reckon with."""
    return float(torch.tensor(x, dtype=torch.float32))


def module_of(name: str) -> ModuleType:
    """The module of a machine: its `build`, `run` and `check`. Raises `WrongUse` for a name that no machine has."""
    if name not in MACHINES:
        raise WrongUse(f"there is no machine {name!r}.{nearest(name, MACHINES)} There are: {', '.join(MACHINES)}.")
    return importlib.import_module(f"circuits.machines.{name}")


def build(name: str, **options: Any) -> Machine:
    """A machine by name; `options` are those of its module's `build`.

    Raises `WrongUse` for a name or an option that is not there, and for options that make no machine, or too large a one.
    """
    known = inspect.signature(module_of(name).build).parameters
    check_keys(options, known, f"the machine {name!r}")
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise WrongUse(f"{key}={value} is asked for: give a finite number")
    made: Machine = module_of(name).build(**options)
    return made
