"""Absorption: a latent for a general property is silent where a more special latent has taken its part.

Chanin et al. 2024 (arXiv 2409.14507), with the fraction of SAEBench (Karvonen et al. 2025, arXiv 2503.09532). Of words
with a label, such as their first letter: p, the unit direction of the label's logistic regression on x; the label's main
latents, from k-sparse probing; a = ⟨x, p⟩ and c_i = f_i cos(d_i, p) on each word; M = Σ c_i over the main latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.dictionaries.probing import Task, one_against_rest

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

JUMP, MOST_MAIN = 0.03, 10  # of F1 that one more main latent must bring; how many there can be
PART, MOST = 0.4, 3  # share of a that those who absorb must write; how many can do it together
COS, COS_FULL = 0.1, 0.025  # of a latent that absorbs, with p
SILENT = 1e-8


def main_latents(f: Float[Tensor, "rows m"], question: Task) -> list[int]:
    """The latents that the property is split over: of the order of E[f_i | true] − E[f_i | false], as many as bring F1 by .03 each."""
    order = question.difference(f).argsort(descending=True, stable=True)[:MOST_MAIN]
    best = 0.0
    for k in range(1, len(order) + 1):
        few = f[:, order[:k]]
        said, true = question.probe(few).says(few)[question.test], question.truth[question.test]
        f1 = 2 * (said & true).sum().item() / max(1, (said.sum() + true.sum()).item())
        if k > 1 and f1 - best < JUMP:
            return order[: k - 1].tolist()
        best = f1
    return order.tolist()


def absorbed(
    x: Float[Tensor, "words d"],
    f: Float[Tensor, "words m"],
    W_dec: Float[Tensor, "m d"],
    p: Float[Tensor, " d"],
    main: Sequence[int],
) -> tuple[Float[Tensor, " words"], Bool[Tensor, " words"]]:
    """(fraction, full) of each word.

    S: the sum of the three largest c_i > 0 of other latents with cos(d_i, p) ≥ .1. fraction: 0 where M ≥ a or S < .4 a;
    else 1 where M ≤ 0; else min(S, a − M) / (min(S, a − M) + M). full: all main latents are silent, and the latent of
    largest c_i has cos(d_i, p) ≥ .025 and c_i ≥ .4 a, a > 0.
    """
    p = normalize(p.double(), dim=0)
    cos, a = normalize(W_dec.double(), dim=1) @ p, x.double() @ p
    c = f.double() * cos
    M = c[:, list(main)].sum(1)
    others = cos >= COS
    others[list(main)] = False
    S = torch.where(others, c.clamp(min=0), 0).topk(min(MOST, c.shape[1]), dim=1).values.sum(1)
    rest = torch.minimum(S, a - M)
    fraction = torch.where(M <= 0, 1.0, (rest / (rest + M)).clamp(0, 1))
    fraction = torch.where((a <= M) | (a <= 0) | (PART * a > S), 0.0, fraction)
    most, top = c.max(1)
    silent = (f[:, list(main)].abs() < SILENT).all(1)
    return fraction, silent & (cos[top] >= COS_FULL) & (a > 0) & (most >= PART * a)


def absorption(
    x: Float[Tensor, "words d"],
    f: Float[Tensor, "words m"],
    W_dec: Float[Tensor, "m d"],
    labels: Sequence[str],
    seed: int = 0,
) -> pd.DataFrame:
    """For each label, over its words that the probe on x tells right: mean fraction, share of full absorption.

    Columns label, words, main, fraction, full. Raises `WrongUse` for a label with fewer than five words.
    """
    import pandas as pd

    rows = []
    for label, question in one_against_rest(labels, seed).items():
        probe, main = question.probe(x), main_latents(f, question)
        right = question.truth & probe.says(x)
        fraction, full = absorbed(x[right], f[right], W_dec, probe.w, main)
        rows.append([label, int(right.sum()), main, fraction.mean().item(), full.double().mean().item()])
    return pd.DataFrame(rows, columns=["label", "words", "main", "fraction", "full"])
