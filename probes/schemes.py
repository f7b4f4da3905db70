"""The constructed layer: one head of attention over Gaussian tokens, under every scheme of positions.

o_n = Σ_j a_nj v_j, a_n = softmax(q_n · k_j / √d + bias_nj), with q, k, v of each token drawn from N(0, I). v* has the last token
twice, so without positions o_n - o*_{n+1} = a*_{n+1,n+1} (v_n - o_n), which is of the order 1/n. Source: Barbero et al. 2024
(arXiv:2406.04267), theorem 4.2, lemmas B.1 to B.4 and figures 8 to 10. Its condition, that what is known of positions decays
with distance, fails for ALiBi, whose logits have no bound, and for rotary positions (Barbero et al. 2024, arXiv:2410.06205).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest
from probes.rotary import frequencies, rotate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

SCHEMES = {
    "none": "no positions",
    "absolute": "sinusoids added to queries and keys",
    "rotary": "queries and keys turned by their positions",
    "alibi": "a logit lower by a slope for each token of distance",
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One constructed layer: the scheme, its width d, ALiBi's slope, rotary's base, and the share p of its frequencies that turn."""

    scheme: str
    d: int = 64
    slope: float = 0.5
    base: float = 10000.0
    p: float = 1.0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise WrongUse(
                f"{self.scheme!r} is no scheme.{nearest(self.scheme, SCHEMES)} Schemes: {', '.join(SCHEMES)}."
            )

    def __call__(self, q: Float[Tensor, " d"], k: Float[Tensor, "n d"], v: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        """o_n of the last token, whose query is q."""
        place = torch.arange(len(k), dtype=k.dtype)
        if self.scheme == "absolute":
            table = sinusoids(place, self.d, self.base)
            q, k = q + table[-1], k + table
        if self.scheme == "rotary":
            g = frequencies(self.d, self.base, self.p).to(k)
            q, k = rotate(q[None], place[-1:], g)[0], rotate(k, place, g)
        logits = k @ q / self.d**0.5
        if self.scheme == "alibi":
            logits = logits - self.slope * (place[-1] - place)
        return torch.softmax(logits, dim=0) @ v


def sinusoids(place: Float[Tensor, " n"], d: int, base: float = 10000.0) -> Float[Tensor, "n d"]:
    """(sin(t g_k), cos(t g_k)) with g_k = base^(-2k/d) (Vaswani et al. 2017, arXiv:1706.03762)."""
    angles = place[:, None] * frequencies(d, base).to(place)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass(frozen=True, eq=False)
class Curve:
    """‖o_n - o*_{n+1}‖_1 at each length in each of several draws, and what the layer was."""

    layer: Layer
    n: tuple[int, ...]
    l1: Float[Tensor, "draw length"]

    @property
    def slope(self) -> float:
        """Of the mean's logarithm over the length's, by least squares: -1 where it falls as 1/n, 0 where it does not."""
        x = torch.tensor(self.n, dtype=torch.float64).log()
        y, x = self.l1.mean(0).log(), x - x.mean()
        return float((x * y).sum() / x.square().sum())

    def to_frame(self) -> pd.DataFrame:
        """One row a length: scheme, n, mean, least, most."""
        import pandas as pd

        numbers = {"mean": self.l1.mean(0), "least": self.l1.amin(0), "most": self.l1.amax(0)}
        table = {"n": list(self.n), **{k: v.tolist() for k, v in numbers.items()}}
        return pd.DataFrame({"scheme": self.layer.scheme, **table})

    def plot(self, *others: Curve) -> go.Figure:
        """The mean over draws with its range, beside other curves, both axes logarithmic."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for curve in (self, *others):
            mean, least, most = curve.l1.mean(0), curve.l1.amin(0), curve.l1.amax(0)
            bars = {"array": (most - mean).tolist(), "arrayminus": (mean - least).tolist(), "thickness": 1}
            name = f"{curve.layer.scheme}: n^{curve.slope:.2f}"
            figure.add_scatter(x=curve.n, y=mean.tolist(), name=name, mode="lines+markers", error_y=bars)
        axes = {"xaxis": {"title": "n", "type": "log"}, "yaxis": {"title": "‖o_n − o*_{n+1}‖₁", "type": "log"}}
        return figure.update_layout(title="Constructed layer, last token once more", template="plotly_white", **axes)


def scheme_curve(layer: Layer, lengths: Sequence[int], *, draws: int = 16, seed: int = 0) -> Curve:
    """‖o_n - o*_{n+1}‖_1 in float64 at each length; a draw's last token is the same at every length.

    Raises `WrongUse` for fewer than two lengths, or lengths that do not rise.
    """
    if len(lengths) < 2 or any(b <= a for a, b in itertools.pairwise(lengths)) or lengths[0] < 1:
        raise WrongUse(f"lengths {list(lengths)} are no rising row of at least two: give them as 16,32,64.")
    rows = []
    for number in range(draws):
        draw = torch.Generator().manual_seed(1000 * seed + number)
        tokens = torch.randn(lengths[-1], 3, layer.d, generator=draw, dtype=torch.float64)
        row = []
        for n in lengths:
            q, k, v = torch.cat([tokens[1:n], tokens[:1]]).unbind(1)
            again = (torch.cat([t, t[-1:]]) for t in (k, v))
            row.append((layer(q[-1], k, v) - layer(q[-1], *again)).abs().sum())
        rows.append(torch.stack(row))
    return Curve(layer, tuple(lengths), torch.stack(rows))


def total_variation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Σ |softmax(a) - softmax(b)|, from 0 to 2."""
    return float((torch.softmax(a.double(), 0) - torch.softmax(b.double(), 0)).abs().sum())


def alternating(n: int) -> float:
    """Lemma B.4's counter-example: logits 1 0 1 0 … against 0 1 0 1 …: 2 (e - 1)/(e + 1) at every even n, however long."""
    x = torch.arange(n) % 2
    return total_variation(1.0 - x, x)


def perturbed(n: int, *, first: int = 200, seed: int = 0) -> float:
    """Lemma B.2's picture: logits from U[0, 1], of which the first 200 are moved by U[0, 0.1]; falls as 1/n."""
    draw = torch.Generator().manual_seed(seed)
    x, noise = torch.rand(n, generator=draw, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    noise[:first] = 0.1 * torch.rand(min(first, n), generator=draw, dtype=torch.float64)
    return total_variation(x, x + noise)


def ratios(times: int, *, d: int = 64, seed: int = 0) -> float:
    """Theorem 6.1: ‖o(10) - o(11…00…)‖_∞, each of the two tokens standing `times` times, for a query that sees them all.

    Without positions and without a mask the output is the same: what is known is how often a token stands to another.
    """
    draw = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, d, generator=draw, dtype=torch.float64)
    layer = Layer("none", d)
    return float((layer(q[0], k, v) - layer(q[0], *(t.repeat_interleave(times, 0) for t in (k, v)))).abs().max())


def from_first(n: int, layers: int) -> float:
    """B.8: the entry (n, 1) of [(Λ + I)/2]^L for uniform causal Λ of n tokens; it goes to 1 with depth, all others to 0."""
    pattern = torch.ones(n, n, dtype=torch.float64).tril() / torch.arange(1, n + 1, dtype=torch.float64)[:, None]
    return float(torch.linalg.matrix_power((pattern + torch.eye(n, dtype=torch.float64)) / 2, layers)[-1, 0])
