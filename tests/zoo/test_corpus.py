from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics as by_name

import pytest

from interp.zoo.corpus import novels, topics


def paragraphs(text: str) -> set[str]:
    return {p.strip() for p in text.split("\n\n") if p.strip()}


def test_topics_are_split_by_paragraph_disjoint_and_the_same_each_time() -> None:
    split = topics()
    train, held = paragraphs(split.train), paragraphs(split.held_out)
    assert split == topics()
    assert not train & held
    assert train | held == set().union(*map(paragraphs, by_name.values()))
    assert 0.08 < len(held) / len(train | held) < 0.12


def test_novels_end_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes("é\r\n".encode() * 1000)
    (tmp_path / "a.txt").write_text("x" * 100, encoding="utf-8")
    first, second = novels(tmp_path)
    assert (first.name, len(first.train), len(first.held_out)) == ("a", 95, 5)
    assert second.train + second.held_out == "é\n" * 1000
    assert len(second.held_out) == 100


def test_a_folder_without_novels_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="plain-text books"):
        novels(tmp_path)
