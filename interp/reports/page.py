"""One HTML file that shows results and needs nothing else: no scripts, no fonts, no pictures from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from interp.files import write_text
from interp.reports.charts import Bars, Chart, Curve, LineChart, Scale, histogram
from interp.reports.latents import Context, Latent, LatentExamples
from interp.reports.words import visible

__all__ = ["Bars", "Curve", "LineChart", "Scale", "Table", "write_report"]

SHADES = 10  # of the highlight; a token's is its activation's share of the latent's maximum

NUMBER = ' class="number"'
Cell = str | int | float | None


class Shown(Protocol):
    """What makes HTML of itself."""

    def html(self) -> str:
        """The piece of a page, all text escaped."""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. Numbers are rounded to be read; `note` stands below."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def html(self) -> str:
        """The table; cells that are numbers are set to the right."""
        head = "".join(self._head(column, name) for column, name in enumerate(self.header))
        body = "".join(f"<tr>{_row(row)}</tr>" for row in self.rows)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        caption = f"<caption>{escape(self.caption)}</caption>"
        return (
            f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'
        )

    def _head(self, column: int, name: str) -> str:
        text = any(isinstance(row[column], str) for row in self.rows)
        return f'<th scope="col"{"" if text else NUMBER}>{escape(name)}</th>'


def write_report(
    path: str | Path,
    title: str,
    *,
    lead: str = "",
    facts: Mapping[str, str] | None = None,
    highlights: Sequence[tuple[str, str, str]] = (),
    tables: Sequence[Shown] = (),
    charts: Sequence[Chart] = (),
    latents: LatentExamples | None = None,
    about_latents: str = "",
) -> None:
    """Write a self-contained page: what was run (`facts`), numbers, charts, and latents with their contexts.

    `highlights` are (name, number, remark). All text is escaped and every character of a token shows, control and
    bidirectional marks as their code points. The page fetches nothing, runs nothing, and its content security policy
    forbids both. Raises `OSError` if it cannot be written; a page that was there before is then as it was.
    """
    parts = [_header(title, lead), _highlights(highlights)]
    parts += [f'<section class="card">{table.html()}</section>' for table in tables]
    parts += [
        f'<section class="card"><h2>{escape(c.title)}</h2><div class="wide">{c.svg()}</div></section>' for c in charts
    ]
    if latents is not None:
        parts += _latents(latents, about_latents)
    parts.append(_facts(facts or {}))
    body = "\n".join(p for p in parts if p)
    write_text(path, document(title, f"<main>\n{body}\n</main>"))


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page that fetches nothing and runs no script but `script`, which its policy names by its hash."""
    shared = (files("interp.reports") / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    runs = f"script-src 'sha256-{digest}'; " if script else ""
    policy = f"default-src 'none'; {runs}style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    end = f"<script>{script}</script>\n" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{shared}{style}</style>
</head>
<body>
{body}
{end}</body>
</html>
"""


def _header(title: str, lead: str) -> str:
    return f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'


def _highlights(highlights: Sequence[tuple[str, str, str]]) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(number)}<small>{escape(remark)}</small></dd></div>"
        for name, number, remark in highlights
    )
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<section class="card facts"><h2>What was run</h2><dl>{rows}</dl></section>' if rows else ""


def _row(row: Sequence[Cell]) -> str:
    cells = (f"<td{NUMBER}>{number(c)}</td>" if not isinstance(c, str) else f"<td>{escape(c)}</td>" for c in row[1:])
    return f'<th scope="row">{escape(str(row[0]))}</th>{"".join(cells)}'


def number(value: float | None) -> str:
    """A number as it is read: whole numbers with commas, others with three digits that matter; none is a dash."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


# ------------------------------------------------------------ latents


def _latents(examples: LatentExamples, about: str) -> list[str]:
    rows = "".join(_overview(latent) for latent in examples.latents)
    columns = {"Latent": "", "Density": NUMBER, "Strongest": NUMBER, "Fires most on": "", "Promotes": ""}
    heads = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in columns.items())
    scale = "".join(f'<bdi class="a{i}">&nbsp;</bdi>' for i in range(1, SHADES + 1))
    key = f'activation: 0 <span aria-hidden="true">{scale}</span> the latent’s strongest; the token shown is'
    start = f"""<section class="card"><h2 id="latents">Latents</h2><p>{escape(about)}</p>
<p class="key">{key} <b class="peak">outlined</b></p>
<div class="wide"><table class="overview"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"""
    return [start, *(_latent(latent) for latent in examples.latents)]


def _overview(latent: Latent) -> str:
    words = list(dict.fromkeys(c.tokens[c.peak] for c in latent.top))[:4]
    name = f'<th scope="row"><a href="#latent-{latent.index}">{latent.index}</a></th>'
    numbers = f"<td{NUMBER}>{latent.density:.3%}</td><td{NUMBER}>{latent.maximum:.2f}</td>"
    return f"<tr>{name}{numbers}<td>{_words(words)}</td><td>{_words([t for t, _ in latent.promoted[:4]])}</td></tr>"


def _words(words: Sequence[str]) -> str:
    return " ".join(f'<bdi class="word">{visible(w)}</bdi>' for w in words)


def _latent(latent: Latent) -> str:
    said = f"histogram of {latent.firings} activations up to {latent.maximum:.2f}, logarithmic both ways"
    shape = histogram(latent.histogram, said)
    numbers = f"<b>{latent.density:.3%}</b> of tokens · <b>{latent.firings:,}</b> firings · strongest <b>{latent.maximum:.2f}</b>"
    effects = _effects("Promotes", latent.promoted) + _effects("Suppresses", latent.suppressed)
    contexts = _contexts("Strongest", latent.top, latent.maximum)
    for s in latent.strata:
        name = f"Drawn from {s.low:.2f} to {s.high:.2f}, where {s.firings / latent.firings:.1%} of the firings are"
        contexts += _contexts(name, s.contexts, latent.maximum)
    return f"""<article class="card latent" aria-labelledby="latent-{latent.index}">
<header><h3 id="latent-{latent.index}">Latent {latent.index}</h3><p>{numbers}</p>{shape}</header>
{f'<dl class="effects">{effects}</dl>' if effects else ""}{contexts}</article>"""


def _effects(name: str, effects: Sequence[tuple[str, float]]) -> str:
    words = " ".join(
        f'<bdi class="word" title="{value:+.3f} logits per unit">{visible(text)}</bdi>' for text, value in effects
    )
    return f"<div><dt>{name}</dt><dd>{words}</dd></div>" if words else ""


def _contexts(name: str, contexts: Sequence[Context], maximum: float) -> str:
    items = "".join(
        f'<li><b class="strength">{c.activation:.2f}</b><p dir="ltr">{_tokens(c, maximum)}</p></li>' for c in contexts
    )
    return f"<h4>{name}</h4><ol>{items}</ol>" if items else ""


def _tokens(context: Context, maximum: float) -> str:
    shown = enumerate(zip(context.tokens, context.activations, strict=True))
    return "".join(_token(text, a, a / (maximum or 1.0), i == context.peak) for i, (text, a) in shown)


def _token(text: str, activation: float, share: float, peak: bool) -> str:
    if activation <= 0:
        return f"<bdi>{visible(text)}</bdi>"
    shade = max(1, min(SHADES, round(SHADES * share)))
    return f'<bdi class="a{shade}{" peak" if peak else ""}" title="{activation:.3f}">{visible(text)}</bdi>'
