"""Standard sparse autoencoder (Bricken et al. 2023, "Towards Monosemanticity") and transcoder (Dunefsky et al. 2024).

f = ReLU(W_encᵀ (x − b_pre) + b_enc)    ŷ = f W_dec + b_dec  [+ W_skip x]    ‖d_i‖ = 1
L = ‖y − ŷ‖² + λ Σ_i f_i                mean over the batch; units: E‖x‖² = d_in, E‖y‖² = d_out

Dead latents are resampled. In use a dictionary is what it was in training; nothing is folded.
The penalty shrinks: with orthonormal d_i the best f_i is max(0, ⟨d_i, x⟩ − λ/2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from interp.dictionaries.kinds.kind import Loss, Now, at_least, share, squared
from interp.dictionaries.kinds.resampling import Resampled
from interp.dictionaries.sparse import Code, entries, pre_activations

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary


def relu(D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
    """f = ReLU(W_encᵀ (x − b_pre) + b_enc)."""
    return Code.of(pre_activations(x, D.b_pre, D.W_enc, D.b_enc, D.product).relu())


@dataclass(frozen=True)
class L1(Resampled):
    """The L1 penalty on activations, decoder rows of length one."""

    name = "l1"
    paper = "Bricken et al. 2023, Towards Monosemanticity"
    equation = "f = ReLU(z); L = ‖e‖² + λ Σ f_i"
    activation = "relu"
    lr = 1e-3

    sparsity: float = 5.0  # λ

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, sparsity=0)

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ Σ_i f_i."""
        f = self.encode(D, x)
        e = y - D.decode(f, x)
        penalty = entries(f).sum(-1).mean()
        return Loss(squared(e), now.warm * self.sparsity * penalty, share(e, y), penalty, e.new_zeros(()), f)
