"""The k largest of each row of z + c: what TopK and BatchTopK dictionaries choose their latents by.

    values[b], indices[b] = the k largest of z[b] + c, largest first, of equal ones the lowest index first

z is the encoder's product in its own dtype, c its bias in that of the values; the sum is made in the latter. Without c the
values are those of z. NaN counts as larger than any number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.kernels.registry import NUMBA, Op

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def reference(
    z: Float[Tensor, "batch m"], c: Float[Tensor, " m"] | None, k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest lie in the k blocks with the largest maxima, of equal ones the first: one look at all, then at few."""
    return _by_blocks(z if c is None else z.to(c.dtype) + c, k)


def _by_blocks(y: Float[Tensor, "batch m"], k: int) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    n, m = y.shape
    block = 64 if m > 256 * k else 8
    if m <= 4 * block * k:
        return _sorted(y, k) if y.numel() <= 4096 or y.device.type != "cpu" else _chosen(y, k)
    whole = m - m % block
    blocks = _by_blocks(y[:, :whole].unflatten(1, (-1, block)).amax(2), k)[1].sort(dim=1).values
    inside = (blocks[..., None] * block + torch.arange(block, device=y.device)).flatten(1)
    indices = torch.cat([inside, torch.arange(whole, m, device=y.device).expand(n, -1)], dim=1)
    values, found = _by_blocks(y.gather(1, indices), k)
    return values, indices.gather(1, found)


def _sorted(y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Without a word to the host."""
    values, indices = y.sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def _chosen(y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """By `torch.topk`, faster on a CPU, which breaks ties as it likes: rows with ties are looked at again."""
    m = y.shape[-1]
    values, indices = y.topk(min(k + 1 + k // 4, m), dim=-1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero().flatten()
    values[tied], indices[tied] = _lowest_first(values[tied], indices[tied])
    if k < values.shape[1] < m:
        edge = values[:, k - 1 : k]
        beyond = (values[:, -1:] == edge).flatten().nonzero().flatten()  # rows with more equals than were looked at
        values[beyond, :k], indices[beyond, :k] = _of_whole_rows(y[beyond], edge[beyond], k)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def _lowest_first(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest values first, equal ones by index."""
    indices, order = indices.sort(-1)
    values, order = torch.sort(values.gather(-1, order), dim=-1, descending=True, stable=True)
    return values, indices.gather(-1, order)


def _of_whole_rows(y: Tensor, edge: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What is above the edge, NaN too, and the first of what equals it."""
    above, equal = ~(y <= edge), y == edge
    keep = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    indices = keep.nonzero()[:, 1].view(-1, k)
    return _lowest_first(y.gather(-1, indices), indices)


def cpu(z: Tensor, c: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """See `largest_numba`; other dtypes than it has are the reference's."""
    from interp.kernels.largest_numba import rows

    if not _has(z, c):
        return reference(z, c, k)
    return rows(z, c, k)


on_cpu = cpu if NUMBA else reference  # for the CPU forms of other ops


def _has(z: Tensor, c: Tensor | None) -> bool:
    return z.dtype in (torch.bfloat16, torch.float32) and (z if c is None else c).dtype == torch.float32


def _plain(z: Tensor, c: Tensor | None, k: int) -> bool:
    """Reference unless values are float32, and z that or bfloat16."""
    return not _has(z, c)


def _fake(z: Tensor, c: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    return (z if c is None else c).new_empty(len(z), k), z.new_empty(len(z), k, dtype=torch.int64)


largest = Op(
    "largest(Tensor z, Tensor? c, int k) -> (Tensor, Tensor)",
    reference,
    fake=_fake,
    cpu=cpu if NUMBA else None,
    plain=_plain,
)
