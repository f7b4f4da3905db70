"""Edits: small frozen objects that say what to put where. Everything but what they select is left as it is, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, check_keys
from interp.model.positions import Pos, Positions

if TYPE_CHECKING:
    from jaxtyping import Bool

    from interp.model.cache import Cache


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

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        """What to put in place of x; only the selected entries are used."""
        raise TypeError("Edit is the common part: use Zero, Mean, Patch, Steer, Project, Scale or Replace.")

    def selected(self, x: Tensor, positions: Positions) -> Bool[Tensor, "..."]:
        """Which entries change, broadcastable to x [batch, pos, ...] or [batch, head, query, key]."""
        kind = axes(self.site)
        batch = positions.select(self.pos)
        if self.rows is not None:
            keep = torch.zeros(batch.shape[0], 1, dtype=torch.bool, device=batch.device)
            keep[self.rows] = True
            batch = batch & keep
        mask = batch[:, None, :, None] if kind == "pattern" else batch.reshape(*batch.shape, *[1] * (x.ndim - 2))
        if self.head is not None:
            if kind not in ("pattern", "heads"):
                raise WrongUse(f"head={self.head} was asked for at {self.site!r}, which has no heads.")
            mask = (
                mask
                & one_hot(x.shape[1 if kind == "pattern" else 2], [self.head], x.device)[
                    :, None, *[None] * (kind == "pattern")
                ]
            )
        if self.index is not None:
            mask = mask & one_hot(x.shape[-1], [self.index] if isinstance(self.index, int) else self.index, x.device)
        return mask

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """(x with the selected entries replaced, whether any was selected)."""
        mask = self.selected(x, positions)
        if not bool(mask.any()):
            return x, False
        return torch.where(mask, self.new(x, positions).to(x), x), True


def axes(site: str) -> str:
    """ "pattern" for [batch, head, query, key], "heads" for [batch, pos, head, d], else "stream"."""
    last = site.rsplit(".", 1)[-1]
    if last in ("pattern", "scores"):
        return "pattern"
    return "heads" if last in ("q", "k", "v", "z", "q_raw", "k_raw", "result") else "stream"


def one_hot(size: int, which: list[int], device: torch.device) -> Bool[Tensor, "size"]:
    """True at `which`. Raises `WrongUse` outside the range."""
    if any(not -size <= i < size for i in which):
        raise WrongUse(f"index {which} is outside 0 to {size - 1}.")
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    mask[which] = True
    return mask


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
        return self.value.to(x).expand_as(x)


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
        return x + self.alpha * self.direction.to(x)


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """x ← x - Q Qᵀ x: the span of the directions [d] or [n, d] is removed (Q: an orthonormal basis of it)."""

    directions: Tensor

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        given = torch.atleast_2d(self.directions).to(x.device, torch.promote_types(x.dtype, torch.float32))
        basis = torch.linalg.qr(given.T).Q
        wide = x.to(basis.dtype)
        return wide - wide @ basis @ basis.T


@dataclass(frozen=True, eq=False)
class Patch(Edit):
    """x at position p ← source at position p (or at `from_pos`): a `Cache` of another run, or a tensor [batch, pos, ...].

    Positions count real tokens, so prompts of other lengths and padding are aligned; beyond the source's end nothing
    changes.
    """

    source: Cache | Tensor
    from_pos: int | None = None

    def selected(self, x: Tensor, positions: Positions) -> Bool[Tensor, "..."]:
        inside = (positions.index < self._tensor().shape[self._axis()]) | (self.from_pos is not None)
        mask = super().selected(x, positions)
        return mask & (
            inside[:, None, :, None]
            if axes(self.site) == "pattern"
            else inside.reshape(*inside.shape, *[1] * (x.ndim - 2))
        )

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        source, axis = self._tensor().to(x), self._axis()
        index = positions.index.clamp(0, source.shape[axis] - 1)
        index = index if self.from_pos is None else torch.full_like(index, self.from_pos % source.shape[axis])
        source = source.expand(x.shape[0], *source.shape[1:]).movedim(axis, 1)
        taken = source[torch.arange(x.shape[0], device=x.device)[:, None], index.to(x.device)]
        if axes(self.site) == "pattern" and taken.shape[-1] != x.shape[-1]:
            taken = torch.nn.functional.pad(taken, (0, x.shape[-1] - taken.shape[-1]))
        return taken.movedim(1, axis)

    def _axis(self) -> int:
        return 2 if axes(self.site) == "pattern" else 1

    def _tensor(self) -> Tensor:
        return self.source if isinstance(self.source, Tensor) else self.source[self.site]


@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """x ← value(x), or a tensor broadcast to x."""

    value: Tensor | Callable[[Tensor], Tensor]

    def new(self, x: Tensor, positions: Positions) -> Tensor:
        made = self.value.to(x).expand_as(x) if isinstance(self.value, Tensor) else self.value(x)
        if made.shape != x.shape:
            raise WrongUse(f"Replace at {self.site!r} returned {tuple(made.shape)} for {tuple(x.shape)}.")
        return made
