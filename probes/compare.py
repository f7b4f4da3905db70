"""Layers and models compared: how alike two sites' states are, and what the order of the tokens changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse, check_keys
from interp.model.model import teaches
from probes import measures as m
from probes.windows import Data, batches, of_windows, token_windows

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

    from interp.model.model import Model

LIKENESS = {"cka": m.cka, "procrustes": m.procrustes, "linearity": m.linearity}


@dataclass(frozen=True, eq=False)
class Similarity:
    """A measure of every site of one model [rows] with every site of another [columns]."""

    values: Float[Tensor, "a b"]
    a: list[str]
    b: list[str]
    measure: str

    def to_frame(self) -> pd.DataFrame:
        """Sites of the first as rows, of the second as columns."""
        import pandas as pd

        return pd.DataFrame(self.values.numpy(), index=self.a, columns=self.b)

    def plot(self) -> go.Figure:
        """A map of it."""
        import plotly.graph_objects as go

        heat = go.Heatmap(z=self.values, x=self.b, y=self.a, zmin=0, zmax=1, colorscale="Blues")
        return go.Figure(heat, {"title": self.measure, "template": "plotly_white"})


@teaches
@torch.no_grad()
def similarity(
    a: Model,
    b: Model,
    data: Data,
    *,
    measure: str = "cka",
    sites: str | Sequence[str] = "*blocks.*.resid_post",
    context: int = 512,
    tokens: int = 4096,
    batch: int = 4,
) -> Similarity:
    """A measure of likeness, "cka", "procrustes" or "linearity" (columns from rows), of all sites of two models on the same tokens.

    `b` may be `a` itself. Raises `WrongUse` for an unknown measure, and for text that the two cut into other tokens.
    """
    check_keys([measure], LIKENESS, "the list of measures")
    if not hasattr(data, "keys"):
        data = data if isinstance(data, (str, Tensor)) else list(data)
        ids = [token_windows(model, data, context, tokens).cpu() for model in (a, b)]
        if not torch.equal(*ids):
            raise WrongUse(
                f"{a.id} and {b.id} cut the text into other tokens, so their states cannot be paired: give models of one "
                "tokenizer, or token ids that mean the same to both."
            )
        data = ids[0]
    states = [_states(model, data, model.names(sites), batch) for model in (a, b)]
    like = LIKENESS[measure]
    values = [[like(x, y) for y in states[1].values()] for x in states[0].values()]
    return Similarity(torch.tensor(values, dtype=torch.float64), list(states[0]), list(states[1]), measure)


def _states(model: Model, data: Data, names: list[str], batch: int) -> dict[str, Float[Tensor, "n d"]]:
    found: dict[str, list[Tensor]] = {n: [] for n in names}
    for x, keep in batches(model, data, 0, 0, batch):
        cache = model.record(x, names)
        for n in names:
            found[n] += of_windows(cache[n], keep)
    return {n: torch.cat(rows).double().cpu() for n, rows in found.items()}


# ---------------------------------------------------------------- the order of tokens


@dataclass(frozen=True, eq=False)
class Permuted:
    """What moving tokens 0 … n - 2 about does to the last position, and to the moved ones once they are moved back: means of
    ‖y(πx) - y(x)‖ / ‖y(x)‖ over permutations and windows, at each site.
    """

    sites: list[str]
    last: Float[Tensor, " site"]
    others: Float[Tensor, " site"]

    def to_frame(self) -> pd.DataFrame:
        """One row a site: site, last, others."""
        import pandas as pd

        return pd.DataFrame({"site": self.sites, "last": self.last.tolist(), "others": self.others.tolist()})

    def plot(self) -> go.Figure:
        """Both from site to site."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, values in (("last position", self.last), ("the others, moved back", self.others)):
            figure.add_scatter(x=self.sites, y=values.tolist(), name=name, mode="lines+markers")
        return figure.update_layout(title="What another order of the tokens changes", template="plotly_white")


@teaches
@torch.no_grad()
def permutation_sensitivity(
    model: Model,
    data: Data,
    *,
    sites: str | Sequence[str] = "*blocks.*.resid_post",
    draws: int = 8,
    context: int = 64,
    tokens: int = 1024,
    seed: int = 0,
) -> Permuted:
    """‖y(πx) - y(x)‖ / ‖y(x)‖ with the tokens before the last in another order (Zuo and Guerzhoy 2024, arXiv:2402.05969).

    0 at the last position without position encodings and mask; with a causal mask still 0 after one layer, no more after
    two. A beginning-of-sequence token keeps its place. Raises `WrongUse` for ready inputs without tokens, and for windows of
    fewer than three tokens that move.
    """
    ids, names = token_windows(model, data, context, tokens), model.names(sites)
    bos = getattr(model.tokenizer, "bos_token_id", None)
    first = int(bos is not None and bool(torch.eq(ids[:, 0], bos).all()))
    n = ids.shape[1]
    if n - first < 3:
        raise WrongUse(f"windows of {n} tokens have no two tokens to change places before the last: give longer ones.")
    draw = torch.Generator().manual_seed(seed)
    plain = model.record(ids, names)
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for _ in range(draws):
        order = torch.cat(
            [torch.arange(first), first + torch.randperm(n - 1 - first, generator=draw), torch.tensor([n - 1])]
        )
        moved = model.record(ids[:, order.to(ids.device)], names)
        for i, name in enumerate(names):
            y, z = plain[name].flatten(2).double().cpu(), moved[name].flatten(2).double().cpu()
            change = (z - y[:, order]).norm(dim=-1) / y[:, order].norm(dim=-1)
            sums[:, i] += torch.stack([change[:, -1].mean(), change[:, first:-1].mean()])
    return Permuted(names, *(sums / draws))
