"""Linear shortcut: the last stream as a linear map of an earlier one, by least squares, and read by the head.

ĥ_L = h_l + W_l h_l + b_l with (W_l, b_l) = argmin Σ ‖h_L - ĥ_L‖², from sums over the text alone.
Source: Yom Din et al. 2023 (arXiv:2303.09435, "Jump to Conclusions").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.tuned import TunedLens
from interp.model.model import Model
from interp.store.recording import batches

if TYPE_CHECKING:
    from jaxtyping import Float


class Shortcut(TunedLens):
    """A lens of least-squares maps to the last stream; saved and loaded as a tuned lens is."""

    kind = "shortcut"


@torch.no_grad()
def fit_shortcut(
    model: Model,
    texts: Iterable[str],
    *,
    ridge: float = 1e-6,
    context: int = 256,
    batch: int = 8,
    tokens: int | None = None,
) -> Shortcut:
    """Fit every layer's map on texts. `ridge` times the mean square of the layer's states keeps directions that hardly occur
    at the identity; sums are kept in float64. Raises `WrongUse` if there is no text.
    """
    lens = Shortcut(model)
    d, count = model.width(lens.head.last), 0
    sums = torch.zeros(len(lens.sites), d + 1, 2 * d + 1, dtype=torch.float64, device=model.device)
    for _, group in batches(model, texts, context, batch):
        last, states = _read(lens, group)
        for layer, h in enumerate(states):
            x = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
            sums[layer] += x.T @ torch.cat([x, last - h], dim=1)  # [XᵀX | Xᵀ(Y - X)]: what is added to the identity
        count += len(last)
        if tokens is not None and count >= tokens:
            break
    if not count:
        raise WrongUse("the text is empty: there is nothing to fit a shortcut on.")
    for layer, terms in enumerate(sums):
        shift = ridge * terms.diagonal()[:d].mean() * torch.eye(d + 1, dtype=terms.dtype, device=terms.device)
        shift[d, d] = 0.0  # the intercept is free
        solved = torch.linalg.solve(terms[:, : d + 1] + shift, terms[:, d + 1 :])
        lens.W[layer], lens.b[layer] = solved[:d].T.to(lens.W[layer]), solved[d].to(lens.b[layer])
    return lens


@torch.no_grad()
def explained(
    lens: TunedLens, texts: Iterable[str], *, context: int = 256, batch: int = 8
) -> dict[str, Float[Tensor, " layer"]]:
    """R² = 1 - Σ ‖h_L - ĥ_L‖² / Σ ‖h_L - mean h_L‖² of each layer over texts: of the lens's maps, and of the "identity"."""
    off = torch.zeros(2, len(lens.sites), dtype=torch.float64)
    total, square, count = torch.zeros(lens.model.width(lens.head.last), dtype=torch.float64), 0.0, 0
    for _, group in batches(lens.model, texts, context, batch):
        last, states = _read(lens, group)
        for layer, h in enumerate(states):
            for row, guess in enumerate((lens.translated(layer, h), h)):
                off[row, layer] += float((last - guess).square().sum())
        total, square, count = total + last.sum(0).cpu(), square + float(last.square().sum()), count + len(last)
    if not count:
        raise WrongUse("the text is empty: there is nothing to measure on.")
    spread = square - float(total.square().sum()) / count
    r2 = 1 - off / spread
    return {lens.kind: r2[0], "identity": r2[1]}


def _read(lens: TunedLens, group: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
    """(The last states of real tokens, their states at each site), in float64."""
    tokens = lens.model.pad(group)
    cache = lens.model.record(tokens, [*lens.sites, lens.head.last])
    mask = tokens.mask.to(cache[lens.head.last].device)
    return cache[lens.head.last][mask].double(), [cache[s][mask].double() for s in lens.sites]
