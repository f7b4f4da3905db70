"""Sparse codes, and their two products that touch only the k active latents of a row, or in plain dense form.

    encode:  values, indices = TopK_k(ReLU((x − b) W + c))      decode:  y = Σ_j values_j W[indices_j]

Floor of one training step, batch B, width d, m latents (values: Bk; every sum below reads only active rows):
    FLOPs   2Bdm (encoder) + 8Bdk (decode, d values, d W_dec, d W_enc)     against 10Bdm in dense form
    bytes   4Bm written and read once by the selection, 4 gathers of 4Bkd, about 130 per pair of weights for the update
Every sum goes in a fixed order by one thread (`embedding_bag`, and the ops `weight_gradient`, `sddmm`): no atomics, so
two runs on one machine with one thread count agree bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.kernels import largest, sddmm, weight_gradient

if TYPE_CHECKING:
    from jaxtyping import Float, Int

DENSE_ABOVE = 0.15  # share of active latents above which dense products win (measured: float32, one core, d 64 to 512)
ROWS = 512  # rows whose pre-activations exist at one time: they are selected from while in cache, and never kept


class Code(NamedTuple):
    """A sparse code: `values` [batch, k] at `indices` [batch, k]; an entry whose value is 0 did not fire."""

    values: Tensor
    indices: Tensor

    @classmethod
    def of(cls, f: Float[Tensor, "batch m"]) -> Code:
        """The code of a dense f ≥ 0; k is the largest number of latents that fire on one of its rows."""
        k = int((f > 0).sum(-1).max()) if len(f) else 0
        return cls(*f.topk(max(1, k), dim=-1))

    def dense(self, m: int) -> Float[Tensor, "batch m"]:
        """The code with its zeros written out."""
        return dense(self.values, self.indices, m)


def l0(f: Code | Float[Tensor, "batch m"]) -> float:
    """Latents that fire, a row."""
    values = f.values if isinstance(f, Code) else f
    return (values > 0).sum().item() / len(values)


def fired(f: Code | Float[Tensor, "batch m"]) -> Tensor:
    """An index of the latents that fire on some row: numbers, or a mask [m]."""
    return f.indices[f.values > 0] if isinstance(f, Code) else (f > 0).any(0)


def pre_activations(
    x: Float[Tensor, "batch d"],
    b: Float[Tensor, " d"] | None,
    W: Float[Tensor, "d m"],
    c: Float[Tensor, " m"] | None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch m"]:
    """z = (x − b) W + c; `dtype` is that of the product."""
    x, dtype = x if b is None else x - b, dtype or W.dtype
    z = (x.to(dtype) @ W.to(dtype)).to(W.dtype)
    return z if c is None else z + c


def encode_topk(
    x: Float[Tensor, "batch d"],
    b: Float[Tensor, " d"],
    W: Float[Tensor, "d m"],
    c: Float[Tensor, " m"],
    k: int,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """f = TopK_k(ReLU((x − b) W + c)) as (values, indices), Gao et al. 2024 (arXiv 2406.04093), section 2.3.

    Entries whose value is 0 carry a valid index but did not fire. `dtype` is that of the one large product.
    """
    if k > DENSE_ABOVE * W.shape[1]:
        z = (x - b) @ W + c
        indices = largest(z.detach(), None, k)[1]
        return z.gather(-1, indices).relu(), indices
    return _Encode.apply(x, b, W, c, k, dtype or W.dtype)


def decode_topk(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], W: Float[Tensor, "m d"]
) -> Float[Tensor, "batch d"]:
    """y = Σ_j values_j W[indices_j]. A value of 0 did not fire: nothing goes back to it."""
    if values.shape[-1] > DENSE_ABOVE * W.shape[0]:
        return dense(values, indices, W.shape[0]) @ W
    return _Decode.apply(values, indices, W)


def dense(values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], m: int) -> Float[Tensor, "batch m"]:
    """The code with its zeros written out; a latent may be named again beside a value of 0."""
    return values.new_zeros(*values.shape[:-1], m).scatter_add(-1, indices, values)


def _gathered(weights: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    if weights.device.type == "cpu" and weights.shape[1]:
        fired = weights != 0
        counts = fired.sum(1)
        if 2 * int(counts.sum()) < weights.numel():  # rows differ much in how many latents fire, as BatchTopK's do
            starts = counts.cumsum(0) - counts
            return F.embedding_bag(indices[fired], rows, starts, per_sample_weights=weights[fired], mode="sum")
    return F.embedding_bag(indices, rows, per_sample_weights=weights, mode="sum")


class _Encode(torch.autograd.Function):
    """`encode_topk` that forgets the pre-activations and goes back through the active latents alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b: Tensor, W: Tensor, c: Tensor, k: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See `encode_topk`."""
        centred, product = x - b, W.to(dtype)
        z = product.new_empty(min(ROWS, len(x)), W.shape[1])
        parts = [largest(torch.mm(rows.to(dtype), product, out=z[: len(rows)]), c, k) for rows in centred.split(ROWS)]
        values, indices = (torch.cat(p) for p in zip(*parts, strict=True))
        values.relu_()
        ctx.save_for_backward(centred, W, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """dz = df where f fired; dW = Σ_b (x_b − b) dz_b, dc = Σ_b dz_b, db = −W dc, dx = W dz."""
        centred, W, values, indices = ctx.saved_tensors
        dz = g * (values > 0)
        dW, dc = weight_gradient(dz, indices, centred, W.shape[1])
        dx = _gathered(dz, indices, W.T) if ctx.needs_input_grad[0] else None
        return dx, -(W @ dc), dW.T, dc, None, None


class _Decode(torch.autograd.Function):
    """`decode_topk`: d values_j = g · W[indices_j], dW[i] = Σ_b value_bi g_b."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, W)
        return _gathered(values, indices, W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W = ctx.saved_tensors
        dvalues = sddmm(g, W, indices, values) if ctx.needs_input_grad[0] else None
        dW = weight_gradient(values, indices, g, len(W))[0] if ctx.needs_input_grad[2] else None
        return dvalues, None, dW
