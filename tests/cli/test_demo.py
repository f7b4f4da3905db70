"""The demo on a tiny random model: what it leaves behind, that it can be repeated and resumed, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.cli.demo import MARKER, TITLES, demo
from tests.model.shapes import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama-type model of random weights and a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    tiny(LlamaForCausalLM, 300, 32, max_position_embeddings=512, bos_token_id=0).save_pretrained(folder)
    return folder


def texts() -> list[str]:
    """Twenty short documents; the first holds what a page must not let through."""
    words = ["if", "else", "class", "yield", "<b>", "</script>", "&", "print"]
    plain = [" ".join(words[(i * j + j) % len(words)] for j in range(60)) for i in range(19)]
    return ["<script>alert('x')</script> \u202e\u2066 end " * 8, *plain]


@pytest.fixture(autouse=True, scope="module")
def _short_text() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.texts.default_text", texts)
        yield


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of four steps a dictionary."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    go(out, model)
    return out


def go(out: Path, model: Path, **options: Any) -> None:
    demo(**{"out": out, "model": str(model), "tokens": 4096, "as_json": True, **options})


def summary(out: Path) -> dict[str, Any]:
    """What does not depend on how fast the machine is."""
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for measured in found["dictionaries"].values():
        del measured["tokens_per_second"]
    return {key: value for key, value in found.items() if key not in ("seconds", "folder", "command")}


def weights(out: Path) -> list[bytes]:
    return [(out / "dictionaries" / name / "weights.safetensors").read_bytes() for name in TITLES]


def test_the_folder_holds_what_is_promised(first: Path) -> None:
    from interp.dictionaries import load_dictionary

    sae, transcoder = (load_dictionary(first / "dictionaries" / name) for name in ("sae", "transcoder"))
    assert sae.config.reads == sae.config.writes == ("blocks.1.resid_post",)
    assert (transcoder.config.reads, transcoder.config.writes) == (("blocks.1.mlp.in",), ("blocks.1.mlp.write",))
    with open(first / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["dictionary"] for row in rows] == list(TITLES)
    assert {row["step"] for row in rows} == {"4"}
    assert all(json.loads((first / name).read_text(encoding="utf-8"))["seed"] == 0 for name in (MARKER, "summary.json"))


def test_the_page_shows_ten_latents_and_hostile_text(first: Path) -> None:
    page = (first / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == 10
    assert "<script" not in page
    assert "\u202e" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_loss_recovered_follows_from_the_cross_entropies(first: Path) -> None:
    for measured in summary(first)["dictionaries"].values():
        entropy = measured["cross_entropy"]
        for kind in ("zero", "mean"):
            expected = (entropy[kind] - entropy["replaced"]) / (entropy[kind] - entropy["clean"])
            assert measured["loss_recovered"][kind] == pytest.approx(expected, rel=1e-12)  # the same three numbers


def test_held_out_text_is_not_recorded_with_the_rest(first: Path) -> None:
    from interp.store import open_store

    train, held = (open_store(first / "activations" / name) for name in ("train", "held_out"))
    assert len(train.documents.unique()) == 18
    assert len(held.documents.unique()) == 2
    found = summary(first)
    assert (found["recorded"], found["held_out"]) == (train.rows, held.rows)


def test_again_into_the_same_folder(first: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = summary(first), weights(first)
    (first / "dictionaries" / "old").mkdir()
    go(first, model)
    assert (summary(first), weights(first)) == before
    assert not (first / "dictionaries" / "old").exists()
    printed = capsys.readouterr()
    assert json.loads(printed.out)["dictionaries"].keys() == {"sae", "transcoder"}  # one object, nothing else
    assert "recording" in printed.err


def test_an_interrupted_demo_goes_on(first: Path, model: Path) -> None:
    before = summary(first), weights(first)
    for name in ("summary.json", "report.html", "metrics.csv"):
        (first / name).unlink()
    for file in (first / "dictionaries" / "transcoder").iterdir():
        file.unlink()
    sae = (first / "dictionaries" / "sae" / "state.safetensors").stat().st_mtime_ns
    go(first, model, resume=True)
    assert (summary(first), weights(first)) == before
    assert (first / "dictionaries" / "sae" / "state.safetensors").stat().st_mtime_ns == sae


def test_resuming_another_demo_is_refused(first: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        go(first, model, resume=True, seed=7)
    assert "has --seed 0, not 7" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["thesis.tex", "report.html", MARKER])
def test_a_folder_of_others_is_left_alone(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        demo(out=tmp_path, as_json=True)
    printed = capsys.readouterr()
    assert "not made by `interp demo`" in json.loads(printed.out)["error"]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_put_into_a_demo_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (MARKER, "summary.json", "notes.txt"):
        (tmp_path / name).write_text('{"format": "interp.demo"}')
    with pytest.raises(SystemExit, match="2"):
        demo(out=tmp_path)
    assert "notes.txt" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        demo(out=tmp_path / "demo")
    assert "is a file" in capsys.readouterr().err


def test_a_plan_writes_nothing(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path / "demo", model, dry_run=True)
    planned = json.loads(capsys.readouterr().out)
    assert planned.keys() == {"rows", "bytes", "minutes"}
    assert planned["rows"] > 1000
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_printed(first: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(first, model, resume=True, as_json=False)
    printed = capsys.readouterr().out
    for row in (
        "Loss recovered, zero",
        "CE clean",
        "FVU of PCA",
        "FVU, random decoder",
        "Dead window",
        "Tokens a second",
    ):
        assert row in printed
