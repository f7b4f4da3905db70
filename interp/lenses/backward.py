"""Backward lens: what a step of gradient descent would write into a weight, read in the vocabulary.

For y_t = x_t W the gradient of a loss is ∂L/∂W = Σ_t x_tᵀ δ_t, with δ_t = ∂L/∂y_t: an outer product for every token, whose
one side (x_t of a first matrix, δ_t of a last one) lives in the stream and can be read by the head.
Source: Katz et al. 2024 (arXiv:2402.12865).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.lens import READS, Lens
from interp.lenses.readout import token_id
from interp.model.model import Model, teaches
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


class BackwardLens(Lens):
    """Reads at each site the way that one step of descent would move what stands there: -∂L/∂h through the head.

    L is the cross-entropy of every token that comes next in the text, or, with `target`, of that token after the last one.
    At `mlp.out`, the default, this is -δ_t of W_out. A gradient has no scale that the final norm expects: each is read at the
    length of its token's last stream; where it is zero, as zero. Raises `WrongUse` for a model that looks both ways.
    """

    kind = "backward"
    reads = (*READS, "out")

    def __init__(self, model: Model, target: int | str | None = None) -> None:
        super().__init__(model)
        if not self.head.causal:
            raise WrongUse(f"{model.id} looks both ways: there is no next token whose loss could be taken.")
        self.target = None if target is None else token_id(model, target, self.head.width)

    def readable(self, sites: str | Sequence[str] | None = None) -> list[str]:
        """By default what every MLP returns."""
        return super().readable(f"{self.head.stack.prefix}blocks.*.mlp.out" if sites is None else sites)

    def states(
        self, inputs: dict[str, Any], names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch pos d"], dict[str, Float[Tensor, "batch pos d"]]]:
        """(The last stream, -∂L/∂h at each site, as long as the last stream)."""
        last = self.model.record(inputs, self.head.last)[self.head.last]
        ids, mask = self.places(inputs, last)
        follows = self.asked(ids, mask, ())[:, 0]
        if self.target is None and not bool((follows >= 0).any()):
            raise WrongUse("no token of the text has a next one: give at least two tokens, or a target (--target).")

        def loss(logits: Float[Tensor, "batch pos vocabulary"]) -> Float[Tensor, ""]:
            if self.target is not None:
                ends = mask.long().cumsum(1).argmax(1)
                return -logits[torch.arange(len(ends)), ends].log_softmax(-1)[:, self.target].sum()
            return torch.nn.functional.cross_entropy(logits[mask], follows, ignore_index=-1, reduction="sum")

        slope = self.model.record(inputs, list(names), grad=loss).grad
        length = last.norm(dim=-1, keepdim=True)
        return last, {n: -slope[n] * length / slope[n].norm(dim=-1, keepdim=True).clamp(min=1e-30) for n in names}
