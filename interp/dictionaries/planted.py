"""Data whose true features are known, and scores of how many of them a dictionary found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Superposed:
    """Rows x = f D: sparse sums of more unit directions D [features, d] than there are dimensions."""

    x: Tensor
    directions: Tensor


def superposed(
    rows: int, seed: int, zipf: bool = False, d: int = 64, features: int = 256, l0: float = 4.0
) -> Superposed:
    """x = Σ_i f_i d_i, f_i = Bernoulli(p_i) · U(½, 3⁄2), d_i random unit directions, Σ p_i = `l0`.

    p_i is uniform, or ∝ 1/i under `zipf`.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    p = 1 / torch.arange(1, features + 1) if zipf else torch.ones(features)
    p = l0 * p / p.sum()
    x = torch.empty(rows, d)
    for part in x.split(16_384):  # the codes are wide: never all of them at a time
        shape = len(part), features
        fires = torch.rand(shape, generator=generator) < p
        part.copy_((fires * (torch.rand(shape, generator=generator) + 0.5)) @ directions)
    return Superposed(x, directions)


@dataclass(frozen=True)
class SparseMLP:
    """y = ReLU(x W_in + b_in) W_out + b_out, at most `active` hidden units on any row."""

    x: Tensor
    y: Tensor
    W_in: Tensor
    b_in: Tensor
    W_out: Tensor
    b_out: Tensor


def sparse_mlp(rows: int, seed: int, active: int = 8, d_in: int = 32, d_out: int = 32, hidden: int = 64) -> SparseMLP:
    """An MLP that is a sparse ReLU dictionary: x ~ N(0, 1), and biases so low that `active` units or fewer fire.

    One bias for all units: the highest that no row of x breaks the bound with.
    """
    generator = torch.Generator().manual_seed(seed)
    x, W_in, W_out = (
        torch.randn(shape, generator=generator) for shape in ((rows, d_in), (d_in, hidden), (hidden, d_out))
    )
    W_in /= W_in.norm(dim=0)
    W_out /= W_out.norm(dim=1, keepdim=True)
    z = x @ W_in
    b_in = -z.topk(active + 1, dim=1).values[:, -1].max().expand(hidden).clone()
    b_out = 0.1 * torch.randn(d_out, generator=generator)
    return SparseMLP(x, (z + b_in).relu() @ W_out + b_out, W_in, b_in, W_out, b_out)


def _cosines(true: Tensor, learned: Tensor) -> Tensor:
    a, b = (torch.nn.functional.normalize(t.detach().double(), dim=1) for t in (true, learned))
    return a @ b.T


def recovery(true: Float[Tensor, "features d"], learned: Float[Tensor, "m d"]) -> dict[str, float]:
    """How well the rows of a decoder found planted directions.

    mmcs: mean over true directions of the best cosine (Sharkey et al. 2022). recovered: the share above 0.9.
    hungarian: mean cosine of the best one-to-one matching, which a direction found twice does not help.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = _cosines(true, learned)
    best = cosines.max(1).values
    pairs = linear_sum_assignment(cosines.numpy(), maximize=True)
    return {
        "recovered": (best > 0.9).double().mean().item(),
        "mmcs": best.mean().item(),
        "hungarian": cosines.numpy()[pairs].sum().item() / len(true),
    }
