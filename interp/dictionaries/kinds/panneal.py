"""p-annealing (Karvonen et al. 2024, arXiv 2408.00113): from the L1 penalty towards the number of active latents.

f = ReLU(W_encᵀ (x − b_pre) + b_enc)    ŷ = f W_dec + b_dec  [+ W_skip x]    ‖d_i‖ = 1
L = ‖y − ŷ‖² + λ s Σ_i f_i^p            mean over the batch; units: E‖x‖² = d_in, E‖y‖² = d_out

p is 1 in the first half of the run, then falls to p_end in n equal steps. At a step from p to q the factor s is
multiplied by Σ f^p / Σ f^q over the last 10 batches, so that the penalty does not jump. Dead latents are resampled.
In use a dictionary is what it was in training; nothing is folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.dictionaries.kinds.kind import Loss, Now, at_least, share, squared
from interp.dictionaries.kinds.l1 import L1
from interp.dictionaries.sparse import entries
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary

BATCHES = 10  # that the factor s is estimated on


@dataclass(frozen=True)
class PAnneal(L1):
    """An Lᵖ penalty whose p falls."""

    name = "p_anneal"
    paper = "Karvonen et al. 2024, arXiv 2408.00113"
    equation = "f = ReLU(z); L = ‖e‖² + λ s Σ f_i^p, p from 1 to p_end"

    p_end: float = 0.2
    p_steps: int = 10  # n
    p_from: float = 0.5  # share of the run before the first

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, p_steps=1, p_from=0)
        if not 0 < self.p_end <= 1 or self.p_from >= 1:
            raise WrongUse(f"p_end={self.p_end} must be above 0 and 1 or less, p_from={self.p_from} below 1.")

    def prepare(self, D: Dictionary) -> None:
        """s, and Σ f^p and Σ f^q of the last batches, q the p that comes next."""
        super().prepare(D)
        D.register_buffer("s", torch.ones((), dtype=torch.float64))
        D.register_buffer("powers", torch.zeros(BATCHES, 2, dtype=torch.float64))

    def level(self, step: int, steps: int) -> int:
        """How many steps p has taken before step `step` (from 0) of `steps`."""
        done = (step / steps - self.p_from) / (1 - self.p_from)
        return min(self.p_steps, int(done * self.p_steps) + 1) if done >= 0 else 0

    def p(self, level: int) -> float:
        """p after so many of its steps."""
        return 1 + (self.p_end - 1) * level / self.p_steps

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖y − ŷ‖² + λ s Σ_i f_i^p."""
        f = self.encode(D, x)
        e = y - D.decode(f, x)
        penalty = D.get_buffer("s").to(e) * power(entries(f), self.p(self.level(now.step, now.steps)))
        return Loss(squared(e), now.warm * self.sparsity * penalty, share(e, y), penalty, e.new_zeros(()), f)

    def after(self, D: Dictionary, loss: Loss, now: Now) -> None:
        """Keep Σ f^p and Σ f^q; where p steps to q, s ← s Σ f^p / Σ f^q."""
        f = entries(loss.code)
        s, powers = D.get_buffer("s"), D.get_buffer("powers")
        here, there = (self.level(step, now.steps) for step in (now.step, now.step + 1))
        p, q = self.p(here), self.p(there if there > here else min(here + 1, self.p_steps))
        powers[now.step % BATCHES] = torch.stack([power(f, p), power(f, q)])
        if there > here:
            old, new = powers.sum(0)
            s.mul_(old / new if new > 0 else 1.0)
            powers.zero_()


def power(f: Float[Tensor, "batch m"], p: float) -> Float[Tensor, ""]:
    """Σ_i f_i^p, mean over the batch; latents that do not fire add nothing and get no gradient."""
    fires = f > 0
    return (torch.where(fires, f, 1.0).pow(p) * fires).sum(-1).mean()
