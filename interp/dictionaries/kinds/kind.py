"""What every kind of dictionary says of itself: how it is trained, what revives its latents, what it is in use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from interp.dictionaries.sparse import Code, encode_above, pre_activations
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.dictionaries.dictionary import Dictionary, DictionaryConfig

SAMPLE = 1024  # rows that the length of a first encoder is chosen on
LEAST = 0.1  # what is written at first, at the least, as a share of √E‖y − b_dec‖²: latents that write nothing learn nothing


class Now(NamedTuple):
    """Where a run stands when a loss is computed."""

    dead: Int[Tensor, " dead"]  # latents that have been silent for long
    step: int = 0  # finished before this one
    steps: int = 1  # of the whole run
    warm: float = 1.0  # sparsity warm-up: what the coefficient of the penalty is multiplied by


class Loss(NamedTuple):
    """`error` + `rest` is minimised; the others are for the log, and without their coefficients."""

    error: Tensor  # how far ŷ is from y, as the kind measures it
    rest: Tensor  # penalties and what revives latents, with their coefficients
    fvu: Tensor  # ‖e‖² / ‖y − ȳ‖² of the batch: for the log, whatever the kind
    sparsity: Tensor  # the penalty; 0 for kinds that fix the number of active latents
    aux: Tensor  # the auxiliary reconstruction
    code: Code | Tensor  # f, as it was used

    @property
    def total(self) -> Tensor:
        """L."""
        return self.error + self.rest


@dataclass(frozen=True)
class Kind:
    """One kind of dictionary: its fields are its settings, with its paper's defaults, its methods are the paper.

    A kind trains a `Dictionary` (W_enc, b_enc, W_dec, b_dec, …) and what `tensors` adds to it. All numbers are in
    the units that `sizes` sets.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    activation: ClassVar[str]  # what a trained one uses: a key of ACTIVATIONS
    unit: ClassVar[bool] = True  # whether decoder rows keep length one in training
    centred: ClassVar[bool] = True  # whether the encoder reads x − b_pre, or x
    lr: ClassVar[float | None] = None
    warmup: ClassVar[float] = 0.05  # share of the steps in which the penalty's coefficient rises linearly to its value
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # Adam's
    tensors: ClassVar[dict[str, float]] = {}  # parameters [m] that only training has, and where they start

    def check(self, latents: int) -> None:
        """Raise `WrongUse` for a number of latents that this kind cannot have."""

    def learning_rate(self, latents: int) -> float:
        """The paper's; unless it has one, 2e-4 / √(latents / 2¹⁴) (Gao et al. 2024, appendix A.3)."""
        return self.lr or 2e-4 / math.sqrt(latents / 2**14)

    def sizes(self, config: DictionaryConfig) -> tuple[float, float]:
        """What training scales E‖x‖² and E‖y‖² to, unless a kind says otherwise: λ then means the same at every width."""
        return config.d_in, config.d_out

    def prepare(self, D: Dictionary) -> None:
        """Add to a dictionary what training needs and use does not."""
        for name, start in self.tensors.items():
            D.register_parameter(name, torch.nn.Parameter(torch.full_like(D.b_dec[:1], start).repeat(D.config.latents)))

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """Change the first weights, which are those of `start.initialise`; x and y are a sample of the rows."""

    def fit(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> Float[Tensor, ""]:
        """A transcoder's W_dec; then W_enc ← c W_enc, c = Σ ⟨y − b_dec, ŷ − b_dec⟩ / Σ ‖ŷ − b_dec‖² on other rows, of all c the best.

        For kinds whose code becomes c f where W_enc is c W_enc. Returns c.
        """
        y, n = y - D.b_dec, min(SAMPLE, len(x) // 2)
        if not D.config.autoencoder:
            self.aim(D, x[n:], y[n:])
        made = D.written(self.encode(D, x[:n]))
        if not made.any():
            return made.new_ones(())
        c = (made * y[:n]).sum() / made.square().sum()
        c = torch.maximum(c, LEAST * y[:n].norm() / made.norm())
        D.W_enc.mul_(c)
        return c

    @torch.enable_grad()
    def aim(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """d_i ∝ E[f_i (y − b_dec)], where latent i fires: what a first step from W_dec = 0 would give it."""
        toward = torch.autograd.grad((D.written(self.encode(D, x)) * y).sum(), D.W_dec)[0]
        length = toward.norm(dim=1, keepdim=True)
        with torch.no_grad():
            D.W_dec.copy_(torch.where(length > 0, toward / length, D.W_dec))

    def z(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch m"]:
        """Pre-activations W_encᵀ (x − b_pre) + b_enc."""
        return pre_activations(x, D.b_pre if self.centred else None, D.W_enc, D.b_enc, D.product)

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code | Float[Tensor, "batch m"]:
        """f as it is in training; unless a kind says otherwise, ReLU(z)."""
        b = D.b_pre if self.centred else None
        z = encode_above(x, b, D.W_enc, D.b_enc, torch.zeros_like(D.b_enc), D.product)
        return Code(z.values.relu(), z.indices) if isinstance(z, Code) else z.relu()

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """The loss of a batch; unless a kind says otherwise, the error alone."""
        f = self.encode(D, x)
        fvu = share(y - D.decode(f, x), y)
        zero = fvu.new_zeros(())
        return Loss(fvu, zero, fvu, zero, zero, f)

    def after(self, D: Dictionary, loss: Loss, now: Now) -> None:
        """What is updated by other means than gradients, after the optimiser's step."""

    def revived(
        self,
        D: Dictionary,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        silent: Int[Tensor, " m"],
        now: Now,
    ) -> Int[Tensor, " revived"]:
        """Give dead latents new weights and say which they were; `silent` counts rows since each latent fired."""
        return now.dead[:0]

    def fold(self, D: Dictionary, new: Dictionary) -> None:
        """Put what only training has of D into `new`, a copy of D without it."""

    def folded(self, D: Dictionary) -> Dictionary:
        """A trained dictionary as it is used: whatever only training has folded into its weights, ‖d_i‖ = 1."""
        new = D.plain()
        with torch.no_grad():
            self.fold(D, new)
            if not self.centred and D.config.autoencoder:
                new.b_enc.add_(new.b_pre @ new.W_enc)
        return new if self.unit else new.unit_rows()


def at_least(config: object, **bounds: float) -> None:
    """Raise `WrongUse` for a field of `config` that is below its bound; None is not."""
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise WrongUse(f"{name} must be at least {bound}; it is {value}.")


def positive(config: object, *names: str) -> None:
    """Raise `WrongUse` for a field of `config` that is not above zero; None is."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise WrongUse(f"{name} must be positive; it is {value}.")


def squared(e: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """‖e‖² summed over dimensions, mean over the batch."""
    return e.square().sum(-1).mean()


def share(e: Float[Tensor, "batch d"], y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """‖e‖² / ‖y − ȳ‖² over the batch; 0 where y does not vary."""
    variance = (y - y.mean(0)).square().sum()
    return e.square().sum() * torch.where(variance > 0, 1 / variance, 0)
