"""`interp bigram`: count, train, report, select, overlap, stream; and the masks that ship."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuits.bigram import MASKS, Counts, Mask
from circuits.cli.bigram import app
from interp.texts import default_text
from interp.zoo.corpus import topics
from tests.spoken import spoken

RUNNER = CliRunner()
SHIPPED = sorted(MASKS.glob("*/*/mask.safetensors"))
told, refused = spoken(app)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, documents in (("train", default_text()[:40]), ("held", default_text()[60:80])):
        (folder / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(tiny_folder, texts, tmp_path_factory):
    """Counts, and two runs of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    told("count", tiny_folder, "--text", texts / "train.txt", "-o", folder / "counts.safetensors", "--context", 32)
    words = [
        "train",
        tiny_folder,
        "--counts",
        folder / "counts.safetensors",
        "--text",
        texts / "train.txt",
        "-o",
        folder,
    ]
    words += ["--penalty", 0, "--penalty", 5, "--steps", 30, "--lr", 0.02, "--context", 32]
    made = told(*words)
    assert [(r["penalty"], r["seed"]) for r in made["runs"]] == [(0, 0), (5, 0)]
    assert made["runs"][1]["kept"] < made["runs"][0]["kept"]
    assert told(*words, "--resume")["runs"] == made["runs"]
    assert "add --resume" in refused(*words)
    return folder


def test_counting_says_what_it_counted(tiny_folder, texts, tmp_path):
    found = told("count", tiny_folder, "--text", texts / "train.txt", "-o", tmp_path / "c.safetensors", "-n", 3)
    assert found["n"] == 3
    assert found["vocabulary"] == 400
    assert 0 < found["contexts"] < found["grams"] < found["tokens"]
    alone = tmp_path / "tokenizer"
    alone.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, alone)
    again = told("count", alone, "--text", texts / "train.txt", "-o", tmp_path / "d.safetensors", "-n", 3)
    assert again["hash"] == found["hash"]  # a tokenizer will do


def test_the_two_files_of_a_byte_level_bpe_are_a_tokenizer(tmp_path):
    letters = {letter: i for i, letter in enumerate("abĠ")} | {"ab": 3, "<|endoftext|>": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "text.txt").write_text("ab ab a")
    found = told("count", tmp_path, "--text", tmp_path / "text.txt", "-o", tmp_path / "c.safetensors")
    assert (found["tokens"], found["vocabulary"]) == (5, 5)  # ab, space, ab, space, a
    assert "has no tokenizer" in refused(
        "count",
        shutil.copytree(tmp_path, tmp_path / "none", ignore=lambda *_: ["merges.txt", "none"]),
        "-o",
        tmp_path / "d.safetensors",
    )


def test_a_report_of_a_run(runs, tiny_folder, texts, tmp_path):
    run, page = runs / "penalty-5-seed-0", tmp_path / "page.html"
    words = ["report", run, "--text", texts / "held.txt", "--tokens", 320, "--random", 1]
    found = told(*words, "-o", page)
    for key in (
        "r",
        "r_dropinf",
        "r_full_model",
        "r_empty_mask",
        "r_random_mask",
        "kept",
        "kept_share",
        "undecided_share",
    ):
        assert isinstance(found[key], float | int), key
    assert set(found["ablation_loss"]) >= {"subnetwork", "random"}
    assert list(found["by_block"]) == ["blocks.0", "blocks.1"]
    assert found["tokens"] == 320
    assert "Bigram subnetwork" in page.read_text(encoding="utf-8")
    assert told(*words) == found
    shown = RUNNER.invoke(app, list(map(str, words)))
    assert "mlp.W_out" in shown.stdout


def test_select_overlap_and_stream(runs, texts):
    chosen = told("select", runs, "--text", texts / "held.txt", "--tokens", 320)
    assert chosen["penalty"] in (0, 5)
    assert [row["penalty"] for row in chosen["runs"]] == [0, 5]
    a, b = runs / "penalty-0-seed-0", runs / "penalty-5-seed-0"
    found = told("overlap", b, a, "--draws", 500)
    assert found["ratio"] > 1
    assert found["draws"] == 500
    layers = told("stream", b, "--text", texts / "held.txt", "--context", 32)["layers"]
    assert [row["site"] for row in layers] == ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post"]


