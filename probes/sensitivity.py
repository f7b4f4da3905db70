"""How much the last token's output moves with each token before it, at every layer: exact Jacobian norms.

J_i = ‖∂y_n / ∂v_i‖_F, y_n the output at the last token and v_i the stream at token i. Source: Barbero et al. 2024
(arXiv:2406.04267), "Transformers need glasses!", section 5, who bound it; here it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.model import Model, teaches
from probes import prompts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

EXACT = 1024  # outputs up to which every one is differentiated unless probes are asked for
PROBES = 64
PASS = 2048  # tokens whose graph is held at one time, except where the prompt alone is longer


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """J_i at each site, token after token; `errors`: standard errors where probes were used, else nothing.

    `until`: whose output is meant, at the real token `pos`; `tokens`: the words at each site.
    """

    norms: dict[str, Float[Tensor, " pos"]]
    errors: dict[str, Float[Tensor, " pos"]]
    tokens: dict[str, list[str]]
    until: str
    pos: int
    probes: int

    def to_frame(self) -> pd.DataFrame:
        """One row a site and token: site, pos, token, norm, error (NaN where exact)."""
        import pandas as pd

        rows = []
        for site, norms in self.norms.items():
            errors = self.errors.get(site, torch.full_like(norms, torch.nan)).tolist()
            rows += [
                [site, *row] for row in zip(range(len(norms)), self.tokens[site], norms.tolist(), errors, strict=True)
            ]
        return pd.DataFrame(rows, columns=["site", "pos", "token", "norm", "error"])

    def field(self, share: float = 0.9) -> pd.DataFrame:
        """The effective receptive field at each site: site, within, tokens, distance.

        With p_i = J_i² / Σ J²: `within` the fewest tokens, those nearest to the output, that hold `share` of p; `tokens` =
        exp(-Σ p ln p), how many are felt; `distance` = Σ p_i (n - i). Sites of an encoder have no distance: NaN.
        """
        import pandas as pd

        rows = []
        for site, norms in self.norms.items():
            p = norms.double().square()
            p = p / p.sum().clamp(min=1e-300)
            near = p[: self.pos + 1].flip(0)
            within = min(len(near), 1 + int((near.cumsum(0) < share * (1 - 1e-12)).sum()))
            felt = float(torch.exp(-torch.special.xlogy(p, p).sum()))
            far = float((near * torch.arange(len(near))).sum())
            other = prompts.of_decoder(site) != prompts.of_decoder(self.until)
            rows.append([site, *((float("nan"), felt, float("nan")) if other else (within, felt, far))])
        return pd.DataFrame(rows, columns=["site", "within", "tokens", "distance"])

    def plot(self) -> go.Figure:
        """Tokens across, sites upwards, J_i on a logarithmic scale of colours."""
        return layers_by_tokens(self.norms, self.tokens, f"‖∂ {self.until}[{self.pos}] / ∂ site‖")


def layers_by_tokens(
    values: dict[str, Float[Tensor, " pos"]], tokens: dict[str, list[str]], title: str, log: bool = True
) -> go.Figure:
    """A heat map of one number a site and token; `log`: coloured by its logarithm to the base 10."""
    import plotly.graph_objects as go

    from interp.lenses.trajectory import short_names
    from interp.model.pictures import shown

    longest = max(values, key=lambda s: len(values[s]))
    x = [f"{i} {shown(w)}" for i, w in enumerate(tokens[longest])]
    rows = []
    for v in values.values():
        seen = v.double().clamp(min=1e-300).log10() if log else v.double()
        seen = torch.where(v > 0, seen, torch.nan) if log else seen
        rows.append(seen.tolist() + [None] * (len(x) - len(v)))
    bar = {"title": {"text": "log₁₀" if log else "", "side": "right"}}
    heat = go.Heatmap(z=rows, x=x, y=short_names(list(values)), colorscale="Blues", colorbar=bar)
    heat.update(hovertemplate="%{y}, %{x}<br>%{z:.3f}<extra></extra>")
    size = {"width": max(560, min(1400, 200 + 34 * len(x))), "height": 150 + 34 * len(rows)}
    ticks = {"tickangle": -45, "nticks": 60}
    return go.Figure(heat).update_layout(title=title, template="plotly_white", xaxis=ticks, **size)


@teaches
def sensitivity(
    model: Model,
    x: Any,
    sites: str | Sequence[str] | None = None,
    *,
    until: str | None = None,
    pos: int = -1,
    probes: int | None = None,
    seed: int = 0,
    held: bool = False,
    bos: bool | None = None,
) -> Sensitivity:
    """J_i = ‖∂y_pos / ∂v_i‖_F for every real token i of one prompt, at every site.

    `sites`: default the stream into each block and out of the last; `until`: default the last norm. Exact: one backward
    pass for each number of y. With `probes` = r > 0: J_i² = E‖uᵀ ∂y/∂v_i‖² over u of ±1 drawn by `seed`, the mean of r with
    its standard error (Hutchinson 1990). `probes=None`: exact up to 1024 numbers of y, else 64 probes; 0: exact always.
    `held`: the patterns are constants, as in the path bound.
    Raises `WrongUse` for several prompts, a position that is not there, a site that y does not depend on, and one probe.
    """
    inputs = prompts.one_prompt(model, x, bos)
    names, until = model.names(sites or prompts.stream(model)), until or prompts.output(model)
    (until,) = model.names(until)
    if probes is not None and (probes < 0 or probes == 1):
        raise WrongUse(f"probes={probes}: give 2 or more, for a standard error, or 0 for all of the Jacobian.")
    length = max((v.shape[1] for v in inputs.values() if isinstance(v, Tensor) and v.ndim > 1), default=1)
    rows = max(1, min(PASS // length, 64))
    with prompts.held(model) if held else nullcontext():
        zeros, found = model.linked(prompts.repeated(inputs, rows), names, until)
    y = found[until]
    kept = prompts.columns(inputs, until, y.shape[1])
    if not -len(kept) <= pos < len(kept):
        raise WrongUse(f"position {pos} is not there: this prompt has {len(kept)} tokens.")
    pos = pos % len(kept)
    size = y[0, 0].numel()
    count = probes if probes is not None else 0 if size <= EXACT else PROBES
    u = _signs(count, size, seed) if count else torch.eye(size)
    sums = {n: torch.zeros(2, zeros[n].shape[1], dtype=torch.float64) for n in names}
    for part in u.to(y).split(rows):
        pull = torch.zeros_like(y).flatten(2)
        pull[: len(part), int(kept[pos])] = part
        slopes = torch.autograd.grad(y, list(zeros.values()), pull.view_as(y), retain_graph=True, allow_unused=True)
        for name, slope in zip(names, slopes, strict=True):
            if slope is None:
                raise WrongUse(f"{until!r} does not depend on {name!r}: name a site before it.")
            each = slope[: len(part)].flatten(2).double().square().sum(-1).cpu()
            sums[name] += torch.stack([each.sum(0), each.square().sum(0)])
    return _told(model, inputs, sums, until, pos, count)


def _signs(count: int, size: int, seed: int) -> Float[Tensor, "count size"]:
    draw = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(2, (count, size), generator=draw) - 1


def _told(
    model: Model, inputs: dict[str, Any], sums: dict[str, Tensor], until: str, pos: int, count: int
) -> Sensitivity:
    norms, errors, tokens = {}, {}, {}
    for name, (first, second) in sums.items():
        kept = prompts.columns(inputs, name, len(first))
        tokens[name] = prompts.words(model, inputs, name, kept)
        mean = first[kept] / (count or 1)
        norms[name] = mean.sqrt()
        if count:  # of the mean of squares, and from there to its root
            spread = (second[kept] / count - mean.square()).clamp(min=0) / (count - 1)
            errors[name] = spread.sqrt() / (2 * norms[name].clamp(min=1e-300))
    return Sensitivity(norms, errors, tokens, until, pos, count)
