from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from interp import zoo
from interp.cli.zoo import app
from interp.files import load_tensors
from interp.zoo import books

pytestmark = pytest.mark.usefixtures("short_topics")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, recipe: books.Recipe) -> None:
    """The command trains the small recipe."""
    monkeypatch.setattr(books, "Recipe", lambda **changes: replace(recipe, **changes))


def run(*arguments: Any) -> tuple[int, Any, str]:
    """Exit status, standard output (JSON if it was asked for), standard error."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, json.loads(result.stdout) if "--json" in arguments else result.stdout, result.stderr


def test_train_then_refuse_then_resume(novels_folder: Path, tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "new" / "run"
    status, result, errors = run("train", "books", "--text", novels_folder, "-o", out, "--seed", 5, "--json")
    assert status == 0
    assert result["path"] == str(out)
    assert (result["seed"], result["step"]) == (5, 8)
    assert 0 < result["held_out"] < 8
    assert "books:" in errors  # the progress bar
    before = {f.name: f.read_bytes() for f in out.iterdir()}

    status, result, errors = run("train", "books", "--text", novels_folder, "-o", out, "--json")
    assert status == 2
    assert "--resume" in result["error"]
    assert "--resume" in errors

    assert run("train", "books", "--text", novels_folder, "-o", out, "--resume")[0] == 0
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before

    status, _, errors = run("train", "books", "--text", novels_folder, "-o", out, "--resume", "--steps", 9)
    assert status == 2
    assert "--steps 8, not 9" in errors


def test_resume_refuses_a_recipe_it_does_not_know(novels_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"stepps": 8}', encoding="utf-8")
    status, _, errors = run("train", "books", "--text", novels_folder, "-o", tmp_path, "--resume")
    assert status == 2
    assert "Did you mean 'steps'" in errors


def test_dry_run_says_rows_bytes_and_minutes_and_writes_nothing(
    novels_folder: Path, tmp_path: Path, trained: Path
) -> None:
    out = tmp_path / "run"
    arguments = ("train", "books", "--text", novels_folder, "-o", out, "--steps", 50, "--dry-run", "--json")
    status, result, _ = run(*arguments)
    assert status == 0
    assert not out.exists()
    assert result["rows"] == 50 * 4
    assert result["tokens"] == 50 * 4 * 32
    written = sum((trained / f).stat().st_size for f in ("state.safetensors", "model.safetensors"))
    assert 0.8 * written < result["bytes"] <= written  # headers are not counted
    assert result["minutes"] >= 0


def test_default_folder_is_the_model_s_name(
    novels_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "state.safetensors").touch()
    status, _, errors = run("train", "books", "--text", novels_folder)
    assert status == 2
    assert "books holds a run already" in errors


def test_check_prints_one_object(novels_folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("interp.zoo.check.check", lambda *a: asked.append(a) or {"kn": {"3": 1.5}, "words_known": 0.25})
    status, result, _ = run("check", "books", "--text", novels_folder, "--model", trained, "--seed", 2, "--json")
    assert (status, result) == (0, {"kn": {"3": 1.5}, "words_known": 0.25})
    assert asked == [(trained, novels_folder, 2, "cpu", "float32")]
    status, text, _ = run("check", "books", "--text", novels_folder, "--model", trained)
    assert [line.split() for line in text.splitlines()] == [["kn"], ["3", "1.5000"], ["words_known", "0.2500"]]


def test_list_names_what_is_bundled_and_what_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert run("list", "--json")[1] == {"models": [], "recipes": list(zoo.RECIPES)}
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "config.json").write_text("{}", encoding="utf-8")
    status, result, _ = run("list", "--json")
    assert (status, result["models"]) == (0, [{"name": "books", "path": str(tmp_path / "books"), "bytes": 2}])
    assert str(tmp_path / "books") in run("list")[1]


@pytest.mark.parametrize("command", ["train", "check"])
def test_wrong_use_exits_with_two_and_says_what_exists(command: str, novels_folder: Path, tmp_path: Path) -> None:
    status, result, errors = run(command, "boks", "--text", novels_folder, "--json")
    assert status == 2
    assert "Did you mean 'books'" in result["error"]
    assert "Did you mean 'books'" in errors
    for content, message in [(None, "no *.txt file"), (b"", "too short"), (b"\xff\xfe\x00", "not UTF-8")]:
        folder = tmp_path / message[:3]
        folder.mkdir()
        if content is not None:
            (folder / "novel.txt").write_bytes(content)
        status, _, errors = run(command, "books", "--text", folder)
        assert status == 2
        assert message in errors


def test_check_of_what_is_no_model_exits_with_two(novels_folder: Path, tmp_path: Path) -> None:
    shutil.copy(novels_folder / "first.txt", tmp_path)
    status, _, errors = run("check", "books", "--text", novels_folder, "--model", tmp_path)
    assert status == 2
    assert "no model folder" in errors


def test_unknown_option_exits_with_two(novels_folder: Path) -> None:
    assert run("train", "books", "--text", novels_folder, "--stepps", 3)[0] == 2


def test_check_says_what_it_would_read(novels_folder: Path, trained: Path) -> None:
    status, result, _ = run("check", "books", "--text", novels_folder, "--model", trained, "--dry-run", "--json")
    assert status == 0
    assert set(result) == {"rows", "bytes", "minutes"}
    assert result["rows"] > 0 == result["bytes"]


def test_the_dtype_of_products_is_part_of_the_recipe(novels_folder: Path, tmp_path: Path, trained: Path) -> None:
    command = ("train", "books", "--text", novels_folder, "-o", tmp_path / "half", "--json")
    assert run(*command, "--dtype", "float32")[0] == 0
    assert json.loads((tmp_path / "half" / "recipe.json").read_text())["dtype"] == "float32"
    whole, half = (load_tensors(folder / "state.safetensors")[0] for folder in (trained, tmp_path / "half"))
    assert all(t.dtype == torch.float32 for t in half.values())
    assert any(not torch.equal(half[name], t) for name, t in whole.items())
    status, result, _ = run(*command, "--resume", "--dtype", "bfloat16")
    assert status == 2 and "float32" in result["error"]
