"""A lens over much text: the mean of each value at each site, with bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.lenses.trajectory import VALUES, Trajectory, short_names

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Averages:
    """Sums and counts of each value over the tokens of each window of text; a mean is Σ sums / Σ counts.

    Values: those of a trajectory (`agreement` is a share; where a value is NaN the token is not counted).
    """

    kind: str
    sites: tuple[str, ...]
    sums: dict[str, Float[Tensor, "window site"]]
    counts: dict[str, Float[Tensor, "window site"]]

    @property
    def tokens(self) -> int:
        """How many tokens were read."""
        return int(self.counts["entropy"][:, 0].sum())

    def mean(self, value: str) -> Float[Tensor, " site"]:
        """The mean over all tokens. Raises `WrongUse` for an unknown value."""
        self._check(value)
        return self.sums[value].sum(0) / self.counts[value].sum(0)

    def band(self, value: str, share: float = 0.95, seed: int = 0) -> Float[Tensor, "2 site"]:
        """The middle `share` of the means of 1000 samples of the windows, drawn with replacement (Efron 1979)."""
        self._check(value)
        return interval(self.sums[value], self.counts[value], share, seed)

    def less(self, other: Averages, value: str) -> tuple[Float[Tensor, " site"], Float[Tensor, "2 site"]]:
        """(Mean difference to another lens over the same windows, its 95 % band): negative where this one's is lower.

        Raises `WrongUse` if the two did not read the same sites of the same windows.
        """
        self._check(value)
        if self.sites != other.sites or not torch.equal(self.counts[value], other.counts[value]):
            raise WrongUse("the two lenses read other sites, or other text: give both the same of both.")
        sums, counts = self.sums[value] - other.sums[value], self.counts[value]
        return sums.sum(0) / counts.sum(0), interval(sums, counts)

    def to_frame(self) -> pd.DataFrame:
        """One row a site and value: site, value, mean, low, high."""
        import pandas as pd

        rows = []
        for value in self.sums:
            low, high = self.band(value).tolist()
            rows += [
                [*r] for r in zip(self.sites, [value] * len(low), self.mean(value).tolist(), low, high, strict=True)
            ]
        return pd.DataFrame(rows, columns=["site", "value", "mean", "low", "high"])

    def plot(self, value: str = "kl_forward") -> go.Figure:
        """The mean from site to site with its 95 % band."""
        import plotly.graph_objects as go

        x, (low, high) = short_names(self.sites), self.band(value).tolist()
        figure = go.Figure()
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=x, y=high, **edge)
        figure.add_scatter(x=x, y=low, fill="tonexty", fillcolor="rgba(31,95,139,.2)", **edge)
        figure.add_scatter(x=x, y=self.mean(value), name=self.kind, mode="lines+markers", line={"color": "#1f5f8b"})
        title = f"{self.kind[:1].upper()}{self.kind[1:]} lens over {self.tokens:,} tokens"
        return figure.update_layout(title=title, template="plotly_white", yaxis={"title": VALUES[value]})

    def _check(self, value: str) -> None:
        if value not in self.sums:
            raise WrongUse(f"there is no mean of {value!r}.{nearest(value, self.sums)} Known: {', '.join(self.sums)}.")


def interval(
    sums: Float[Tensor, "window site"], counts: Float[Tensor, "window site"], share: float = 0.95, seed: int = 0
) -> Float[Tensor, "2 site"]:
    """Bootstrap interval of Σ sums / Σ counts over windows: the quantiles (1 ∓ share) / 2 of resampled ratios."""
    n = len(counts)
    drawn = torch.randint(n, (DRAWS, n), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(DRAWS, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(DRAWS, n, dtype=torch.float64))
    means = (times @ sums.double()) / (times @ counts.double())
    return means.quantile(torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64), dim=0)


def averages(parts: Sequence[Trajectory]) -> Averages:
    """The windows of several trajectories, each prompt one. Raises `WrongUse` if there is none."""
    if not parts:
        raise WrongUse("the text is empty: there is no window to read.")
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, list[Tensor]] = {}
    for part in parts:
        size = int(part.prompt.max()) + 1
        for value in VALUES:
            x = getattr(part, value).double()
            if value in ("rank", "agreement"):  # these are no NaN where the model says nothing to compare with
                x = x.masked_fill(part.finals < 0, torch.nan)
            known = ~x.isnan()
            total = x.new_zeros(size, len(x)).index_add_(0, part.prompt, x.nan_to_num().T)
            sums.setdefault(value, []).append(total)
            counts.setdefault(value, []).append(x.new_zeros(size, len(x)).index_add_(0, part.prompt, known.T.double()))
    joined = {v: torch.cat(t) for v, t in sums.items()}, {v: torch.cat(t) for v, t in counts.items()}
    return Averages(parts[0].kind, parts[0].sites, *joined)
