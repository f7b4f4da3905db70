"""Edits: small frozen objects that say what to put where. Everything but what they select is left as it is, bit for bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, check_keys
from interp.model.cache import Cache
from interp.model.positions import Pos, Positions
from interp.sites import MODULE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Shape = tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Edit:
    """What all edits share: the site, and which positions, head, entries of the last axis and rows of the batch."""

    site: str
    pos: Pos = field(default="all", kw_only=True)
    head: int | None = field(default=None, kw_only=True)
    index: int | list[int] | None = field(default=None, kw_only=True)
    rows: list[int] | None = field(default=None, kw_only=True)

    def __new__(cls, *args: Any, **kwargs: Any) -> Edit:
        check_keys(kwargs, [f.name for f in fields(cls)], cls.__name__)
        return super().__new__(cls)

    # ------------------------------------------------------------ what kinds of edits say

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        """What to put in place of x; only the selected entries are used."""
        raise TypeError(f"{type(self).__name__} says nothing to put in place: use one of {', '.join(KINDS)}.")

    def values(self) -> Iterator[Tensor]:
        """The tensors that have to be broadcast to the site."""
        yield from ()

    def places(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Which positions change."""
        return positions.select(self.pos)

    # ------------------------------------------------------------ at a site

    def at(self, site: str) -> Edit:
        """This edit at one site: of those its glob names, or of its alias."""
        if site == self.site:
            return self
        copy = replace(self, site=site)
        object.__setattr__(copy, "_origin", self.origin)
        return copy

    @property
    def origin(self) -> Edit:
        """The edit as it was given."""
        return getattr(self, "_origin", self)

    def selected(self, x: Tensor, positions: Positions) -> Bool[Tensor, "..."]:
        """Which entries change, broadcastable to x [batch, pos, ...] or [batch, head, query, key]."""
        kind, batch = axes(self.site), self.places(positions)
        if self.rows is not None:
            batch = batch & one_hot(batch.shape[0], self.rows, batch.device, "row")[:, None]
        mask = batch[:, None, :, None] if kind == "pattern" else batch.reshape(*batch.shape, *[1] * (x.ndim - 2))
        if self.head is not None:
            self._check_heads()
            chosen = one_hot(x.shape[1 if kind == "pattern" else 2], [self.head], x.device, "head")
            mask = mask & chosen[:, None, *[None] * (kind == "pattern")]
        if self.index is not None:
            mask = mask & one_hot(x.shape[-1], as_list(self.index), x.device)
        return mask

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """(x with the selected entries replaced, whether any was selected)."""
        mask = self.selected(x, positions)
        if not bool(mask.any()):
            return x, False
        return torch.where(mask, self.new(x, positions).to(x), x), True

    # ------------------------------------------------------------ before a run

    def check(self, shape: Shape, sizes: Mapping[str, int], positions: Positions | None = None) -> None:
        """Raise `WrongUse` for what cannot fire or cannot fit at a site of this shape, as far as lengths are known."""
        if self.head is not None:
            self._check_heads()
        if not shape:
            return
        known = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in shape)
        heads = known[1 if axes(self.site) == "pattern" else 2] if len(known) > 2 else None
        chosen = (
            ("head", known and heads, as_list(self.head)),
            ("index", known[-1], as_list(self.index)),
            ("row", known[0], as_list(self.rows)),
        )
        for what, size, which in chosen:
            if which and isinstance(size, int):
                in_range(size, which, what, f"{type(self).__name__}({self.site!r})")
        for value in self.values():
            if not fits(tuple(value.shape), known):
                raise self._misfit(value.shape, shape)
        if positions is not None and not bool(self.places(positions).any()):
            lengths = (positions.index.amax(1) + 1).tolist()
            raise WrongUse(
                f"{type(self).__name__}({self.site!r}, pos={self.pos!r}) cannot fire: the prompts have {lengths} tokens, "
                f"counted from 0{', and nothing is generated here' if self.pos == 'generated' else ''}."
            )

    def broadcast(self, value: Tensor, x: Tensor) -> Tensor:
        """A value in x's shape, dtype and place."""
        if not fits(tuple(value.shape), tuple(x.shape)):
            raise self._misfit(value.shape, tuple(x.shape))
        return value.to(x).expand_as(x)

    def _misfit(self, given: torch.Size, shape: Shape) -> WrongUse:
        return WrongUse(
            f"{type(self).__name__} at {self.site!r} was given a tensor of shape {tuple(given)}, which cannot be broadcast "
            f"to the site's ({', '.join(map(str, shape))})."
        )

    def _check_heads(self) -> None:
        if axes(self.site) == "stream":
            raise WrongUse(f"head={self.head} was asked for at {self.site!r}, which has no heads.")

    def to_json(self) -> dict[str, Any]:
        """The edit as plain JSON values, exactly; `edits_from_json` reads it. Raises `WrongUse` for a Python function."""
        from interp.model.written import written

        return written(self)


