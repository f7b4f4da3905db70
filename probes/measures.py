"""Measures of a matrix of states X [n, d], one state a row: how many directions it fills, and how like another it is.

All in float64, all invariant to the order of rows but `adjacency`. X̃ is X with its mean taken off, over its Frobenius norm.
Each says its source; nothing here knows of models.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Real

NEAREST = 4096  # states among which nearest neighbours are sought
CANDIDATES = 6  # neighbours found by products, whose distances are measured again by differences
ROWS = 64  # positions whose order is judged: evenly spaced where there are more
BLOCK = 512  # rows of distances at a time


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """X̃ = (X - 1 x̄ᵀ) / ‖X - 1 x̄ᵀ‖_F; zeros if all rows are one, to rounding."""
    x = x.double()
    centred = x - x.mean(0)
    norm, rounding = centred.norm(), 8 * torch.finfo(torch.float64).eps * x.norm()
    return centred / norm if norm > rounding else torch.zeros_like(centred)


# ---------------------------------------------------------------- one matrix from another


def basis(x: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
    """Left singular vectors of X̃, those of singular values above rounding: the span of the columns.

    Raises `WrongUse` for n ≤ d + 1, where the columns span everything and any Y is linear in them.
    """
    n, d = x.shape
    if n <= d + 1:
        raise WrongUse(
            f"linearity of {n} states of {d} numbers is 1 whatever they are: give more than {d + 1} tokens, a few times "
            "as many if you can (independent states already score d/(n - 1))."
        )
    u, s, _ = torch.linalg.svd(unit(x), full_matrices=False)
    return u[:, s > max(n, d) * torch.finfo(s.dtype).eps * s[0]] if s[0] > 0 else u[:, :0]


def explained(u: Float[Tensor, "n r"], y: Float[Tensor, "n e"]) -> float:
    """‖Uᵀ Ỹ‖²_F: the share of Y's variance in the span of U; 1 for a constant Y, which is linear in anything."""
    y = unit(y)
    return float((u.T @ y).square().sum()) if bool(y.any()) else 1.0


