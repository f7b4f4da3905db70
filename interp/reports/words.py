"""Text as it can be shown: escaped, and control marks made visible."""

from __future__ import annotations

import unicodedata
from html import escape

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # Unicode categories that show nothing, or turn text around
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def parts(text: str) -> list[tuple[str, bool]]:
    """`text` in runs, (run, whether it is a mark), so that every character shows and none turns the text around.

    A line break is ↵, a space beside another ·, a bidirectional or other control mark its code point, ⟨U+202E⟩, and no
    text at all is ∅. A combining character that begins the text stands on a dotted circle.
    """
    if not text:
        return [("∅", True)]
    if unicodedata.category(text[0]).startswith("M"):
        text = "◌" + text
    blank = text.isspace() or "  " in text
    found: list[tuple[str, bool]] = []
    for shown, mark in (_character(c, blank) for c in text):
        if found and found[-1][1] == mark:
            shown = found.pop()[0] + shown
        found.append((shown, mark))
    return found


def visible(text: str) -> str:
    """HTML of `text` in which every character shows, as in `parts`: escaped, marks in `<i class="w">`."""
    return "".join(f'<i class="w">{escape(s)}</i>' if mark else escape(s) for s, mark in parts(text))


def _character(c: str, blank: bool) -> tuple[str, bool]:
    if c == " ":
        return ("·", True) if blank else (c, False)
    if c in MARKS:
        return MARKS[c], True
    if unicodedata.category(c) in HIDDEN:
        return f"⟨U+{ord(c):04X}⟩", True
    return c, False
