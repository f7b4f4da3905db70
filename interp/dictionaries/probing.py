"""What latents say of labels: k-sparse probing, spurious correlation removal (SCR), targeted probe perturbation (TPP).

As SAEBench defines them (Karvonen et al. 2025, arXiv 2503.09532), on rows of one text each: x, what the dictionary reads,
and f, its latents, both means over the text's tokens. Ablating latents S at every token of a text subtracts Σ_{i∈S} f_i d_i
from each, so from the mean it subtracts the mean of that: x − f_S W_dec[S]; what the dictionary misses stays in x.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int

KS = (1, 2, 5)
NS = (2, 5, 10, 20, 50, 100, 500)
TEST = 0.2  # share of the rows that probes are scored on
FEWEST = 5  # rows of a sort
LEAST = 1e-3  # of accuracy lost to a spurious label: below it there is nothing to win back


@dataclass(frozen=True)
class Probe:
    """P(true | x) = 1/(1 + exp(−⟨w, x⟩ − b))."""

    w: Tensor
    b: float

    def says(self, x: Float[Tensor, "rows d"]) -> Bool[Tensor, " rows"]:
        """Whether true is the likelier."""
        return x @ self.w + self.b > 0

    def accuracy(self, x: Float[Tensor, "rows d"], t: Bool[Tensor, " rows"]) -> float:
        """Share of the rows told right."""
        return (self.says(x) == t).double().mean().item()


def fit_probe(x: Float[Tensor, "rows d"], t: Bool[Tensor, " rows"], C: float = 1.0) -> Probe:
    """Logistic regression: argmin C Σ log(1 + exp(−s (⟨w, z⟩ + b))) + ‖w‖²/2, s = ±1, z the columns of x made standard.

    C as in scikit-learn; standard columns, so that it means the same whatever the scale of a site. In float64, by L-BFGS.
    """
    import numpy as np
    from scipy.optimize import minimize

    x = x.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    z, s = ((x - mean) / std).numpy(), np.where(t.numpy(), 1.0, -1.0)

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        margin = s * (z @ v[:-1] + v[-1])
        g = -C * s / (1 + np.exp(np.clip(margin, -500, 500)))
        value = C * np.logaddexp(0, -margin).sum() + v[:-1] @ v[:-1] / 2
        return value, np.append(z.T @ g + v[:-1], g.sum())

    found = minimize(
        loss, np.zeros(z.shape[1] + 1), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "maxiter": 2000}
    )
    w = torch.from_numpy(found.x[:-1]) / std
    return Probe(w, float(found.x[-1] - w @ mean))


# ------------------------------------------------------------ rows, with as many of each sort


@dataclass(frozen=True)
class Task:
    """A question that probes answer: rows to train on, rows to be scored on, and the truth of both."""

    train: Tensor
    test: Tensor
    truth: Tensor  # [all rows]

    def probe(self, x: Float[Tensor, "rows d"]) -> Probe:
        """Trained on the rows for it."""
        return fit_probe(x[self.train], self.truth[self.train])

    def score(self, probe: Probe, x: Float[Tensor, "rows d"]) -> float:
        """Accuracy on the test rows."""
        return probe.accuracy(x[self.test], self.truth[self.test])

    def difference(self, f: Float[Tensor, "rows m"]) -> Float[Tensor, " m"]:
        """E[f_i | true] − E[f_i | false] on the training rows."""
        f, t = f[self.train], self.truth[self.train]
        return f[t].mean(0) - f[~t].mean(0)


def task(truth: Bool[Tensor, " rows"], seed: int = 0, sorts: Int[Tensor, " rows"] | None = None) -> Task:
    """As many rows that are true as false, drawn by `seed`, a fifth of each set aside to be scored on.

    `sorts` splits further: as many of each of its values. Raises `WrongUse` if a sort has fewer than five rows, or there is one sort.
    """
    sorts = truth.long() if sorts is None else sorts
    generator = torch.Generator().manual_seed(seed)
    groups = [(sorts == value).nonzero().flatten() for value in sorts.unique().tolist()]
    groups = [g[torch.randperm(len(g), generator=generator)] for g in groups]
    size = min(map(len, groups))
    if len(groups) < 2 or size < FEWEST:
        raise WrongUse(
            f"Probing needs true and false rows, {FEWEST} of each sort; there are {[len(g) for g in groups]}."
        )
    held = max(1, round(TEST * size))
    test, train = (torch.cat([g[a:b] for g in groups]) for a, b in ((0, held), (held, size)))
    return Task(train, test, truth)


def one_against_rest(labels: Sequence[str], seed: int = 0) -> dict[str, Task]:
    """The task of telling each label from the others. Raises `WrongUse` for a label with fewer than five rows, naming it."""
    counts = Counter(labels)
    rare = sorted(name for name, count in counts.items() if count < FEWEST)
    if rare or len(counts) < 2:
        few = f"{', '.join(rare)} have fewer" if rare else f"there is only {', '.join(counts)}"
        raise WrongUse(f"Probing needs two labels or more, and {FEWEST} texts of each: {few}.")
    return {name: task(torch.tensor([label == name for label in labels]), seed) for name in sorted(set(labels))}


# ------------------------------------------------------------ the three


def sparse_probing(
    f: Float[Tensor, "rows m"],
    labels: Sequence[str],
    x: Float[Tensor, "rows d"] | None = None,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> pd.DataFrame:
    """Test accuracy of probes on k latents, for each label: those of largest |E[f_i | label] − E[f_i | others]|.

    Columns label, k, accuracy, latents; k = 0: the probe on all of `x`, if it is given (Gurnee et al. 2023, arXiv 2305.01610).
    """
    import pandas as pd

    rows = []
    for label, question in one_against_rest(labels, seed).items():
        order = question.difference(f).abs().argsort(descending=True, stable=True)
        for k in (k for k in ks if k <= f.shape[1]):
            few = f[:, order[:k]]
            rows.append([label, k, question.score(question.probe(few), few), order[:k].tolist()])
        if x is not None:
            rows.append([label, 0, question.score(question.probe(x), x), []])
    return pd.DataFrame(rows, columns=["label", "k", "accuracy", "latents"])


def effects(
    f: Float[Tensor, "rows m"], W_dec: Float[Tensor, "m d"], question: Task, probe: Probe, positive: bool
) -> Float[Tensor, " m"]:
    """(E[f_i | true] − E[f_i | false]) ⟨d_i, w⟩: what latent i does to the probe's answer, to first order.

    `positive`: only what latents that fire more where it is true add to it; otherwise the absolute value.
    """
    difference, along = question.difference(f), W_dec.double() @ probe.w
    return difference.clamp(min=0) * along if positive else (difference * along).abs()


def ablated(
    x: Float[Tensor, "rows d"],
    f: Float[Tensor, "rows m"],
    W_dec: Float[Tensor, "m d"],
    effect: Float[Tensor, " m"],
    n: int,
) -> Float[Tensor, "rows d"]:
    """x − f_S W_dec[S], S the n latents of largest effect, fewer if fewer have one."""
    order = effect.argsort(descending=True, stable=True)[:n]
    order = order[effect[order] != 0]
    return x - f[:, order] @ W_dec[order].double()


def scr(
    x: Float[Tensor, "rows d"],
    f: Float[Tensor, "rows m"],
    W_dec: Float[Tensor, "m d"],
    label: Bool[Tensor, " rows"],
    spurious: Bool[Tensor, " rows"],
    ns: Sequence[int] = NS,
    seed: int = 0,
) -> pd.DataFrame:
    """S_SCR = (A_ablated − A_biased) / (A_clean − A_biased): how much of a probe's bias goes with n latents (Karvonen et al. 2024).

    The biased probe is trained where label and spurious label agree, the clean one where all four combinations are as many.
    Ablated are the latents of largest |effect| on the spurious label's probe; A: accuracy on the label, all four as many.
    Both directions are computed (the labels change places) and the one with the lower A_biased is told. 0 where A_clean −
    A_biased < .001. Columns n, scr, biased, clean, ablated. Raises `WrongUse` without five rows of each combination.
    """
    four = 2 * label.long() + spurious.long()
    counts = torch.bincount(four, minlength=4).tolist()
    if min(counts) < FEWEST:
        raise WrongUse(f"SCR needs {FEWEST} texts of each combination of label and spurious label; there are {counts}.")
    tasks = [task(truth, seed, four) for truth in (label, spurious)]
    agree = [(label == spurious)[t] for t in (tasks[0].train, tasks[0].test)]
    biased = Task(tasks[0].train[agree[0]], tasks[0].test[agree[1]], label).probe(x)
    wanted, other = sorted(tasks, key=lambda t: t.score(biased, x))
    start, clean = wanted.score(biased, x), wanted.score(wanted.probe(x), x)
    effect = effects(f, W_dec, other, other.probe(x), positive=False)
    rows = []
    for n in (n for n in ns if n <= f.shape[1]):
        after = wanted.score(biased, ablated(x, f, W_dec, effect, n))
        rows.append([n, (after - start) / (clean - start) if clean - start >= LEAST else 0.0, start, clean, after])
    return _table(rows, ["n", "scr", "biased", "clean", "ablated"])


def tpp(
    x: Float[Tensor, "rows d"],
    f: Float[Tensor, "rows m"],
    W_dec: Float[Tensor, "m d"],
    labels: Sequence[str],
    ns: Sequence[int] = NS,
    seed: int = 0,
) -> pd.DataFrame:
    """S_TPP = mean_i [(A_i − A_ii) − mean_{j≠i} (A_j − A_ij)]: what n latents of label i do to its probe, less to the others'.

    A_j: accuracy of label j's probe; A_ij: with the n latents of largest positive effect on probe i ablated (Karvonen et
    al. 2024, arXiv 2411.18895). Columns n, tpp, intended, unintended.
    """
    tasks = list(one_against_rest(labels, seed).values())
    probes = [t.probe(x) for t in tasks]
    clean = torch.tensor([t.score(p, x) for t, p in zip(tasks, probes, strict=True)], dtype=torch.float64)
    strengths = [effects(f, W_dec, t, p, positive=True) for t, p in zip(tasks, probes, strict=True)]
    rows = []
    for n in (n for n in ns if n <= f.shape[1]):
        changed = [ablated(x, f, W_dec, effect, n) for effect in strengths]
        after = [[t.score(p, c) for t, p in zip(tasks, probes, strict=True)] for c in changed]
        lost = clean - torch.tensor(after, dtype=torch.float64)
        own = lost.diagonal().mean().item()
        others = (lost.sum() - lost.diagonal().sum()).item() / (len(tasks) * (len(tasks) - 1))
        rows.append([n, own - others, own, others])
    return _table(rows, ["n", "tpp", "intended", "unintended"])


def _table(rows: list[list[float]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)
