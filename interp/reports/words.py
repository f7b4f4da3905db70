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
        for i in set(ids) - known.keys():
            known[i] = _token_text(tokenizer, i)
        return [known[i] for i in ids]

    return texts


def _token_text(tokenizer: Any, i: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(i)
    if isinstance(piece, str) and piece.startswith(SPACE):  # decoding a single one would drop its space
        return piece.replace(SPACE, " ")
    return tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)


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
