"""Linear shortcut: the last stream as a linear map of an earlier one, by least squares, and read by the head.

ĥ_L = h_l + W_l h_l + b_l with (W_l, b_l) = argmin Σ ‖h_L - ĥ_L‖², from sums over the text alone.
Source: Yom Din et al. 2023 (arXiv:2303.09435, "Jump to Conclusions").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.affine import AffineLens
from interp.lenses.fitting import Job, once, pairs
from interp.model.model import Model, Tokens

if TYPE_CHECKING:
    from jaxtyping import Float

RIDGE = 1e-3  # keeps directions that hardly occur at the identity


class Shortcut(AffineLens):
    """A lens of least-squares maps to the last stream."""

    kind = "shortcut"


class LeastSquares:
    """W, b = argmin Σ ‖h_L - (h + W u + b)‖² of every row of a lens, from sums in float64.

    `ridge` times the mean square of the row's states keeps directions that hardly occur at the identity.
    """

    def __init__(self, lens: AffineLens, ridge: float) -> None:
        self.lens, self.ridge = lens, ridge
        d, sizes = len(lens.b[0]), [w.shape[1] for w in lens.W]
        self.sums = [torch.zeros(n + 1, n + 1 + d, dtype=torch.float64, device=lens.model.device) for n in sizes]

    def step(self, group: list[Tokens]) -> dict[str, float]:
        """[XᵀX | Xᵀ(Y - H)] of these windows, X the states with a 1 beside them: what is added to the identity."""
        for tokens in group:
            for layer, (row, x, last) in enumerate(pairs(self.lens, tokens)):
                h, u = self.lens.split(row, x)
                u = torch.cat([u, u.new_ones(len(u), 1)], dim=1)
                self.sums[layer] += u.T @ torch.cat([u, last - h], dim=1)
        return {}

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        return dict(zip(self.lens.sites, self.sums, strict=True))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Other sums."""
        self.sums = [state[row].to(self.lens.model.device) for row in self.lens.sites]

    @torch.no_grad()
    def finish(self) -> None:
        """Solve for the maps."""
        for layer, terms in enumerate(self.sums):
            n = len(terms) - 1
            shift = self.ridge * terms.diagonal()[:n].mean() * torch.eye(n + 1, dtype=terms.dtype, device=terms.device)
            shift[n, n] = 0.0  # the intercept is free
            solved = torch.linalg.solve(terms[:, : n + 1] + shift, terms[:, n + 1 :])
            self.lens.W[layer].copy_(solved[:n].T)
            self.lens.b[layer].copy_(solved[n])


def fit_shortcut(
    model: Model,
    texts: Iterable[str],
    out: str | Path | None = None,
    *,
    ridge: float = RIDGE,
    context: int = 256,
    tokens: int | None = None,
    resume: bool = False,
) -> Shortcut:
    """Fit every layer's map on the first `tokens` tokens of texts, read once; every tenth window is kept out of it.

    With `out`, save the lens there; interrupted, `resume` goes on. Raises `WrongUse` if there is no text.
    """
    lens = Shortcut(model)
    squares(lens, texts, ridge=ridge, context=context, tokens=tokens).run(out, resume)
    return lens


def squares(lens: AffineLens, texts: Iterable[str], *, ridge: float, context: int, tokens: int | None) -> Job:
    """The maps of any affine lens by least squares."""
    about = {"kind": lens.kind, "ridge": ridge, "context": context, "tokens": tokens}
    return Job(LeastSquares(lens, ridge), once(lens.model, texts, context, tokens), about)


def explained(
    lens: AffineLens, texts: Iterable[str], *, context: int = 256, tokens: int | None = None, held_out: bool = False
) -> dict[str, Float[Tensor, " layer"]]:
    """R² = 1 - Σ ‖h_L - ĥ_L‖² / Σ ‖h_L - mean h_L‖² of each layer over texts: of the lens's maps, and of the "identity".

    `held_out`: over the windows alone that a fit with the same `texts`, `context` and `tokens` keeps out of it.
    """
    n = len(lens.sites)
    off, square, count = torch.zeros(2, n, dtype=torch.float64), [0.0] * n, [0] * n
    total = torch.zeros(n, len(lens.b[0]), dtype=torch.float64)
    for group in once(lens.model, texts, context, tokens, held_out or None):
        for layer, (row, x, last) in enumerate(pairs(lens, group[0])):
            for which, guess in enumerate((lens.translated(layer, x), lens.split(row, x)[0])):
                off[which, layer] += float((last - guess).square().sum())
            total[layer] += last.sum(0).cpu()
            square[layer] += float(last.square().sum())
            count[layer] += len(last)
    if not all(count):
        raise WrongUse("the text is empty: there is nothing to measure on.")
    spread = [q - float(t.square().sum()) / c for q, t, c in zip(square, total, count, strict=True)]
    r2 = 1 - off / torch.tensor(spread, dtype=torch.float64)
    return {lens.kind: r2[0], "identity": r2[1]}
