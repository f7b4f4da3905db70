"""How mean, variance and correlation pass through the parts of a transformer: formulas for Gaussian inputs, beside what is measured.

DeepScaleLM (Kedia et al. 2024, arXiv:2403.09635): a tensor [token, channel] has mean μ, variance σ² and, between two tokens at
a channel, covariance r σ²; what comes back as its gradient has variance g² and covariance r_g g². Weights are drawn apart from
all else. Each function takes these moments of what a part receives and says those of what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

    from interp.model.model import Model


@dataclass(frozen=True)
class Moments:
    """Mean μ and variance σ² of the entries of a tensor, and the covariance of two tokens at one channel."""

    mean: float
    var: float
    cov: float

    @property
    def corr(self) -> float:
        """r = cov / σ²."""
        return self.cov / self.var if self.var else math.nan


@dataclass(frozen=True)
class Slopes:
    """Variance g² of a gradient's entries, and the covariance of two tokens at one channel; the mean is 0."""

    var: float
    cov: float


def measured(x: Float[Tensor, "... token channel"]) -> Moments:
    """Moments of a tensor: cov is the mean over pairs of different tokens, μ that of all entries."""
    x = x.double()
    n, mean = x.shape[-2], x.mean()
    y = x - mean
    var = y.square().mean()
    pairs = y.sum(-2).square().mean() - n * var  # Σ_{i≠j} y_i y_j of a channel
    return Moments(float(mean), float(var), float(pairs) / (n * (n - 1)) if n > 1 else math.nan)


# ---------------------------------------------------------------- forwards


def linear(x: Moments, d_in: int, w2: float) -> Moments:
    """d_in w² (σ² + μ²) and d_in w² (μ² + r σ²), of mean 0; w²: the variance of a weight."""
    return Moments(0.0, d_in * w2 * (x.var + x.mean**2), d_in * w2 * (x.mean**2 + x.cov))


def relu(x: Moments) -> Moments:
    """σ/√2π; σ² (π - 1)/2π; σ² [π r + √(1 - r²) - r acos r - 1]/2π. Of mean 0."""
    _centred(x)
    r = min(1.0, max(-1.0, x.corr))
    cov = x.var * (math.pi * r + math.sqrt(1 - r * r) - r * math.acos(r) - 1) / (2 * math.pi)
    return Moments(math.sqrt(x.var / (2 * math.pi)), x.var * (math.pi - 1) / (2 * math.pi), cov)


def gelu(x: Moments) -> Moments:
    """With a = σ²/(1 + σ²): mean σ √(a/2π); variance σ²/2π [π - a - acos a + 2a √((1-a)/(1+a))]; covariance as below. Of mean 0."""
    _centred(x)
    s2, r = x.var, min(1.0, max(-1.0, x.corr))
    a = s2 / (1 + s2)
    mean = math.sqrt(s2 * a / (2 * math.pi))
    var = s2 / (2 * math.pi) * (math.pi - a - math.acos(a) + 2 * a * math.sqrt((1 - a) / (1 + a)))
    both = (s2 + 1) * math.sqrt((s2 + 1) ** 2 - (r * s2) ** 2)
    product = r + 2 / math.pi * (r * math.asin(r * a) + s2 * (s2 * (1 - r * r) + 1 + r * r) / both)
    return Moments(mean, var, s2 / 4 * product - mean**2)


def layer_norm(x: Moments, d: int) -> Moments:
    """0, 1, r (1 - 1/d): each token centred and scaled over its d channels."""
    return Moments(0.0, 1.0, x.corr * (1 - 1 / d))


def dropout(x: Moments, p: float) -> Moments:
    """μ, (σ² + p μ²)/(1 - p), r σ²: entries are set to 0 with probability p, the others divided by 1 - p."""
    return Moments(x.mean, (x.var + p * x.mean**2) / (1 - p), x.cov)


def softmax(x: Moments, n: int) -> Moments:
    """1/n and (exp((1 - r) σ²) - 1)/n² of the weights on n keys, scores N(μ, σ²); the covariance of two queries is not told."""
    return Moments(1 / n, math.expm1((1 - x.corr) * x.var) / n**2, math.nan)