def linearity(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """1 - min_A ‖X̃ A - Ỹ‖²_F = ‖U_Xᵀ Ỹ‖²_F, U_X the left singular vectors of X̃ (Razzhigaev et al. 2024, arXiv:2405.12250).

    1 where Y = X A + b. Independent data score d/(n - 1). Of a block, give Y - X too: a stream that hardly changes is linear
    whatever changes it. Raises `WrongUse` for n ≤ d + 1, or other numbers of rows.
    """
    _paired(x, y)
    return explained(basis(x), y)


def cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """‖X̃ᵀỸ‖²_F / (‖X̃ᵀX̃‖_F ‖ỸᵀỸ‖_F), linear CKA (Kornblith et al. 2019, arXiv:1905.00414, equation 4).

    From 0 to 1; turning or scaling either changes nothing. NaN if either is constant.
    """
    _paired(x, y)
    a, b = unit(x), unit(y)
    both = (a.T @ b).square().sum()
    return float(both / ((a.T @ a).norm() * (b.T @ b).norm()))


def procrustes(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """‖X̃ᵀỸ‖_*, from 0 to 1: over all rotations R, min ‖X̃ R - Ỹ‖²_F = 2 (1 - it) (Schönemann 1966). Zeros fill what is narrower."""
    _paired(x, y)
    return float(torch.linalg.svdvals(unit(x).T @ unit(y)).sum())


def _paired(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise WrongUse(f"two matrices are compared row by row; these have {len(x)} and {len(y)} rows.")


# ---------------------------------------------------------------- how many directions


def matrix_entropy(z: Float[Tensor, "n d"], alpha: float = 1.0) -> float:
    """S_α = log(Σ p^α) / (1 - α), p the eigenvalues of Z Zᵀ over their sum; α = 1: -Σ p log p. In nats.

    log n for orthogonal rows of one length, 0 for equal rows (Skean et al. 2025, arXiv:2502.02013; LIMe, arXiv:2502.09245).
    Z is taken as it is: centre or standardise it first. NaN for zeros.
    """
    p = torch.linalg.svdvals(z.double()).square()
    p = p / p.sum()
    if alpha == 1.0:
        return float(-torch.special.xlogy(p, p).sum())
    return float(p[p > 0].pow(alpha).sum().log() / (1 - alpha))


def participation_ratio(x: Float[Tensor, "n d"]) -> float:
    """(Σ λ)² / Σ λ², λ the eigenvalues of the covariance: d for equal ones, 1 for a line. NaN for a constant."""
    a = unit(x)
    return 1.0 / float((a.T @ a).square().sum()) if bool(a.any()) else math.nan


def anisotropy(x: Float[Tensor, "n d"]) -> float:
    """σ₁² / Σ σ² of X̃: the share of the variance along one direction (Razzhigaev et al. 2024). NaN for a constant."""
    a = unit(x)
    return float(torch.linalg.eigvalsh(a.T @ a)[-1]) if bool(a.any()) else math.nan


def two_nn(x: Float[Tensor, "n d"], keep: float = 0.2) -> float:
    """Intrinsic dimension k from μ = r₂/r₁, the distances to the two nearest: -log(1 - F(μ)) = k log μ, k by least squares.

    F(μ_i) = i/n, the lowest `keep` of the μ are fitted (Facco et al. 2017; a fifth as in Razzhigaev et al. 2024). Of the
    first 4096 rows those that differ are used. NaN for fewer than three.
    """
    x = torch.unique(x[:NEAREST].double(), dim=0)
    if len(x) < 3:
        return math.nan
    near = torch.cat([_two_nearest(x, start) for start in range(0, len(x), BLOCK)])
    mu = (near[:, 1] / near[:, 0]).sort().values
    count = max(2, int(keep * len(mu)))
    share = torch.arange(1, count + 1, dtype=torch.float64) / len(mu)
    log_mu, height = mu[:count].log(), -torch.log1p(-share)
    return float((log_mu @ height) / (log_mu @ log_mu))


def _two_nearest(x: Float[Tensor, "n d"], start: int) -> Float[Tensor, "block 2"]:
    """Distances of some rows to the two nearest others: found by ‖x‖² + ‖y‖² - 2 x · y, measured by differences."""
    part = x[start : start + BLOCK]
    squares = x.square().sum(1)
    far = squares[start : start + BLOCK, None] + squares - 2 * part @ x.T
    far[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
    candidates = far.topk(min(CANDIDATES, len(x) - 1), largest=False).indices
    exact = (x[candidates] - part[:, None]).norm(dim=-1)
    return exact.sort(dim=1).values[:, :2]


# ---------------------------------------------------------------- how alike the rows are


def rank_one_residual(x: Float[Tensor, "n d"], norm: str = "frobenius") -> float:
    """‖X - 1 x̄ᵀ‖ / ‖X‖: 0 where all rows are one (Dong et al. 2021, arXiv:2103.03404).

    x̄ᵀ, the mean row, is the nearest in the Frobenius norm. "composite": √(‖·‖₁ ‖·‖_∞), the paper's.
    """
    x = x.double()
    sizes = [_norm(m, norm) for m in (x - x.mean(0), x)]
    return sizes[0] / sizes[1] if sizes[1] else math.nan


def _norm(x: Tensor, norm: str) -> float:
    if norm not in ("frobenius", "composite"):
        raise WrongUse(f"norm={norm!r} is neither 'frobenius' nor 'composite'.")
    if norm == "frobenius":
        return float(x.norm())
    return math.sqrt(float(x.abs().sum(0).max()) * float(x.abs().sum(1).max()))


def mean_cosine(x: Float[Tensor, "n d"]) -> float:
    """(‖Σ x_i/‖x_i‖‖² - n) / (n (n - 1)): the mean cosine of different rows (Ethayarajh 2019). NaN for one row."""
    n, x = len(x), torch.nn.functional.normalize(x.double(), dim=1)
    return (float(x.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else math.nan


def partition_ratio(x: Float[Tensor, "n d"]) -> float:
    """min Z(c) / max Z(c), Z(c) = Σ_i exp(c · x_i), over the eigenvectors c of XᵀX, either sign (Mu and Viswanath 2018).

    1: no direction is preferred. It depends on the scale of X.
    """
    x = x.double()
    c = torch.linalg.eigh(x.T @ x).eigenvectors
    log_z = torch.cat([(x @ c).logsumexp(0), (-x @ c).logsumexp(0)])
    return float((log_z.min() - log_z.max()).exp())


def adjacency(x: Float[Tensor, "pos d"]) -> float:
    """Over positions i and j < k < i: the share with cos(x_i, x_k) > cos(x_i, x_j), equal ones half: ½ if there is no order.

    1: the nearer position is always the more alike. The score of "position without encodings" in the form used here; of more
    than 64 positions i, 64 evenly spaced ones. NaN for fewer than three positions.
    """
    from scipy.stats import kendalltau

    n = len(x)
    if n < 3:
        return math.nan
    x = torch.nn.functional.normalize(x.double(), dim=1).cpu()
    order, pairs = 0.0, 0
    for i in torch.linspace(2, n - 1, min(ROWS, n - 2)).long().tolist():
        c = (x[:i] @ x[i]).numpy()
        own, times = i * (i - 1) // 2, np.unique(c, return_counts=True)[1]
        tied = int((times * (times - 1) // 2).sum())
        tau = kendalltau(np.arange(i), c).statistic if tied < own else 0.0
        order += tau * math.sqrt(own * (own - tied))  # pairs in order, less those in the other
        pairs += own
    return (order / pairs + 1) / 2


# ---------------------------------------------------------------- coding rate (CRATE)


def coding_rate(z: Float[Tensor, "n d"], eps: float = 0.5, dim: int | None = None) -> Tensor:
    """R(Z) = ½ log det(I + dim/(n ε²) ZᵀZ), in nats; dim: the width d (Yu et al. 2023, arXiv:2306.01129). Differentiable."""
    n, d = z.shape
    small = z.T @ z if d <= n else z @ z.T
    eye = torch.eye(len(small), dtype=z.dtype, device=z.device)
    return 0.5 * torch.linalg.slogdet(eye + (dim or d) / (n * eps**2) * small).logabsdet


def compression(z: Float[Tensor, "head n d_head"], eps: float = 0.5) -> Tensor:
    """R^c(Z; U) = Σ_k ½ log det(I + p/(n ε²) (Z U_k)ᵀ (Z U_k)), given the projections Z U_k [n, p] of each head."""
    return torch.stack([coding_rate(part, eps) for part in z]).sum()


def mssa(z: Float[Tensor, "n d"], u: Float[Tensor, "head d p"], eps: float = 0.5) -> Float[Tensor, "n d"]:
    """p/(n ε²) Σ_k softmax(V_k V_kᵀ) V_k U_kᵀ, V_k = Z U_k: attention whose queries, keys and values are one (CRATE)."""
    v = z @ u
    attended = (v @ v.mT).softmax(-1) @ v
    return u.shape[2] / (len(z) * eps**2) * (attended @ u.mT).sum(0)


def ista(z: Float[Tensor, "n d"], D: Float[Tensor, "d d"], eta: float = 0.1, lam: float = 0.1) -> Float[Tensor, "n d"]:
    """ReLU(Z + η (Z - Z Dᵀ) D - η λ): one step down ½‖x - D a‖² + λ‖a‖₁, a ≥ 0, from a = x = a row of Z (CRATE)."""
    return torch.relu(z + eta * (z - z @ D.T) @ D - eta * lam)


# ---------------------------------------------------------------- attention and neurons


def attention_entropy(pattern: Float[Tensor, "head query key"]) -> Float[Tensor, "2 head"]:
    """Of each head, means over queries: E = -Σ_j a_ij log a_ij in nats, and E / log(keys that query i can look at).

    Keys a query can look at: those that any head gives weight. Row i of a causal head has i + 1 of them, so the second is 1
    for uniform attention; queries with one key are left out of it (NaN if there are no others).
    Source: Jha and Reagen 2024 (arXiv:2410.09637), where heads near the most entropy are called overloaded.
    """
    allowed = torch.zeros(pattern.shape[1:], dtype=torch.bool, device=pattern.device)
    for head in pattern:
        allowed |= head > 0
    rows = torch.stack([torch.special.xlogy(head, head).sum(-1).neg() for head in pattern])
    return entropy_shares(rows, allowed.sum(-1))


def entropy_shares(rows: Float[Tensor, "head query"], keys: Real[Tensor, " query"]) -> Float[Tensor, "2 head"]:
    """`attention_entropy`, from that of each query and the keys that it can look at."""
    most, rows = keys.double().log(), rows.double()
    return torch.stack([rows.mean(-1), (rows / most)[:, most > 0].mean(-1)])


def hoyer(a: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """(√m - ‖a‖₁/‖a‖₂) / (√m - 1) of each row: 0 where all are equal, 1 where one is not zero (Hoyer 2004). NaN for zeros."""
    a = a.double()
    root = math.sqrt(a.shape[1])
    return (root - a.abs().sum(1) / a.norm(dim=1)) / (root - 1)
