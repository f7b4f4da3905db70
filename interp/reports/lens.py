"""The page of a lens: tokens across, sites upwards, the likeliest token in each cell, the others on hover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.lenses.trajectory import short_names
from interp.reports.charts import Curve, LineChart
from interp.reports.page import SHADES, Shown, Table, write_report
from interp.reports.words import parts, visible

if TYPE_CHECKING:
    from interp.lenses import Trajectory

LONGEST = 96  # tokens on a page
LEAD = "What each site of the model would say, read through its own head."
LEADS = {
    "tuned": "What each layer would say, read through a translator trained for it and the model’s own head.",
    "shortcut": "What each layer would say if the layers above were one linear map, fitted by least squares.",
    "jacobian": "What each state is disposed to make the model say: carried to the last stream by the average derivative.",
    "future": "What each state says of the tokens to come: +1 is the next token, +2 and +3 those after it.",
    "attention": "What each head writes, read through a map trained for it and the model’s own head.",
    "patchscope": "What the model says when each state stands at the last token of another prompt.",
    "backward": "Which way a step of gradient descent would move each site, read through the model’s own head.",
    "decoder": "What the whole decoder says when each layer of the encoder stands in place of its last.",
    "class": "What each token of the picture says of the classes, read through the classifier’s own head.",
}


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
    return escape(visible_text(word))


@dataclass(frozen=True)
class Pictures:
    """Grids of numbers from `low` to `high`, side by side, each in the shape of a picture; darker is more."""

    caption: str
    names: Sequence[str]
    grids: Sequence[Sequence[Sequence[float]]]
    low: float
    high: float

    def html(self) -> str:
        """A small table for each, the numbers on hover."""
        figures = "".join(map(self._figure, self.names, self.grids))
        scale = "".join(f'<bdi class="a{i}">&nbsp;</bdi>' for i in range(1, SHADES + 1))
        key = f'{self.low:.2g} <span aria-hidden="true">{scale}</span> {self.high:.2g}'
        return f'<h2>{escape(self.caption)}</h2><div class="pictures">{figures}</div><p class="key">{key}</p>'

    def _figure(self, name: str, grid: Sequence[Sequence[float]]) -> str:
        rows = "".join(f"<tr>{''.join(map(self._cell, row))}</tr>" for row in grid)
        return f'<figure><table class="picture">{rows}</table><figcaption>{escape(name)}</figcaption></figure>'

    def _cell(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return f'<td class="a{max(1, min(SHADES, round(SHADES * share)))}" title="{value:.3f}"></td>'


def write_lens(
    path: str | Path, trajectory: Trajectory, facts: dict[str, str], more: Mapping[str, Any] | None = None
) -> None:
    """Write one prompt's trajectory as a page that needs nothing else; every token is escaped and shown in full.

    Of a longer text the first 96 tokens are shown; the curves are means over all. `more`: what `interp lens` adds for some
    kinds, a decoder's "layers", a picture's "picture", "label", "identifiability" and "importance". Raises `OSError` if
    it cannot be written.
    """
    t, kind = trajectory, trajectory.kind
    steps = list(range(len(t.sites)))
    means = {"entropy": t.entropy, "KL(model ‖ lens)": t.kl_forward, "cross-entropy": t.cross_entropy}
    curves = [_curve(name, steps, [float(row.nanmean()) for row in value.double()]) for name, value in means.items()]
    chart = LineChart("Means over tokens", "site, counted from the first", [c for c in curves if c.y])
    write_report(
        path,
        f"{kind[:1].upper()}{kind[1:]} lens",
        lead=LEADS.get(kind, LEAD),
        facts=facts,
        highlights=_tiles(t),
        tables=[Grid("The likeliest token at each site", _first(t)), *_more(t, more or {})],
        charts=[chart] if chart.curves and len(steps) > 1 else [],
    )


def _tiles(t: Trajectory) -> list[tuple[str, str, str]]:
    share = [float(row.double().mean()) for row in t.agreement]
    half = next((name for name, s in zip(short_names(t.sites), share, strict=True) if s >= 0.5), "nowhere")
    return [
        ("tokens", f"{len(t.pos):,}", "read"),
        ("half decided", half, "first site at which half of the tokens’ predictions are the model’s own"),
        ("at the start", f"{share[0]:.0%}", "of them are the model’s own"),
    ]


def _more(t: Trajectory, more: Mapping[str, Any]) -> list[Shown]:
    """What the decoder writes from each layer; the picture's tokens, layer by layer."""
    found: list[Shown] = []
    if "layers" in more:
        rows = [[short_names([r["site"]])[0], r["error_rate"], visible_text(r["text"])] for r in more["layers"]]
        found.append(Table("What the decoder writes from each layer", ("layer", "error rate", "text"), rows))
    if "picture" in more:
        first, rows, columns = (more["picture"][n] for n in ("first", "rows", "columns"))
        grids = [[seen[first + r * columns :][:columns] for r in range(rows)] for seen in more["identifiability"]]
        caption = f"How well each token says {more['label']!r}: 1 where it is the likeliest class"
        found.append(Pictures(caption, short_names(t.sites), grids, 0.0, 1.0))
        if more.get("importance") is not None:
            drop = more["importance"]
            ends = min(0.0, *map(min, drop)), max(1e-3, *map(max, drop))
            found.append(Pictures("How much the probability falls without each token", ["importance"], [drop], *ends))
    return found


def visible_text(text: str) -> str:
    """As `visible`, as plain text: a table escapes its cells."""
    return "".join(run for run, _ in parts(text)) if text else ""


def _curve(name: str, x: list[int], y: list[float]) -> Curve:
    """On a logarithmic axis: what is above nothing at all."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b > 1e-3]
    return Curve(name, [a for a, _ in kept], [b for _, b in kept])


def _first(t: Trajectory) -> Trajectory:
    if len(t.pos) <= LONGEST:
        return t
    return t.at(slice(LONGEST))
