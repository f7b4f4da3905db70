"""What is above a bound of its column, row by row: the pre-activations that fire in a dictionary with thresholds, or are near it.

    indices[b] = the first k columns i, in order, with y_bi > bound_i          values[b] = y there          y = z + c
    counts[b] = how many there are, which may be more than k

z is the encoder's product. With rows and W, z is their product rows Wᵀ in fewer bits: it only says where to look, and what is
told is of the product in W's own dtype. NaN, in y or in a bound, counts as above. What is left of a row holds the lowest
number, at column 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.kernels.registry import NUMBA, Op

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def reference(
    z: Float[Tensor, "batch m"],
    c: Float[Tensor, " m"],
    bound: Float[Tensor, " m"],
    k: int,
    rows: Float[Tensor, "batch d"] | None = None,
    W: Float[Tensor, "m d"] | None = None,
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"], Int[Tensor, " batch"]]:
    """An entry's place is its number among those above in its row; those beyond k share a place that is cut off."""
    y = whole(z, rows, W).to(c.dtype) + c
    found = ~(y <= bound)
    place = torch.where(found, found.cumsum(1) - 1, k).clamp(max=k)
    values = y.new_full((len(y), k + 1), torch.finfo(y.dtype).min).scatter(1, place, y)
    columns = torch.arange(y.shape[1], device=y.device).expand_as(place)
    indices = place.new_zeros(values.shape).scatter(1, place, columns)
    return values[:, :k].contiguous(), indices[:, :k].contiguous(), found.sum(1)


def whole(z: Tensor, rows: Tensor | None, W: Tensor | None) -> Tensor:
    """z, in all its bits."""
    return z if rows is None or W is None else rows @ W.T


def cpu(
    z: Tensor, c: Tensor, bound: Tensor, k: int, rows: Tensor | None = None, W: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `above_numba`; other dtypes than it has are the reference's."""
    from interp.kernels.above_numba import found

    return found(z, c, bound, k, rows, W) if _has(z, c) else reference(z, c, bound, k, rows, W)


def _has(z: Tensor, c: Tensor) -> bool:
    return z.dtype in (torch.bfloat16, torch.float32) and c.dtype == torch.float32


def _plain(z: Tensor, c: Tensor, bound: Tensor, k: int, rows: Tensor | None = None, W: Tensor | None = None) -> bool:
    """Reference unless z is float32 or bfloat16, and c float32."""
    return not _has(z, c)


def _fake(
    z: Tensor, c: Tensor, bound: Tensor, k: int, rows: Tensor | None = None, W: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    indices = z.new_empty(len(z), k, dtype=torch.int64)
    return c.new_empty(len(z), k), indices, indices.new_empty(len(z))


above = Op(
    "above(Tensor z, Tensor c, Tensor bound, int k, Tensor? rows=None, Tensor? W=None) -> (Tensor, Tensor, Tensor)",
    reference,
    fake=_fake,
    cpu=cpu if NUMBA else None,
    triton="interp.kernels.above_triton:above",
    plain=_plain,
)
