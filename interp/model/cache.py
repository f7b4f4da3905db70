"""What a run recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.sites import canonical, pattern_like, position_axis

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Cache(Mapping[str, Tensor]):
    """Recorded tensors by site name; `tokens` and `mask` [batch, pos]; `logits` if recorded; `bos` as it was given."""

    values_by_site: dict[str, Tensor]
    tokens: Int[Tensor, "batch pos"] | None = None
    mask: Bool[Tensor, "batch pos"] | None = None
    bos: bool | None = None
    post_norm: bool = False
    decode: Callable[[list[int]], str] | None = None  # the tokenizer's
    pos: Any = "all"  # the positions that were kept
    gradients: dict[str, Tensor] | None = None

    def __getitem__(self, site: str) -> Tensor:
        if site in self.values_by_site:
            return self.values_by_site[site]
        name = canonical(site, self.post_norm)
        if name not in self.values_by_site:
            raise WrongUse(
                f"{site!r} was not recorded.{nearest(name, self.values_by_site)} Recorded: {', '.join(self.values_by_site)}. "
                f"Add it to the call: record(x, sites=[..., {site!r}])."
            )
        return self.values_by_site[name]

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str) and canonical(site, self.post_norm) in self.values_by_site

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_site)

    def __len__(self) -> int:
        return len(self.values_by_site)

    @cached_property
    def words(self) -> tuple[tuple[str, ...], ...] | None:
        """Each prompt's real tokens as text, for axes; None where there is no tokenizer."""
        if self.decode is None or self.tokens is None or self.mask is None:
            return None
        rows = [ids[keep].tolist() for ids, keep in zip(self.tokens, self.mask, strict=True)]
        return tuple(tuple(self.decode([i]) for i in row) for row in rows)

    @property
    def logits(self) -> Tensor:
        """The model's logits; record them by adding "logits" to the sites."""
        return self["logits"]

    @property
    def grad(self) -> Cache:
        """d metric / d site by site, in the sites' shapes, after `record(..., grad=metric)`."""
        if self.gradients is None:
            raise WrongUse("no gradient was recorded: record(x, sites, grad=metric), metric a scalar of the logits.")
        return replace(self, values_by_site=self.gradients, gradients=None)

    def rows(self, site: str) -> Float[Tensor, "token ..."]:
        """Real tokens only, prompt after prompt: x[mask]."""
        x = self[site]
        if self.mask is None:
            return x.flatten(0, 1)
        if x.shape[:2] != self.mask.shape:
            raise WrongUse(
                f"rows() needs every position, but {site!r} is {tuple(x.shape)} for {tuple(self.mask.shape)} tokens."
            )
        return x[self.mask.to(x.device)]

    def at(self, site: str, pos: int) -> Float[Tensor, "batch ..."]:
        """Each prompt's value at one position, counted over real tokens from 0, or from the end if negative."""
        x = self[site]
        axis = position_axis(site)
        length = torch.full((x.shape[0],), x.shape[axis]) if self.mask is None else self.mask.sum(1)
        index = torch.where(torch.tensor(pos) < 0, length + pos, torch.tensor(pos))
        if bool(((index < 0) | (index >= length)).any()):
            raise WrongUse(f"position {pos} lies outside a prompt: their lengths are {length.tolist()}.")
        return x.movedim(axis, 1)[torch.arange(x.shape[0]), index.to(x.device)]

    def stack(self, pattern: str) -> Float[Tensor, "site ..."]:
        """All recorded sites that match a glob, stacked in order."""
        names = [n for n in self if fnmatchcase(n, canonical(pattern, self.post_norm))]
        if not names:
            raise WrongUse(f"no recorded site matches {pattern!r}. Recorded: {', '.join(self)}.")
        return torch.stack([self[n] for n in names])

    def plot(self, site: str, row: int = 0, head: int = 0) -> go.Figure:
        """A heat map of one prompt: [query, key] of a head's pattern or scores, else [pos, d] of its values."""
        import plotly.graph_objects as go

        from interp.model.pictures import shown

        x = self[site][row].float().cpu()
        pattern = pattern_like(site)
        x = x[head] if pattern else x[:, head] if x.ndim == 3 else x.reshape(x.shape[0], -1)
        names = list(self.words[row]) if self.words is not None and len(self.words[row]) <= len(x) else None
        labels = [f"{i} {shown(w)}" for i, w in enumerate(names)] if names else [str(i) for i in range(len(x))]
        x = x[: len(labels), : len(labels) if pattern and names else None]
        span = {} if pattern else {"zmid": 0.0}
        heat = go.Heatmap(
            z=x,
            y=labels,
            x=labels[: x.shape[1]] if pattern else None,
            colorscale="Blues" if pattern else "RdBu",
            **span,
        )
        title = f"{site}, head {head}" if pattern or self[site].ndim == 4 else site
        axes = ("query", "key") if pattern else ("position", "dimension")
        layout = {"title": title, "yaxis": {"title": axes[0], "autorange": "reversed"}, "xaxis": {"title": axes[1]}}
        return go.Figure(heat, layout | {"template": "plotly_white"})

    def to_frame(self) -> pd.DataFrame:
        """One row a site: shape, dtype, mean, root mean square, largest magnitude."""
        import pandas as pd

        rows = []
        for name, x in self.items():
            y = x.double()
            rms = float(y.square().mean().sqrt())
            rows.append(
                [name, tuple(x.shape), str(x.dtype).removeprefix("torch."), float(y.mean()), rms, float(y.abs().max())]
            )
        return pd.DataFrame(rows, columns=["site", "shape", "dtype", "mean", "rms", "max_abs"])

    def plot_attention(self, layer: int | str, row: int = 0, view: str = "heads") -> go.Figure:
        """All heads of a block (or of a named pattern), as maps, or `view="tokens"`: see `pictures.plot_attention`."""
        from interp.model import pictures

        return pictures.plot_attention(self, layer, row, view)

    def plot_stream(self, row: int = 0, stack: str = "") -> go.Figure:
        """Norms of the stream and cosines between neighbouring layers: see `pictures.plot_stream`."""
        from interp.model import pictures

        return pictures.plot_stream(self, row, stack)
