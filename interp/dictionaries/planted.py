"""Data whose true features are known: what a dictionary found can be counted (`interp.dictionaries.recovery`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

ROWS = 16_384  # made at a time: the codes are wide


@dataclass(frozen=True)
class Planted:
    """Rows x = f D: sparse sums of known directions, and which of them are in each row.

    x [rows, d], directions [features, d], fires [rows, features]. `parents` [features]: the number of each feature's
    parent, which is in every row that the child is in; −1 for none.
    """

    x: Tensor
    directions: Tensor
    fires: Tensor
    parents: Tensor | None = None

    def split(self, held_out: int) -> tuple[Planted, Planted]:
        """All rows but the last `held_out`, and these."""
        parts = [t.split((len(t) - held_out, held_out)) for t in (self.x, self.fires)]
        first, last = (Planted(x, self.directions, fires, self.parents) for x, fires in zip(*parts, strict=True))
        return first, last


def superposed(rows: int, seed: int, zipf: bool = False, d: int = 64, features: int = 256, l0: float = 4.0) -> Planted:
    """x = Σ_i f_i d_i, f_i = Bernoulli(p_i) · U(½, 3⁄2), d_i random unit directions, Σ p_i = `l0`.

    p_i is uniform, or ∝ 1/i under `zipf`.
    """
    generator = torch.Generator().manual_seed(seed)
    p = 1 / torch.arange(1, features + 1) if zipf else torch.ones(features)
    p = l0 * p / p.sum()
    return _rows(rows, _unit(features, d, generator), lambda n: _uniform(n, features, generator) < p, generator)


def orthonormal(rows: int, seed: int, d: int = 16, l0: float = 2.0) -> Planted:
    """`superposed` with as many features as dimensions, at right angles: then c_i = ⟨d_i, x⟩ exactly."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return _rows(rows, directions, lambda n: _uniform(n, d, generator) < l0 / d, generator)


def correlated(
    rows: int, seed: int, rho: float = 0.6, group: int = 4, d: int = 64, features: int = 128, l0: float = 4.0
) -> Planted:
    """`superposed` with features that come together: f_i > 0 where √ρ g + √(1 − ρ) e_i < Φ⁻¹(p), g, e_i ~ N(0, 1).

    g is one number for each `group` of features, so P(f_i > 0) = p = l0 / features whatever ρ is, and two features of
    a group are both there with P(u, v < Φ⁻¹(p)), (u, v) normal with correlation ρ.
    """
    if features % group or not 0 <= rho <= 1:
        raise WrongUse(f"group={group} must divide features={features}, and rho={rho} lie between 0 and 1.")
    generator = torch.Generator().manual_seed(seed)
    edge = NormalDist().inv_cdf(l0 / features)

    def fires(n: int) -> Tensor:
        shared = torch.randn(n, features // group, generator=generator).repeat_interleave(group, 1)
        return rho**0.5 * shared + (1 - rho) ** 0.5 * torch.randn(n, features, generator=generator) < edge

    return _rows(rows, _unit(features, d, generator), fires, generator)


def hierarchical(
    rows: int, seed: int, parents: int = 12, children: int = 4, p: float = 0.15, q: float = 0.6, d: int = 64
) -> Planted:
    """Parents fire with chance p; where one does, one of its children does too with chance q, and never without it.

    Features are the parents, then the children of the first parent, of the second, …; a row has p · parents · (1 + q)
    of them on average. A dictionary saves a latent if a child's latent writes its parent as well: absorption (Chanin et
    al. 2024, arXiv 2409.14507).
    """
    generator = torch.Generator().manual_seed(seed)

    def fires(n: int) -> Tensor:
        parent, some = _uniform(n, parents, generator) < p, _uniform(n, parents, generator) < q
        which = torch.randint(children, (n, parents), generator=generator)
        child = one_hot(which, children).bool() & (parent & some)[..., None]
        return torch.cat([parent, child.flatten(1)], 1)

    of = torch.cat([torch.full((parents,), -1), torch.arange(parents).repeat_interleave(children)])
    return _rows(rows, _unit(len(of), d, generator), fires, generator, of)


def pair(
    rows: int,
    seed: int,
    exclusive: float = 0.2,
    scale: float = 3.0,
    d: int = 32,
    features: int = 64,
    l0: float = 3.0,
) -> Planted:
    """Two sites of width d side by side, of two layers or two models: x = (x^a, x^b), directions [features, 2d].

    The first half of the share `exclusive` of the features writes to site a alone, the second half to b alone, all others
    to both, with directions that have nothing to do with each other. All of site b is `scale` times as long.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = _unit(features, d, generator), scale * _unit(features, d, generator)
    alone = round(exclusive * features / 2)
    b[:alone], a[alone : 2 * alone] = 0, 0
    return _rows(rows, torch.cat([a, b], 1), lambda n: _uniform(n, features, generator) < l0 / features, generator)


@dataclass(frozen=True)
class Layers:
    """What the MLPs of several layers read and write, side by side, where features write to their layer and to those above.

    x [rows, layers · d], y the same, writes [features, layers · d] zero below a feature's `layer` [features]; `fires` [rows,
    features].
    """

    x: Tensor
    y: Tensor
    writes: Tensor
    layer: Tensor
    fires: Tensor


def across_layers(rows: int, seed: int, layers: int = 2, d: int = 32, features: int = 48, l0: float = 3.0) -> Layers:
    """x^i = Σ_{j of layer i} f_j r_j, y^l = Σ_{j of layer ≤ l} f_j w_j^l, r_j and w_j^l random unit directions, f as `superposed`.

    It is what a cross-layer transcoder can be (Ameisen et al. 2025); features belong to the layers in equal groups. Raises
    `WrongUse` unless they can.
    """
    if features % layers:
        raise WrongUse(f"layers={layers} must divide features={features}.")
    generator = torch.Generator().manual_seed(seed)
    layer = torch.arange(layers).repeat_interleave(features // layers)
    at = one_hot(layer, layers).bool()[..., None]  # [features, layers, 1]
    reads = (at * _unit(features, d, generator)[:, None]).flatten(1)
    above = at.cumsum(1).bool()
    writes = (above * _unit(features * layers, d, generator).view(features, layers, d)).flatten(1)
    fires = _uniform(rows, features, generator) < l0 / features
    f = fires * (_uniform(rows, features, generator) + 0.5)
    return Layers(f @ reads, f @ writes, writes, layer, fires)


def sums(rows: int, seed: int, parts: int = 3, d: int = 32, features: int = 64) -> Planted:
    """Unit rows, each the sum of `parts` of the directions, made short: the decoder of a dictionary whose latents have parts.

    What a meta-dictionary is to find (Leask et al. 2025, arXiv 2502.04878).
    """
    generator = torch.Generator().manual_seed(seed)
    directions = _unit(features, d, generator)
    chosen = _uniform(rows, features, generator).topk(parts, dim=1).indices
    fires = torch.zeros(rows, features, dtype=torch.bool).scatter(1, chosen, True)
    return Planted(normalize(fires.float() @ directions), directions, fires)


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    return torch.rand(rows, columns, generator=generator)


def _unit(features: int, d: int, generator: torch.Generator) -> Float[Tensor, "features d"]:
    return normalize(torch.randn(features, d, generator=generator))


def _rows(
    rows: int,
    directions: Float[Tensor, "features d"],
    chance: Callable[[int], Bool[Tensor, "n features"]],
    generator: torch.Generator,
    parents: Int[Tensor, " features"] | None = None,
) -> Planted:
    """`chance(n)` draws which features are in the next n rows; their sizes are U(½, 3⁄2)."""
    features, d = directions.shape
    x, fires = torch.empty(rows, d), torch.empty(rows, features, dtype=torch.bool)
    for some, there in zip(x.split(ROWS), fires.split(ROWS), strict=True):
        there.copy_(chance(len(there)))
        some.copy_((there * (_uniform(len(there), features, generator) + 0.5)) @ directions)
    return Planted(x, directions, fires, parents)


@dataclass(frozen=True)
class States:
    """What a finite-state source shows: x [rows, d] about centres [states, d], the state of each row, T [states, states]."""

    x: Tensor
    state: Tensor
    centres: Tensor
    T: Tensor
    noise: float

    def following(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows states"]:
        """P(next state | x) = P(state | x) T by Bayes' rule, states equally likely before x is seen: what reads x downstream."""
        distance = torch.cdist(x.double(), self.centres.double()).square()
        return (-distance / (2 * self.noise**2)).softmax(1) @ self.T.double()


