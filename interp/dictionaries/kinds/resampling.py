"""Resampling of dead latents (Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling).

Every N steps, a latent that has been silent for N/2 of them is given a row of the batch, drawn with P ∝ ‖y − ŷ‖⁴:
    d_i = (y − b_dec)/‖y − b_dec‖     W_enc_i = 0.2 n (x − b_pre)/‖x − b_pre‖     b_enc_i = 0
n: mean ‖W_enc_j‖ of the latents that live. Adam's moments of latent i are set to zero (by the trainer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.dictionaries.kinds.kind import Kind, Now, at_least

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from interp.dictionaries.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class Resampled(Kind):
    """Kinds whose dead latents are resampled."""

    resample: int = 25_000  # N, in steps

    def __post_init__(self) -> None:
        at_least(self, resample=2)

    def revived(
        self,
        D: Dictionary,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        silent: Int[Tensor, " m"],
        now: Now,
    ) -> Int[Tensor, " revived"]:
        """Resample at every N-th step; as many latents as the batch has rows that are not perfect."""
        if (now.step + 1) % self.resample:
            return now.dead[:0]
        is_dead = silent >= self.resample // 2 * len(x)
        error = (y - D.decode(self.encode(D, x), x)).square().sum(-1).double()
        latents = is_dead.nonzero().flatten()[: int((error > 0).sum())]
        if not len(latents):
            return latents
        generator = torch.Generator().manual_seed(now.step)
        chance = (error / error.max()).square().cpu()
        rows = chance.multinomial(len(latents), generator=generator).to(x.device)
        self.place(D, latents, x[rows], y[rows], is_dead)
        return latents

    def place(
        self,
        D: Dictionary,
        latents: Int[Tensor, " dead"],
        x: Float[Tensor, "dead d_in"],
        y: Float[Tensor, "dead d_out"],
        is_dead: Bool[Tensor, " m"],
    ) -> None:
        """Give each latent its row's directions."""
        alive = D.W_enc[:, ~is_dead].norm(dim=0)
        D.W_dec[latents] = normalize(y - D.b_dec)
        D.W_enc.T[latents] = 0.2 * (alive.mean() if len(alive) else 1.0) * normalize(x - D.b_pre)
        for name, start in {"b_enc": 0.0, **self.tensors}.items():
            D.get_parameter(name)[latents] = start