def axes(site: str) -> str:
    """ "pattern" for [batch, head, query, key], "heads" for [batch, pos, head, d], else "stream"."""
    last = site.removesuffix(".error").rsplit(".", 1)[-1]
    if site.startswith(MODULE):
        return "stream"
    if last in ("pattern", "scores"):
        return "pattern"
    return "heads" if last in ("q", "k", "v", "z", "q_raw", "k_raw", "result") else "stream"


def as_list(which: int | list[int] | None) -> list[int]:
    """None as [], an int as a list of one."""
    return [] if which is None else [which] if isinstance(which, int) else list(which)


def in_range(size: int, which: list[int], what: str, where: str = "") -> None:
    """Raise `WrongUse` for an index outside the range."""
    bad = [i for i in which if not -size <= i < size]
    if bad:
        raise WrongUse(f"{where}{': ' * bool(where)}{what} {bad[0]} is outside 0 to {size - 1}.")


def one_hot(size: int, which: list[int], device: torch.device, what: str = "index") -> Bool[Tensor, "size"]:
    """True at `which`. Raises `WrongUse` outside the range."""
    in_range(size, which, what)
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    mask[which] = True
    return mask


def fits(given: tuple[int, ...], shape: Shape) -> bool:
    """Whether a tensor of shape `given` broadcasts to `shape`; lengths that are not known yet fit anything."""
    pairs = zip(reversed(given), reversed(shape), strict=False)
    return len(given) <= len(shape) and all(g == 1 or isinstance(s, str) or g == s for g, s in pairs)


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """x ← 0."""

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True, eq=False)
class Mean(Edit):
    """x ← value, a mean over data, broadcast to x."""

    value: Tensor

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        return self.broadcast(self.value, x)

    def values(self) -> Iterator[Tensor]:
        yield self.value


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """x ← factor · x."""

    factor: float

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        return self.factor * x


@dataclass(frozen=True, eq=False)
class Steer(Edit):
    """x ← x + alpha · direction; direction [d] as it is given (not normalised)."""

    direction: Tensor
    alpha: float = 1.0

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        return x + self.alpha * self.broadcast(self.direction, x)

    def values(self) -> Iterator[Tensor]:
        yield self.direction


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """x ← x - Q Qᵀ x: the span of the directions [d] or [n, d] is removed (Q: an orthonormal basis of it)."""

    directions: Tensor

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        """x without its part in the span, computed in at least float32."""
        given = torch.atleast_2d(self.directions).to(x.device, torch.promote_types(x.dtype, torch.float32))
        if given.shape[-1] != x.shape[-1]:
            raise self._misfit(given.shape, tuple(x.shape))
        basis = torch.linalg.qr(given.T).Q
        wide = x.to(basis.dtype)
        return wide - wide @ basis @ basis.T

    def values(self) -> Iterator[Tensor]:
        yield torch.atleast_2d(self.directions)[0]


@dataclass(frozen=True, eq=False)
class Noise(Edit):
    """x ← x + N(0, std²), drawn for (seed, site, row, position, entry): the same whole, in a batch, or with a KV cache."""

    std: float
    seed: int = 0

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        moved = x.movedim(_axis(self.site), 1)
        noise = normal(f"{self.seed} {self.site}", positions.index, moved.shape[2:]).movedim(1, _axis(self.site))
        return x + self.std * noise.to(x)


# ---------------------------------------------------------------- values of other runs


@dataclass(frozen=True)
class _Source:
    """Values [row, pos, ...] or [row, head, query, key], and the real position of each column and key (padding: -1)."""

    values: Tensor
    columns: Int[Tensor, "row pos"]
    keys: Int[Tensor, "row key"]


