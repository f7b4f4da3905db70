"""A wiring: where the sites of a model are and which sums and norms make its stream. Data, and how it is read as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import WrongUse, check_keys
from interp.model.trace import Key

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Place:
    """A tensor at a module: argument or result `key` of its `call`-th call in a forward pass."""

    path: str
    side: str  # "in" | "out"
    key: Key = None
    call: int = 0
    half: int | None = None  # 0 or 1: that half of the last axis (fused gate and up projections)
    axis: int = -1  # where channels stand
    grid: int = 1  # how many axes positions take: 2 for a picture's rows and columns
    batch: int | None = (
        0  # the axis of the batch; None: what belongs to several pictures stands in one row of positions
    )
    also: tuple[Place, ...] = ()  # calls beside it that receive the same tensor: an edit reaches them, too

    def rows(self, t: Tensor) -> Float[Tensor, "batch pos ..."]:
        """A tensor found at this place: batch first, positions on one axis, channels last; a view where that will do."""
        if self.batch is None:
            return t.unsqueeze(0)
        return t.movedim(self.batch, 0).movedim(self.axis, -1).flatten(1, self.grid) if self._turned else t

    def unrows(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `rows`, for a tensor of the shape of `like` or with more rows in its batch."""
        if self.batch is None:
            return rows.squeeze(0)
        if not self._turned:
            return rows
        grid = [n for axis, n in enumerate(like.shape) if axis not in (self.batch, self.axis % like.ndim)]
        return rows.unflatten(1, grid[: self.grid]).movedim(-1, self.axis).movedim(0, self.batch)

    @property
    def straight(self) -> bool:
        """Whether its tensor lies as a site's does."""
        return self.batch == 0 and not self._turned

    @property
    def _turned(self) -> bool:
        return self.axis == 1 or self.grid > 1 or self.batch == 1


Coefficient = float | str
"""A number; or a name: of a site of the block, one value for every position ("attn.spread"), else of what `vector` finds."""


def vector(model: nn.Module, name: str, like: Tensor) -> Float[Tensor, "d_model"]:
    """The value per channel that `name` means: a parameter's path; or "path:1/2", what the module at `path` makes of ones in
    its argument 1 of 2, the others zero, beyond what it makes of zeros alone; or "path:/2", what it makes of zeros.
    """
    path, _, places = name.partition(":")
    if not places:
        return model.get_parameter(path)
    place, _, count = places.partition("/")
    arguments = [like.new_zeros(1, 1, like.shape[-1]) for _ in range(int(count))]
    forward = model.get_submodule(path).forward
    start = forward(*arguments).flatten()
    if not place:
        return start
    arguments[int(place)] = torch.ones_like(arguments[0])
    return forward(*arguments).flatten() - start


@dataclass(frozen=True)
class Sum:
    """site = scale · base + Σ coefficient · write + constant."""

    site: str
    base: str
    writes: tuple[tuple[str, Coefficient], ...]
    scale: Coefficient = 1.0
    constant: str = ""  # a value per channel, see `vector`; part of the last write


@dataclass(frozen=True)
class Core:
    """The module call that runs an attention's softmax; `product` numbers its query-key product (-1: fused)."""

    path: str
    product: int
    call: int = 0


@dataclass(frozen=True)
class Block:
    """The wiring of one block: sites by name, the sums and norms that make the stream, and what is refused and why."""

    path: str = ""
    call: int = 0
    until: str = ""  # the block's last module where no module holds the block: it begins with the call of `path`
    sites: dict[str, Place] = field(default_factory=dict)
    sums: tuple[Sum, ...] = ()
    norms: tuple[tuple[str, str, str], ...] = ()  # (site, sum, norm in `scales`): site = norm(sum)
    cores: dict[str, Core] = field(default_factory=dict)
    scales: dict[str, Place] = field(default_factory=dict)  # the norms whose divisors are sites
    experts: dict[str, Place] = field(default_factory=dict)  # modules that send each token through a few of many MLPs
    refused: dict[str, str] = field(default_factory=dict)

    def ends(self, why: str) -> Block:
        """What is left of the block when its inside is not understood."""
        ends = {name: self.sites[name] for name in ("resid_pre", "resid_post")}
        return Block(self.path, self.call, self.until, ends, refused={"*": why})


@dataclass(frozen=True)
class Stack:
    """A chain of blocks, each handing the stream to the next; `prefix` in the names of its sites."""

    prefix: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Wiring:
    """A model's stacks, the sites outside them, and the norms outside them whose divisors are sites."""

    stacks: tuple[Stack, ...]
    sites: dict[str, Place]
    scales: dict[str, Place] = field(default_factory=dict)

    @property
    def post_norm(self) -> bool:
        """Blocks normalise after adding."""
        return any(norm[0] == "resid_post" for stack in self.stacks for block in stack.blocks for norm in block.norms)

    def to_json(self) -> dict[str, Any]:
        """The wiring as JSON values; see `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Wiring:
        """The wiring that `to_json` wrote. Raises `WrongUse` for a key that no wiring has, or that is missing."""
        try:
            stacks = tuple(Stack(s["prefix"], tuple(map(_block, s["blocks"]))) for s in given["stacks"])
            return _read(cls, given, stacks=stacks, sites=_places(given["sites"]), scales=_places(given["scales"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise WrongUse(
                f"this is no wiring as `interp doctor MODEL --export-wiring FILE` writes it: {error!r}."
            ) from error


def _read(kind: Any, given: dict[str, Any], **changed: Any) -> Any:
    check_keys(given, kind.__dataclass_fields__, f"a {kind.__name__.lower()}")
    return kind(**(given | changed))


def _places(given: dict[str, Any]) -> dict[str, Place]:
    return {name: _place(place) for name, place in given.items()}


def _place(given: dict[str, Any]) -> Place:
    return _read(Place, given, also=tuple(map(_place, given.get("also", ()))))


def _block(given: dict[str, Any]) -> Block:
    sums = tuple(_read(Sum, s, writes=tuple(map(tuple, s["writes"]))) for s in given["sums"])
    cores = {role: _read(Core, core) for role, core in given["cores"].items()}
    places = {name: _places(given[name]) for name in ("sites", "scales", "experts")}
    return _read(Block, given, sums=sums, norms=tuple(map(tuple, given["norms"])), cores=cores, **places)


def moved(block: Block, path: str) -> Block:
    """The same wiring at a block of another path, each of whose modules is called once."""
    old = block.path

    def at(place: Any) -> Any:
        inside = place.path == old or place.path.startswith(old + ".")
        place = replace(place, path=path + place.path[len(old) :]) if inside else place
        return replace(place, also=tuple(map(at, place.also))) if getattr(place, "also", ()) else place

    tables: dict[str, Any] = {
        n: {k: at(p) for k, p in getattr(block, n).items()} for n in ("sites", "cores", "scales", "experts")
    }

    def named(c: Coefficient) -> Coefficient:
        return path + c[len(old) :] if isinstance(c, str) and c.startswith(old + ".") else c

    sums = tuple(
        replace(
            s,
            writes=tuple((w, named(c)) for w, c in s.writes),
            scale=named(s.scale),
            constant=str(named(s.constant)),
        )
        for s in block.sums
    )
    return replace(block, path=path, sums=sums, **tables)
