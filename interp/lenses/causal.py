"""Causal basis extraction: the directions of a layer that a lens depends on most.

v_k = argmax E KL(lens(h) ‖ lens(r(h, v))) over unit v orthogonal to v_1 … v_{k-1}, with r(h, v) = h + v v^T (h̄ - h): the
coordinate along v is put at its mean. Source: Belrose et al. 2023 (arXiv:2303.08112), section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.lens import Lens

if TYPE_CHECKING:
    from jaxtyping import Float

EVALUATIONS = 100  # of the objective, at most, for each direction


@dataclass(frozen=True, eq=False)
class CausalBasis:
    """Orthonormal `vectors`, the most influential first, and their `energies`: the KL, in nats, that ablating each costs."""

    site: str
    vectors: Float[Tensor, "k d"]
    energies: Float[Tensor, " k"]


def ablated(x: Float[Tensor, "n d"], v: Float[Tensor, "... d"], toward: Float[Tensor, " d"]) -> Float[Tensor, "n d"]:
    """x with its coordinates along the orthonormal rows of v put where `toward` has them: the mean, or zeros."""
    v = v.reshape(-1, v.shape[-1])
    return x + (toward - x) @ v.T @ v


def causal_basis(lens: Lens, site: str, states: Float[Tensor, "n d"], k: int) -> CausalBasis:
    """The first k causal directions of a lens at a site, found one after the other by L-BFGS from the left singular
    vectors of what the lens makes of the stream, W_U seen through its translator (from the states' own where none is found).

    `states`: what stood at the site, n tokens. Raises `WrongUse` for more directions than the stream has, or one token.
    """
    n, d = states.shape
    if not 0 < k <= d or n < 2:
        raise WrongUse(f"k={k} directions of {n} states: k runs from 1 to {d}, and a mean needs two states or more.")
    x = states.to(torch.promote_types(states.dtype, torch.float32))
    mean = x.mean(0)
    with torch.no_grad():
        clean = lens.logits(site, x).log_softmax(1)
    start, found = _start(lens, site, x), x.new_zeros(0, d)
    energies: list[float] = []
    for i in range(k):
        v, energy = _direction(lens, site, x, mean, clean, start[i], found)
        found = torch.cat([found, v[None]])
        energies.append(energy)
    order = sorted(range(k), key=lambda i: -energies[i])
    return CausalBasis(site, found[order], torch.tensor([energies[i] for i in order]))


def _direction(
    lens: Lens, site: str, x: Tensor, mean: Tensor, clean: Tensor, start: Tensor, found: Tensor
) -> tuple[Float[Tensor, " d"], float]:
    """(v, its KL): the objective is a function of any u, whose part orthogonal to those found is made a unit vector."""
    u = start.clone().requires_grad_()
    best: list[tuple[float, Tensor]] = []
    search = torch.optim.LBFGS([u], max_iter=EVALUATIONS, max_eval=EVALUATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        with torch.enable_grad():
            v = _unit(u, found)
            changed = lens.logits(site, ablated(x, v, mean)).log_softmax(1)
            kl = (clean.exp() * (clean - changed)).sum(1).mean()
        (u.grad,) = torch.autograd.grad(-kl, [u])
        best.append((float(kl), v.detach()))
        return -kl.detach()

    search.step(loss)
    energy, v = max(best, key=lambda b: b[0])
    return v, energy


def _unit(u: Float[Tensor, " d"], found: Float[Tensor, "k d"]) -> Float[Tensor, " d"]:
    """The part of u that is orthogonal to those found, of length 1; taken off twice, against rounding."""
    for _ in range(2):
        u = u - (u @ found.T) @ found
    return u / u.norm()


@torch.no_grad()
def _start(lens: Lens, site: str, x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Left singular vectors of the map from the stream to the scores: of (I + W_l^T) W_U, or the states' principal axes."""
    unembed = lens.model.weights.get("W_U")
    if unembed is None or unembed.shape[0] != x.shape[1]:
        centred = x - x.mean(0)
        return torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    zero = lens.mapped(site, torch.zeros_like(x[:1]))
    linear = (lens.mapped(site, eye) - zero).to(x) @ unembed.to(x)
    return torch.linalg.eigh(linear @ linear.T).eigenvectors.T.flip(0)