@dataclass(frozen=True, eq=False)
class _FromRun(Edit):
    """Values of another run, found by real position: prompts of other lengths and padding are aligned."""

    source: Cache | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.source, Cache) and not (isinstance(self.source.pos, str) and self.source.pos == "all"):
            raise WrongUse(
                f"{type(self).__name__} needs a cache of every position, but this one was recorded with pos={self.source.pos!r}: "
                "leave pos= out of that record call."
            )

    def columns(self, positions: Positions, length: Int[Tensor, "batch"]) -> Int[Tensor, "batch pos"]:
        """The position of the source for each column here; `length` is the source's for each row here."""
        return positions.index

    def rows_of(self, count: int, batch: int) -> Int[Tensor, "batch"]:
        """Which of the source's `count` rows goes to each row here."""
        if count not in (1, batch):
            raise WrongUse(
                f"{type(self).__name__} at {self.site!r}: the source has {count} rows for a batch of {batch}; give one row or as many."
            )
        return torch.arange(batch) % count

    def there(self, x: Tensor, positions: Positions) -> _Source:
        """The source as it stands for x."""
        return self._given(x.device)

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """Put the source's values where both runs have the position."""
        source = self.there(x, positions)
        rows, hits = self._hits(source, positions)
        inside, mask = hits.any(-1), self.selected(x, positions)
        patterns = axes(self.site) == "pattern"
        mask = mask & (inside[:, None, :, None] if patterns else inside.reshape(*inside.shape, *[1] * (x.ndim - 2)))
        if not bool(mask.any()):
            return x, False
        taken = source.values.to(x).movedim(_axis(self.site), 1)[rows[:, None], hits.long().argmax(-1)]
        if patterns:
            taken = self._in_order(taken, source.keys[rows], x.shape[-1], positions)
        return torch.where(mask, taken.movedim(1, _axis(self.site)), x), True

    def check(self, shape: Shape, sizes: Mapping[str, int], positions: Positions | None = None) -> None:
        """Also refuses a source of another rank, with other rows, or without the positions."""
        given = isinstance(self.source, (Cache, Tensor))
        if given and shape and self._values().ndim != len(shape):
            raise self._misfit(self._values().shape, shape)
        super().check(shape, sizes, positions)
        if positions is None or not given:
            return
        hits = self._hits(self._given(positions.index.device), positions)[1]
        if not bool((hits.any(-1) & self.places(positions)).any()):
            raise WrongUse(
                f"{type(self).__name__}({self.site!r}, pos={self.pos!r}) cannot fire: the source has no such position."
            )

    def values(self) -> Iterator[Tensor]:
        source = self._values()
        yield source[:1, :, :1, :1] if axes(self.site) == "pattern" else source[:1, :1]

    def _hits(self, source: _Source, positions: Positions) -> tuple[Tensor, Bool[Tensor, "batch pos there"]]:
        """The source's row for each row here, and which of its columns goes to each column here."""
        rows = self.rows_of(len(source.columns), len(positions.index)).to(positions.index.device)
        columns = source.columns[rows]
        wanted = self.columns(positions, columns.amax(1) + 1)
        return rows, (wanted[:, :, None] == columns[:, None]) & (wanted >= 0)[:, :, None]

    def _in_order(self, taken: Tensor, there: Tensor, size: int, positions: Positions) -> Tensor:
        """[batch, query, head, key] with the source's keys in the order of the keys here; those it lacks get nothing."""
        none = float("-inf") if self.site.endswith(".scores") else 0.0
        here = positions.index if positions.keys is None else positions.keys
        if "cross_attn" in self.site or here.shape[1] < size:
            return torch.nn.functional.pad(taken, (0, max(size - taken.shape[-1], 0)), value=none)[..., :size]
        hits = here[:, -size:, None] == there[:, None]
        at = hits.long().argmax(-1)[:, None, None].expand(*taken.shape[:-1], size)
        return torch.where(hits.any(-1)[:, None, None], taken.gather(-1, at), none)

    def _given(self, device: torch.device) -> _Source:
        values = self._values()
        columns, keys = (self._real(values, axis).to(device) for axis in (_axis(self.site), values.ndim - 1))
        return _Source(values, columns, keys)

    def _real(self, values: Tensor, axis: int) -> Int[Tensor, "row pos"]:
        """The real position of each of the source's columns."""
        shape = (values.shape[0], values.shape[axis])
        mask = self.source.mask if isinstance(self.source, Cache) and not self.site.startswith("decoder.") else None
        if mask is None or mask.shape != shape:
            return torch.arange(shape[1]).expand(shape)
        return (mask.long().cumsum(1) - 1).masked_fill(~mask, -1)

    def _values(self) -> Tensor:
        return self.source if isinstance(self.source, Tensor) else self.source[self.site]


def _axis(site: str) -> int:
    """The axis of positions."""
    return 2 if axes(site) == "pattern" else 1


