"""The text `zoo:books` learns from: a folder of novels, and Python's own `pydoc_data.topics`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = 0.05  # the end of every novel


@dataclass(frozen=True)
class Split:
    """One document: what is trained on and what is held out."""

    name: str
    train: str
    held_out: str


def topics() -> Split:
    """Python's help texts, distinct paragraphs in order; every tenth (by hash) is held out.

    Hashing keeps a paragraph on its side of the split in every Python version.
    """
    from pydoc_data.topics import topics as by_name

    paragraphs = list(dict.fromkeys(p for text in by_name.values() for p in text.split("\n\n") if p.strip()))
    kept = [p for p in paragraphs if not _held_out(p)]
    seen = {p.strip() for p in kept}  # the same words may end one text and stand inside another
    held = [p for p in paragraphs if _held_out(p) and p.strip() not in seen]
    return Split("topics", "\n\n".join(kept), "\n\n".join(held))


def _held_out(paragraph: str) -> bool:
    return hashlib.sha256(paragraph.encode()).digest()[0] < 26  # 26 of 256


def novels(folder: str | Path) -> list[Split]:
    """Every `*.txt` of `folder`, by name; the last 5 % of each is held out.

    Raises `FileNotFoundError` if there is none.
    """
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"no *.txt file in {folder}: give a folder of plain-text books.")
    splits = []
    for file in files:
        text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
        cut = int(len(text) * (1 - HELD_OUT))
        splits.append(Split(file.stem, text[:cut], text[cut:]))
    return splits
