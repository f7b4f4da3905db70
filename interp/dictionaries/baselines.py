"""What a sparse autoencoder must beat: as many principal components as it has active latents.

The other baseline, an encoder trained over random directions, is the trainer with `frozen_decoder=True`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.dictionaries.sources import Source
from interp.errors import WrongUse

BATCH = 4096


@torch.no_grad()
def pca_fvu(fit: Source, held_out: Source, k: int) -> float:
    """Σ‖r − V Vᵀ r‖² / Σ‖y − ȳ‖², r = y − mean of `fit`, V [d, k] the leading eigenvectors of its covariance; float64.

    The targets are projected themselves, which for a transcoder is more than it is given. Raises `WrongUse` for k > d.
    """
    if not 1 <= k <= fit.d_out:
        raise WrongUse(f"PCA of {fit.d_out} dimensions has no {k} components.")
    count, first, second = _moments(fit)
    mean = first / count
    V = torch.linalg.eigh(second / count - mean.outer(mean)).eigenvectors[:, -k:]
    count, first, second = _moments(held_out)
    off = first / count - mean
    about_mean = second - first.outer(first) / count
    about_fit = about_mean + count * off.outer(off)
    return ((about_fit.trace() - (V.T @ about_fit @ V).trace()) / about_mean.trace()).item()


def _moments(source: Source) -> tuple[int, Tensor, Tensor]:
    """Number of rows, Σ y [d] and Σ y yᵀ [d, d]."""
    d = source.d_out
    first, second = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for _, y in source.once(BATCH):
        first += y.double().sum(0)
        second += y.double().T @ y.double()
    return source.rows, first, second
