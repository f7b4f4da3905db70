"""Losses that papers derive from the geometry of states, to be added to a model's own loss when a zoo model is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse, check_keys

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

KINDS = ("layer-cosine", "seq-vcr")
ETA, LAMBDA_1, LAMBDA_2 = 1e-3, 1.0, 0.004  # of Seq-VCR, as for multiplication in the paper


def layer_cosine(
    states: Sequence[Float[Tensor, "batch pos d"]], mask: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, ""]:
    """Σ_l (1 - cos(h_l, h_{l-1})), the mean over real tokens (Razzhigaev et al. 2024, arXiv:2405.12250, section 5).

    It draws the states of neighbouring layers together, and the blocks' own work away from a linear map.
    """
    each = torch.stack([1 - torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(states)]).sum(0)
    return each.mean() if mask is None else each[mask].mean()


def seq_vcr(
    x: Float[Tensor, "batch pos d"],
    mask: Bool[Tensor, "batch pos"] | None = None,
    lam1: float = LAMBDA_1,
    lam2: float = LAMBDA_2,
) -> Float[Tensor, ""]:
    """1/(T d) Σ_t Σ_k [λ₁ max(0, 1 - √(C_t,kk + η)) + λ₂ Σ_{k'≠k} C_t,kk'²], C_t the covariance over the batch at position t.

    η = 10⁻³ (Arefin et al. 2024, arXiv:2411.02344). Positions where fewer than two texts have a token are left out. Raises
    `WrongUse` if that is all of them.
    """
    keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    x, keep = x[:, keep.sum(0) > 1], keep[:, keep.sum(0) > 1]
    if not keep.numel():
        raise WrongUse(
            "Seq-VCR compares the texts of a batch at each position: give two or more that reach the same one."
        )
    m = keep.to(x)[..., None]
    count = m.sum(0)
    y = (x - (x * m).sum(0) / count) * m
    C = torch.einsum("btk,btl->tkl", y, y) / (count - 1)[..., None]
    own = C.diagonal(dim1=1, dim2=2)
    variance = torch.relu(1 - (own + ETA).sqrt()).sum()
    return (lam1 * variance + lam2 * (C.square().sum() - own.square().sum())) / own.numel()


@dataclass(frozen=True)
class Penalty:
    """`weight` times a regulariser. Raises `WrongUse` for an unknown kind, or a weight that is negative or not a number."""

    kind: str
    weight: float

    def __post_init__(self) -> None:
        check_keys([self.kind], KINDS, "the list of penalties")
        if not 0 <= self.weight < math.inf:
            raise WrongUse(f"a penalty's weight is 0 or more, not {self.weight}.")

    def __call__(
        self, states: Sequence[Float[Tensor, "batch pos d"]], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, ""]:
        """Of the hidden states as transformers hands them out, the embedding first.

        "layer-cosine" leaves the last out, which most models hand out after their final norm; "seq-vcr" is of the last alone.
        """
        found = layer_cosine(states[:-1], mask) if self.kind == "layer-cosine" else seq_vcr(states[-1], mask)
        return self.weight * found
