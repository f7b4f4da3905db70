"""Many edits in one batch, and their first-order estimate by gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.edits import Edit, axes
from interp.model.positions import Positions, Where

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

    from interp.model.cache import Cache
    from interp.model.model import Model

Metric = Callable[[Tensor], Tensor]


def output_tensor(output: Any) -> Tensor:
    """A model's logits, or else the first floating-point tensor it returns."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    found = next((t for t in _tensors(output) if t.is_floating_point()), None)
    if found is None:
        raise WrongUse("the model returns no floating-point tensor, so there is nothing to measure.")
    return found


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in an output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


# ---------------------------------------------------------------- gradients


@dataclass(frozen=True, eq=False)
class Probe(Edit):
    """x ← x + 0: the gradient of that zero is the gradient at the site, whatever kind of site it is."""

    zeros: list[tuple[Tensor, Positions]] = field(default_factory=list)

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """Add the zero and remember it."""
        if not x.is_floating_point():
            raise WrongUse(f"{self.site!r} holds {x.dtype}: there is no gradient of whole numbers.")
        zero = torch.zeros_like(x, requires_grad=True)
        self.zeros.append((zero, positions))
        return x + zero, True

    def where(self, site: str, x: Tensor) -> Positions:
        """The positions of the site's tensor."""
        return self.zeros[0][1]


def slopes(output: Any, metric: Metric, probes: Sequence[Probe], keep: Callable[[str, Tensor, Where], None]) -> None:
    """Hand d metric / d site of every probe to `keep`; no parameter's .grad is touched."""
    value = metric(output_tensor(output))
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        told = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise WrongUse(
            f"grad= must map the logits to a differentiable scalar tensor; it gave {told}"
            f"{'' if not isinstance(value, Tensor) or value.numel() != 1 else ' without a gradient'}. Use .sum() or .mean()."
        )
    missed = [p.site for p in probes if not p.zeros]
    if missed:
        raise WrongUse(f"the run never reached {', '.join(missed)}: these modules are not called for this input.")
    zeros = [p.zeros[0][0] for p in probes]
    found = torch.autograd.grad(value.sum(), zeros, allow_unused=True)
    for probe, zero, slope in zip(probes, zeros, found, strict=True):
        keep(probe.site, torch.zeros_like(zero) if slope is None else slope, probe.where)


# ---------------------------------------------------------------- sweeps


@dataclass(frozen=True, eq=False)
class RowEdits(Edit):
    """Edits of one site, each applied to one row of the batch as if that row were alone."""

    edits: list[tuple[int, Edit]] = field(default_factory=list)
    count: int = 1
    fired: set[int] = field(default_factory=set)

    def apply(self, x: Tensor, positions: Positions) -> tuple[Tensor, bool]:
        """Each edit on its own row."""
        if x.shape[0] == 1 < self.count:  # one row for the whole batch, as position embeddings are
            x, positions = x.expand(self.count, *x.shape[1:]), Positions(positions.index.expand(self.count, -1))
        if x.shape[0] != self.count:
            raise WrongUse(f"{self.site!r} is {tuple(x.shape)}: it has no axis of prompts, so it cannot be swept.")
        rows = list(x.split(1))
        for row, edit in self.edits:
            rows[row], fired = edit.apply(rows[row], positions.row(row))
            self.fired.update([id(edit)] if fired else [])
        return torch.cat(rows), True


@dataclass(frozen=True, eq=False)
class Sweep:
    """The metric under each edit, and without any (`clean`)."""

    edits: tuple[tuple[Edit, ...], ...]
    values: Float[Tensor, "edit"]
    clean: float

    def to_frame(self) -> pd.DataFrame:
        """One row an edit: edit, site, pos, head, index, value, difference to clean. Edits made together are joined by " + "."""
        import pandas as pd

        rows = [
            [
                *(_joined([_told(getattr(e, k)) for e in group]) for k in ("site", "pos", "head", "index")),
                v,
                v - self.clean,
            ]
            for group, v in zip(self.edits, self.values.tolist(), strict=True)
        ]
        frame = pd.DataFrame(rows, columns=["site", "pos", "head", "index", "value", "difference"])
        frame.insert(0, "edit", [" + ".join(type(e).__name__ for e in group) for group in self.edits])
        return frame

    def plot(self) -> go.Figure:
        """Differences to clean: sites by positions (or by heads) as a heat map where the edits have them, else as bars."""
        import plotly.graph_objects as go

        frame = self.to_frame()
        across = next((c for c in ("pos", "head") if frame[c].map(lambda v: isinstance(v, int)).all()), None)
        if across is None:
            names = [f"{i} {e} {s}" for i, (e, s) in enumerate(zip(frame["edit"], frame["site"], strict=True))]
            figure = go.Figure(go.Bar(x=frame["difference"], y=names, orientation="h"))
            return figure.update_layout(
                template="plotly_white", xaxis_title="difference to clean", yaxis={"autorange": "reversed"}
            )
        table = frame.pivot_table("difference", "site", across, aggfunc="mean", sort=False).sort_index(axis=1)
        return _heat(
            table.to_numpy(), [str(c) for c in table.columns], list(table.index), across, "difference to clean"
        )


def _told(value: Any) -> Any:
    """A selection as a cell of a table."""
    if isinstance(value, Tensor):
        return f"mask of {int(value.sum())}"
    return value if value is None or isinstance(value, (int, str)) else str(value)


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else " + ".join(map(str, parts))


