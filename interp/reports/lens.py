"""The page of a lens: tokens across, sites upwards, the likeliest token in each cell, the others on hover."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from interp.lenses.trajectory import short_names
from interp.reports.charts import Curve, LineChart
from interp.reports.page import SHADES, write_report
from interp.reports.words import parts, visible

if TYPE_CHECKING:
    from interp.lenses import Trajectory

LONGEST = 96  # tokens on a page


@dataclass(frozen=True)
class Grid:
    """What one prompt's trajectory looks like; the shade is the probability of the token shown."""

    caption: str
    trajectory: Trajectory

    def html(self) -> str:
        """The table, the last site at the top, and how to read it."""
        t = self.trajectory
        heads = "".join(f'<th scope="col" title="{p}"><bdi>{visible(w)}</bdi></th>' for p, w in _numbered(t))
        rows = "".join(self._row(i, name) for i, name in reversed(list(enumerate(short_names(t.sites)))))
        scale = "".join(f'<bdi class="a{i}">&nbsp;</bdi>' for i in range(1, SHADES + 1))
        key = f'probability: 0 <span aria-hidden="true">{scale}</span> 1; <b class="peak">outlined</b>: what the model itself ends with'
        caption = f"<caption>{escape(self.caption)}</caption>"
        table = f'<table class="lens">{caption}<tbody>{rows}</tbody><tfoot><tr><td></td>{heads}</tr></tfoot></table>'
        return f'<div class="wide">{table}</div><p class="key">{key}</p>'

    def _row(self, site: int, name: str) -> str:
        t = self.trajectory
        words, probs = t.words(t.top[site, :, 0].tolist()), t.prob[site].tolist()
        agrees = t.agreement[site].tolist()
        cells = (self._cell(site, i, *cell) for i, cell in enumerate(zip(words, probs, agrees, strict=True)))
        return f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'

    def _cell(self, site: int, i: int, word: str, prob: float, agrees: bool) -> str:
        t = self.trajectory
        best = zip(t.words(t.top[site, i].tolist()), t.top_log_prob[site, i].exp().tolist(), strict=True)
        told = "&#10;".join(f"{p:.3f}  {_plain(w)}" for w, p in best)
        numbers = f"entropy {t.entropy[site, i]:.2f}, KL {t.kl_forward[site, i]:.2f}, rank of the model’s own {t.rank[site, i]}"
        shade = f"a{max(1, min(SHADES, round(SHADES * prob)))}"
        return f'<td class="{shade}{" peak" if agrees else ""}" title="{told}&#10;{numbers}"><bdi>{visible(word)}</bdi></td>'


def _numbered(t: Trajectory) -> list[tuple[int, str]]:
    return list(zip(t.pos.tolist(), t.tokens, strict=True))


def _plain(word: str) -> str:
    """As `visible`, without the marks' own markup."""
    return escape("".join(run for run, _ in parts(word)))


def write_lens(path: str | Path, trajectory: Trajectory, facts: dict[str, str]) -> None:
    """Write one prompt's trajectory as a page that needs nothing else; every token is escaped and shown in full.

    Of a longer text the first 96 tokens are shown; the curves are means over all. Raises `OSError` if it cannot be written.
    """
    t, kind = trajectory, trajectory.kind
    steps = list(range(len(t.sites)))
    means = {"entropy": t.entropy, "KL(model ‖ lens)": t.kl_forward, "cross-entropy": t.cross_entropy}
    curves = [_curve(name, steps, [float(row.nanmean()) for row in value.double()]) for name, value in means.items()]
    chart = LineChart("Means over tokens", "site, counted from the first", [c for c in curves if c.y])
    share = [float(row.double().mean()) for row in t.agreement]
    half = next(name for name, s in zip(short_names(t.sites), share, strict=True) if s >= 0.5)
    tiles = [
        ("tokens", f"{len(t.pos):,}", "read"),
        ("half decided", half, "first site at which half of the tokens’ predictions are the model’s own"),
        ("at the start", f"{share[0]:.0%}", "of them are the model’s own"),
    ]
    shown = _first(t)
    write_report(
        path,
        f"{kind[:1].upper()}{kind[1:]} lens",
        lead="What each site of the model would say, read through its own head.",
        facts=facts,
        highlights=tiles,
        tables=[Grid("The likeliest token at each site", shown)],
        charts=[chart] if chart.curves and len(steps) > 1 else [],
    )


def _curve(name: str, x: list[int], y: list[float]) -> Curve:
    """On a logarithmic axis: what is above nothing at all."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b > 1e-3]
    return Curve(name, [a for a, _ in kept], [b for _, b in kept])


def _first(t: Trajectory) -> Trajectory:
    if len(t.pos) <= LONGEST:
        return t
    return t.at(slice(LONGEST))