@dataclass(frozen=True, eq=False)
class Patch(_FromRun):
    """x at position p ← source at position p: a `Cache` of another run, or a tensor [batch, pos, ...].

    `from_pos` and `to_pos` (ints, or lists of equal length) map positions between prompts of different length: the value
    at from_pos[j] goes to to_pos[j]. `from_pos` alone goes to every position of `pos`. Positions count real tokens, from
    the end if negative; beyond the source's end nothing changes.
    """

    from_pos: int | list[int] | None = None
    to_pos: int | list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        start, end = as_list(self.from_pos), as_list(self.to_pos)
        if (end and start and len(start) != len(end)) or (len(start) > 1 and not end):
            raise WrongUse(
                f"Patch at {self.site!r}: from_pos={self.from_pos!r} and to_pos={self.to_pos!r} must be ints or lists of equal length."
            )

    def places(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        chosen = positions.select(self.pos)
        return chosen if self.to_pos is None else chosen & positions.select(as_list(self.to_pos))

    def columns(self, positions: Positions, length: Int[Tensor, "batch"]) -> Int[Tensor, "batch pos"]:
        """The map from to_pos to from_pos; -1 where it says nothing."""
        start, end = as_list(self.from_pos), as_list(self.to_pos)
        if not start:
            return positions.index
        column = torch.full_like(positions.index, -1)
        for number, p in enumerate(start):
            where = positions.select(end[number]) if end else positions.select("all")
            column = torch.where(where, (length + p if p < 0 else torch.full_like(length, p))[:, None], column)
        return column


@dataclass(frozen=True, eq=False)
class Freeze(Patch):
    """Sites (names, globs, or a list of them) held at the values of another run: patterns and norm scales, above all.

    `Freeze(["blocks.*.attn.pattern", "blocks.*.attn.norm.scale"], cache)`.
    """

    site: str | list[str]  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Resample(_FromRun):
    """x ← another row's value at the same position: of this batch, or a row drawn from the cache of another run.

    Within the batch the rows are moved round a random cycle, so each gets another one. All sites with one seed take
    the same rows. Where the other row has no such position, nothing changes.
    """

    source: Cache | Tensor | None = None  # type: ignore[assignment]
    seed: int = 0

    def rows_of(self, count: int, batch: int) -> Int[Tensor, "batch"]:
        """Rows drawn from the source; within the batch, a random cycle."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.source is not None:
            return torch.randint(count, (batch,), generator=generator)
        order = torch.randperm(batch, generator=generator)
        return torch.empty_like(order).scatter_(0, order, order.roll(1))

    def there(self, x: Tensor, positions: Positions) -> _Source:
        """The source, or x itself."""
        if self.source is not None:
            return super().there(x, positions)
        if x.shape[0] == 1:
            raise WrongUse(f"Resample({self.site!r}) needs another row: give a batch of prompts, or a cache.")
        if positions.prompt is not None and len(positions.prompt.unique()) > 1:
            raise WrongUse(
                f"Resample({self.site!r}) within the batch needs prompts of one length while generating: give a cache."
            )
        keys = positions.index if positions.keys is None else positions.keys
        return _Source(x, positions.index, keys[:, -x.shape[-1] :])

    def values(self) -> Iterator[Tensor]:
        yield from () if self.source is None else super().values()


@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """x ← value(x), or a tensor broadcast to x."""

    value: Tensor | Callable[[Tensor], Tensor]

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        """The tensor, or the function's answer, which must have x's shape."""
        if isinstance(self.value, Tensor):
            return self.broadcast(self.value, x)
        made = self.value(x)
        if made.shape != x.shape:
            raise WrongUse(f"Replace at {self.site!r} returned {tuple(made.shape)} for {tuple(x.shape)}.")
        return made

    def values(self) -> Iterator[Tensor]:
        if isinstance(self.value, Tensor):
            yield self.value


# ---------------------------------------------------------------- noise


def _mixed(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Every bit of 64 depends on every bit: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * (factor - (1 << 64))
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def normal(name: str, index: Int[Tensor, "batch pos"], rest: tuple[int, ...]) -> Float[Tensor, "batch pos ..."]:
    """N(0, 1) in float64 as a function of (name, row, position, entry) alone: z = √(-2 ln u) cos 2πv (Box and Muller 1958)."""
    start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
    row = torch.arange(len(index), device=index.device)[:, None]
    key = _mixed(_mixed(row + start) + index)
    for size in rest:
        key = _mixed(key[..., None] + torch.arange(1, size + 1, device=index.device))
    u, v = (((_mixed(key ^ k) >> 11) & ((1 << 53) - 1)).double() for k in (0x5851F42D4C957F2D, 0x14057B7EF767814F))
    return (-2 * ((u + 1) * 2.0**-53).log()).sqrt() * (2 * math.pi * v * 2.0**-53).cos()


KINDS: dict[str, type[Edit]] = {
    k.__name__: k for k in (Zero, Mean, Resample, Patch, Steer, Project, Scale, Noise, Freeze, Replace)
}
