"""Codebook features (Tamkin et al. 2023, arXiv 2310.17230): vector quantisation, of a whole site or head by head.

i_1 … i_k = the k largest of ⟨x − b_dec, c_i⟩ / ‖c_i‖      x̂ = b_dec + (1/k) Σ_j c_{i_j}      L = ‖x − x̂‖² / ‖x − x̄‖²

Codes c_i are the rows of W_dec, of any length; f_i = 1/k where chosen. With `heads`, x is as many chunks side by side, codes
belong to the chunks in equal groups, and k are chosen in each: as many codebooks as heads.

Codes start at rows of the data that lie apart (k-means++); those not chosen in N/2 steps are put on rows of the batch
every N. The paper trains the model around its codebooks, behind a layer norm of their own; here the model stays as it is
and must be able to read x̂, so there is none. `straight_through` hands the gradient at x̂ to x, for who trains the model
too; `forced` writes codes by number, to steer. In use a dictionary is what it was in training. It has no transcoder: codes
are compared with what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.dictionaries.kinds.kind import Loss, Now, at_least, share
from interp.dictionaries.kinds.resampling import Resampled
from interp.dictionaries.sparse import Code
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.dictionaries.dictionary import Dictionary

SAMPLE = 4096  # rows that the first codes are found among, if there are not more codes


def apart(x: Float[Tensor, "rows d"], n: int, tries: int = 4) -> Int[Tensor, " n"]:
    """Numbers of n rows whose directions cover those of all: greedy k-means++ (Arthur & Vassilvitskii 2007, section 5).

    One after the other; each is the best of `tries` rows drawn with P ∝ the squared distance, of unit vectors, to the
    nearest row there is: that which leaves least of it. Rows come again where there are no more directions.
    """
    x = normalize(x)
    generator = torch.Generator().manual_seed(0)
    left, chosen = x.new_full((len(x),), 2.0), []
    for _ in range(n):
        chance = left if left.any() else torch.ones_like(left)
        drawn = chance.cpu().multinomial(tries, replacement=True, generator=generator).to(x.device)
        then = torch.minimum(left[:, None], (2 - 2 * x @ x[drawn].T).clamp(min=0))
        best = then.sum(0).argmin()
        chosen.append(drawn[best])
        left = then[:, best]
        left[drawn[best]] = 0
    return torch.stack(chosen)


@torch.no_grad()
def codebook(D: Dictionary, x: Float[Tensor, "batch d"]) -> Code:
    """The k codes of largest cosine, in each head; values 1/k."""
    c = D.config
    assert c.k is not None
    dtype = D.product or D.W_dec.dtype
    likeness = (x - D.b_dec).to(dtype) @ normalize(D.W_dec).to(dtype).T
    chosen = likeness.view(len(x), c.heads, -1).topk(c.k, dim=-1).indices
    first = torch.arange(0, c.latents, c.latents // c.heads, device=x.device)
    ids = (chosen + first[:, None]).flatten(1)
    return Code(D.W_dec.new_full(ids.shape, 1 / c.k), ids)


def straight_through(D: Dictionary, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """x̂, whose gradient goes to its codes and, unchanged, to x."""
    made: Tensor = D(x.detach())
    return made + x - x.detach()


def forced(D: Dictionary, ids: Int[Tensor, " chosen"]) -> Callable[[Tensor], Tensor]:
    """x ↦ b_dec + (1/k) Σ_j c_{ids_j}, for `Replace`: codes by number, −1 for none; the divisor stays k."""
    if len(ids) and not -1 <= int(ids.min()) <= int(ids.max()) < D.config.latents:
        raise WrongUse(f"Codes are numbered 0 to {D.config.latents - 1}, and −1 is none; got {ids.tolist()}.")
    assert D.config.k is not None
    y = D.b_dec + D.W_dec[ids[ids >= 0]].sum(0) / D.config.k
    return lambda x: y.to(x).expand_as(x)


@dataclass(frozen=True)
class Codebook(Resampled):
    """k codes a row, each with the same weight."""

    name = "codebook"
    paper = "Tamkin et al. 2023, arXiv 2310.17230"
    equation = "f_i = 1/k for the k largest ⟨x − b, c_i⟩/‖c_i‖; L = ‖e‖²/‖x − x̄‖², c_i the decoder's rows"
    activation = "codebook"
    unit = False
    lr = 1e-3

    k: int = 8
    heads: int = 1
    resample: int = 500  # N, in steps

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, k=1, heads=1)

    def check(self, latents: int) -> None:
        """Raise `WrongUse` if the heads cannot have as many codes each, k or more."""
        if latents % self.heads or self.k > latents // self.heads:
            raise WrongUse(
                f"latents={latents} cannot be {self.heads} codebooks (heads) with k={self.k} codes or more each."
            )

    def begin(self, D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """Codes are rows of the data that lie apart, in each head."""
        heads, n = D.config.heads, D.config.latents // D.config.heads
        rows = (x - D.b_dec)[: max(SAMPLE, 2 * n)]
        blocks = [part[apart(part, n)] for part in rows.chunk(heads, dim=1)]
        D.W_dec.copy_(torch.block_diag(*blocks))

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code:
        """The k codes of largest cosine."""
        return codebook(D, x)

    def loss(self, D: Dictionary, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], now: Now) -> Loss:
        """L = ‖x − x̂‖² / ‖x − x̄‖²."""
        f = codebook(D, x)
        fvu = share(y - D.decode(f), y)
        zero = fvu.new_zeros(())
        return Loss(fvu, zero, fvu, zero, zero, f)

    def place(self, D: Dictionary, latents: Int[Tensor, " dead"], x: Tensor, y: Tensor, is_dead: Tensor) -> None:
        """A silent code becomes a row."""
        D.W_dec[latents] = y - D.b_dec

    def folded(self, D: Dictionary) -> Dictionary:
        """As it is: the length of a code is part of it."""
        return D.plain()
