"""How a stream turns from the token that is there to the token that comes next, layer by layer.

For each layer l, a ridge map (with intercept) from its states x_l to the token's embedding x_in and to the last state x_out:

    A = argmin Σ_t |y_t - x_t A - c|² + α |A|²,     angle = median |arg λ_i(A)| in degrees

A map that turns nothing has the angle 0, a random matrix about 90. Source: Chang & Bergen 2025 (arXiv:2504.15471),
section 5; the similarity of covariances is that of Belrose et al. 2023 (arXiv:2303.08112).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.readout import Readout
from interp.lenses.trajectory import short_names

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

    from interp.model import Cache, Model

ALPHA = 1.0
BATCH = 2048  # tokens run at once
ROWS_A_COLUMN = 4  # tokens that a map is fitted on for each of its input dimensions, at least
RANKS = (1, 5, 10)


class Moments:
    """Σ 1, Σ x, Σ y, Σ xᵀx, Σ xᵀy and Σ |y|² of rows x [n, d] and y [n, e], in float64, from which a ridge map follows."""

    def __init__(self) -> None:
        self.n, self.sums = 0, [torch.zeros((), dtype=torch.float64)] * 5

    def add(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> None:
        """Some more rows."""
        x, y = x.double().cpu(), y.double().cpu()
        self.n += len(x)
        fresh = x.sum(0), y.sum(0), x.mT @ x, x.mT @ y, y.square().sum()
        self.sums = [a + b for a, b in zip(self.sums, fresh, strict=True)]

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Σ (x - μ)ᵀ (x - μ) / n."""
        x, _, xx, _, _ = self.sums
        return xx / self.n - torch.outer(x, x) / self.n**2

    def ridge(self, alpha: float = ALPHA) -> tuple[Float[Tensor, "d e"], Float[Tensor, " e"], float]:
        """(A, c, R² on the rows themselves), with y ≈ x A + c and no penalty on c.

        Raises `WrongUse` for fewer than four rows a dimension: such a map is noise, and its angles are those of a random matrix.
        """
        x, y, xx, xy, yy = self.sums
        d = len(x)
        if self.n < ROWS_A_COLUMN * d:
            raise WrongUse(
                f"a map of {d} dimensions needs at least {ROWS_A_COLUMN * d} tokens, and the text has {self.n}: of fewer, "
                "the angles are those of noise. Give more text."
            )
        S, T = xx - torch.outer(x, x) / self.n, xy - torch.outer(x, y) / self.n
        A = torch.linalg.solve(S + alpha * torch.eye(d, dtype=S.dtype), T)
        total = yy - y.square().sum() / self.n
        left = total - 2 * (A * T).sum() + (A * (S @ A)).sum()
        return A, (y - x @ A) / self.n, float(1 - left / total)


def angle(A: Float[Tensor, "d d"]) -> float:
    """The median of |arg λ| of the eigenvalues of a square matrix, in degrees, 0 to 180."""
    return float(torch.linalg.eigvals(A).angle().abs().rad2deg().median())


def similarity(a: Float[Tensor, "d d"], b: Float[Tensor, "d d"]) -> float:
    """Frobenius cosine of two covariances, each without its largest direction."""
    x, y = _without_top(a), _without_top(b)
    return float((x * y).sum() / (x.norm() * y.norm()))


def _without_top(C: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(C)
    return C - values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])


