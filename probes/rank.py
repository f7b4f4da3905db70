"""How attention loses rank, and the sum over paths that it is.

Dong, Cordonnier and Loukas 2021 (arXiv:2103.03404): without skip connections and MLPs the states of all positions become one,
doubly exponentially in depth. A stack of attention layers, patterns given, is a sum over paths: at each layer one head, or, with
skip connections, none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.edits import Edit, Replace, Zero
from probes.measures import rank_one_residual
from probes.windows import Data, batches, of_windows

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

    from interp.model.model import Model

VARIANTS = {
    "attention": "no skip connections, no MLPs",
    "attention + MLP": "no skip connections",
    "attention + skip": "no MLPs",
    "whole": "the model",
}


@dataclass(frozen=True, eq=False)
class RankCollapse:
    """‖X - 1 x̄ᵀ‖ / ‖X‖ of the stream of every variant of a model: before the first block, and after each."""

    residuals: dict[str, Float[Tensor, " site"]]
    sites: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a variant and site: variant, site, residual."""
        import pandas as pd

        rows = [[v, s, r] for v, row in self.residuals.items() for s, r in zip(self.sites, row.tolist(), strict=True)]
        return pd.DataFrame(rows, columns=["variant", "site", "residual"])

    def plot(self) -> go.Figure:
        """A line for every variant, on a logarithmic axis."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for variant, row in self.residuals.items():
            figure.add_scatter(y=row.tolist(), x=self.sites, name=variant, mode="lines+markers")
        axes = {"yaxis": {"type": "log", "title": "‖X - 1 x̄ᵀ‖ / ‖X‖"}, "template": "plotly_white"}
        return figure.update_layout(title="What is left beyond one state for all positions", **axes)


@torch.no_grad()
def rank_collapse(
    model: Model,
    data: Data,
    *,
    variants: Sequence[str] = tuple(VARIANTS),
    norm: str = "frobenius",
    context: int = 128,
    tokens: int = 1024,
    batch: int = 8,
) -> RankCollapse:
    """The rank-one residual of the stream of each variant of the model, the mean over windows.

    A skip connection is taken out by taking from a sublayer's write the stream that it is added to. Raises `WrongUse` for an
    unknown variant, and for blocks whose stream is not stream + write (post-norm, rescaled, parallel).
    """
    from interp.errors import check_keys

    check_keys(variants, VARIANTS, "the list of variants")
    blocks = _blocks(model)
    sites = (f"{blocks[0]}.resid_pre", *(f"{b}.resid_post" for b in blocks))
    found: dict[str, Tensor] = {}
    for variant in variants:
        rows: list[list[float]] = []
        for x, keep in batches(model, data, context, tokens, batch):
            cache = model.record(x, sites, edits=_edits(model, blocks, variant))
            states = [of_windows(cache[s], keep) for s in sites]
            rows += [[rank_one_residual(w, norm) for w in window] for window in zip(*states, strict=True)]
        found[variant] = torch.tensor(rows, dtype=torch.float64).mean(0)
    return RankCollapse(found, sites)


def _blocks(model: Model) -> list[str]:
    """Names of the blocks, if each is stream + attention, then + MLP."""
    table = model.sites()
    stacks = [s for s in model.wiring.stacks if f"{s.prefix}blocks.0.attn.write" in table]
    if len(stacks) != 1:
        raise WrongUse(
            f"{model.id} has {len(stacks)} stacks of blocks with attention; this is told of models with one."
        )
    blocks = [f"{stacks[0].prefix}blocks.{i}" for i in range(len(stacks[0].blocks))]
    for name in (f"{b}.{part}" for b in blocks for part in ("resid_mid", "mlp.write")):
        if name not in table or model.wiring.post_norm:
            raise WrongUse(
                f"{model.id} has no {name!r} that is the stream plus a write: skip connections are taken out of blocks "
                "that add attention, then an MLP, to the stream."
            )
    return blocks


def _edits(model: Model, blocks: Sequence[str], variant: str) -> list[Edit]:
    """What makes the variant of the model."""
    edits: list[Edit] = []
    for b in blocks:
        if variant in ("attention", "attention + MLP"):
            edits += _unskipped(f"{b}.resid_pre", f"{b}.attn.write")
        if variant == "attention + MLP":
            edits += _unskipped(f"{b}.resid_mid", f"{b}.mlp.write")
        if variant in ("attention", "attention + skip"):
            edits.append(Zero(f"{b}.mlp.write"))
    return edits


def _unskipped(stream: str, write: str) -> list[Edit]:
    """write ← write - stream, so that stream + write is what the sublayer wrote."""
    held: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        held[:] = [x]
        return x

    return [Replace(stream, keep), Replace(write, lambda w: w - held[0])]


# ---------------------------------------------------------------- paths


def paths(
    patterns: Float[Tensor, "layer head pos pos"], W: Float[Tensor, "layer head d d"], skip: bool
) -> list[tuple[tuple[int, ...], Float[Tensor, "pos pos"], Float[Tensor, "d d"]]]:
    """(Head of each layer, the product P of their patterns, the product of their W): what a path makes of X is P X W.

    W: W_V W_O of each head, so that a layer writes Σ_h P_h X W_h. -1: the skip connection. H^L paths, or (H + 1)^L with
    `skip`, of which C(L, k) H^k go through k heads.
    """
    layers, heads = patterns.shape[:2]
    n, d = patterns.shape[-1], W.shape[-1]
    found = []
    for choice in product(range(-1 if skip else 0, heads), repeat=layers):
        p, w = torch.eye(n, dtype=patterns.dtype), torch.eye(d, dtype=W.dtype)
        for layer, head in enumerate(choice):
            if head >= 0:
                p, w = patterns[layer, head] @ p, w @ W[layer, head]
        found.append((choice, p, w))
    return found


def by_length(
    patterns: Float[Tensor, "layer head pos pos"], W: Float[Tensor, "layer head d d"], x: Float[Tensor, "pos d"]
) -> Float[Tensor, "length pos d"]:
    """Σ over all paths through k heads of P X W, k = 0 … L, of a stack with skip connections: their sum is its output.

    From layer to layer: f_k ← f_k + Σ_h P_h f_{k-1} W_h, so its cost is that of L² layers, not of (H + 1)^L paths.
    """
    lengths = [x, *(torch.zeros_like(x) for _ in patterns)]
    for p, w in zip(patterns, W, strict=True):
        steps = [(p @ f @ w).sum(0) for f in lengths[:-1]]
        lengths = [lengths[0], *(f + s for f, s in zip(lengths[1:], steps, strict=True))]
    return torch.stack(lengths)


@torch.no_grad()
def path_residuals(
    patterns: Float[Tensor, "layer head pos pos"], *, samples: int = 100, seed: int = 0
) -> Float[Tensor, "samples layer"]:
    """‖P - 1 p̄ᵀ‖ / ‖P‖ of products P of one pattern a layer, up to each layer, the heads drawn at random: rank along paths."""
    draw = torch.Generator().manual_seed(seed)
    layers, heads = patterns.shape[:2]
    rows = []
    for _ in range(samples):
        p, row = torch.eye(patterns.shape[-1], dtype=torch.float64), []
        for layer, head in enumerate(torch.randint(heads, (layers,), generator=draw).tolist()):
            p = patterns[layer, head].double() @ p
            row.append(rank_one_residual(p))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def patterns_of(model: Model, x: Any, row: int = 0) -> Float[Tensor, "layer head pos pos"]:
    """The patterns of a run's prompt, in float64, of a model whose layers have as many heads each."""
    cache = model.record(x, "*blocks.*.attn.pattern")
    return torch.stack([cache[n][row].double().cpu() for n in cache])
