"""Jacobian lens: a state carried to the last stream by the average derivative of the blocks in between.

J_l = E_t [ Σ_{t' ≥ t} ∂h_L(t') / ∂h_l(t) ],  ĥ_L = E h_L + J_l (h_l - E h_l), and the head reads ĥ_L: what a state is
disposed to make the model say, now or later. Source: Gurnee et al. 2026 ("Verbalizable Representations Form a Global
Workspace in Language Models", transformer-circuits.pub/2026/workspace), who read J_l h_l; with the means beside it the lens
is the first-order expansion around the mean state, exact where the blocks are affine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.affine import AffineLens
from interp.lenses.fitting import Job, once
from interp.model.model import Model, Tokens

SKIP = 16  # first positions of a window, where attention sinks are: left out, as the authors do
PASS = 2048  # tokens whose graph is kept for d_model backward passes


class JacobianLens(AffineLens):
    """The maps J_l as h + W_l h + b_l, with W_l = J_l - I and b_l = E h_L - J_l E h_l."""

    kind = "jacobian"


class Jacobians:
    """Sums of ∂h_L/∂h_l and of the states over real tokens from the `skip`-th of each window on, in float64."""

    def __init__(self, lens: AffineLens, skip: int = SKIP) -> None:
        self.lens, self.skip = lens, skip
        n, d = len(lens.sites), len(lens.b[0])
        self.slope = torch.zeros(n, d, d, dtype=torch.float64, device=lens.model.device)
        self.mean = torch.zeros(n + 1, d, dtype=torch.float64, device=lens.model.device)
        self.count = 0

    def step(self, group: list[Tokens]) -> dict[str, float]:
        """One forward pass and d_model backward passes for each batch: a one-hot cotangent at all its tokens at once."""
        lens = self.lens
        for tokens in group:
            zeros, states = lens.model.linked(tokens, lens.sites, lens.head.last)
            last, keep = states[lens.head.last], tokens.mask.to(states[lens.head.last].device).clone()
            keep[:, : self.skip] = False
            for i, total in enumerate(last[keep].sum(0)):
                slopes = torch.autograd.grad(total, list(zeros.values()), retain_graph=i + 1 < last.shape[-1])
                for layer, slope in enumerate(slopes):
                    self.slope[layer, i] += slope[keep].double().sum(0)
            for layer, site in enumerate([*lens.sites, lens.head.last]):
                self.mean[layer] += states[site].detach()[keep].double().sum(0)
            self.count += int(keep.sum())
        return {}

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        return {"slope": self.slope, "mean": self.mean, "count": torch.tensor([self.count])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Other sums."""
        self.slope, self.mean = (state[n].to(self.slope.device) for n in ("slope", "mean"))
        self.count = int(state["count"])

    @torch.no_grad()
    def finish(self) -> None:
        """The averages as maps."""
        if not self.count:
            raise WrongUse(
                f"no window is longer than {self.skip} tokens, and the first {self.skip} are left out: give longer text."
            )
        mean = self.mean / self.count
        for layer, slope in enumerate(self.slope / self.count):
            self.lens.W[layer].copy_(slope - torch.eye(len(slope), dtype=slope.dtype, device=slope.device))
            self.lens.b[layer].copy_(mean[-1] - slope @ mean[layer])


def fit_jacobian(
    model: Model,
    texts: Iterable[str],
    out: str | Path | None = None,
    *,
    context: int = 128,
    tokens: int | None = None,
    skip: int = SKIP,
    resume: bool = False,
) -> JacobianLens:
    """Average over the first `tokens` tokens of texts but every tenth window; `explained` says what the expansion leaves out.

    The authors use 1000 windows of 128 tokens and find little gain beyond 100. Saved and resumed as `fit_shortcut` does.
    Raises `WrongUse` if there is no text, or no window longer than `skip`.
    """
    lens = JacobianLens(model)
    jacobians(lens, texts, context=context, tokens=tokens, skip=skip).run(out, resume)
    return lens


def jacobians(lens: AffineLens, texts: Iterable[str], *, context: int, tokens: int | None, skip: int = SKIP) -> Job:
    """The average Jacobians over texts."""
    about = {"kind": lens.kind, "context": context, "tokens": tokens, "skip": skip}
    return Job(Jacobians(lens, skip), once(lens.model, texts, context, tokens, wide=PASS), about)
