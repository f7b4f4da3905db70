"""Which parameters of a model a mask is of, and which named matrix and head each of their entries belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Int

    from interp.model import Model
    from interp.model.layouts import Layout


@dataclass(frozen=True)
class Cell:
    """One head of a matrix, or a matrix without heads: `blocks.3.attn.W_Q`, head 5."""

    matrix: str
    head: int | None = None

    @property
    def block(self) -> str:
        """`blocks.3`, with the prefix of its stack."""
        names = self.matrix.split(".")
        at = len(names) - 1 - names[::-1].index("blocks")
        return ".".join(names[: at + 2])

    @property
    def part(self) -> str:
        """What the matrix is in its block: `attn`, `mlp`, …"""
        return self.matrix.removeprefix(self.block + ".").partition(".")[0]

    @property
    def kind(self) -> str:
        """The matrix without its block: `attn.W_Q`."""
        return self.matrix.removeprefix(self.block + ".")


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter of a block and the matrices that live in it, by their layouts; entries of none belong to `rest`."""

    parameter: str
    shape: torch.Size
    layouts: tuple[tuple[str, Layout], ...]
    rest: str

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell of the parameter, in the order of `owners`."""
        named = [Cell(name, h) for name, at in self.layouts for h in (range(at.heads) if at.heads else [None])]
        return (*named, Cell(self.rest))

    def owners(self) -> Int[Tensor, "..."]:
        """The number of the cell of each entry, in the parameter's own shape."""
        owner, first = torch.full(self.shape, len(self.cells) - 1), 0
        for _, layout in self.layouts:
            shape = layout.read(owner).shape
            heads = torch.arange(max(layout.heads, 1)) + first
            layout.write(
                owner, heads.view(-1, *[1] * (len(shape) - 1)).expand(shape) if layout.heads else heads.expand(shape)
            )
            first += max(layout.heads, 1)
        return owner


def places(model: Model) -> tuple[Place, ...]:
    """All matrices inside the blocks, each parameter once: what is masked. Embeddings, norms and biases are not.

    A parameter that several blocks share counts for the first. A matrix that the model does not name (a mixture's experts,
    a router, a mixer's projections) is masked under its parameter's own name. Raises `WrongUse` where a matrix is not
    stored as it is applied (quantised, an adapter beside it), and for a model without blocks.
    """
    weights, module = model.weights, model.module
    of: dict[int, list[tuple[str, Layout]]] = {}
    for name, layout in weights.layouts.items():
        if "blocks." not in name or not name.rsplit(".", 1)[-1].startswith("W_"):
            continue
        if layout.parameter is None:
            raise WrongUse(
                f"{name!r} of {model.id} cannot be masked: {layout.path} applies another matrix than the one it stores "
                "(quantised, or an adapter beside it). Merge or dequantise it first."
            )
        of.setdefault(id(getattr(module.get_submodule(layout.path), layout.parameter)), []).append((name, layout))
    inside = dict(_inside(model))
    found = [
        Place(name, p.shape, _once(of.get(id(p), [])), inside.get(name, name))
        for name, p in module.named_parameters()
        if id(p) in of or name in inside
    ]
    if not found:
        raise WrongUse(f"{model.id} has no matrices inside blocks, so there is nothing to mask.")
    return tuple(found)


def _inside(model: Model) -> Iterator[tuple[str, str]]:
    """(Parameter, its name from its block on) of the matrices that belong to a block's module.

    Beside those with names: what a module calls its `weight`, or has three axes (experts); no tables, and no biases.
    """
    tables = {f"{n}.weight" for n, m in model.module.named_modules() if isinstance(m, nn.Embedding)}
    weights = [(n, p.ndim) for n, p in model.module.named_parameters() if n not in tables]
    matrices = [n for n, axes in weights if axes > 2 or (axes == 2 and n.endswith(".weight"))]
    for stack in model.wiring.stacks:
        for i, block in reversed(list(enumerate(stack.blocks))):  # the first of several that share it is written last
            for name in (n for n in matrices if n.startswith(block.path + ".")):
                yield name, f"{stack.prefix}blocks.{i}.{name.removeprefix(block.path + '.')}"


def _once(layouts: list[tuple[str, Layout]]) -> tuple[tuple[str, Layout], ...]:
    """Each part of a parameter under its first name."""
    seen: dict[tuple[int, ...], tuple[str, Layout]] = {}
    for name, layout in layouts:
        key = (layout.axis, *layout.columns.tolist()) if layout.columns is not None else ()
        seen.setdefault(key, (name, layout))
    return tuple(seen.values())
