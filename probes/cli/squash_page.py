"""The page of `interp squash claims`: each claim, what was measured, and its figure. It needs nothing from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

from interp.files import write_text
from probes.claims import Claim, Claims

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d1f23}
article{border-top:1px solid #d8dce2;padding:1rem 0}h2{font-size:1.1rem;margin:0}p{margin:.4rem 0}
.source{color:#5b606a;font-size:.9rem}.verdict{font-weight:600}"""


def write_page(path: Path, claims: Claims) -> None:
    """One HTML file; plotly's own script stands in it once. Raises `OSError` if it cannot be written."""
    body = "\n".join(_article(claim, number == 0) for number, claim in enumerate(claims.rows))
    head = f'<meta charset="utf-8"><title>Over-squashing: claims and measurements</title><style>{STYLE}</style>'
    title = "<h1>Over-squashing: claims and measurements</h1>"
    write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{title}\n{body}\n</body></html>\n')


def _article(claim: Claim, first: bool) -> str:
    claim.figure.update_layout(width=None)  # as wide as the page
    figure = claim.figure.to_html(full_html=False, include_plotlyjs=first)
    verdict = f'<p><span class="verdict">{claim.verdict}:</span> {escape(claim.measured)}</p>'
    said = f'<h2>{escape(claim.said)}</h2><p class="source">{escape(claim.source)}</p>'
    return f"<article>{said}{verdict}{figure}</article>"
