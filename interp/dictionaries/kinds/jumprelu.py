"""JumpReLU sparse autoencoders: a threshold for each latent, learned through a kernel in place of the jump's derivative.

z = W_encᵀ x + b_enc      f = z·1[z > θ]      θ = exp(log_threshold)      ŷ = f W_dec + b_dec  [+ W_skip x]
∂f/∂θ = −(θ/ε) K((z − θ)/ε)      ∂1[z > θ]/∂θ = −(1/ε) K((z − θ)/ε)      K(u) = 1[|u| < ½]
∂f/∂z = 1[z > θ]                 ∂1[z > θ]/∂z = 0

jumprelu         L = ‖y − ŷ‖² + λ Σ_i 1[z_i > θ_i]                                  E‖x‖² = E‖y‖² = 1, ‖d_i‖ = 1
jumprelu_target  L = ‖y − ŷ‖² + λ (L0/L0* − 1)²,  L0 = Σ_i 1[z_i > θ_i]             the same
jumprelu_tanh    L = ‖y − ŷ‖² + λ Σ_i tanh(c f_i ‖d_i‖) + λ_P Σ_i ReLU(θ_i − z_i) ‖d_i‖      E‖x‖² = d_in, ‖d_i‖ free

Mean over the batch. jumprelu: Rajamanoharan et al. 2024 (arXiv 2407.14435), the target in its appendix; tanh: Anthropic,
January 2025 update, whose last term (the pre-activation loss) is what revives dead latents. The others revive none.
Folded when saved: W_encᵀ b_pre into b_enc, as here the encoder reads x itself; ‖d_i‖ into the encoder and θ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.dictionaries.kinds.april import April
from interp.dictionaries.kinds.kind import SAMPLE, Kind, Loss, Now, at_least, positive, share, squared
from interp.dictionaries.sparse import Code, Near, at, encode_above, entries, lowest, pre_activations

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary, DictionaryConfig

NUMBERS = 2**25  # pre-activations that the first thresholds are chosen among, at the most
EDGE = 0.500001  # how far below θ is looked at, in ε; and a number further, so that rounding loses nothing of the band


def jumprelu(D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
    """f = z·1[z > θ], z = W_encᵀ (x − b_pre) + b_enc."""
    z = pre_activations(x, D.b_pre, D.W_enc, D.b_enc, D.product)
    return Code.of(z * (z > D.threshold))


class Jump(torch.autograd.Function):
    """f = z·1[z > θ]; ∂f/∂z = 1[z > θ], ∂f/∂θ = −(θ/ε) K((z − θ)/ε)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, θ: Tensor, ε: float) -> Tensor:
        """z [batch, m], θ [m]; or both at some entries [batch, k]."""
        ctx.save_for_backward(z, θ)
        ctx.ε = ε
        return z * (z > θ)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        """See the class."""
        z, θ = ctx.saved_tensors
        return g * (z > θ), -(θ / ctx.ε) * (g * K((z - θ) / ctx.ε)).sum_to_size(θ.shape), None


