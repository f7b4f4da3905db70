"""Matching pursuit sparse autoencoder (Costa et al. 2025, arXiv 2506.03093): the encoder is a greedy search.

r_0 = x − b_dec      i_t = argmax_i ⟨r_{t−1}, d_i⟩      v_t = ReLU⟨r_{t−1}, d_{i_t}⟩      r_t = r_{t−1} − v_t d_{i_t}
f_i = Σ_{t: i_t = i} v_t,   t = 1 … k                   x̂ = f W_dec + b_dec = x − r_k     ‖d_i‖ = 1, no W_enc
L = ‖r_k‖² / ‖x − x̄‖²  +  α AuxK                        AuxK as TopK, with z_dead = ⟨r_k, d_i⟩ in place of an encoder's

Each step is exact on what the steps before left, so latents may be picked that a single encoder would not tell apart.
Dead latents are revived by AuxK. In use a dictionary is what it was in training; nothing is folded. It has no transcoder:
the search subtracts from what it reads what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.dictionaries.kinds.kind import Loss, Now, share
from interp.dictionaries.kinds.topk import TopK
from interp.dictionaries.sparse import Code, decode_topk, encode_topk

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.dictionaries.dictionary import Dictionary


def pursuit(D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
    """k greedy steps, fewer where the config says when to stop; a latent picked twice has the sum of its values."""
    return pursue(D, x)[0]


def pursue(D: Dictionary, x: Float[Tensor, "batch d_in"]) -> tuple[Code, Float[Tensor, "batch d_in"]]:
    """(the code, r_k)."""
    c, dtype = D.config, D.product or D.W_dec.dtype
    assert c.k is not None
    W = D.W_dec.detach().to(dtype)
    r, f = x - D.b_dec, D.W_dec.new_zeros(len(x), len(W))
    done = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
    for _ in range(c.k):
        i = (r.detach().to(dtype) @ W.T).argmax(-1)
        d = D.W_dec.index_select(0, i)
        v = (r * d).sum(-1, keepdim=True).relu() * ~done
        new = (v > 0) & (f.gather(1, i[:, None]) == 0)
        r = r - v * d
        f = f.scatter_add(1, i[:, None], v)
        done = done | (r.detach().norm(dim=-1, keepdim=True) < c.tolerance) | (c.distinct & ~new)
    return Code.of(f), r


@dataclass(frozen=True)
class Pursuit(TopK):
    """k greedy steps a row."""

    name = "pursuit"
    paper = "Costa et al. 2025, arXiv 2506.03093"
    equation = "k times: i = argmax ⟨r, d_i⟩, f_i += ⟨r, d_i⟩, r −= ⟨r, d_i⟩ d_i; L = ‖r‖²/‖x − x̄‖² + α AuxK"
    activation = "pursuit"

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """There is no encoder whose length could be chosen."""

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
        """f of k greedy steps."""
        return pursuit(D, x)

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖r_k‖²/‖x − x̄‖² + α AuxK."""
        f, r = pursue(D, x)
        fvu, aux = share(r, y), self.auxk(D, x, r.detach(), now.dead)
        return Loss(fvu, self.aux * aux, fvu, fvu.new_zeros(()), aux, f)

    def auxk(
        self, D: Dictionary, x: Float[Tensor, "batch d_in"], e: Float[Tensor, "batch d_out"], dead: Int[Tensor, " dead"]
    ) -> Float[Tensor, ""]:
        """AuxK = ‖e − ê‖²/‖e − ē‖², ê = TopK_k_aux(ReLU(⟨e, d_dead⟩)) W_dec."""
        if not (self.aux and len(dead)):
            return e.new_zeros(())
        W, zero = D.W_dec.index_select(0, dead), e.new_zeros(1)
        k_aux = min(self.k_aux or max(1, D.config.d_out // 2), len(dead))
        f = encode_topk(e, zero.expand(e.shape[1]), W.T, zero.expand(len(W)), k_aux, D.product)
        return share(e - decode_topk(*f, W), e)
