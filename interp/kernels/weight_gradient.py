"""What a sparse code gives to the weights of its latents: the transpose of the code times rows, by the active latents alone.

    total[i] = Σ_{b, j: indices_bj = i} values_bj rows_b          mass[i] = Σ_{b, j: indices_bj = i} values_bj

An entry whose value is 0 did not fire: it adds nothing, whatever its row holds. With the code f and the rows g = dL/dy it is
the gradient of the decoder, Σ_b f_b g_bᵀ; with dL/dz and x - b that of the encoder, and `mass` that of its bias. Every sum
goes in the order of the rows, so two runs agree bit for bit (the reference on a GPU may not).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.kernels.registry import NUMBA, Op

if TYPE_CHECKING:
    from jaxtyping import Float, Int


ENTRIES = 2**20  # numbers that are multiplied out at a time


def reference(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], rows: Float[Tensor, "batch d"], m: int
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Entry by entry, of some rows at a time."""
    total, mass = rows.new_zeros(m, rows.shape[1]), values.new_zeros(m)
    size = max(1, ENTRIES // max(1, indices.shape[1] * rows.shape[1]))
    for v, i, r in zip(values.split(size), indices.split(size), rows.split(size), strict=True):
        added = torch.where(v[:, :, None] != 0, v[:, :, None] * r[:, None], 0.0)
        total.index_add_(0, i.flatten(), added.flatten(0, 1))
        mass.index_add_(0, i.flatten(), v.flatten())
    return total, mass


def by_latent(indices: Int[Tensor, "*entries"], m: int) -> tuple[Int[Tensor, " entries"], Int[Tensor, " m_1"]]:
    """(Entries of the code, those of a latent together and in order of their rows; where each latent's begin, and the end)."""
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    return order, torch.searchsorted(flat[order], torch.arange(m + 1, device=flat.device))


def cpu(values: Tensor, indices: Tensor, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Latent by latent, in numba; without it, and for 16 bits, as a gather of torch's."""
    if NUMBA and rows.dtype in (torch.float32, torch.float64):
        from interp.kernels.code_numba import sums

        return sums(values, indices, rows, m)
    fired = values.flatten().nonzero().flatten()
    order, starts = by_latent(indices.flatten()[fired], m)
    order = fired[order]
    row, weights = order // max(1, indices.shape[1]), values.flatten()[order]
    total = F.embedding_bag(row, rows, starts[:-1], per_sample_weights=weights, mode="sum")
    return total, values.new_zeros(m).index_add_(0, indices.flatten(), values.flatten())


def _fake(values: Tensor, indices: Tensor, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
    return rows.new_empty(m, rows.shape[1]), values.new_empty(m)


weight_gradient = Op(
    "weight_gradient(Tensor values, Tensor indices, Tensor rows, int m) -> (Tensor total, Tensor mass)",
    reference,
    fake=_fake,
    cpu=cpu,
    triton="interp.kernels.weight_gradient_triton:weight_gradient",
)