class Step(torch.autograd.Function):
    """1[z > θ]; ∂/∂z = 0, ∂/∂θ = −(1/ε) K((z − θ)/ε)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, θ: Tensor, ε: float) -> Tensor:
        """z [batch, m], θ [m]; or both at some entries [batch, k]."""
        ctx.save_for_backward(z, θ)
        ctx.ε = ε
        return (z > θ).to(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        """See the class."""
        z, θ = ctx.saved_tensors
        return None, -(g * K((z - θ) / ctx.ε)).sum_to_size(θ.shape) / ctx.ε, None


def K(u: Tensor) -> Tensor:
    """The rectangle of width and area one."""
    return (u.abs() < 0.5).to(u)


@dataclass(frozen=True)
class JumpReLU(Kind):
    """The L0 penalty itself."""

    name = "jumprelu"
    paper = "Rajamanoharan et al. 2024, arXiv 2407.14435"
    equation = "f = z·1[z > θ]; L = ‖e‖² + λ Σ 1[z_i > θ_i]"
    activation = "jumprelu"
    centred = False
    lr = 7e-5
    betas = (0.0, 0.999)
    tensors = {"log_threshold": 0.0}  # noqa: RUF012  (never changed)

    sparsity: float = 1e-3  # λ
    bandwidth: float = 1e-3  # ε
    threshold: float = 1e-3  # θ at step 0

    def __post_init__(self) -> None:
        at_least(self, sparsity=0)
        positive(self, "bandwidth", "threshold")

    def sizes(self, config: DictionaryConfig) -> tuple[float, float]:
        """E‖x‖² = E‖y‖² = 1: θ and ε mean the same at every width."""
        return 1.0, 1.0

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """The first thresholds."""
        D.get_parameter("log_threshold").fill_(math.log(self.threshold))

    def θ(self, D: Dictionary) -> Float[Tensor, " m"]:
        """Thresholds."""
        return D.get_parameter("log_threshold").exp()

    def near(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> tuple[Code | Tensor, Tensor, Tensor]:
        """(f, z, θ); if they are few, f as a code and z and θ at its entries: those above θ − ε/2, on which alone L depends."""
        θ, ε = self.θ(D), self.bandwidth
        edge = (θ - EDGE * ε).detach()
        edge = edge.nextafter(torch.full_like(edge, -torch.inf))
        found = encode_above(x, None, D.W_enc, D.b_enc, edge, D.product)
        z, θ = entries(found), at(θ, found)
        f = Jump.apply(z, θ, ε)
        return Near.made(f, found.indices, (z > lowest(z)).to(z)) if isinstance(found, Code) else f, z, θ

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code | Float[Tensor, "batch m"]:
        """f = z·1[z > θ]."""
        return self.near(D, x)[0]

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ L0, or what `penalty` makes of L0."""
        f, z, θ = self.near(D, x)
        e = y - D.decode(f, x)
        penalty = self.penalty(Step.apply(z, θ, self.bandwidth).sum(-1).mean())
        return Loss(squared(e), now.warm * self.sparsity * penalty, share(e, y), penalty, e.new_zeros(()), f)

    def penalty(self, l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What λ multiplies."""
        return l0

    def fold(self, D: Dictionary, new: Dictionary) -> None:
        """θ = exp(log_threshold)."""
        new.threshold.copy_(self.θ(D))


@dataclass(frozen=True)
class TargetJumpReLU(JumpReLU):
    """The L0 penalty about a target."""

    name = "jumprelu_target"
    equation = "f = z·1[z > θ]; L = ‖e‖² + λ (L0/L0* − 1)²"

    sparsity: float = 1.0  # λ
    target_l0: float = 20.0  # L0*

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "target_l0")

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """One θ for all, above which L0* latents of a row are; then the length of the encoder, and of θ with it."""
        super().begin(D, x, y)
        x, y = x.to(D.W_enc), y.to(D.W_dec)
        rows = x[: max(1, min(SAMPLE, NUMBERS // D.config.latents))]
        z = (rows @ D.W_enc + D.b_enc).flatten()
        beyond = len(z) - round(self.target_l0 * len(rows))
        if beyond < 1:  # all may fire
            return
        log_threshold = D.get_parameter("log_threshold")
        log_threshold.fill_(z.kthvalue(beyond).values.clamp(min=self.threshold).log())
        log_threshold.add_(self.fit(D, x, y).log())

    def penalty(self, l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """(L0/L0* − 1)²."""
        return (l0 / self.target_l0 - 1).square()


@dataclass(frozen=True)
class TanhJumpReLU(JumpReLU):
    """A penalty that saturates, and one on pre-activations below their threshold."""

    name = "jumprelu_tanh"
    paper = "Anthropic, January 2025 update"
    equation = "f = z·1[z > θ]; L = ‖e‖² + λ Σ tanh(c f_i ‖d_i‖) + λ_P Σ ReLU(θ_i − z_i) ‖d_i‖"
    unit = False
    lr = 2e-4
    betas = (0.9, 0.999)
    warmup = 1.0

    sparsity: float = 2.0  # λ
    bandwidth: float = 2.0  # ε
    threshold: float = 0.1  # θ at step 0
    tanh_scale: float = 4.0  # c
    pre_act: float = 3e-6  # λ_P

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, pre_act=0)
        positive(self, "tanh_scale")

    def sizes(self, config: DictionaryConfig) -> tuple[float, float]:
        """E‖x‖² = d_in, E‖y‖² = d_out."""
        return config.d_in, config.d_out

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """Thresholds, and short decoder rows as `April`."""
        super().begin(D, x, y)
        April().begin(D, x, y)

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ Σ_i tanh(c f_i ‖d_i‖) + λ_P Σ_i ReLU(θ_i − z_i) ‖d_i‖; f passes gradients to z and θ."""
        z, θ, length = self.z(D, x), self.θ(D), D.W_dec.norm(dim=1)
        f = Jump.apply(z, θ, self.bandwidth)
        e = y - D.decode(f, x)
        penalty = (self.tanh_scale * f * length).tanh().sum(-1).mean()
        aux = ((θ - z).relu() * length).sum(-1).mean()
        rest = now.warm * self.sparsity * penalty + self.pre_act * aux
        return Loss(squared(e), rest, share(e, y), penalty, aux, f)
