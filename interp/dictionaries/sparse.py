"""Sparse codes, and their products that touch only the k active latents of a row, or in plain dense form.

    encode:  values, indices = TopK_k(ReLU((x − b) W + c))      decode:  y = Σ_j values_j W[indices_j]
    those above:  values, indices = where (x − b) W + c > bound

Floor of one training step, batch B, width d, m latents (values: Bk; every sum below reads only active rows):
    FLOPs   2Bdm (encoder) + 8Bdk (decode, d values, d W_dec, d W_enc)     against 10Bdm in dense form
    bytes   4Bm written and read once by the selection, 4 gathers of 4Bkd, about 130 per pair of weights for the update
Every sum goes in a fixed order by one thread (`embedding_bag`, and the ops `weight_gradient`, `sddmm`): no atomics, so
two runs on one machine with one thread count agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import pad

from interp.kernels import above, largest, sddmm, weight_gradient

if TYPE_CHECKING:
    from jaxtyping import Float, Int

DENSE_ABOVE = 0.15  # share of active latents above which dense products win (measured: float32, one core, d 64 to 512)
SPARSE_BELOW = 0.08  # share above their bound below which a step through these alone wins (one core, d 512, m 8192)
FIRST = 128  # entries of a row that `encode_above` has room for; where there are more, it looks again
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

    @property
    def reached(self) -> Tensor:
        """Not 0 at the entries that a gradient goes to [batch, k]: those that fired."""
        return self.values

    def dense(self, m: int) -> Float[Tensor, "batch m"]:
        """The code with its zeros written out."""
        return dense(self.values, self.indices, m)


class Near(Code):
    """A code whose entries have gradients also where they are 0, if they are `near`: those close to a threshold."""

    near: Tensor

    @classmethod
    def made(cls, values: Tensor, indices: Tensor, near: Tensor) -> Near:
        """`near` [batch, k]: 1 or 0."""
        code = cls(values, indices)
        code.near = near
        return code

    @property
    def reached(self) -> Tensor:
        """See `Code`."""
        return self.near


def l0(f: Code | Float[Tensor, "batch m"]) -> float:
    """Latents that fire, a row."""
    return (entries(f) > 0).sum().item() / len(entries(f))


def fired(f: Code | Float[Tensor, "batch m"]) -> Tensor:
    """An index of the latents that fire on some row: numbers, or a mask [m]."""
    return f.indices[f.values > 0] if isinstance(f, Code) else (f > 0).any(0)


def entries(f: Code | Float[Tensor, "batch m"]) -> Tensor:
    """The values of a code; of a dense f, all."""
    return f.values if isinstance(f, Code) else f


def at(p: Float[Tensor, " m"], f: Code | Float[Tensor, "batch m"]) -> Tensor:
    """p_i beside each of the `entries` of f."""
    return _At.apply(p, f.indices) if isinstance(f, Code) else p


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
    with torch.no_grad():
        centred = x - b
        parts = [largest(z, c, k) for _, z in _products(centred, W, dtype or W.dtype)]
        values, indices = (torch.cat(p) for p in zip(*parts, strict=True))
    return _Entries.apply(x, b, W, c, centred, values, indices).relu(), indices


def encode_above(
    x: Float[Tensor, "batch d"],
    b: Float[Tensor, " d"] | None,
    W: Float[Tensor, "d m"],
    c: Float[Tensor, " m"] | None,
    bound: Float[Tensor, " m"],
    dtype: torch.dtype | None = None,
) -> Code | Float[Tensor, "batch m"]:
    """z = (x − b) W + c where it is above its bound, as a code; all of it, if on the first rows that is much of it.

    What is left of a row of the code holds `lowest`. `dtype` is that of the one large product: if it is not W's, the product
    only says where z may be above its bound, and z is computed there in W's.
    """
    with torch.no_grad():
        centred = x if b is None else x - b
        found = _above(centred, W, c, bound, dtype or W.dtype)
    if found is None:
        return pre_activations(x, b, W, c, dtype)
    return Code(_Entries.apply(x, b, W, c, centred, *found), found[1])


def decode_topk(
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    W: Float[Tensor, "m d"],
    reached: Float[Tensor, "batch k"] | None = None,
) -> Float[Tensor, "batch d"]:
    """y = Σ_j values_j W[indices_j]. A value of 0 did not fire: nothing goes back to it, unless it is `reached`."""
    if values.shape[-1] > DENSE_ABOVE * W.shape[0]:
        return dense(values, indices, W.shape[0]) @ W
    return _Decode.apply(values, indices, W, values if reached is None else reached)


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


def lowest(t: Tensor) -> float:
    """What stands in a code of `encode_above` where there is no entry."""
    return torch.finfo(t.dtype).min


def _products(
    x: Float[Tensor, "batch d"], W: Float[Tensor, "d m"], dtype: torch.dtype
) -> Iterator[tuple[Float[Tensor, "some d"], Float[Tensor, "some m"]]]:
    """Some rows and their product in `dtype`, then the next, in the same memory."""
    W = W.to(dtype)
    z = W.new_empty(min(ROWS, len(x)), W.shape[1])
    for rows in x.split(ROWS):
        yield rows, torch.mm(rows.to(dtype), W, out=z[: len(rows)])


def _above(
    x: Tensor, W: Tensor, c: Tensor | None, bound: Tensor, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]] | None:
    """What `encode_above` says; None if it is much."""
    c, k, most, parts = W.new_zeros(W.shape[1]) if c is None else c, FIRST, 1, []
    for rows, z in _products(x, W, dtype):
        given = () if dtype == W.dtype else (rows, W.T)
        values, indices, counts = above(z, c, bound, k, *given)
        most = max([most, *counts.tolist()])
        if counts.sum() > SPARSE_BELOW * z.numel():
            return None
        if most > k:
            k = most + most // 4
            values, indices, _ = above(z, c, bound, k, *given)
        parts.append((values, indices))
    values, indices = (
        torch.cat([pad(t, (0, most - t.shape[1]), value=fill) for t in column])
        for column, fill in zip(zip(*parts, strict=True), (lowest(W), 0), strict=True)
    )
    return values, indices


class _Entries(torch.autograd.Function):
    """z = (x − b) W + c at `indices`, where it is `values`: it goes back through these entries alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        b: Tensor | None,
        W: Tensor,
        c: Tensor | None,
        centred: Tensor,
        values: Tensor,
        indices: Tensor,
    ) -> Tensor:
        """`centred`: x − b."""
        ctx.save_for_backward(centred, W, indices)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        """dW = Σ_b (x_b − b) dz_b, dc = Σ_b dz_b, db = −W dc, dx = W dz."""
        centred, W, indices = ctx.saved_tensors
        dW, dc = weight_gradient(dz, indices, centred, W.shape[1])
        dx = _gathered(dz, indices, W.T) if ctx.needs_input_grad[0] else None
        db = -(W @ dc) if ctx.needs_input_grad[1] else None
        return dx, db, dW.T, dc if ctx.needs_input_grad[3] else None, None, None, None


class _Decode(torch.autograd.Function):
    """`decode_topk`: d values_j = g · W[indices_j], dW[i] = Σ_b value_bi g_b."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W: Tensor, reached: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, W, reached)
        return _gathered(values, indices, W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W, reached = ctx.saved_tensors
        dvalues = sddmm(g, W, indices, reached) if ctx.needs_input_grad[0] else None
        dW = weight_gradient(values, indices, g, len(W))[0] if ctx.needs_input_grad[2] else None
        return dvalues, None, dW, None


class _At(torch.autograd.Function):
    """`at`: what goes back is added up in the order of the rows."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.m = len(p)
        return p[indices]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return weight_gradient(g, ctx.saved_tensors[0], g.new_ones(len(g), 1), ctx.m)[1], None
