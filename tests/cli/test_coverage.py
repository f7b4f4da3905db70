from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.cli import coverage


def run(*args: str) -> int:
    import typer

    app = typer.Typer()
    app.command()(coverage.coverage)
    try:
        app(list(args), standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows without models: what was asked for, in order."""
    asked: list[str] = []

    def cover_all(kinds, workers, limit):
        for kind in kinds:
            asked.append(kind)
            yield {"type": kind, "stage": "build", "error": "pretended"}

    monkeypatch.setattr("interp.model.coverage.cover_all", cover_all)
    return asked


def test_a_few_types_are_proven_and_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--types", "gpt2", "--workers", "1", "--limit", "60", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["built"] == told["counts"]["ran"] == 1
    assert told["types"][0]["proofs"]["b"]["status"] == "pass"


def test_a_misspelt_type_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--types", "lama") == 2
    assert "llama" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.model.tiny.model_types", lambda: ["a", "b", "c"])
    rows, out = tmp_path / "rows.jsonl", tmp_path / "docs" / "coverage.md"
    rows.write_text('{"type": "a", "stage": "build", "error": "kept"}\n{"type": "b", "sta')  # killed while writing
    assert run("--resume", "--rows", str(rows), "-o", str(out)) == 0
    assert pretended == ["b", "c"]
    assert [json.loads(line)["type"] for line in rows.read_text().splitlines()] == ["a", "b", "c"]
    assert "kept" in out.read_text() and "pretended" in out.read_text()
    assert run("--rows", str(rows), "-o", str(out)) == 0
    assert pretended == ["b", "c", "a", "b", "c"]
    assert "kept" not in out.read_text()


def test_rows_that_are_damaged_in_the_middle_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"type": "a"\n{"type": "b"}\n')
    assert run("--resume", "--rows", str(rows), "-o", str(tmp_path / "page.md")) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_dry_run_only_says_how_long(pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run", "--types", "gpt2,llama", "--workers", "2", "--limit", "30", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"types": 2, "minutes_at_most": 0.5}
    assert pretended == []
