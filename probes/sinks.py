"""Attention sinks: how much attention goes to the first token, and how far one changed token spreads with and without it.

A head is a sink where its mean attention to the first token, over queries, is above eps. Sources: Gu et al. 2025
(arXiv:2410.10781), the measure; Barbero et al. 2025 (arXiv:2504.02732), "Why do LLMs attend to the first token?": sinks keep
tokens from mixing, so a change spreads less where the start token is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.model import Model, teaches
from probes import prompts
from probes.paths import Patterns, attentions
from probes.sensitivity import layers_by_tokens

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

EPS = 0.8


@dataclass(frozen=True, eq=False)
class Sinks:
    """`received` [layer, head, pos]: the mean attention that each position gets, over the queries of a window, over windows."""

    received: Float[Tensor, "layer head pos"]
    attentions: tuple[str, ...]
    windows: int
    bos: bool | None

    @property
    def mass(self) -> Float[Tensor, "layer head"]:
        """The mean attention to the first token."""
        return self.received[..., 0]

    def rate(self, eps: float = EPS) -> float:
        """The share of heads whose mass is above eps."""
        return float((self.mass > eps).double().mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a head: attention, head, mass (to the first token), sink (above 0.8), second (to the one after it)."""
        import pandas as pd

        second = self.received[..., 1] if self.received.shape[-1] > 1 else torch.full_like(self.mass, torch.nan)
        rows = [
            [role, h, float(self.mass[i, h]), float(self.mass[i, h]) > EPS, float(second[i, h])]
            for i, role in enumerate(self.attentions)
            for h in range(self.mass.shape[1])
        ]
        return pd.DataFrame(rows, columns=["attention", "head", "mass", "sink", "second"])

    def plot(self) -> go.Figure:
        """Heads across, layers upwards, coloured by mass."""
        import plotly.graph_objects as go

        heat = go.Heatmap(z=self.mass.tolist(), zmin=0, zmax=1, colorscale="Blues", colorbar={"title": "mass"})
        axes = {"xaxis": {"title": "head", "dtick": 1}, "yaxis": {"title": "layer", "dtick": 1}}
        title = f"Attention to the first token: {self.rate():.1%} of heads above {EPS}"
        return go.Figure(heat).update_layout(title=title, template="plotly_white", **axes)


@teaches
def sinks(model: Model, windows: Iterable[Sequence[int]], *, context: int = 64, bos: bool | None = None) -> Sinks:
    """mean_i a_{i,j} for every layer, head and position j, over windows of `context` tokens; no pattern is made.

    `windows`: token ids; each is cut to `context`. `bos`: put the start token before each, or take it away; None: as they
    are. A window holds `context` tokens with it or without. Raises `WrongUse` for a model that is not causal, a window
    that is shorter, none at all, and `bos` without a start token.
    """
    prompts.check_causal(model)
    roles = attentions(model)
    total: Tensor | None = None
    count = 0
    for ids in windows:
        kept = started(model, ids, bos)[:context]
        if len(kept) < context:
            raise WrongUse(
                f"window {count} has {len(kept)} tokens, fewer than the {context} asked for: give longer text."
            )
        inputs = model.inputs(torch.tensor([kept], device=model.device))
        patterns = Patterns(model, inputs, roles)
        seen = torch.stack([patterns.received(role) for role in roles])
        total = seen if total is None else total + seen
        count += 1
    if total is None:
        raise WrongUse("there is no window of text to look at.")
    return Sinks(total / count, tuple(roles), count, bos)


def started(model: Model, ids: Sequence[int], bos: bool | None) -> list[int]:
    """Ids with the start token before them, without it, or as they are. Raises `WrongUse` if there is no such token."""
    if bos is None:
        return list(ids)
    start = getattr(model.tokenizer, "bos_token_id", None)
    if start is None:
        raise WrongUse(f"{model.id} has no start token, so bos={bos} means nothing.")
    rest = list(ids)[1:] if list(ids[:1]) == [start] else list(ids)
    return [start, *rest] if bos else rest


# ---------------------------------------------------------------- one changed token


@dataclass(frozen=True, eq=False)
class Spread:
    """`change` at each site: ‖δv_j‖ / ‖v_j‖ at every token j, when the token at `pos` is another one."""

    change: dict[str, Float[Tensor, " pos"]]
    tokens: dict[str, list[str]]
    pos: int

    @property
    def later(self) -> dict[str, float]:
        """The mean change of the tokens after the changed one, at each site."""
        return {n: float(c[self.pos + 1 :].mean()) for n, c in self.change.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row a site and token: site, pos, token, change."""
        import pandas as pd

        rows = [
            [site, i, word, value]
            for site, c in self.change.items()
            for i, (word, value) in enumerate(zip(self.tokens[site], c.tolist(), strict=True))
        ]
        return pd.DataFrame(rows, columns=["site", "pos", "token", "change"])

    def plot(self) -> go.Figure:
        """Tokens across, layers upwards."""
        return layers_by_tokens(self.change, self.tokens, f"‖δv‖ / ‖v‖ when token {self.pos} is another", log=False)


@teaches
@torch.no_grad()
def spread(model: Model, ids: Sequence[int], *, pos: int, token: int) -> Spread:
    """‖v_j(ids') - v_j(ids)‖ / ‖v_j(ids)‖ after every block, ids' with `token` at `pos`.

    Raises `WrongUse` for a model that is not causal, a position without a token after it, and the token that is there.
    """
    prompts.check_causal(model)
    if not 0 <= pos < len(ids) - 1 or ids[pos] == token:
        raise WrongUse(
            f"position {pos} of {len(ids)} tokens with {token} in place: give another token, and one after it."
        )
    other = [*ids[:pos], token, *ids[pos + 1 :]]
    sites = prompts.stream(model)
    inputs = [model.inputs(torch.tensor([i], device=model.device)) for i in (ids, other)]
    a, b = (model.record(i, sites) for i in inputs)
    change = {}
    for n in sites:
        x, y = a[n][0].double().cpu().flatten(1), b[n][0].double().cpu().flatten(1)
        change[n] = (y - x).norm(dim=1) / x.norm(dim=1)
    kept = torch.arange(len(ids))
    return Spread(change, {n: prompts.words(model, inputs[0], n, kept) for n in sites}, pos)


def mean_spread(
    model: Model, windows: Sequence[Sequence[int]], *, context: int = 64, bos: bool | None = None, changed: int = 4
) -> dict[str, float]:
    """`spread(...).later` over windows: token `changed`, counted behind the start token, is that of the next window.

    Raises `WrongUse` where no token follows it, and for a single window.
    """
    cut = [started(model, ids, bos)[:context] for ids in windows]
    at = changed + (bos is True)
    if at >= min(map(len, cut)) - 1 or len(cut) < 2:
        raise WrongUse(
            f"token {changed} of {len(cut)} windows of {context}: give two windows, and a token with others after it."
        )
    rows = []
    for x, y in zip(cut, cut[1:] + cut[:1], strict=True):
        token = next((t for t in y[at:] + y[:at] if t != x[at]), None)
        if token is not None:
            rows.append(spread(model, x, pos=at, token=token).later)
    return {site: sum(row[site] for row in rows) / len(rows) for site in rows[0]}