def finite_state(rows: int, seed: int, states: int = 20, edges: int = 4, d: int = 32, noise: float = 0.02) -> States:
    """A walk over `states`, each with `edges` ways out that are equally likely; x = c_state + noise · N(0, 1), c random unit.

    One way leads to the state of the next number, so that every state is reached; the others are random.

    The source of Tamkin et al. 2023 (arXiv 2310.17230), section 4, with a vector for each state in place of two digits.
    """
    if not 1 <= edges <= states:
        raise WrongUse(f"edges={edges}: a state has 1 to {states} ways out.")
    generator = torch.Generator().manual_seed(seed)
    centres = _unit(states, d, generator)
    ways = (_uniform(states, states, generator) + torch.eye(states).roll(1, 1)).topk(edges, dim=1).indices
    T = torch.zeros(states, states).scatter(1, ways, 1 / edges)
    table, choice = ways.tolist(), torch.randint(edges, (rows,), generator=generator).tolist()
    walk = [0]
    for turn in choice[1:]:
        walk.append(table[walk[-1]][turn])
    state = torch.tensor(walk)
    return States(centres[state] + noise * torch.randn(rows, d, generator=generator), state, centres, T, noise)


@dataclass(frozen=True)
class SparseMLP:
    """y = ReLU(x W_in + b_in) W_out + b_out, at most `active` hidden units on any row."""

    x: Tensor
    y: Tensor
    W_in: Tensor
    b_in: Tensor
    W_out: Tensor
    b_out: Tensor


def sparse_mlp(rows: int, seed: int, active: int = 8, d_in: int = 32, d_out: int = 32, hidden: int = 64) -> SparseMLP:
    """An MLP that is a sparse ReLU dictionary: x ~ N(0, 1), and biases so low that `active` units or fewer fire.

    One bias for all units: the highest that no row of x breaks the bound with.
    """
    generator = torch.Generator().manual_seed(seed)
    x, W_in, W_out = (
        torch.randn(shape, generator=generator) for shape in ((rows, d_in), (d_in, hidden), (hidden, d_out))
    )
    W_in /= W_in.norm(dim=0)
    W_out /= W_out.norm(dim=1, keepdim=True)
    z = x @ W_in
    b_in = -z.topk(active + 1, dim=1).values[:, -1].max().expand(hidden).clone()
    b_out = 0.1 * torch.randn(d_out, generator=generator)
    return SparseMLP(x, (z + b_in).relu() @ W_out + b_out, W_in, b_in, W_out, b_out)
