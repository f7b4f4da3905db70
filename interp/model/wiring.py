"""Where the sites of a model are and which sums and norms make its stream, found in one trace of it.

Nothing here knows an architecture. `interp.model.solver` explains one block, `interp.model.proof` checks the whole on
inputs the solver has not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import WrongUse, check_keys
from interp.model.trace import Call, Key, Trace

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
    batch: int = 0  # the axis of the batch

    def rows(self, t: Tensor) -> Float[Tensor, "batch pos ..."]:
        """A tensor found at this place: batch first, positions on one axis, channels last; a view where that will do."""
        return t.movedim(self.batch, 0).movedim(self.axis, -1).flatten(1, self.grid) if self._turned else t

    def unrows(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `rows`, for a tensor of the shape of `like` or with more rows in its batch."""
        if not self._turned:
            return rows
        grid = [n for axis, n in enumerate(like.shape) if axis not in (self.batch, self.axis % like.ndim)]
        return rows.unflatten(1, grid[: self.grid]).movedim(-1, self.axis).movedim(0, self.batch)

    @property
    def _turned(self) -> bool:
        return self.axis == 1 or self.grid > 1 or self.batch > 0


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
        return Block(self.path, self.call, ends, refused={"*": why})


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
    return {name: _read(Place, place) for name, place in given.items()}


def _block(given: dict[str, Any]) -> Block:
    sums = tuple(_read(Sum, s, writes=tuple(map(tuple, s["writes"]))) for s in given["sums"])
    cores = {role: _read(Core, core) for role, core in given["cores"].items()}
    places = {name: _places(given[name]) for name in ("sites", "scales", "experts")}
    return _read(Block, given, sums=sums, norms=tuple(map(tuple, given["norms"])), cores=cores, **places)


# ---------------------------------------------------------------- the stacks


def _streams(call: Call) -> bool:
    """It receives and returns a tensor of one shape."""
    a, b = call.into, call.out
    return a is not None and b is not None and a.ndim >= 3 and a.shape == b.shape


def _chained(calls: Sequence[Call]) -> bool:
    """Each hands its output on to the next, unchanged."""
    return all(_streams(c) for c in calls) and all(torch.equal(a.out, b.into) for a, b in pairwise(calls))  # type: ignore[arg-type]


def chains(model: nn.Module, trace: Trace) -> list[list[Call]]:
    """The chains of calls that hand a stream on: the members of a list of modules, or one module again and again.

    The outermost, unless all its members hold a chain of one class of modules themselves: then those inside.
    """
    groups: dict[str, list[Call]] = {}
    for call in trace.calls:
        parent, _, last = call.path.rpartition(".")
        listed = last.isdigit() and isinstance(model.get_submodule(parent), (nn.ModuleList, nn.Sequential))
        groups.setdefault(f"{parent}.*" if listed else call.path, []).append(call)
    every = [run for name, calls in groups.items() if name for run in _runs(calls, name.endswith("*"))]
    found: list[list[Call]] = []
    for chain in every:
        within = [_inside(chain[0], c) for kept in found for c in kept]
        if not any(within) and not _nested(chain, every):
            found.append(chain)
    return found


def repeated(model: nn.Module, run: Trace) -> dict[str, int]:
    """Lists of modules of which at least two of one class were called: {path: how many}."""
    called = {c.path: type(c.module) for c in run.calls}
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            kinds = Counter(called[p] for n, _ in module.named_children() if (p := f"{path}.{n}".strip(".")) in called)
            many = [n for kind, n in kinds.items() if n > 1 and not kind.__module__.startswith("torch.nn.")]
            if many:
                found[path] = max(many)
    return found


def _runs(calls: list[Call], listed: bool) -> list[list[Call]]:
    """The calls as one chain, or as several if the members of a list run through again and again; none if they are no chain."""
    paths = list(dict.fromkeys(c.path for c in calls))
    turns = [calls[i : i + len(paths)] for i in range(0, len(calls), len(paths))]
    again = len(paths) > 1 and all([c.path for c in turn] == paths for turn in turns)
    leaves = all(c.end == c.start + 1 for c in calls)  # a row of matrices and norms is no stack
    if leaves or not (len(calls) > 1 or listed):
        return []
    return [calls] if _chained(calls) else turns if again and all(map(_chained, turns)) else []


def _inside(call: Call, other: Call) -> bool:
    return other.start < call.start < other.end


def _nested(chain: list[Call], every: list[list[Call]]) -> bool:
    """Every member of a chain holds a chain of modules of one class."""
    inner = [c for c in every if len(c) > 1 and len({type(call.module) for call in c}) == 1]
    return len(chain) > 1 and all(any(_inside(c[0], call) for c in inner) for call in chain)


