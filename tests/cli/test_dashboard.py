"""`interp dashboard`: what it takes from the run, what it is told, and what it says of nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from interp.cli.dashboard import dashboard, parse_latents, read_labels, recorded
from interp.dictionaries import Dictionary, DictionaryConfig
from interp.errors import WrongUse
from interp.files import save_tensors, write_json
from tests.reports.test_dashboard import read

SITE = "blocks.1.resid_post"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A dictionary of random weights, and beside it what a recording leaves."""
    return saved(tmp_path / "run", SITE)


def saved(folder: Path, site: str, width: int = 32) -> Path:
    dictionary = Dictionary(DictionaryConfig((site,), (site,), width, width, 48, 4))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in dictionary.parameters():
            p.normal_()
    dictionary.save(folder)
    return folder


def run(*words: str | Path, status: int = 0) -> Any:
    app = Typer()
    app.command()(dashboard)
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


def test_model_and_text_are_those_of_the_run(run_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A class is <b>not</b> a class.\n\n" * 40, encoding="utf-8")
    meta = {"model": str(tiny_folder), "text": str(tmp_path / "text.txt")}
    (run_folder / "activations").mkdir()
    write_json(run_folder / "activations" / "index.json", {"meta": meta})
    told = run(run_folder, "--latents", "0-9,20", "--context", "32", "--seed", "3")
    assert told["path"] == str(run_folder / "dashboard.html")
    assert told["latents"] == 11
    assert told["bytes"] == (run_folder / "dashboard.html").stat().st_size
    _, index, _ = read(run_folder / "dashboard.html")
    assert [row[0] for row in index["latents"]] == [*range(10), 20]
    assert index["facts"]["Model"] == str(tiny_folder)
    assert index["facts"]["Text"].startswith(str(tmp_path / "text.txt"))
    assert index["tokens"] == told["tokens"]
    assert any("class" in w for w in index["words"] if isinstance(w, str))
    (tmp_path / "text.txt").unlink()
    assert "give --text" in run(run_folder, status=2)["error"]


def test_labels_and_ids_are_given(run_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    save_tensors(tmp_path / "ids.safetensors", {"ids": torch.randint(3, 400, (6, 20))})
    (tmp_path / "l.json").write_text('{"4": "four"}', encoding="utf-8")
    given = ["--text", tmp_path / "ids.safetensors", "--labels", tmp_path / "l.json", "--tokens", "40", "--batch", "1"]
    told = run(run_folder, tiny_folder, *given, "-o", tmp_path / "d.html")
    assert told["tokens"] == 40
    _, index, _ = read(tmp_path / "d.html")
    assert [row[4] for row in index["latents"]] == ["four" if i == 4 else "" for i in range(48)]


def test_a_model_without_a_tokenizer_shows_ids(run_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path / "bare")
    said = run(run_folder, tmp_path / "bare", status=2)["error"]
    assert "--text IDS.safetensors" in said
    save_tensors(tmp_path / "ids.safetensors", {"ids": torch.randint(3, 400, (6, 20))})
    run(run_folder, tmp_path / "bare", "--text", tmp_path / "ids.safetensors")
    _, index, _ = read(run_folder / "dashboard.html")
    assert all(w.startswith("[") for w in index["words"])


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (None, range(1000)),
        ("all", range(2000)),
        ("3", [3]),
        ("40-42,3, 17", [3, 17, 40, 41, 42]),
        ("5,5,4-6", [4, 5, 6]),
    ],
)
def test_latents_are_numbers_and_ranges(said: str | None, wanted: Any) -> None:
    assert parse_latents(said, 2000) == list(wanted)


@pytest.mark.parametrize(
    ("said", "why"), [("x", "'x' is no number"), ("1-", "'1-'"), ("9-3", "0-9"), ("10", "0-9"), ("", "''")]
)
def test_latents_that_make_no_sense(said: str, why: str) -> None:
    with pytest.raises(WrongUse, match=why):
        parse_latents(said, 10)


def test_labels_are_csv_or_json(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('latent,label\n3,"a, b"\n5,"say ""x"""\n', encoding="utf-8")
    assert read_labels(path, 6) == {3: "a, b", 5: 'say "x"'}
    with pytest.raises(WrongUse, match="latents 0 to 4"):
        read_labels(path, 5)
    for name, text in (
        ("a.csv", "number;text\n1;x"),
        ("a.json", "[1]"),
        ("b.json", "{"),
        ("b.csv", "latent,label\nx,y"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(WrongUse, match="columns latent and label"):
            read_labels(tmp_path / name, 5)


def test_a_demo_says_which_model_its_dictionaries_are_of(tmp_path: Path) -> None:
    (tmp_path / "activations" / "train").mkdir(parents=True)
    (tmp_path / "dictionaries" / "sae").mkdir(parents=True)
    (tmp_path / "activations" / "train" / "index.json").write_text('{"meta": {"model": "zoo:books"}}')
    assert recorded(tmp_path / "dictionaries" / "sae") == {"model": "zoo:books"}


def test_what_cannot_be_shown(run_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert f"interp dashboard {run_folder} MODEL" in run(run_folder, status=2)["error"]
    assert "is no dictionary" in run(tmp_path, tiny_folder, status=2)["error"]
    assert "not within 0-47" in run(run_folder, tiny_folder, "--latents", "0-48", status=2)["error"]
    assert "is a folder" in run(run_folder, tiny_folder, "-o", tmp_path, status=2)["error"]
    wide = saved(tmp_path / "wide", SITE, width=24)
    assert "reads 24 numbers" in run(wide, tiny_folder, status=2)["error"]
    other = saved(tmp_path / "other", "blocks.7.resid_post")
    assert "blocks.7.resid_post" in run(other, tiny_folder, status=2)["error"]
    save_tensors(tmp_path / "f.safetensors", {"ids": torch.rand(3, 4)})
    assert (
        "token ids [windows, pos]"
        in run(run_folder, tiny_folder, "--text", tmp_path / "f.safetensors", status=2)["error"]
    )
    (tmp_path / "empty.txt").write_text(" ")
    assert "is empty" in run(run_folder, tiny_folder, "--text", tmp_path / "empty.txt", status=2)["error"]
    assert not list(tmp_path.glob("**/*.html"))
