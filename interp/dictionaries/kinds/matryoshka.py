"""Matryoshka BatchTopK sparse autoencoder (Bussmann et al. 2025, arXiv 2503.17547): every prefix must do alone.

f = the B·k largest entries of ReLU(z)                        as BatchTopK, once for all latents
ŷ_g = f_{:m_g} W_dec[:m_g] + b_dec  [+ W_skip x]              m_1 < … < m_G = m
L = mean_g ‖y − ŷ_g‖² / ‖y − ȳ‖²  +  α AuxK                   of the whole dictionary's error

So general latents come first, and a child in a later group cannot take a parent's place. Dead latents are revived by
AuxK. In use, θ as BatchTopK. The prefix without latents, whose loss the authors' code adds, does not train latents: left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.dictionaries.kinds.batchtopk import BatchTopK
from interp.dictionaries.kinds.kind import Loss, Now, share
from interp.dictionaries.sparse import Code
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """Nested BatchTopK dictionaries in one."""

    name = "matryoshka"
    paper = "Bussmann et al. 2025, arXiv 2503.17547"
    equation = (
        "f = the B·k largest of ReLU(z); L = mean_g ‖e_g‖²/‖y − ȳ‖² + α AuxK, e_g = y − ŷ of the first m_g latents"
    )

    groups: tuple[int, ...] | None = None  # m_1 < … < m_G = m; 1/16, 1/8, 1/4, 1/2 and all of m

    def check(self, latents: int) -> None:
        """Raise `WrongUse` if the groups do not rise to the number of latents."""
        super().check(latents)
        ends = (0, *self.ends(latents))
        if ends[-1] != latents or any(b <= a for a, b in pairwise(ends)):
            raise WrongUse(f"groups must rise and end with latents={latents}; they are {list(ends[1:])}.")

    def ends(self, latents: int) -> tuple[int, ...]:
        """m_1 … m_G."""
        return self.groups or tuple(sorted({-(-latents // 2**i) for i in range(5)}))

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = mean_g ‖y − ŷ_g‖²/‖y − ȳ‖² + α AuxK."""
        code = self.encode(D, x)
        f = code.dense(D.config.latents) if isinstance(code, Code) else code
        e = y - D.decode(torch.zeros_like(f), x)
        levels = []
        for a, b in pairwise((0, *self.ends(D.config.latents))):
            e = e - f[:, a:b] @ D.W_dec[a:b]
            levels.append(share(e, y))
        aux = self.auxk(D, x, e.detach(), now.dead)
        return Loss(torch.stack(levels).mean(), self.aux * aux, levels[-1], e.new_zeros(()), aux, code)
