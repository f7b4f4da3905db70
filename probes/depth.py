"""Representations of earlier layers, brought back: depth-weighted averages of the stream, and keys and values routed from below.

Both are edits of a model that is left as it is, so that at their starting weights it says what it said, bit for bit. Sources:
DenseFormer (Pagliardini et al. 2024, arXiv:2402.02622) and LIMe (Gerasimov et al. 2025, arXiv:2502.09245).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.edits import Edit, Replace

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.model.model import Model


def _stack(model: Model) -> list[str]:
    stacks = model.wiring.stacks
    if len(stacks) != 1:
        raise WrongUse(f"{model.id} has {len(stacks)} stacks of blocks; weights over depth are of models with one.")
    return [f"{stacks[0].prefix}blocks.{i}" for i in range(len(stacks[0].blocks))]


# ---------------------------------------------------------------- depth-weighted averages


def depth_weights(layers: int) -> Float[Tensor, "layer site"]:
    """α to start from: Y_i = X_i. Row i - 1 is of block i, column j of X_j; X_0 is what the first block receives."""
    return torch.eye(layers + 1, dtype=torch.float64)[1:].clone()


@contextmanager
def depth_weighted(
    model: Model, alpha: Float[Tensor, "layer site"], *, dilation: int = 1, period: int = 1
) -> Iterator[Model]:
    """Y_i = Σ_{j ≤ i} α_ij X_j in place of what block i returns, X_i = B_i(Y_{i-1}), X_0 = Y_0 the embedding (DenseFormer).

    `dilation` k leaves only the terms j = i mod k, `period` p averages after every p-th block only. Differentiable in α.
    Raises `WrongUse` for weights of another shape, or a dilation or period below 1.
    """
    blocks = _stack(model)
    if alpha.shape != (len(blocks), len(blocks) + 1) or min(dilation, period) < 1:
        raise WrongUse(
            f"α is [{len(blocks)}, {len(blocks) + 1}] here and is {tuple(alpha.shape)}; dilation and period are 1 or more."
        )
    outputs: list[Tensor] = []  # X_j, not Y_j

    def first(x: Tensor) -> Tensor:
        outputs[:] = [x]
        return x

    def averaged(i: int) -> Edit:
        def replace(x: Tensor) -> Tensor:
            outputs.append(x)
            if i % period:
                return x
            return torch.stack([alpha[i - 1, j].to(x) * outputs[j] for j in range(i % dilation, i + 1, dilation)]).sum(
                0
            )

        return Replace(f"{blocks[i - 1]}.resid_post", replace)

    edits = [Replace(f"{blocks[0]}.resid_pre", first), *(averaged(i) for i in range(1, len(blocks) + 1))]
    with model.edit(*edits):
        yield model


# ---------------------------------------------------------------- routed keys and values


def routers(layers: int, heads: int, off: float = 0.0, seed: int = 0) -> list[Float[Tensor, "head layer_head"]]:
    """R_l [H_kv, l H_kv] to start from: the identity on a layer's own heads, elsewhere U(±√(3/fan-in)) times `off`."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for layer in range(1, layers + 1):
        r = torch.rand(heads, layer * heads, generator=draw, dtype=torch.float64) * 2 - 1
        r = off * r * (3 / (layer * heads)) ** 0.5
        r[:, -heads:] = torch.eye(heads, dtype=torch.float64)
        made.append(r)
    return made


@contextmanager
def routed(model: Model, R: list[Float[Tensor, "head layer_head"]]) -> Iterator[Model]:
    """Layer l's keys and values are Σ R_l[h, (l', h')] of those that layers l' ≤ l made, keys before the rotation (LIMe).

    Nothing is normalised, and the first layer keeps its own. Key-value heads are routed, so grouped queries go with them.
    Differentiable in R. Raises `WrongUse` for layers of other numbers of heads, or routers of other shapes.
    """
    blocks, table = _stack(model), model.sites()
    missing = [f"{b}.attn.{s}" for b in blocks for s in ("k_raw", "v") if f"{b}.attn.{s}" not in table]
    if missing:
        raise WrongUse(f"{model.id} has no {missing[0]!r}: keys and values are routed between layers of attention.")
    shapes = {table[f"{b}.attn.{s}"][2:] for b in blocks for s in ("k_raw", "v")}
    heads = next(iter(shapes))[0]
    if len(shapes) > 1 or [tuple(r.shape) for r in R] != [(heads, (i + 1) * int(heads)) for i in range(len(blocks))]:
        raise WrongUse(
            f"R_l is [{heads}, l · {heads}], l = 1 … {len(blocks)}, of layers with heads of one size; there are {shapes} "
            f"and {[tuple(r.shape) for r in R]}."
        )
    with model.edit(*(e for site in ("k_raw", "v") for e in _routed_edits(blocks, site, R))):
        yield model


def _routed_edits(blocks: list[str], site: str, R: list[Tensor]) -> list[Edit]:
    made: list[Tensor] = []  # keys, or values, of the layers below

    def edit(i: int) -> Edit:
        def mix(x: Tensor) -> Tensor:
            made[i:] = [x]
            return x if i == 0 else torch.einsum("hn,bpnd->bphd", R[i].to(x), torch.cat(made, dim=2))

        return Replace(f"{blocks[i]}.attn.{site}", mix)

    return [edit(i) for i in range(len(blocks))]
