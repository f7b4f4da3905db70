"""Future lens: what a state says of the tokens after the next one.

ĥ_L(t + n - 1) = h_l(t) + W_{l,n} h_l(t) + b_{l,n}, and the head reads from it the token n further on: n = 1 is the next
token, and there the last block is the model. Least squares, the linear approximation of Pal et al. 2023 (arXiv:2311.04897),
is where training begins; alone it is far too sure, for the final norm scales an uncertain mean back to full length. So the
maps are trained on, for KL(p_model(t + n - 1) ‖ p).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.affine import AffineLens
from interp.lenses.lens import Lens
from interp.lenses.shortcut import RIDGE, LeastSquares
from interp.lenses.tuned import Descent, Recipe, descent
from interp.model.model import Model, Tokens
from interp.store.recording import windows

if TYPE_CHECKING:
    from jaxtyping import Float

AHEAD = (1, 2, 3)


class FutureLens(AffineLens):
    """A map of each site for every n of `AHEAD`, as rows SITE+3, SITE+2, SITE+1; the last of all is the model itself.

    A row is compared with what the model says where the token before the one meant stands: KL, rank, cross-entropy. Where
    the text ends before, these are NaN (rank 0).
    """

    kind = "future"

    @property
    def end(self) -> str:
        """The last block, one token ahead."""
        return f"{self.head.last}+1"

    def ahead(self, row: str) -> int:
        """n - 1."""
        return int(row.rpartition("+")[2]) - 1

    def rows(self, sites: Sequence[str] | None) -> list[str]:
        """Rows with a map: every n of every site, or those named."""
        if sites is None:
            return [row for row in _each(Lens.readable(self)) if row != self.end]
        return [row for row in self.named(sites) if row != self.end]

    def readable(self, sites: str | Sequence[str] | None = None) -> list[str]:
        """Rows of the sites asked for: SITE+2 is one, SITE every n."""
        if sites is None:
            return [*self.sites, self.end]
        return self.having(self.named([sites] if isinstance(sites, str) else sites))

    def named(self, sites: Sequence[str]) -> list[str]:
        """Rows that names or globs mean, furthest ahead first. Raises `WrongUse` for a site that cannot be read."""
        found = []
        for pattern in sites:
            name, plus, n = pattern.partition("+")
            if plus and n not in map(str, AHEAD):
                raise WrongUse(f"{pattern!r} looks {n or 'nowhere'} ahead: a future lens has +1, +2 and +3.")
            names = Lens.readable(self, name)
            found += [f"{site}+{n}" for site in names] if plus else _each(names)
        return sorted(dict.fromkeys(found), key=lambda row: -self.ahead(row))

    def states(
        self, inputs: dict[str, Any], names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch pos d"], dict[str, Float[Tensor, "batch pos d"]]]:
        """(The last stream, what stood at the site of each row)."""
        sites = {row: row.rpartition("+")[0] for row in names}
        last, states = super().states(inputs, list(dict.fromkeys(sites.values())))
        return last, {row: states[site] for row, site in sites.items()}


def _each(sites: Sequence[str]) -> list[str]:
    return [f"{site}+{n}" for n in reversed(AHEAD) for site in sites]


class FromLeastSquares(Descent):
    """Descent that begins at least squares: its first steps only add to the sums, until there are 16 tokens for each number a map
    reads, or half of the steps are taken.

    A state says little of later tokens as it stands: from zero, most steps would go into what this has at once.
    """

    def __init__(self, lens: AffineLens, recipe: Recipe) -> None:
        super().__init__(lens, recipe)
        self.start = LeastSquares(lens, RIDGE)
        self.fits = min(-(-16 * max(w.shape[1] for w in lens.W) // recipe.tokens), (recipe.steps + 1) // 2)

    def step(self, group: list[Tokens]) -> dict[str, float]:
        """One step of either."""
        if self.done >= self.fits:
            return super().step(group)
        self.start.step(group)
        self.done += 1
        if self.done == self.fits:
            self.start.finish()
        return {}

    def state(self) -> dict[str, Tensor]:
        """The sums too, while they are added to."""
        sums = self.start.state() if self.done < self.fits else {}
        return super().state() | {f"sums.{row}": t for row, t in sums.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Other ones."""
        super().restore({name: t for name, t in state.items() if not name.startswith("sums.")})
        if self.done < self.fits:
            self.start.restore({row: state[f"sums.{row}"] for row in self.lens.sites})


def train_future_lens(
    model: Model,
    texts: Iterable[str],
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
) -> FutureLens:
    """Train a `FutureLens`: least squares to the later last stream over the first of the recipe's steps, then descent.

    Saved and resumed as `train_tuned_lens` does. Raises `WrongUse` if there is no text.
    """
    lens = FutureLens(model)
    descent(FromLeastSquares(lens, recipe or Recipe()), texts).run(out, resume)
    return lens


def bigram(
    model: Model, texts: Iterable[str], n: int, *, context: int = 256, tokens: int | None = None
) -> Float[Tensor, "vocabulary vocabulary"]:
    """p(token n further on | token) from counts over texts, the baseline that a future lens has to beat.

    p(b | a) = (count(a, b) + p(b)) / (count(a) + 1), p(b) = (count(b) + 1) / (Σ count + vocabulary). Raises `WrongUse` if
    there is no text.
    """
    size = model.weights["W_U"].shape[1]
    counts, left = torch.zeros(size, size), tokens or float("inf")
    for _, ids in windows(model, texts, context):
        row = torch.tensor(ids)
        counts.view(-1).index_add_(0, row[:-n] * size + row[n:], torch.ones(max(0, len(ids) - n)))
        left -= len(ids)
        if left <= 0:
            break
    if not bool(counts.any()):
        raise WrongUse("the text is empty: there is nothing to count.")
    share = (counts.sum(0) + 1) / (counts.sum() + size)
    return (counts + share) / (counts.sum(1, keepdim=True) + 1)
