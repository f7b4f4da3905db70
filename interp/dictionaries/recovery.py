"""How much of what was planted a dictionary found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from interp.dictionaries.planted import Planted

FOUND = 0.9  # cosine at which a direction counts as found
ABSORBS = 0.5  # cosine at which a latent writes a parent's direction too; that of child + parent is 1/√2


def cosines(true: Float[Tensor, "features d"], learned: Float[Tensor, "m d"]) -> Float[Tensor, "features m"]:
    """cos(d*_j, d_i), in float64."""
    a, b = (normalize(t.detach().double(), dim=1) for t in (true, learned))
    return a @ b.T


def matched(score: Float[Tensor, "features m"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Features and latents, one to one, of the largest sum of scores (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score.numpy(), maximize=True)
    return torch.as_tensor(rows), torch.as_tensor(columns)


def recovery(true: Float[Tensor, "features d"], learned: Float[Tensor, "m d"]) -> dict[str, float]:
    """How well the rows of a decoder found planted directions.

    mmcs: mean over true directions of the best cosine (Sharkey et al. 2022). recovered: the share above 0.9.
    hungarian: mean cosine of the best one-to-one matching, which a direction found twice does not help.
    """
    cosine = cosines(true, learned)
    best = cosine.max(1).values
    return {
        "recovered": (best > FOUND).double().mean().item(),
        "mmcs": best.mean().item(),
        "hungarian": cosine[matched(cosine)].sum().item() / len(true),
    }


def f1_scores(fires: Bool[Tensor, "rows features"], f: Float[Tensor, "rows m"]) -> Float[Tensor, "features m"]:
    """F1_ji = 2 #(j there and f_i > 0) / (#(j there) + #(f_i > 0)), the harmonic mean of precision and recall; 0 for 0/0."""
    there, active = fires.double(), (f > 0).double()
    return 2 * (there.T @ active) / (there.sum(0)[:, None] + active.sum(0)).clamp(min=1)


def matched_f1(fires: Bool[Tensor, "rows features"], f: Float[Tensor, "rows m"]) -> float:
    """Mean F1 over features, each with a latent of its own, so matched that the mean is largest; unmatched count 0."""
    f1 = f1_scores(fires, f)
    return f1[matched(f1)].sum().item() / len(f1)


def parent_recall(planted: Planted, W_dec: Float[Tensor, "m d"], f: Float[Tensor, "rows m"]) -> dict[str, float]:
    """How often a parent's latent fires where the parent is there, mean over parents; the latent is the one of best cosine.

    alone: no child is there. with_child: one is. absorbed: the share of the latter rows on which the parent's latent is
    silent and another one fires that has cosine 0.5 or more with the parent's direction (Chanin et al. 2024). Raises
    `WrongUse` if no parents were planted.
    """
    if planted.parents is None:
        raise WrongUse("These features have no parents: `planted.hierarchical` makes some.")
    cosine, fires, active = cosines(planted.directions, W_dec), planted.fires, f > 0
    found = []
    for parent in planted.parents[planted.parents >= 0].unique().tolist():
        latent = int(cosine[parent].argmax())
        child = fires[:, planted.parents == parent].any(1)
        others = cosine[parent] >= ABSORBS
        others[latent] = False
        absorbed = ~active[:, latent] & active[:, others].any(1)
        alone = fires[:, parent] & ~child
        found.append([active[alone, latent].double().mean(), active[child, latent].double().mean(),
                      absorbed[child].double().mean()])  # fmt: skip
    means = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("alone", "with_child", "absorbed"), means, strict=True))


def relative_norms(part_norms: Float[Tensor, "m 2"], sizes: Float[Tensor, " 2"]) -> Float[Tensor, " m"]:
    """ρ_i = ‖d_i^b‖/(‖d_i^a‖ + ‖d_i^b‖), each divided by its site's `sizes`, √E‖x^s‖² (Lindsey et al. 2024).

    0: the latent is of site a alone, 1: of b alone, ½: of both. 0/0 is ½.
    """
    a, b = (part_norms / sizes).unbind(1)
    return torch.where(a + b > 0, b / (a + b), 0.5)


def label(rho: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Which of 0, ½, 1 is nearest: 0 for site a alone, 1 for both, 2 for b alone."""
    return (2 * rho).round().long()
