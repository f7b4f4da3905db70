"""Backward lens: what a step of gradient descent would write into a weight, read in the vocabulary.

For y_t = x_t W the gradient of a loss is ∂L/∂W = Σ_t x_tᵀ δ_t, with δ_t = ∂L/∂y_t: an outer product for every token, whose
one side (x_t of a first matrix, δ_t of a last one) lives in the stream and can be read by the head.
Source: Katz et al. 2024 (arXiv:2402.12865).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.lens import Lens
from interp.model.model import teaches
from interp.model.sweep import Metric

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SIDES = {"W_out": ("post", "out"), "W_in": ("in", "pre"), "W_gate": ("in", "gate"), "W_up": ("in", "up")}


@dataclass(frozen=True, eq=False)
class WeightGradient:
    """A weight's gradient as the outer products it is a sum of, one a real token."""

    weight: str
    x: Float[Tensor, "token d_in"]
    delta: Float[Tensor, "token d_out"]

    @property
    def gradient(self) -> Float[Tensor, "d_in d_out"]:
        """Σ_t x_tᵀ δ_t."""
        return self.x.T @ self.delta

    @property
    def norms(self) -> Float[Tensor, " token"]:
        """‖x_t‖ ‖δ_t‖: how much each token contributes."""
        return self.x.norm(dim=1) * self.delta.norm(dim=1)

    def read(self, lens: Lens, k: int = 10, sign: int = -1) -> tuple[Int[Tensor, "token k"], Float[Tensor, "token k"]]:
        """(Ids, log-probabilities) of the k likeliest tokens of each side that lives in the stream: of -δ_t, the way a
        descent moves the output of `W_out` (`sign` 1: δ_t), and of x_t for a first matrix.
        """
        return lens.read(sign * self.delta if self.weight.endswith("W_out") else self.x, k=k)


@teaches
def weight_gradient(lens: Lens, x: Any, weight: str, metric: Metric) -> WeightGradient:
    """The gradient of metric(logits [batch, pos, vocabulary]) with respect to `weight`, say "blocks.3.mlp.W_out".

    Of the matrices of MLPs: W_in, W_gate, W_up, W_out. Raises `WrongUse` for another weight.
    """
    role, _, name = weight.rpartition(".")
    if name not in SIDES or not role.rpartition(".")[2].startswith("mlp"):
        raise WrongUse(f"{weight!r} is no matrix of an MLP: blocks.*.mlp.{', '.join(SIDES)} can be read backwards.")
    lens.model.weights.layout(weight)  # raises if the model has none of that name
    sites = [f"{role}.{part}" for part in SIDES[name]]
    cache = lens.model.record(x, sites, grad=metric)
    mask = torch.ones(cache[sites[0]].shape[:2], dtype=torch.bool) if cache.mask is None else cache.mask
    mask = mask.to(cache[sites[0]].device)
    return WeightGradient(weight, cache[sites[0]][mask], cache.grad[sites[1]][mask])
