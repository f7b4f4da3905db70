"""Linear probes: what a linear map can read off a site's states, beside what it reads off shuffled labels and off random weights.

All kinds are one map x W + b; its largest entry is the class, or it is the number. Folds never share a group (a text, say).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.dictionaries.probing import FEWEST, fit_probe
from interp.errors import WrongUse, check_keys
from interp.model.model import Model, teaches
from probes.labels import Labels, states

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

KINDS = {
    "logistic": "logistic regression of each class against the others, columns made standard",
    "linear": "least squares, on the number or on 0 and 1",
    "ridge": "the same with α ‖W‖² more, columns made standard, α by leaving rows out",
    "mean-difference": "the class whose mean is nearest: of two, the difference of means and the middle",
    "sparse": "logistic on the k entries whose means differ most between a class and the others",
}
NUMBERS = ("linear", "ridge")  # the kinds that tell numbers
CONTROLS = ("shuffled", "random")
ALPHAS = tuple(10.0**e for e in range(-2, 7))  # that ridge chooses from


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """x W + b; of `classes` the largest entry, of a number (no classes) the only one."""

    W: Float[Tensor, "d out"]
    b: Float[Tensor, " out"]
    classes: tuple[str, ...]

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n out"]:
        """x W + b in float64."""
        return x.double() @ self.W + self.b

    def predict(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The number of the class, or the number."""
        found = self.scores(x)
        return found.argmax(1) if self.classes else found[:, 0]

    def score(self, x: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> float:
        """Share told right, or R² = 1 - Σ(y - ŷ)²/Σ(y - ȳ)²."""
        said = self.predict(x)
        if self.classes:
            return float((said == y).double().mean())
        return 1 - float((y - said).square().sum() / (y - y.mean()).square().sum())


def fit(
    kind: str,
    x: Float[Tensor, "n d"],
    y: Tensor,
    classes: tuple[str, ...],
    *,
    C: float = 1.0,
    alpha: float | None = None,
    k: int = 5,
) -> LinearProbe:
    """A probe of one kind from states and class numbers, or numbers if there are no classes.

    C: of the logistic kinds, as in scikit-learn; alpha: of ridge, by default the one of 10⁻² … 10⁶ that predicts rows best that
    it is not fitted to; k: of sparse. Raises `WrongUse` for an unknown kind, and
    for numbers where the kind tells classes.
    """
    check_keys([kind], KINDS, "the list of probes")
    if not classes and kind not in NUMBERS:
        raise WrongUse(f"a {kind} probe tells classes, and the labels are numbers: use {' or '.join(NUMBERS)}.")
    x = x.double()
    if kind in ("linear", "ridge"):
        wanted = torch.nn.functional.one_hot(y.long(), len(classes)).double() if classes else y.double()[:, None]
        W, b = _least_squares(x, wanted, alpha if kind == "ridge" else 0.0)
        return LinearProbe(W, b, classes)
    if kind == "mean-difference":
        means = torch.stack([x[y == c].mean(0) for c in range(len(classes))]).nan_to_num()
        absent = torch.tensor([0.0 if bool((y == c).any()) else -math.inf for c in range(len(classes))])
        return LinearProbe(means.T, -means.square().sum(1) / 2 + absent, classes)
    columns = [_against_rest(x, y == c, C, k if kind == "sparse" else None) for c in range(len(classes))]
    return LinearProbe(torch.stack([w for w, _ in columns], 1), torch.tensor([b for _, b in columns]), classes)


def _least_squares(x: Tensor, y: Tensor, alpha: float | None) -> tuple[Tensor, Tensor]:
    """argmin ‖z W - (y - ȳ)‖² + α ‖W‖², z the columns of x made standard; of all minima the shortest. None: α by `left_out`."""
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    z, centre = (x - mean) / std, y.mean(0)
    if alpha == 0:
        w = torch.linalg.lstsq(z, y - centre, driver="gelsd").solution
    else:
        squares, V = torch.linalg.eigh(z.T @ z)
        p, squares = z @ V, squares.clamp(min=0)
        best = min(ALPHAS, key=lambda a: left_out(p, squares, y - centre, a)) if alpha is None else alpha
        w = V @ ((p.T @ (y - centre)) / (squares + best)[:, None])
    W = w / std[:, None]
    return W, centre - mean @ W


def left_out(p: Tensor, squares: Tensor, y: Tensor, alpha: float) -> float:
    """Σ_i ‖(y_i - ŷ_i)/(1 - h_i)‖²: ridge regression's errors on each row by a fit to all others.

    p: the centred data in the basis of its principal axes, `squares` their sums of squares; h_i = 1/n + Σ_j p_ij²/(λ_j + α).
    """
    shrunk = p / (squares + alpha)
    h = 1 / len(p) + (p * shrunk).sum(1)
    return float(((y - p @ (shrunk.T @ y)) / (1 - h)[:, None]).square().sum())


def _against_rest(x: Tensor, t: Tensor, C: float, k: int | None) -> tuple[Tensor, float]:
    """(w, b) of logistic regression on all entries, or on the k of largest |E[x_i | t] - E[x_i | not t]|.

    A class that is not there is never told.
    """
    if not bool(t.any()):
        return torch.zeros(x.shape[1], dtype=x.dtype), -math.inf
    if k is None:
        found = fit_probe(x, t, C)
        return found.w, found.b
    chosen = (x[t].mean(0) - x[~t].mean(0)).abs().argsort(descending=True, stable=True)[:k]
    found, w = fit_probe(x[:, chosen], t, C), torch.zeros(x.shape[1], dtype=x.dtype)
    w[chosen] = found.w
    return w, found.b


# ---------------------------------------------------------------- folds


def folds_of(groups: Int[Tensor, " n"], folds: int, seed: int = 0) -> Int[Tensor, " n"]:
    """The fold that each row is scored in: groups in a random order, dealt out so that folds have about as many rows.

    Raises `WrongUse` for fewer groups than folds, or fewer than two folds.
    """
    names, place, counts = groups.unique(return_inverse=True, return_counts=True)
    if not 2 <= folds <= len(names):
        raise WrongUse(f"{folds} folds of {len(names)} groups (texts) cannot be made: at least 2, at most one a group.")
    draw, sizes = torch.Generator().manual_seed(seed), torch.zeros(folds, dtype=torch.long)
    fold = torch.zeros(len(names), dtype=torch.long)
    for g in torch.randperm(len(names), generator=draw).tolist():
        fold[g] = sizes.argmin()
        sizes[fold[g]] += counts[g]
    return fold[place]


def cross_validate(
    kind: str, x: Float[Tensor, "n d"], y: Tensor, classes: tuple[str, ...], fold: Int[Tensor, " n"], **options: Any
) -> Float[Tensor, " fold"]:
    """The score on each fold of a probe that was fitted on the others."""
    found = []
    for f in range(int(fold.max()) + 1):
        held = fold == f
        found.append(fit(kind, x[~held], y[~held], classes, **options).score(x[held], y[held]))
    return torch.tensor(found, dtype=torch.float64)


# ---------------------------------------------------------------- of a model


@dataclass(frozen=True, eq=False)
class Probed:
    """Scores [fold] of probes by site and what they were fitted to: "" the labels, "shuffled" labels, states of "random" weights.

    `chance`: the score of always telling the commonest class, or the mean. `probes`: fitted on all rows.
    """

    kind: str
    metric: str
    scores: dict[tuple[str, str], Float[Tensor, " fold"]]
    chance: float
    probes: dict[str, LinearProbe]
    rows: int
    classes: dict[str, int] = field(default_factory=dict)

    def mean(self, site: str, control: str = "") -> float:
        """The mean score over folds. Raises `WrongUse` for a site or a control that was not run."""
        if (site, control) not in self.scores:
            known = ", ".join(f"{s} {c}".strip() for s, c in self.scores)
            raise WrongUse(f"no probe of {site!r} with control {control!r} was fitted. There are: {known}.")
        return float(self.scores[site, control].mean())

    @property
    def best(self) -> str:
        """The site with the highest mean score."""
        return max((s for s, c in self.scores if not c), key=self.mean)

    def to_frame(self) -> pd.DataFrame:
        """One row a site, control and fold: site, control, fold, score."""
        import pandas as pd

        rows = [[s, c, i, v] for (s, c), row in self.scores.items() for i, v in enumerate(row.tolist())]
        return pd.DataFrame(rows, columns=["site", "control", "fold", "score"])

    def plot(self) -> go.Figure:
        """Mean scores from site to site, a line for the labels and for each control; bars: the least and the largest fold."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for control in dict.fromkeys(c for _, c in self.scores):
            rows = {s: v for (s, c), v in self.scores.items() if c == control}
            mean = torch.stack([v.mean() for v in rows.values()])
            high, low = (torch.stack([f(v) for v in rows.values()]) for f in (torch.max, torch.min))
            bars = {"array": (high - mean).tolist(), "arrayminus": (mean - low).tolist(), "thickness": 1}
            figure.add_scatter(
                x=list(rows), y=mean.tolist(), error_y=bars, name=control or "labels", mode="lines+markers"
            )
        figure.add_hline(y=self.chance, line={"dash": "dot"}, annotation_text="chance")
        title = f"{self.kind} probes, {self.rows:,} rows"
        return figure.update_layout(title=title, yaxis={"title": self.metric}, template="plotly_white")


@teaches
@torch.no_grad()
def probe(
    model: Model,
    data: Labels,
    sites: str | Sequence[str] = "*blocks.*.resid_post",
    *,
    kind: str = "logistic",
    folds: int = 5,
    controls: Sequence[str] = CONTROLS,
    C: float = 1.0,
    alpha: float | None = None,
    k: int = 5,
    seed: int = 0,
    batch: int = 8,
) -> Probed:
    """Cross-validated probes of one kind at every site, with controls: labels dealt out anew, and the same model of random weights.

    A probe tells of the model as far as it does better than both. `data` says which positions a row is made of
    (`probes.labels`). Every fold, site and control sees the same rows in the same folds. Shuffled labels are those of the
    rows in a random order. Raises `WrongUse` for a label that never changes, a class of fewer than five rows, an unknown kind
    or control, numbers given to a kind that tells classes, and more folds than texts.
    """
    check_keys([kind], KINDS, "the list of probes")
    check_keys(controls, CONTROLS, "the list of controls")
    y, classes = numbered(data.labels)
    if not classes and kind not in NUMBERS:
        raise WrongUse(f"a {kind} probe tells classes, and the labels are numbers: use {' or '.join(NUMBERS)}.")
    fold = folds_of(torch.tensor(data.groups), folds, seed)
    mixed = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed + 1))]
    options: dict[str, Any] = {"C": C, "alpha": alpha, "k": k}
    scores: dict[tuple[str, str], Tensor] = {}
    fitted = {}
    for site, x in states(model, data, sites, batch).items():
        scores[site, ""] = cross_validate(kind, x, y, classes, fold, **options)
        fitted[site] = fit(kind, x, y, classes, **options)
        if "shuffled" in controls:
            scores[site, "shuffled"] = cross_validate(kind, x, mixed, classes, fold, **options)
    if "random" in controls:
        for site, x in states(randomised(model, seed), data, sites, batch).items():
            scores[site, "random"] = cross_validate(kind, x, y, classes, fold, **options)
    counts = dict(Counter(data.labels)) if classes else {}
    chance = max(counts.values()) / len(y) if classes else 0.0
    metric = "accuracy" if classes else "R²"
    return Probed(kind, metric, scores, chance, fitted, len(y), {str(c): n for c, n in counts.items()})


def numbered(labels: Sequence[str | float]) -> tuple[Tensor, tuple[str, ...]]:
    """(Number of each label's class, the classes by name); or (the numbers, ()) where all labels are numbers, not text.

    Raises `WrongUse` for no labels, one that never changes, and classes of fewer than five rows.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        told = f"all {len(labels)} labels are {next(iter(counts))!r}" if counts else "there are no labels"
        raise WrongUse(f"{told}: there is nothing to tell apart. Give at least two.")
    if all(isinstance(label, (int, float)) and not isinstance(label, bool) for label in labels):
        return torch.tensor(labels, dtype=torch.float64), ()
    rare = sorted(str(name) for name, count in counts.items() if count < FEWEST)
    if rare:
        raise WrongUse(f"{', '.join(rare)}: fewer than {FEWEST} rows. Leave such labels out, or give more text.")
    classes = tuple(sorted(map(str, counts)))
    place = {name: i for i, name in enumerate(classes)}
    return torch.tensor([place[str(label)] for label in labels]), classes


def randomised(model: Model, seed: int = 0) -> Model:
    """The same architecture with every parameter drawn at random (`interp.model.twin.randomise`), in the model's own dtype."""
    from interp.model.twin import randomise

    other = copy.deepcopy(model.module)
    randomise(other, seed)
    return model.around(other, f"{model.id}, random")