def _heat(z: Any, x: list[str], y: list[str], across: str, title: str) -> go.Figure:
    import plotly.graph_objects as go

    heat = go.Heatmap(z=z, x=x, y=y, colorscale="RdBu", zmid=0.0, colorbar={"title": title})
    down = {"title": "site", "autorange": "reversed"}
    return go.Figure(heat, {"xaxis": {"title": across, "type": "category"}, "yaxis": down, "template": "plotly_white"})


def grouped(edits: Sequence[Edit | Sequence[Edit]]) -> list[tuple[Edit, ...]]:
    """Every element as the edits of one row. Raises `WrongUse` for an empty sweep."""
    groups = [(e,) if isinstance(e, Edit) else tuple(e) for e in edits]
    if not groups:
        raise WrongUse("the sweep has no edits: give at least one.")
    return groups


def by_site(groups: Sequence[Sequence[Edit]]) -> list[RowEdits]:
    """The edits of a batch whose row r gets groups[r], in the order each row has them."""
    sites: dict[str, RowEdits] = {}
    for row, group in enumerate(groups):
        for edit in group:
            sites.setdefault(edit.site, RowEdits(edit.site, [], len(groups))).edits.append((row, edit))
    return list(sites.values())


def measure(metric: Metric, logits: Tensor) -> Float[Tensor, "batch"]:
    """metric(logits [batch, pos, vocab]) -> [batch]; anything else raises `WrongUse`."""
    values = metric(logits)
    if not isinstance(values, Tensor) or tuple(values.shape) != (logits.shape[0],):
        told = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise WrongUse(
            f"the metric of a sweep gives one number a row, [batch]; it gave {told} for logits {tuple(logits.shape)}."
        )
    return values.detach().double().cpu()


# ---------------------------------------------------------------- attribution patching


@dataclass(frozen=True, eq=False)
class Attribution:
    """Estimated effects: by site [batch, pos], [batch, pos, head or latent], or [batch, head, query] for patterns and scores."""

    by_site: dict[str, Tensor]
    words: tuple[tuple[str, ...], ...] | None = None

    def __getitem__(self, site: str) -> Tensor:
        return self.by_site[site]

    def to_frame(self) -> pd.DataFrame:
        """One row an entry: site, row, pos, head, effect; of latents, also latent, and those without effect are left out."""
        import pandas as pd

        rows = []
        for site, effect in self.by_site.items():
            t, latents = effect.movedim(1, 2) if axes(site) == "pattern" else effect, _of_latents(site)
            places = t.nonzero() if latents else torch.cartesian_prod(*map(torch.arange, t.shape))
            for place in places.tolist():
                last = place[2] if len(place) > 2 else None
                both = (None, last) if latents else (last, None)
                rows.append([site, place[0], place[1], *both, float(t[tuple(place)])])
        frame = pd.DataFrame(rows, columns=["site", "row", "pos", "head", "latent", "effect"])
        return frame if any(map(_of_latents, self.by_site)) else frame.drop(columns="latent")

    def plot(self, row: int = 0) -> go.Figure:
        """Effects of one prompt, sites by positions; heads are summed."""
        from interp.model.pictures import shown

        frame = self.to_frame().query("row == @row")
        table = frame.pivot_table("effect", "site", "pos", aggfunc="sum", sort=False).sort_index(axis=1)
        words = self.words[row] if self.words is not None and len(self.words[row]) >= table.shape[1] else None
        names = [f"{c} {shown(words[int(c)])}" if words else str(c) for c in table.columns]
        return _heat(table.to_numpy(), names, list(table.index), "pos", "effect")


def _of_latents(site: str) -> bool:
    return site.endswith(".latents")


def attribution_patching(
    model: Model, clean: Any, corrupted: Any, sites: str | Sequence[str], metric: Metric
) -> Attribution:
    """effect = Σ_d (clean - corrupted) · ∂ metric / ∂ site at the corrupted run: the first-order effect of patching clean in.

    Source: Nanda, "Attribution patching" (2023); Syed, Rager and Conmy (2023), equation 1. Two forward passes and one
    backward pass for all sites, positions and heads; at SITE.latents of an attached dictionary one effect a
    latent. `metric` maps logits [batch, pos, vocab] to a scalar, or to one
    number a row. Raises `WrongUse` if the prompts differ in length, since positions are compared one by one.
    """
    good = model.record(clean, sites)
    bad = model.record(corrupted, sites, grad=lambda logits: metric(logits).sum())
    effects = {}
    for site in bad:
        if good[site].shape != bad[site].shape or not _same_mask(good, bad):
            raise WrongUse(
                f"clean and corrupted prompts must have the same lengths: {site!r} is {tuple(good[site].shape)} and "
                f"{tuple(bad[site].shape)}. Patch(from_pos=, to_pos=) and model.sweep take prompts of other lengths."
            )
        moved = torch.where(good[site] == bad[site], 0.0, good[site] - bad[site])  # masked scores are -inf in both
        effect = moved * bad.grad[site]
        effects[site] = effect if _of_latents(site) else effect.sum(-1)
    return Attribution(effects, bad.words)


def _same_mask(a: Cache, b: Cache) -> bool:
    return a.mask is None or b.mask is None or torch.equal(a.mask, b.mask)