def residual(x: Moments, f: Moments, lam: float = 1.0, beta: float = 1.0) -> Moments:
    """λ x + β f(x), f independent of x. With λ² + β² = 1 and f of x's variance the variance stays."""
    return Moments(lam * x.mean + beta * f.mean, lam**2 * x.var + beta**2 * f.var, lam**2 * x.cov + beta**2 * f.cov)


# ---------------------------------------------------------------- backwards


def linear_back(g: Slopes, d_out: int, w2: float) -> Slopes:
    """d_out w² g² and d_out w² r_g g²."""
    return Slopes(d_out * w2 * g.var, d_out * w2 * g.cov)


def relu_back(g: Slopes, x: Moments) -> Slopes:
    """g²/2 and r_g g² (¼ + asin r/2π), x what the ReLU received."""
    return Slopes(g.var / 2, g.cov * (0.25 + math.asin(min(1.0, max(-1.0, x.corr))) / (2 * math.pi)))


def gelu_back(g: Slopes, x: Moments) -> Slopes:
    """g² [½ + (a (5σ² + 3)/(1 + 2σ²)^{3/2} - acos a)/2π]; the covariance is not told."""
    s2 = x.var
    a = s2 / (1 + s2)
    bracket = 0.5 + (a * (5 * s2 + 3) / (1 + 2 * s2) ** 1.5 - math.acos(a)) / (2 * math.pi)
    return Slopes(g.var * bracket, math.nan)


def layer_norm_back(g: Slopes, x: Moments) -> Slopes:
    """g²/σ² and r_g g²/σ²."""
    return Slopes(g.var / x.var, g.cov / x.var)


def dropout_back(g: Slopes, p: float) -> Slopes:
    """g²/(1 - p); the covariance stays."""
    return Slopes(g.var / (1 - p), g.cov)


def softmax_back(g: Slopes, x: Moments, n: int) -> Slopes:
    """exp((1 - r) σ²) g²/n²; the covariance is not told."""
    return Slopes(math.exp((1 - x.corr) * x.var) * g.var / n**2, math.nan)


def _centred(x: Moments) -> None:
    if abs(x.mean) > 0.1 * math.sqrt(x.var):
        raise WrongUse(f"the formula is for mean 0; this input has mean {x.mean:.3g} and variance {x.var:.3g}.")


# ---------------------------------------------------------------- of a model


@dataclass(frozen=True, eq=False)
class Passage:
    """One part of a model: the moments of what it returns, as measured, and as the formula makes them of what it receives."""

    site: str
    source: str
    formula: str
    measured: Moments
    predicted: Moments | None  # None: no formula here (a gated or another activation)


@dataclass(frozen=True, eq=False)
class Passages:
    """Every part of a model whose input and output have names, in order."""

    parts: list[Passage]

    def to_frame(self) -> pd.DataFrame:
        """One row a part: site, source, formula, var, formula_var, corr, formula_corr."""
        import pandas as pd

        rows = []
        for p in self.parts:
            told = p.predicted or Moments(math.nan, math.nan, math.nan)
            rows.append([p.site, p.source, p.formula, p.measured.var, told.var, p.measured.corr, told.corr])
        return pd.DataFrame(rows, columns=["site", "source", "formula", "var", "formula_var", "corr", "formula_corr"])

    def plot(self) -> go.Figure:
        """Measured and predicted variance of every part, on a logarithmic axis."""
        import plotly.graph_objects as go

        table, figure = self.to_frame(), go.Figure()
        for column, name in (("var", "measured"), ("formula_var", "by the formula")):
            figure.add_scatter(x=table["site"], y=table[column], name=name, mode="markers")
        return figure.update_layout(
            title="Variance of what each part returns", template="plotly_white", yaxis={"type": "log"}
        )


CHAIN = (  # what a block's parts return, what they receive, and how the one comes of the other
    ("attn.in", "resid_pre", "norm"),
    ("attn.v", "attn.in", "W_V"),
    ("attn.out", "attn.z", "W_O"),
    ("mlp.gate", "mlp.in", "W_gate"),
    ("mlp.up", "mlp.in", "W_up"),
    ("mlp.pre", "mlp.in", "W_in"),
    ("mlp.post", "mlp.pre", "activation"),
    ("mlp.out", "mlp.post", "W_out"),
)


