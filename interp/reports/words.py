"""Text as it can be shown: escaped, and control marks made visible."""

from __future__ import annotations

import unicodedata
from html import escape

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # Unicode categories that show nothing, or turn text around
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """HTML of `text` in which every character shows: escaped, with marks for what would be blank or turn text around.

    A line break is ↵, a space beside another ·, a bidirectional or other control mark its code point, ⟨U+202E⟩. A
    combining character that begins the text stands on a dotted circle.
    """
    if unicodedata.category(text[:1] or " ").startswith("M"):
        text = "◌" + text
    return "".join(_character(c, text) for c in text)


def _character(c: str, text: str) -> str:
    if c == " ":
        return '<i class="w">·</i>' if text.isspace() or "  " in text else c
    if c in MARKS:
        return f'<i class="w">{MARKS[c]}</i>'
    if unicodedata.category(c) in HIDDEN:
        return f'<i class="w">⟨U+{ord(c):04X}⟩</i>'
    return escape(c, quote=True)
