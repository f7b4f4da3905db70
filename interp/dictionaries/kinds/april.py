"""L1 with decoder norms ("Update on how we train SAEs", Anthropic, April 2024); over several sites, the crosscoder.

f = ReLU(W_encᵀ x + b_enc)              ŷ = f W_dec + b_dec  [+ W_skip x]    ‖d_i‖ is free
L = ‖y − ŷ‖² + λ Σ_i f_i Σ_s ‖d_i^s‖    mean over the batch; units: E‖x‖² = d_in, E‖y‖² = d_out, at each site s

With one site Σ_s ‖d_i^s‖ is ‖d_i‖; with several, x and y hold them side by side ("Sparse crosscoders", Lindsey et al. 2024).

Start: random d_i of length 0.1, W_enc = W_decᵀ, biases 0. λ rises over the first 5 % of the steps; nothing revives
dead latents. Folded when saved: ‖d_i‖ into the encoder, and W_encᵀ b_pre into b_enc, as here the encoder reads x itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from interp.dictionaries.kinds.kind import Kind, Loss, Now, at_least, share, squared
from interp.dictionaries.sparse import at, entries

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary

START = 0.1  # ‖d_i‖ at step 0


@dataclass(frozen=True)
class April(Kind):
    """The L1 penalty on activations times decoder norms."""

    name = "l1_april"
    paper = "Anthropic, April 2024 update"
    equation = "f = ReLU(z); L = ‖e‖² + λ Σ f_i ‖d_i‖; over several sites s, Σ_s ‖d_i^s‖"
    activation = "relu"
    unit = False
    centred = False
    lr = 5e-5

    sparsity: float = 5.0  # λ

    def __post_init__(self) -> None:
        at_least(self, sparsity=0)

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """Short decoder rows; an autoencoder's encoder is their transpose, its bias 0."""
        D.W_dec.mul_(START)
        if D.config.autoencoder:
            D.W_enc.copy_(D.W_dec.T)
            D.b_dec.zero_()

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ Σ_i f_i Σ_s ‖d_i^s‖."""
        f = self.encode(D, x)
        e = y - D.decode(f, x)
        penalty = (entries(f) * at(D.part_norms().sum(1), f)).sum(-1).mean()
        return Loss(squared(e), now.warm * self.sparsity * penalty, share(e, y), penalty, e.new_zeros(()), f)