WORDS = {"encoder": "encoder", "decoder": "decoder", "vision": "vision", "visual": "vision", "audio": "audio"}
WORDS |= {"text": "text", "language": "text"}


def prefixes(paths: Sequence[str]) -> list[str]:
    """Site prefixes: none for a single stack, else the parts of the path that tell the stacks apart; `passes.{n}.` more where
    the same modules run several times.
    """
    named = _told_apart({path: path.split(".") for path in paths})
    turns = [list(paths[:i]).count(path) for i, path in enumerate(paths)]
    again = [f"passes.{n}." if list(paths).count(path) > 1 else "" for path, n in zip(paths, turns, strict=True)]
    return [named[path] + more for path, more in zip(paths, again, strict=True)]


def _told_apart(parts: dict[str, list[str]]) -> dict[str, str]:
    """For every path the first word at which paths part, and further ones for those that go on together."""
    if len(parts) < 2:
        return dict.fromkeys(parts, "")
    depth = next(
        i for i in range(max(map(len, parts.values()))) if len({tuple(p[: i + 1]) for p in parts.values()}) > 1
    )
    groups: dict[str, dict[str, list[str]]] = {}
    for path, words in parts.items():
        groups.setdefault(words[depth] if depth < len(words) else "", {})[path] = words
    named = {}
    for word, group in groups.items():
        known = next((to for start, to in WORDS.items() if word.startswith(start)), word)
        first = f"stages.{known}." if known.isdigit() else f"{known}." if known else ""
        named |= {path: first + rest for path, rest in _told_apart(group).items()}
    return named


def solve(model: nn.Module, trace: Trace) -> Wiring:
    """The wiring of a model from one trace of it (float64, random weights). A block that cannot be explained keeps its ends."""
    from interp.model.solver import solve_block

    found = chains(model, trace)
    names = prefixes([chain[0].path for chain in found])
    stacks = []
    for prefix, chain in zip(names, found, strict=True):
        solved: list[Block] = []
        for call in chain:
            solved.append(solve_block(trace, call, solved))
        stacks.append(Stack(prefix, tuple(solved)))
    return Wiring(tuple(stacks), *_outside(model, trace, list(zip(names, found, strict=True))))


def _outside(
    model: nn.Module, trace: Trace, stacks: Sequence[tuple[str, list[Call]]]
) -> tuple[dict[str, Place], dict[str, Place]]:
    """embed, pos_embed, final_norm and logits; and the final norms, for their divisors."""
    from interp.model.stream import is_norm

    sites: dict[str, Place] = {}
    scales: dict[str, Place] = {}
    inner = [c for _, chain in stacks for c in chain]
    outer = [c for c in trace.calls if not any(b.start <= c.start and c.end <= b.end for b in inner)]
    tables = [c for c in outer if isinstance(c.module, nn.Embedding)]
    tokens = _token_embeddings(model, tables)
    for number, call in enumerate(tokens):
        sites[f"{stacks[number][0] if len(tokens) == len(stacks) else ''}embed"] = _returned(call)
    for call in (c for c in tables if c.inputs):
        ids = next(iter(call.inputs.values()))
        if call not in tokens and bool((ids.flatten()[: ids.shape[-1]].diff() == 1).all()):
            sites["pos_embed"] = _returned(call)
    for prefix, chain in stacks:
        last = chain[-1].out
        reads = (c for c in outer if c.into is not None and torch.equal(c.into, last) and is_norm(c))  # type: ignore[arg-type]
        norm = next(reads, None)
        if norm is not None:
            sites[f"{prefix}final_norm"] = scales[f"{prefix}final_norm.scale"] = _returned(norm)
    returned = trace.of("")[0].outputs
    if "logits" in returned:
        sites["logits"] = Place("", "out", "logits")
    elif None in returned and stacks and returned[None].shape[:-1] == stacks[-1][1][-1].out.shape[:-1]:  # type: ignore[union-attr]
        sites["logits"] = Place("", "out")  # the model returns one tensor, a row for every position
    return sites, scales


def _returned(call: Call) -> Place:
    return Place(call.path, "out", next(iter(call.outputs)), call.number)


def _token_embeddings(model: nn.Module, tables: Sequence[Call]) -> list[Call]:
    """Calls of the tables that the model itself calls its input embeddings."""
    try:
        table = getattr(model, "get_input_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):
        table = None
    weight = getattr(table, "weight", None)
    return [c for c in tables if weight is not None and c.module.weight is weight]


def moved(block: Block, path: str) -> Block:
    """The same wiring at a block of another path, each of whose modules is called once."""
    old = block.path

    def at(place: Any) -> Any:
        inside = place.path == old or place.path.startswith(old + ".")
        return replace(place, path=path + place.path[len(old) :]) if inside else place

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