@torch.no_grad()
def moments(model: Model, data: Any, *, context: int = 128, tokens: int = 2048, batch: int = 8) -> Passages:
    """Each part's measured moments beside the formula's, from the measured moments of what that part receives.

    Linear maps of attention and MLP (w² is the mean square of the weight, a bias adds its variance to both), ReLU and GELU,
    the norms. `data` as `geometry` takes it. The formulas hold for weights drawn apart from their input, so at
    initialisation; how far training leads away from them is what one looks for. Raises `WrongUse` for models without such
    parts, and what `geometry` raises for its data.
    """
    from probes.windows import batches, of_windows

    table = model.sites()
    blocks = [n.removesuffix("resid_pre") for n in table if n.endswith("resid_pre")]
    wanted = [(b, *part) for b in blocks for part in _chain(model, table, b)]
    names = list(dict.fromkeys(b + n for b, out, source, _ in wanted for n in (out, source)))
    if not names:
        raise WrongUse(f"{model.id} has no attention or MLP whose input and output have names, so no formula applies.")
    rows: dict[str, list[Tensor]] = {n: [] for n in names}
    for x, keep in batches(model, data, context, tokens, batch):
        cache = model.record(x, names)
        for n in names:
            rows[n] += of_windows(cache[n], keep)
    seen = {n: _pooled(parts) for n, parts in rows.items()}
    made = []
    for b, out, source, how in wanted:
        told = _predicted(model, b, how, seen[b + source], rows[b + source][0], rows[b + out][0])
        made.append(Passage(b + out, b + source, told[0], seen[b + out], told[1]))
    return Passages(made)


def _pooled(windows: list[Tensor]) -> Moments:
    """The mean over windows of each one's moments."""
    each = [measured(w) for w in windows]
    return Moments(*(sum(getattr(m, f) for m in each) / len(each) for f in ("mean", "var", "cov")))


def _chain(model: Model, table: Any, block: str) -> list[tuple[str, str, str]]:
    """The parts of a block that are there."""
    there = [(out, s, how) for out, s, how in CHAIN if block + out in table and block + s in table]
    gated = f"{block}mlp.W_gate" in model.weights
    skip = {"activation": gated, "norm": model.wiring.post_norm}
    return [
        (out, s, how)
        for out, s, how in there
        if not skip.get(how, how.startswith("W_") and f"{block}{out.split('.')[0]}.{how}" not in model.weights)
    ]


def _predicted(
    model: Model, block: str, how: str, x: Moments, source: Tensor, out: Tensor
) -> tuple[str, Moments | None]:
    if how == "activation":
        return _activation(x, source, out)
    if how == "norm":
        made, w = layer_norm(x, source.shape[1]), model.weights.get(f"{block}attn.norm.w")
        gain = 1.0 if w is None else float(w.double().square().mean())
        return "norm", replace(made, var=gain * made.var, cov=gain * made.cov)
    role = "attn" if how in ("W_V", "W_O") else "mlp"
    w, b = (model.weights.get(f"{block}{role}.{name}") for name in (how, how.replace("W", "b")))
    made = linear(x, source.shape[1], float(w.double().square().mean()))
    extra = 0.0 if b is None else float(b.double().square().mean())
    return f"linear, {how}", replace(made, var=made.var + extra, cov=made.cov + extra)


def _activation(x: Moments, pre: Tensor, post: Tensor) -> tuple[str, Moments | None]:
    """The formula of the function that takes one to the other, if it is ReLU or GELU (in either form), of mean about 0."""
    kinds: Sequence[tuple[str, Any, Any]] = (("ReLU", torch.relu, relu), ("GELU", torch.nn.functional.gelu, gelu))
    for name, function, formula in kinds:
        if torch.allclose(function(pre.double()), post.double(), atol=2e-3 * float(pre.double().std())):
            try:
                return name, formula(x)
            except WrongUse:
                return f"{name}, not of mean 0", None
    return "no formula", None