@dataclass(frozen=True, eq=False)
class Turning:
    """What the stream holds of the token that is there and of the one to come, site by site.

    to_input, to_output: the median angle of the map to x_in and x_out, and r2_input, r2_output how well the maps fit;
    input_recall, output_recall: how often the token that is there is among the k embeddings nearest to x_l A + c, and the
    model's own next token among the k likeliest of the head read after the map, on other text [site, k = 1, 5, 10];
    covariance: similarity of every two sites.
    """

    sites: tuple[str, ...]
    to_input: Float[Tensor, " site"]
    to_output: Float[Tensor, " site"]
    r2_input: Float[Tensor, " site"]
    r2_output: Float[Tensor, " site"]
    input_recall: Float[Tensor, "site k"]
    output_recall: Float[Tensor, "site k"]
    covariance: Float[Tensor, "site site"]

    def to_frame(self) -> pd.DataFrame:
        """One row a site."""
        import pandas as pd

        columns = {n: getattr(self, n).tolist() for n in ("to_input", "to_output", "r2_input", "r2_output")}
        for name in ("input_recall", "output_recall"):
            columns |= {f"{name}_{k}": getattr(self, name)[:, i].tolist() for i, k in enumerate(RANKS)}
        return pd.DataFrame({"site": self.sites} | columns)

    def plot(self) -> go.Figure:
        """The angles, the recalls at 1 and the similarities of covariances."""
        from plotly.subplots import make_subplots

        titles = ["median angle of the map, degrees", "recall at 1", "similarity of covariances"]
        figure, names = make_subplots(1, 3, subplot_titles=titles), short_names(self.sites)
        colours = {"input": "#1f5f8b", "output": "#b4572a"}
        for end, colour in colours.items():
            style = {"name": f"to the {end}", "legendgroup": end, "line": {"color": colour}}
            figure.add_scatter(x=names, y=getattr(self, f"to_{end}"), row=1, col=1, **style)
            y = getattr(self, f"{end}_recall")[:, 0]
            figure.add_scatter(x=names, y=y, row=1, col=2, showlegend=False, **style)
        heat = {"colorscale": "Blues", "zmin": 0, "zmax": 1, "showscale": False}
        figure.add_heatmap(x=names, y=names, z=self.covariance, row=1, col=3, **heat)
        return figure.update_layout(template="plotly_white")


@torch.no_grad()
def turning(model: Model, ids: Int[Tensor, "windows pos"]) -> Turning:
    """Fit the maps on every other window, and count recalls on those between. One pass over each half.

    x_in is the token's embedding without its position, x_out the stream after the last block. Raises `WrongUse` for too
    few tokens, and for a model whose stream or head was not found.
    """
    head = Readout(model)
    prefix = head.stack.prefix
    sites = [head.first, *model.names(f"{prefix}blocks.*.resid_post")]
    fits = {site: (Moments(), Moments()) for site in sites}
    for cache in _recorded(model, [*sites, f"{prefix}embed"], ids[::2]):
        x_in, x_out = cache[f"{prefix}embed"].flatten(0, 1), cache[head.last].flatten(0, 1)
        for site, (to_in, to_out) in fits.items():
            to_in.add(cache[site].flatten(0, 1), x_in)
            to_out.add(cache[site].flatten(0, 1), x_out)
    maps = {site: (a.ridge(), b.ridge()) for site, (a, b) in fits.items()}
    recalls, n = torch.zeros(len(sites), 2, len(RANKS)), 0
    for cache in _recorded(model, sites, ids[1::2]):
        n += cache[head.last].shape[:2].numel()
        _count(recalls, model, head, cache, maps)
    rows = [[angle(a[0]), angle(b[0]), a[2], b[2]] for a, b in maps.values()]
    to_input, to_output, r2_input, r2_output = torch.tensor(rows).T
    spread = [a.covariance for a, _ in fits.values()]
    like = torch.tensor([[similarity(a, b) for a in spread] for b in spread])
    recall = recalls[:, 0] / n, recalls[:, 1] / n
    return Turning(tuple(sites), to_input, to_output, r2_input, r2_output, *recall, like)


def _recorded(model: Model, sites: Sequence[str], ids: Int[Tensor, "windows pos"]) -> Iterable[Cache]:
    from tqdm.auto import tqdm

    for part in tqdm(ids.split(max(1, BATCH // ids.shape[1])), desc="stream", mininterval=1):
        yield model.record(part, sites)


def _count(recalls: Tensor, model: Model, head: Readout, cache: Cache, maps: dict[str, tuple]) -> None:
    """Add how many tokens of a batch were recalled, site by site, of the input and of the output."""
    assert cache.tokens is not None
    table, there = model.weights["W_E"], cache.tokens.flatten()
    scale = model.weights.layout("W_E").scale
    comes = head(cache[head.last].flatten(0, 1)).argmax(-1)
    for row, (site, (to_in, to_out)) in enumerate(maps.items()):
        x = cache[site].flatten(0, 1)
        made = [x @ A.to(x) + c.to(x) for A, c, _ in (to_in, to_out)]
        near = -torch.cdist(made[0], (scale * table).to(x))
        for end, (scored, token) in enumerate(((near, there), (head(made[1]), comes))):
            found = scored.topk(max(RANKS)).indices == token[:, None]
            recalls[row, end] += torch.stack([found[:, :k].any(1).sum() for k in RANKS]).cpu()
