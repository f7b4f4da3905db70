"""A dashboard of any number of latents: one HTML file that fetches nothing and unpacks what is looked at.

The page holds an index of all its latents, for the list and for searching, and their details in blocks. Each is JSON,
deflated and in base64; a block is unpacked when one of its latents is first shown. Texts of tokens stand once, in a
table; contexts refer to it, and hold activations in 255ths of the latent's maximum, rounded up so that none vanishes.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.files import write_text
from interp.reports.latents import Context, Latent, told
from interp.reports.page import document
from interp.reports.watch import Watch
from interp.reports.words import parts

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary
    from interp.model import Model, Together

TOP, EACH = 20, 5  # contexts shown of a latent: the strongest, and those drawn in each stratum
BLOCK = 50  # latents unpacked at a time
LEVELS = 255  # of activation
Word = str | list[str]  # a token as the page shows it: plain text, or plain and marks by turns


def write_dashboard(
    path: str | Path,
    dictionary: Dictionary,
    model: Model | Together,
    groups: Iterable[Sequence[Sequence[int]]],
    latents: Sequence[int],
    *,
    title: str = "Latents",
    facts: Mapping[str, str] | None = None,
    labels: Mapping[int, str] | None = None,
    window: int = 16,
    seed: int = 0,
) -> int:
    """Run `model` once over `groups` of windows of token ids and write what `latents` do there; how many tokens it were.

    `groups`, contexts and memory are those of `latent_examples`. `facts` stand on the first page, `labels` beside their
    latents. The same arguments give the same bytes. Raises `WrongUse` for a latent that does not exist, `OSError` if the
    file cannot be written, which is then as it was.
    """
    seen = Watch(dictionary, model, latents, top=TOP, sample=EACH + 3, window=window, seed=seed)
    for group in groups:
        seen.add(group)
    page = Page(title, facts or {}, labels or {}, seen)
    for latent in told(seen, EACH):
        page.add(latent)
    write_text(path, page.html())
    return seen.tokens


class Page:
    """What the page holds, latent by latent."""

    def __init__(self, title: str, facts: Mapping[str, str], labels: Mapping[int, str], seen: Watch) -> None:
        self.title, self.labels = title, labels
        self.words: list[Word] = []
        self.numbers: dict[str, int] = {}
        self.index: dict[str, Any] = {
            "title": title,
            "facts": dict(facts),
            "tokens": seen.tokens,
            "fired": _densities(seen),
            "block": BLOCK,
            "levels": LEVELS,
            "words": self.words,
            "latents": [],
        }
        self.waiting: list[dict[str, Any]] = []
        self.blocks: list[str] = []

    def add(self, latent: Latent) -> None:
        """The next latent."""
        label = self.labels.get(latent.index, "")
        self.index["latents"].append(
            [latent.index, latent.firings, _short(latent.maximum), _short(latent.mean), label]
            + [[[self._word(t.token), _short(t.share), t.firings, t.occurrences] for t in latent.tokens]]
            + [[[self._word(t), _short(v)] for t, v in side] for side in (latent.promoted, latent.suppressed)]
        )
        self.waiting.append(self._details(latent))
        if len(self.waiting) == BLOCK:
            self._pack()

    def html(self) -> str:
        """The whole page."""
        self._pack()
        blocks = [_packed(self.index), *self.blocks]
        data = "\n".join(f'<script type="application/octet-stream" class="block">{b}</script>' for b in blocks)
        return _page(self.title, data)

    def _pack(self) -> None:
        if self.waiting:
            self.blocks.append(_packed(self.waiting))
        self.waiting = []

    def _details(self, latent: Latent) -> dict[str, Any]:
        scale = LEVELS / (latent.maximum or 1.0)
        return {
            "edges": [_short(e) for e in latent.edges],
            "histogram": latent.histogram,
            "top": [self._context(c, scale) for c in latent.top],
            "strata": [
                [_short(s.low), _short(s.high), s.firings, [self._context(c, scale) for c in s.contexts]]
                for s in latent.strata
            ],
            "partners": [[p.index, p.together, _short(p.correlation)] for p in latent.partners],
            "neighbours": [[i, _short(c)] for i, c in latent.neighbours],
        }

    def _context(self, c: Context, scale: float) -> list[Any]:
        return [
            c.document,
            c.position,
            c.peak,
            [self._word(t) for t in c.tokens],
            [math.ceil(a * scale - 1e-6) for a in c.activations],
        ]

    def _word(self, text: str) -> int:
        """Its number in the table."""
        if text not in self.numbers:
            self.numbers[text] = len(self.words)
            self.words.append(word(text))
        return self.numbers[text]


def word(text: str) -> Word:
    """`text` as the page shows it: as it is, or plain text and marks by turns, plain text first (see `parts`)."""
    found = parts(text)
    if len(found) == 1 and not found[0][1]:
        return found[0][0]
    return [""] * found[0][1] + [run for run, _ in found]


def _densities(seen: Watch) -> list[list[float]]:
    """Of the whole dictionary: [latents that never fired], then [log₁₀ of the density, latents] in quarters of a decade."""
    counts: dict[float, int] = {}
    for firings in seen.fired[seen.fired > 0].tolist():
        place = math.floor(4 * math.log10(firings / seen.tokens)) / 4
        counts[place] = counts.get(place, 0) + 1
    return [[int((seen.fired == 0).sum())], *([place, counts[place]] for place in sorted(counts))]


def _short(value: float) -> float:
    """Four digits that matter."""
    return float(f"{value:.4g}")


def _packed(value: Any) -> str:
    data = json.dumps(value, separators=(",", ":")).encode("ascii")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(deflate.compress(data) + deflate.flush()).decode("ascii")


def _page(title: str, data: str) -> str:
    style, script = (
        (files("interp.reports") / name).read_text(encoding="utf-8") for name in ("dashboard.css", "dashboard.js")
    )
    without = (
        "<noscript>This page needs JavaScript: its data are packed, and are unpacked as you look at them.</noscript>"
    )
    return document(title, f"{without}\n{data}", style, script)