def test_towards_the_model_itself(tiny_folder, texts, tmp_path):
    words = ["train", tiny_folder, "--towards", "model", "--text", texts / "train.txt", "-o", tmp_path / "own"]
    found = told(*words, "--steps", 3, "--context", 32)
    assert found["runs"][0]["path"] == str(tmp_path / "own")
    assert (tmp_path / "own" / "mask.safetensors").exists()


def test_bad_input_is_said(runs, tiny_folder, texts, tmp_path):
    held, run = texts / "held.txt", runs / "penalty-5-seed-0"
    assert "was in the text that was counted" in refused("report", run, "--text", texts / "train.txt")
    (tmp_path / "short.txt").write_text("A few words.")
    assert "shorter than one window" in refused("report", run, "--text", tmp_path / "short.txt")
    assert "of another model" in refused(
        *("report", run, "--text", held, "--model", "zoo:books", "--counts", runs / "counts.safetensors")
    ) + refused("overlap", run, run, "--model", "zoo:books")
    assert "there is no mask" in refused("report", tmp_path, "--text", held)
    assert "holds no finished runs" in refused("select", tmp_path, "--text", held)
    assert "counts are one file" in refused("count", tiny_folder, "-o", tmp_path / "folder")
    assert "--towards" in refused("train", tiny_folder, "-o", tmp_path / "x", "--towards", "trigrams")
    assert "give --counts FILE" in refused("train", tiny_folder, "-o", tmp_path / "x")
    lone = tmp_path / "lone"
    shutil.copytree(run, lone)
    assert "name them, --counts FILE" in refused("report", lone, "--text", held)
    told("count", tiny_folder, "--text", held, "-o", lone / "counts.safetensors")
    assert "trained towards other counts" in refused("report", lone, "--text", held)


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.parent.name)
def test_a_mask_that_ships_is_what_its_run_ended_with(file):
    mask = Mask.load(file)
    recipe = json.loads((file.parent / "recipe.json").read_text(encoding="utf-8"))
    own = mask.about["about"]["towards"] == "model"
    assert "own-" * own + f"penalty-{mask.about['penalty']:g}-seed-{mask.about['seed']}" == file.parent.name
    assert {name: recipe[name] for name in ("penalty", "seed", "steps", "lr", "about")}.items() <= mask.about.items()
    with open(file.parent / "metrics.csv", newline="", encoding="utf-8") as metrics:
        *_, last = csv.DictReader(metrics)
    assert (int(last["kept"]), int(last["step"]) + 1) == (mask.kept, mask.about["steps_done"])
    assert mask.about["steps_done"] <= 1500
    assert mask.about["undecided_share"] < 0.01
    assert own or mask.about["about"]["counts"] == Counts.load(MASKS / "books" / "counts.safetensors").hash


@pytest.mark.slow("runs the bundled model six times over 2,048 tokens")
def test_a_mask_that_ships_does_what_is_said_of_it(tmp_path):
    """On help texts that neither model nor counts have seen; the numbers are those of 330,000 characters' counts."""
    (tmp_path / "held.txt").write_text(topics().held_out, encoding="utf-8")
    run = MASKS / "books" / "penalty-10-seed-0"
    found = told("report", run, "--text", tmp_path / "held.txt", "--tokens", 2048, "--random", 1)
    assert found["kept_share"] < 0.03
    assert found["r"] > 0.75 > found["r_full_model"] > 0.5 > found["r_random_mask"]
    assert found["r_dropinf"] > found["dropinf"]["full_model"] + 0.2
    assert found["ablation_loss"]["subnetwork"] > found["ablation_loss"]["random"] + 2
    assert max(found["by_block"].items(), key=lambda row: row[1]["kept"])[0] == "blocks.0"
    assert "was in the text that was counted" in refused("report", run, "--text", trained_on(tmp_path))


def trained_on(folder: Path) -> Path:
    file = folder / "train.txt"
    file.write_text(topics().train, encoding="utf-8")
    return file
