"""TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093) and TopK transcoder (Dunefsky et al. 2024, 2406.11944).

z = W_encᵀ (x − b_pre) + b_enc          b_pre: b_dec in an autoencoder, b_in in a transcoder
f = TopK_k(ReLU(z))                     ŷ = f W_dec + b_dec  [+ W_skip x]        autoencoder: y = x
e = y − ŷ                               L = ‖e‖² / ‖y − ȳ‖²  +  α AuxK
ê = TopK_k_aux(ReLU(z_dead)) W_dec      AuxK = ‖e − ê‖² / ‖e − ē‖²               e held fixed; ȳ, ē: means of the batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from interp.dictionaries.sparse import decode_topk, dense, encode_topk

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.dictionaries.dictionary import Dictionary


class Code(NamedTuple):
    """A sparse code: k `values` [batch, k] at `indices` [batch, k]; an entry whose value is 0 did not fire."""

    values: Tensor
    indices: Tensor

    def dense(self, m: int) -> Float[Tensor, "batch m"]:
        """The code with its zeros written out."""
        return dense(self.values, self.indices, m)


class Loss(NamedTuple):
    """`total` = fvu + α aux, and the code it was computed on. No dimension: shares of variance."""

    total: Tensor
    fvu: Tensor
    aux: Tensor
    code: Code


def encode(D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
    """f = TopK_k(ReLU(W_encᵀ (x − b_pre) + b_enc)) (Gao et al. 2024, section 2.3)."""
    return Code(*encode_topk(x, D.b_pre, D.W_enc, D.b_enc, D.config.k, D.product))


def loss(
    D: Dictionary,
    x: Float[Tensor, "batch d_in"],
    y: Float[Tensor, "batch d_out"],
    dead: Int[Tensor, " dead"],
    α: float,
    k_aux: int,
) -> Loss:
    """L = ‖y − ŷ‖²/‖y − ȳ‖² + α AuxK (Gao et al. 2024, appendix A.2); `dead` lists the latents that are dead."""
    f = encode(D, x)
    e = y - D.decode(f, x)
    fvu = share(e, y)
    aux = auxk(D, x, e.detach(), dead, k_aux) if α and len(dead) else fvu.new_zeros(())
    return Loss(fvu + α * aux, fvu, aux, f)


def auxk(D: Dictionary, x: Tensor, e: Float[Tensor, "batch d_out"], dead: Int[Tensor, " dead"], k_aux: int) -> Tensor:
    """AuxK = ‖e − ê‖²/‖e − ē‖², ê = TopK_k_aux(ReLU(z_dead)) W_dec without bias: dead latents learn the error."""
    W_enc, b_enc, W_dec = (p.index_select(0, dead) for p in (D.W_enc.T, D.b_enc, D.W_dec))
    f = encode_topk(x, D.b_pre, W_enc.T, b_enc, min(k_aux, len(dead)), D.product)
    return share(e - decode_topk(*f, W_dec), e)


def share(e: Float[Tensor, "batch d"], y: Float[Tensor, "batch d"]) -> Tensor:
    """‖e‖² / ‖y − ȳ‖² over the batch; 0 where y does not vary."""
    variance = (y - y.mean(0)).square().sum()
    return e.square().sum() * torch.where(variance > 0, 1 / variance, 0)
