"""Text as it can be shown: what each token stands for, and control marks made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

SPACE = "▁"  # how SentencePiece vocabularies write a space
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # Unicode categories that show nothing, or turn text around
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def token_texts(tokenizer: Any) -> Callable[[Sequence[int]], list[str]]:
    """A function from token ids to the text of each token alone; without a tokenizer, to the ids in brackets."""
    if tokenizer is None:
        return lambda ids: [f"[{i}]" for i in ids]
    known: dict[int, str] = {}

    def texts(ids: Sequence[int]) -> list[str]:
        for i in ids:
            if i not in known:
                known[i] = _token_text(tokenizer, i)
        return [known[i] for i in ids]

    return texts


def _token_text(tokenizer: Any, i: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(i)
    if isinstance(piece, str) and piece.startswith(SPACE):  # decoding a single one would drop its space
        return piece.replace(SPACE, " ")
    return tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)


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
