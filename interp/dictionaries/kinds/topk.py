"""TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093) and TopK transcoder (Dunefsky et al. 2024, 2406.11944).

z = W_encᵀ (x − b_pre) + b_enc          b_pre: b_dec in an autoencoder, b_in in a transcoder
f = TopK_k(ReLU(z))                     ŷ = f W_dec + b_dec  [+ W_skip x]        autoencoder: y = x
e = y − ŷ                               L = ‖e‖² / ‖y − ȳ‖²  +  α AuxK
ê = TopK_k_aux(ReLU(z_dead)) W_dec      AuxK = ‖e − ê‖² / ‖e − ē‖²               e held fixed; ȳ, ē: means of the batch

multi_topk: L_k + L_4k / 8, where L_k is the first term; it keeps its order when used with more latents.

The first directions are an autoencoder's W_enc ∝ W_decᵀ, and a transcoder's d_i ∝ E[f_i (y − b_dec)] of random W_enc. The first
length of W_enc is that of the least error on a sample (appendix A.1 has ŷ as long as y, which with many latents overshoots).
Dead latents are revived by AuxK. In use a dictionary is what it was in training; nothing is folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from interp.dictionaries.kinds.kind import Kind, Loss, Now, at_least, share
from interp.dictionaries.sparse import Code, decode_topk, encode_topk
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.dictionaries.dictionary import Dictionary, DictionaryConfig


def topk(D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
    """f = TopK_k(ReLU(W_encᵀ (x − b_pre) + b_enc)) (Gao et al. 2024, section 2.3)."""
    assert D.config.k is not None
    return Code(*encode_topk(x, D.b_pre, D.W_enc, D.b_enc, D.config.k, D.product))


@dataclass(frozen=True)
class TopK(Kind):
    """k latents a row, whatever the row."""

    name = "topk"
    paper = "Gao et al. 2024, arXiv 2406.04093"
    equation = "f = TopK_k(ReLU(z)); L = ‖e‖²/‖y − ȳ‖² + α AuxK"
    activation = "topk"

    k: int = 32  # active latents a row
    aux: float = 1 / 32  # α
    k_aux: int | None = None  # dead latents a row that AuxK uses; d_out / 2

    def __post_init__(self) -> None:
        at_least(self, k=1, aux=0, k_aux=1)

    def check(self, latents: int) -> None:
        """Raise `WrongUse` if there are not k latents."""
        if self.k > latents:
            raise WrongUse(f"k={self.k} of latents={latents} cannot be active.")

    def sizes(self, config: DictionaryConfig) -> tuple[float, float]:
        """E‖x‖² = d_in; a transcoder's E‖y‖² = 1: its short encoder then turns as fast as the decoder, at Adam's equal steps."""
        return config.d_in, config.d_in if config.autoencoder else 1.0

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """A transcoder's W_dec, and the length of W_enc."""
        self.fit(D, x, y)

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code | Float[Tensor, "batch m"]:
        """f = TopK_k(ReLU(z))."""
        return topk(D, x)

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖²/‖y − ȳ‖² + α AuxK (Gao et al. 2024, appendix A.2)."""
        f = self.encode(D, x)
        e = y - D.decode(f, x)
        fvu = share(e, y)
        aux = self.auxk(D, x, e.detach(), now.dead)
        return Loss(fvu, self.aux * aux, fvu, fvu.new_zeros(()), aux, f)

    def auxk(
        self, D: Dictionary, x: Float[Tensor, "batch d_in"], e: Float[Tensor, "batch d_out"], dead: Int[Tensor, " dead"]
    ) -> Float[Tensor, ""]:
        """AuxK = ‖e − ê‖²/‖e − ē‖², ê = TopK_k_aux(ReLU(z_dead)) W_dec without bias: dead latents learn the error."""
        if not (self.aux and len(dead)):
            return e.new_zeros(())
        W_enc, b_enc, W_dec = (p.index_select(0, dead) for p in (D.W_enc.T, D.b_enc, D.W_dec))
        k_aux = min(self.k_aux or max(1, D.config.d_out // 2), len(dead))
        f = encode_topk(x, D.b_pre, W_enc.T, b_enc, k_aux, D.product)
        return share(e - decode_topk(*f, W_dec), e)


@dataclass(frozen=True)
class MultiTopK(TopK):
    """TopK that also reconstructs with 4k latents, so that it can be used with other k than its own (appendix D.3)."""

    name = "multi_topk"
    equation = "f = TopK_k(ReLU(z)); L = L_k + L_4k/8 + α AuxK, L_k = ‖e_k‖²/‖y − ȳ‖²"

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = L_k + L_4k/8 + α AuxK, L_k = ‖y − ŷ_k‖²/‖y − ȳ‖²."""
        one = super().loss(D, x, y, now)
        f = Code(*encode_topk(x, D.b_pre, D.W_enc, D.b_enc, min(4 * self.k, D.config.latents), D.product))
        return one._replace(error=one.error + share(y - D.decode(f, x), y) / 8)
