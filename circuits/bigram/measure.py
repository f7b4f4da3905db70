"""What a subnetwork says against the n-gram model: correlation of surprisals, cross-entropy, and what is lost without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.bigram.mask import Mask, whole
from circuits.bigram.text import check_causal, logits_of
from circuits.bigram.training import cross_entropy
from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

    from circuits.bigram.counts import Counts
    from interp.model import Model

BATCH = 2048  # tokens run at once
MOST_SEEN = 0.1  # share of a text's runs of 16 tokens that may be among the counted ones
NEAR = 0.04  # how much lower than without a penalty the r of the subnetwork chosen may be


@dataclass(frozen=True)
class Scores:
    """One model against the n-gram model, hard weights, over the tokens of a text.

    r: Pearson correlation of surprisals, infinite ones replaced by the largest finite one; r_dropinf: without the tokens that
    the n-gram model gives infinity; cross_entropy: -Σ_b p(b) log q(b) of the n-gram distribution p, kl: the same less p's own
    entropy; loss: of the text, all in nats a token; infinite: the share of tokens that the n-gram model gives infinity.
    """

    r: float
    r_dropinf: float
    cross_entropy: float
    kl: float
    loss: float
    infinite: float


@torch.no_grad()
def scores(model: Model, counts: Counts, ids: Int[Tensor, "windows pos"]) -> Scores:
    """Run windows of token ids; every token but a window's first has a surprisal -log p(x_t | x_<t)."""
    mine, theirs, crosses, entropies = [], [], [], []
    for part in ids.split(max(1, BATCH // ids.shape[1])):
        logits, p = logits_of(model, part)[:, :-1].float().cpu(), counts.distribution(part[:, :-1])
        following = part[:, 1:, None].cpu()
        mine.append(-logits.log_softmax(-1).gather(-1, following).flatten())
        theirs.append(-p.gather(-1, following).flatten().log())
        crosses += [cross_entropy(logits, p).item()] * len(part)
        entropies.append(-torch.special.xlogy(p, p).sum(-1).flatten())
    x, y, cross = torch.cat(mine), torch.cat(theirs), sum(crosses) / len(crosses)
    kl = cross - torch.cat(entropies).mean().item()
    return Scores(*correlations(x, y), cross, kl, x.mean().item(), y.isinf().double().mean().item())


def correlations(model: Float[Tensor, " n"], ngram: Float[Tensor, " n"]) -> tuple[float, float]:
    """Pearson's r of two sets of surprisals by both rules for infinite ones.

    First: an infinite one becomes its own side's largest finite value. Second: tokens that the n-gram model gives infinity
    are left out, and the model's are replaced as before. Raises `WrongUse` if the n-gram model has no finite one.
    """
    x, y = _finite(model.double()), ngram.double()
    known = y.isfinite()
    return _pearson(x, _finite(y)), _pearson(x[known], y[known])


def _finite(x: Tensor) -> Tensor:
    finite = x.isfinite()
    if not finite.any():
        raise WrongUse("no token of the text has a finite surprisal: the counts have nothing to do with it.")
    return torch.where(finite, x, x[finite].max())


def _pearson(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x.norm() * y.norm()))  # NaN where one is constant


def held_out(
    sequences: Iterable[Sequence[int]], counts: Counts, context: int, tokens: int
) -> Int[Tensor, "windows pos"]:
    """Whole windows of a text, evenly spaced, of about so many tokens in all.

    Raises `WrongUse` if there is none, or if more than a tenth of the text's runs of 16 tokens were in the text counted.
    """
    found = [list(ids) for ids in sequences if len(ids) == context]
    if not found:
        raise WrongUse(f"the text is shorter than one window of {context} tokens: give more text.")
    seen = counts.overlap(found)
    if seen > MOST_SEEN:
        raise WrongUse(
            f"{seen:.0%} of the text was in the text that was counted: what a subnetwork says of it proves nothing. Give "
            "text that was held out."
        )
    wanted = min(len(found), max(1, tokens // context))
    return torch.tensor([found[i * len(found) // wanted] for i in range(wanted)])


# ---------------------------------------------------------------- one subnetwork


@dataclass(frozen=True, eq=False)
class Report:
    """A subnetwork, the whole model, nothing, and random subnetworks with as many weights in every matrix; and each left out.

    full_model: nothing is left out; empty_mask: every weight of the blocks is; random: others of the same sizes;
    without: the complement of the mask, without_random: those of the random ones.
    """

    subnetwork: Scores
    full_model: Scores
    empty_mask: Scores
    random: tuple[Scores, ...]
    without: Scores
    without_random: tuple[Scores, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a model: model, r, r_dropinf, cross_entropy, kl, loss, infinite."""
        import pandas as pd

        named: list[tuple[str, Scores]] = [
            ("subnetwork", self.subnetwork),
            ("full model", self.full_model),
            ("empty mask", self.empty_mask),
            *(("random", s) for s in self.random),
            ("without subnetwork", self.without),
            *(("without random", s) for s in self.without_random),
        ]
        return pd.DataFrame([{"model": name} | asdict(s) for name, s in named])

    def plot(self) -> go.Figure:
        """r of each, and the loss on the text of the whole model and of what is left without the subnetwork."""
        from plotly.subplots import make_subplots

        figure = make_subplots(1, 2, subplot_titles=["correlation with the bigram model", "loss on the text, nats"])
        frame = self.to_frame().groupby("model", sort=False).mean()
        first = frame.loc[["subnetwork", "full model", "empty mask", "random"], "r"]
        second = frame.loc[["full model", "without subnetwork", "without random"], "loss"]
        for column, values in enumerate((first, second), 1):
            figure.add_bar(x=list(values.index), y=values, row=1, col=column, marker_color="#1f5f8b")
        return figure.update_layout(showlegend=False, template="plotly_white")


def report(
    mask: Mask, model: Model, counts: Counts, ids: Int[Tensor, "windows pos"], random: int = 3, seed: int = 0
) -> Report:
    """Score a mask and what it is compared with, each as a model with hard weights. Takes 4 + 2 `random` passes over the text.

    Raises `WrongUse` for a mask of another model, and for a model that is not causal.
    """
    from tqdm.auto import tqdm

    mask.check(model)
    check_causal(model)
    others = [mask.random_like(model, seed + i) for i in range(random)]
    masks = [mask, None, whole(model, False), mask.complement(), *others, *(m.complement() for m in others)]
    found = [
        scores(model if m is None else m.apply(model), counts, ids)
        for m in tqdm(masks, desc="subnetworks", mininterval=1)
    ]
    subnetwork, full, empty, without = found[:4]
    return Report(subnetwork, full, empty, tuple(found[4 : 4 + random]), without, tuple(found[4 + random :]))


def as_dict(mask: Mask, model: Model, found: Report) -> dict[str, Any]:
    """The numbers of a report as JSON: means over the random masks, and what is kept by block, part, matrix and head."""
    frame = mask.to_frame(model)
    frame["part"] = frame["block"] + "." + frame["part"]
    heads = frame[frame["head"].notna()].assign(
        head=lambda f: f["block"] + "." + f["matrix"] + "." + f["head"].astype(str)
    )
    tables = [(frame, "block"), (frame, "part"), (frame, "matrix"), (heads, "head")]
    return {
        "r": found.subnetwork.r,
        "r_dropinf": found.subnetwork.r_dropinf,
        "cross_entropy": found.subnetwork.cross_entropy,
        "kl": found.subnetwork.kl,
        "loss": found.subnetwork.loss,
        "infinite_share": found.subnetwork.infinite,
        "r_full_model": found.full_model.r,
        "r_empty_mask": found.empty_mask.r,
        "r_random_mask": _mean([s.r for s in found.random]),
        "dropinf": {
            "full_model": found.full_model.r_dropinf,
            "empty_mask": found.empty_mask.r_dropinf,
            "random_mask": _mean([s.r_dropinf for s in found.random]),
        },
        "kept": mask.kept,
        "kept_share": mask.kept / mask.size,
        "undecided_share": mask.about.get("undecided_share"),
        **{f"by_{column}": _kept(table, column) for table, column in tables},
        "ablation_loss": {
            "subnetwork": found.without.loss,
            "random": _mean([s.loss for s in found.without_random]),
            "random_each": [s.loss for s in found.without_random],
            "nothing": found.full_model.loss,
        },
    }


def _kept(frame: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """By name: entries kept, entries there are, and the share of all kept ones that these are."""
    sums, whole = frame.groupby(column, sort=False)[["kept", "size"]].sum(), max(int(frame["kept"].sum()), 1)
    return {
        str(name): {"kept": int(row["kept"]), "size": int(row["size"]), "share_of_kept": float(row["kept"]) / whole}
        for name, row in sums.iterrows()
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---------------------------------------------------------------- which penalty


@dataclass(frozen=True, eq=False)
class Sweep:
    """Runs of several penalties and seeds, each a row: penalty, seed, stable, kept, kept_share, undecided_share and its scores."""

    rows: tuple[dict[str, Any], ...]

    @property
    def penalty(self) -> float:
        """The highest penalty whose mean r is within 0.04 of the mean r without a penalty, of stable runs.

        Raises `WrongUse` if none of these has the penalty 0.
        """
        by_penalty: dict[float, list[float]] = {}
        for row in self.rows:
            if row["stable"]:
                by_penalty.setdefault(row["penalty"], []).append(row["r"])
        if 0 not in by_penalty:
            raise WrongUse("there is no stable run with penalty 0 to compare with: train one, --penalty 0.")
        mean = {penalty: sum(values) / len(values) for penalty, values in by_penalty.items()}
        return max(penalty for penalty, r in mean.items() if r >= mean[0] - NEAR)

    def to_frame(self) -> pd.DataFrame:
        """The rows, by penalty and seed."""
        import pandas as pd

        return pd.DataFrame(self.rows).sort_values(["penalty", "seed"], ignore_index=True)

    def plot(self) -> go.Figure:
        """r against the number of weights kept, a colour a penalty, filled where infinite surprisals are left out."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for penalty, rows in self.to_frame().groupby("penalty"):
            for value, symbol in (("r", "circle-open"), ("r_dropinf", "circle")):
                style = {"mode": "markers", "marker": {"symbol": symbol, "size": 9}, "legendgroup": str(penalty)}
                figure.add_scatter(x=rows["kept"], y=rows[value], name=f"λ {penalty:g}, {value}", **style)
        axes = {
            "xaxis": {"type": "log", "title": "weights kept"},
            "yaxis": {"title": "correlation with the n-gram model"},
        }
        return figure.update_layout(template="plotly_white", **axes)


def compare(masks: Sequence[Mask], model: Model, counts: Counts, ids: Int[Tensor, "windows pos"]) -> Sweep:
    """Score the masks of several runs, each as a model with hard weights. Raises `WrongUse` for a mask of another model."""
    from tqdm.auto import tqdm

    rows = []
    for mask in tqdm(masks, desc="runs", mininterval=1):
        about = {name: mask.about[name] for name in ("penalty", "seed", "steps_done", "stable", "undecided_share")}
        sizes = {"kept": mask.kept, "kept_share": mask.kept / mask.size}
        rows.append(about | sizes | asdict(scores(mask.apply(model), counts, ids)))
    return Sweep(tuple(rows))
