"""Rotary positions: how models use their frequencies, what they can build with them, and what is said of them that does not hold.

A query or key of d numbers is d/2 pairs; pair k is turned by g_k radians a position, so q_i · k_j = Σ_k q^(k)ᵀ ρ(g_k)^(j-i) k^(k).
Source: Barbero et al. 2025 (arXiv:2410.06205), "Round and Round We Go! What makes Rotary Positional Encodings useful?"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.model import Model, teaches
from probes import prompts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

STEPS = 256  # positions over which a turning is measured
STILL = 1e-5  # of a number's own size: what it may move over all of them and still stand


def frequencies(d: int, base: float = 10000.0, p: float = 1.0) -> Float[Tensor, " d/2"]:
    """g_k = base^(-2k/d), k = 0 … d/2 - 1, of which the lowest (1 - p) share is 0: p-RoPE; p = 0 is no positions.

    Raises `WrongUse` for an odd d, or a p outside 0 to 1.
    """
    if d % 2 or not 0 <= p <= 1:
        raise WrongUse(f"d={d}, p={p}: frequencies come in pairs of an even d, and p is from 0 to 1.")
    g = base ** (-torch.arange(d // 2, dtype=torch.float64) * 2 / d)
    g[round(p * len(g)) :] = 0.0
    return g


def rotate(x: Float[Tensor, "n d"], place: Float[Tensor, " n"], g: Float[Tensor, " d/2"]) -> Float[Tensor, "n d"]:
    """Each row turned by its position: pair k is (x_k, x_{k+d/2})."""
    angle = place[:, None] * g
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


@contextmanager
def p_rope(model: Model, p: float) -> Iterator[Model]:
    """The lowest (1 - p) share of a model's rotary frequencies is set to 0 inside the `with`: p = 1 changes nothing.

    Raises `WrongUse` for a model that keeps no frequencies (`inv_freq`), and a p outside 0 to 1.
    """
    if not 0 <= p <= 1:
        raise WrongUse(f"p={p} is no share: give a number from 0 to 1.")
    tables = {n: b for n, b in model.module.named_buffers() if n.rsplit(".", 1)[-1] == "inv_freq"}
    if not tables:
        raise WrongUse(f"{model.id} keeps no rotary frequencies: p-RoPE is about models that have them as `inv_freq`.")
    before = {n: b.clone() for n, b in tables.items()}
    try:
        for table in tables.values():
            table[round(p * len(table)) :] = 0.0
        yield model
    finally:
        for name, table in tables.items():
            table.copy_(before[name])


# ---------------------------------------------------------------- how a model turns its queries


@dataclass(frozen=True, eq=False)
class Turning:
    """Which two numbers of a head make a pair, and by how many radians a position it turns, the fastest first."""

    pairs: Int[Tensor, "pair 2"]
    g: Float[Tensor, " pair"]


@torch.no_grad()
def turning(model: Model) -> dict[str, Turning]:
    """The pairs and frequencies of every attention, found and not known.

    A prompt of one token over and over has the same state everywhere, so its queries are one vector, turned. Raises
    `WrongUse` for a model whose queries do not turn.
    """
    roles = [n.removesuffix(".q") for n in model.names("*attn.q")] if _may_turn(model) else []
    found = {}
    if roles:
        token = int(torch.randint(prompts.vocabulary(model), (1,), generator=torch.Generator().manual_seed(0)))
        steps = min(STEPS, getattr(model.config, "max_position_embeddings", STEPS))
        ids = torch.full((1, steps), token, device=model.device)
        cache = model.record(ids, [f"{r}.q" for r in roles])
        found = {r: t for r in roles if (t := _turning(cache[f"{r}.q"][0].double().cpu())) is not None}
    if not found:
        raise WrongUse(f"the queries of {model.id} do not turn with their positions: it has no rotary positions.")
    return found


def _may_turn(model: Model) -> bool:
    """There are queries, and no position stands in the stream."""
    sites = model.sites()
    return not prompts.has_encoder(model) and "pos_embed" not in sites and any(n.endswith("attn.q") for n in sites)


def _turning(q: Float[Tensor, "pos head d"]) -> Turning | None:
    """The pairing under which every pair keeps its length while it turns steadily; None where there is none."""
    scale = q.norm(dim=-1).mean()
    moving = ((q - q[:1]).abs().amax((0, 1)) > STILL * q.abs().amax((0, 1))).nonzero().flatten()
    if not len(moving) or len(moving) % 2:
        return None
    half = len(moving) // 2
    for pairs in (torch.stack([moving[:half], moving[half:]], 1), moving.reshape(half, 2)):
        x, y = q[..., pairs[:, 0]], q[..., pairs[:, 1]]
        length = x.square() + y.square()
        if float((length - length[:1]).abs().max()) > 1e-4 * float(scale) ** 2:
            continue
        step = torch.atan2(x[:-1] * y[1:] - y[:-1] * x[1:], x[:-1] * x[1:] + y[:-1] * y[1:])
        weight = length[:-1]
        g = (step * weight).sum((0, 1)) / weight.sum((0, 1)).clamp(min=1e-300)
        order = g.abs().argsort(descending=True, stable=True)
        return Turning(pairs[order], g.abs()[order])
    return None


@dataclass(frozen=True, eq=False)
class Usage:
    """The mean lengths of each pair in the queries and keys of every head, [head, pair], and how fast the pair turns.

    ‖q^(k)‖ ‖k^(k)‖ bounds what pair k adds to a logit, before the scale.
    """

    q: dict[str, Float[Tensor, "head pair"]]
    k: dict[str, Float[Tensor, "head pair"]]
    turning: dict[str, Turning]

    def to_frame(self) -> pd.DataFrame:
        """One row an attention, head and pair: attention, head, pair, frequency, q, k (the key head of its group)."""
        import pandas as pd

        rows = []
        for role, q in self.q.items():
            k = self.k[role].repeat_interleave(len(q) // len(self.k[role]), 0)
            g = self.turning[role].g.tolist()
            rows += [[role, h, i, g[i], float(q[h, i]), float(k[h, i])] for h in range(len(q)) for i in range(len(g))]
        return pd.DataFrame(rows, columns=["attention", "head", "pair", "frequency", "q", "k"])

    def plot(self) -> go.Figure:
        """Pairs across, the fastest first, attentions upwards: the mean length in the queries over heads."""
        import plotly.graph_objects as go

        from interp.lenses.trajectory import short_names

        z = [q.mean(0).tolist() for q in self.q.values()]
        heat = go.Heatmap(z=z, y=short_names(list(self.q)), colorscale="Blues", colorbar={"title": "mean ‖q‖"})
        axes = {"xaxis": {"title": "pair, the fastest first"}, "template": "plotly_white"}
        return go.Figure(heat).update_layout(title="How rotary frequencies are used", **axes)


@teaches
@torch.no_grad()
def usage(model: Model, x: Any) -> Usage:
    """Mean over real tokens of √(q_a² + q_b²) for each pair (a, b) that turns together, in queries and keys.

    Raises `WrongUse` for a model whose queries do not turn.
    """
    found = turning(model)
    cache = model.record(x, [f"{role}.{side}" for role in found for side in ("q", "k")])

    def lengths(site: str, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "head pair"]:
        rows = cache.rows(site).double().cpu()
        return (rows[..., pairs[:, 0]].square() + rows[..., pairs[:, 1]].square()).sqrt().mean(0)

    q, k = ({role: lengths(f"{role}.{side}", t.pairs) for role, t in found.items()} for side in ("q", "k"))
    return Usage(q, k, found)


# ---------------------------------------------------------------- what does not hold


@dataclass(frozen=True, eq=False)
class Decay:
    """Logits over distance that answer the claim "rotary positions decay with distance", each over √d.

    `alike`: q = k all ones, where the claim comes from; `peaked`: a key made to be largest at distance `at`; `mean` and `error`:
    of Gaussian q and k, over draws, which is 0 at every distance.
    """

    distance: tuple[int, ...]
    alike: Float[Tensor, " distance"]
    peaked: Float[Tensor, " distance"]
    mean: Float[Tensor, " distance"]
    error: Float[Tensor, " distance"]
    at: int

    def to_frame(self) -> pd.DataFrame:
        """One row a distance: distance, alike, peaked, mean, error."""
        import pandas as pd

        names = ("alike", "peaked", "mean", "error")
        return pd.DataFrame({"distance": list(self.distance), **{n: getattr(self, n).tolist() for n in names}})

    def plot(self) -> go.Figure:
        """The three curves."""
        import plotly.graph_objects as go

        figure = go.Figure()
        figure.add_scatter(x=self.distance, y=self.alike.tolist(), name="q = k = 1: falls, then waves")
        figure.add_scatter(x=self.distance, y=self.peaked.tolist(), name=f"a key for distance {self.at}")
        bars = {"array": (4 * self.error).tolist(), "thickness": 1}
        figure.add_scatter(
            x=self.distance, y=self.mean.tolist(), name="mean of Gaussian q, k, ± 4 errors", error_y=bars
        )
        axes = {"xaxis": {"title": "distance"}, "yaxis": {"title": "q · k / √d"}}
        return figure.update_layout(title="Rotary positions need not decay", template="plotly_white", **axes)


def decay(
    distance: Sequence[int], *, at: int, d: int = 64, base: float = 10000.0, draws: int = 4096, seed: int = 0
) -> Decay:
    """For any q and r the key k = ρ^r q, turned back by its distance, gives its largest logit ‖q‖² at distance r.

    With g_k ≠ 0 that peak is the only one in reach. Gaussian q, k give E[q · ρ^r k] = 0 at every r.
    """
    g, place = frequencies(d, base), torch.tensor([float(r) for r in distance], dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(d, generator=draw, dtype=torch.float64)
    ones = torch.ones(d, dtype=torch.float64)

    def logits(q: Tensor, k: Tensor) -> Float[Tensor, " distance"]:
        return rotate(k.expand(len(place), -1), -place, g) @ q / d**0.5  # a key at i - r, seen from i

    key = rotate(q[None], torch.tensor([float(at)], dtype=torch.float64), g)[0]
    many = torch.randn(2, draws, d, generator=draw, dtype=torch.float64)
    scores = torch.stack([(rotate(many[1], -r.expand(draws), g) * many[0]).sum(-1) / d**0.5 for r in place])
    mean, error = scores.mean(1), scores.std(1) / draws**0.5
    return Decay(tuple(distance), logits(ones, ones), logits(q, key), mean, error, at)
