"""Where recorded tensors go: those of one pass, or those of every pass of a generation joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.positions import Pos, Where
from interp.sites import pattern_like, position_axis

if TYPE_CHECKING:
    from jaxtyping import Bool


class Kept:
    """Receives recorded tensors; keeps the positions, dtype and device asked for, without a copy where none is needed."""

    def __init__(self, pos: Pos, dtype: torch.dtype | None, device: Any, clone: bool) -> None:
        self.pos, self.dtype, self.device, self.clone = pos, dtype, device, clone
        self.whole = isinstance(pos, str) and pos == "all"
        self.moved = device is not None or dtype is not None
        self.values: dict[str, Tensor] = {}
        self.versions: list[tuple[Tensor, int]] = []

    def __call__(self, site: str, x: Tensor, where: Where) -> None:
        kept = x.detach() if x.requires_grad else x
        if not self.whole:
            kept = self.cut(site, kept, where)
        if self.moved:
            kept = kept.to(device=self.device, dtype=self.dtype)
        if self.clone and kept.data_ptr() == x.data_ptr():
            kept = kept.clone()
        self.values[site] = kept
        self.versions.append((kept, kept._version))

    def cut(self, site: str, x: Tensor, where: Where) -> Tensor:
        """The positions asked for."""
        axis = position_axis(site)
        chosen = where(site, x).select(self.pos).to(x.device)
        counts = chosen.sum(1)
        if int(counts.min()) != int(counts.max()) or int(counts.max()) == 0:
            raise WrongUse(
                f"pos={self.pos!r} keeps {counts.tolist()} positions of the prompts: it must keep equally many, at least one."
            )
        rows = x.movedim(axis, 1)
        return rows[chosen].reshape(x.shape[0], int(counts[0]), *rows.shape[2:]).movedim(1, axis)

    def changed(self) -> bool:
        """Whether the model later wrote into a recorded tensor in place; then the run is repeated with copies."""
        return any(kept._version != version for kept, version in self.versions)


class Joined:
    """Receives the tensors of every pass of a generation; each column is kept once, with a KV cache or without."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}
        self.seen: dict[str, int] = {}

    def __call__(self, site: str, x: Tensor, where: Where) -> None:
        axis, total = position_axis(site), int(where(site, x).index.max()) + 1
        fresh = min(total - self.seen.get(site, 0), x.shape[axis])
        if fresh > 0:
            part = x.detach().narrow(axis, x.shape[axis] - fresh, fresh)
            if (
                pattern_like(site) and "cross_attn" not in site
            ):  # the last query's last key is itself; older may be gone
                size = max(total, x.shape[-1])
                part = torch.nn.functional.pad(part, (size - x.shape[-1], 0), value=_nothing(site))
            self.parts.setdefault(site, []).append(part.clone())
            self.seen[site] = total

    def values(self, mask: Bool[Tensor, "batch pos"]) -> dict[str, Tensor]:
        """Each site's columns in one tensor, every row's real ones first: padded on the right, as recordings are."""
        order = (~mask).long().argsort(dim=1, stable=True)
        return {site: self._join(site, order) for site in self.parts}

    def _join(self, site: str, order: Tensor) -> Tensor:
        axis, parts = position_axis(site), self.parts[site]
        longest = max(p.shape[-1] for p in parts)
        if axis == 2:
            parts = [torch.nn.functional.pad(p, (0, longest - p.shape[-1]), value=_nothing(site)) for p in parts]
        x = torch.cat(parts, dim=axis)
        for a in (2, 3) if axis == 2 else (1,):
            if x.shape[a] == order.shape[1] and x.shape[0] == order.shape[0]:
                x = x.movedim(a, 1)[torch.arange(len(x))[:, None], order.to(x.device)].movedim(1, a)
        return x


def _nothing(site: str) -> float:
    return float("-inf") if site.endswith(".scores") else 0.0
