"""Pages that are generated stand in step with the tests they are generated from."""

from __future__ import annotations

import re
from pathlib import Path

from tests.checks import NOT_DONE, PAGE

ROOT = Path(__file__).parent.parent


def test_every_marked_check_stands_on_the_page():
    marks = {
        label
        for file in (ROOT / "tests").rglob("test_*.py")
        for label in re.findall(r'mark\.check\(\s*"([^"]+)"', file.read_text(encoding="utf-8"))
    }
    rows = set(re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert marks <= rows, f"run `python -m tests.checks`: {marks - rows}"
    assert set(NOT_DONE) <= rows


def test_the_notes_checks_are_all_there():
    rows = set(re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for label in [f"dictionaries S{i}" for i in range(1, 10)] + [f"dictionaries T{i}" for i in range(1, 5)]:
        assert any(row.split(" (")[0] == label for row in rows), label


def test_the_readme_names_both_commands_and_the_age_of_the_proofs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    assert re.search(r"^Long proofs .* on \d{4}-\d{2}-\d{2}\.$", text, re.MULTILINE)
