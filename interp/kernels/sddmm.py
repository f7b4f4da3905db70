"""Chosen entries of a product of two dense matrices (sampled dense-dense matrix multiplication).

    z_bj = rows_b · W[indices_bj]

With rows = dL/dy and the decoder it is the gradient of the k active latents of each row. `values` are the code's, if they are
given: one that is 0 did not fire, and its z is 0, whatever is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.kernels.registry import NUMBA, Op

if TYPE_CHECKING:
    from jaxtyping import Float, Int

GATHERED = 2**20  # numbers of W that are gathered at a time


def reference(
    rows: Float[Tensor, "batch d"],
    W: Float[Tensor, "m d"],
    indices: Int[Tensor, "batch k"],
    values: Float[Tensor, "batch k"] | None = None,
) -> Float[Tensor, "batch k"]:
    """By the rows of W that are asked for, of some rows at a time."""
    size = max(1, GATHERED // max(1, indices.shape[1] * W.shape[1]))
    parts = zip(rows.split(size), indices.split(size), strict=True)
    z = torch.cat([torch.einsum("bd,bkd->bk", some, W[chosen]) for some, chosen in parts])
    return z if values is None else torch.where(values != 0, z, 0.0)


def cpu(rows: Tensor, W: Tensor, indices: Tensor, values: Tensor | None = None) -> Tensor:
    """In numba; for 16 bits the reference."""
    if rows.dtype not in (torch.float32, torch.float64):
        return reference(rows, W, indices, values)
    from interp.kernels.code_numba import products

    return products(rows, W, indices, indices if values is None else values, values is None)


def _fake(rows: Tensor, W: Tensor, indices: Tensor, values: Tensor | None = None) -> Tensor:
    return rows.new_empty(indices.shape)


sddmm = Op(
    "sddmm(Tensor rows, Tensor W, Tensor indices, Tensor? values=None) -> Tensor",
    reference,
    fake=_fake,
    cpu=cpu if NUMBA else None,
    triton="interp.kernels.sddmm_triton:sddmm",
)
