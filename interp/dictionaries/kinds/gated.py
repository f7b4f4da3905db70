"""Gated sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014): what fires and how strongly, apart.

u = W_encᵀ (x − b_pre)      π = u + b_gate      f = 1[π > 0] ReLU(e^r u + b_mag)      ŷ = f W_dec + b_dec  [+ W_skip x]
L = ‖y − ŷ‖² + λ ‖ReLU(π)‖₁ + ‖y − ŷ_gate‖²      ŷ_gate = ReLU(π) sg(W_dec) + sg(b_dec)  [+ sg(W_skip) x]      ‖d_i‖ = 1

sg: no gradient. Mean over the batch; units: E‖x‖² = d_in, E‖y‖² = d_out. b_mag is the dictionary's b_enc.
Dead latents are resampled. In use it is a JumpReLU, exactly: z = e^r u + b_mag, θ = max(0, b_mag − e^r b_gate);
folded when saved: e^r into W_enc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from interp.dictionaries.kinds.kind import Loss, Now, at_least, share, squared
from interp.dictionaries.kinds.resampling import Resampled
from interp.dictionaries.sparse import Code, at, decode_topk, encode_above, entries

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Gated(Resampled):
    """The L1 penalty falls on the gate alone, so that it does not shrink what passes."""

    name = "gated"
    paper = "Rajamanoharan et al. 2024, arXiv 2404.16014"
    equation = "f = 1[π > 0] ReLU(e^r u + b_mag); L = ‖e‖² + λ Σ ReLU(π) + ‖y − ŷ_gate‖²"
    activation = "jumprelu"
    lr = 3e-4
    betas = (0.0, 0.999)
    tensors = {"r_mag": 0.0, "b_gate": 0.0}  # noqa: RUF012  (never changed)

    sparsity: float = 5.0  # λ

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, sparsity=0)

    def both(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> tuple[Code | Tensor, Code | Tensor]:
        """(f, ReLU(π)), each [batch, m]; if few gates are open, as codes."""
        b_gate, r = D.get_parameter("b_gate"), D.get_parameter("r_mag").exp()
        found = encode_above(x, D.b_pre, D.W_enc, None, -b_gate.detach(), D.product)
        u = entries(found)
        π = u + at(b_gate, found)
        f, gate = (π > 0) * (at(r, found) * u + at(D.b_enc, found)).relu(), π.relu()
        return (Code(f, found.indices), Code(gate, found.indices)) if isinstance(found, Code) else (f, gate)

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code | Float[Tensor, "batch m"]:
        """f = 1[π > 0] ReLU(e^r u + b_mag)."""
        return self.both(D, x)[0]

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ ‖ReLU(π)‖₁ + ‖y − ŷ_gate‖²."""
        f, gate = self.both(D, x)
        e = y - D.decode(f, x)
        W_dec = D.W_dec.detach()
        ŷ_gate = (decode_topk(*gate, W_dec) if isinstance(gate, Code) else gate @ W_dec) + D.b_dec.detach()
        if D.config.skip:
            ŷ_gate = ŷ_gate + x @ D.W_skip.detach().T
        penalty, aux = entries(gate).sum(-1).mean(), squared(y - ŷ_gate)
        rest = now.warm * self.sparsity * penalty + aux
        return Loss(squared(e), rest, share(e, y), penalty, aux, f)

    def fold(self, D: Dictionary, new: Dictionary) -> None:
        """W_enc ← W_enc e^r, θ = max(0, b_mag − e^r b_gate)."""
        r = D.get_parameter("r_mag").exp()
        new.W_enc.mul_(r)
        new.threshold.copy_((D.b_enc - r * D.get_parameter("b_gate")).relu())
