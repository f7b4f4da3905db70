"""The small models that ship: what they are quoted with, and that every tool takes them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import interp
from interp import zoo
from interp.cli.zoo import app
from interp.files import load_tensors
from interp.model.proof import by_letter, doctor
from interp.zoo import brackets, digits, numbers, numbers_decoder, tones, training
from tests.zoo.test_books import digests, stop_at

SMALL = [name for name in zoo.names() if zoo.recipe_name(name) != "books"]


def run(*arguments: Any) -> tuple[int, Any]:
    """Exit status, and the object that was printed."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_the_zoo_is_of_known_recipes_in_25_megabytes() -> None:
    assert {"books_1600", *zoo.RECIPES} <= set(zoo.names())
    assert {zoo.recipe_name(name) for name in zoo.names()} <= set(zoo.RECIPES)
    assert sum(file.stat().st_size for file in zoo.WEIGHTS.glob("*/*")) < 25e6
    assert sum(file.stat().st_size for file in zoo.DICTIONARIES.glob("*/*/*")) < 1.5e6


@pytest.mark.parametrize("name", SMALL)
def test_a_model_ships_with_the_recipe_that_the_command_trains(name: str) -> None:
    saved = json.loads((zoo.path(name) / "recipe.json").read_text(encoding="utf-8"))
    about = saved.pop("about")
    assert saved == asdict(zoo.task(name).Recipe(seed=saved["seed"]))
    assert about["command"].startswith(f"interp zoo train {zoo.recipe_name(name)} ")


@pytest.mark.slow("every model is proven, two seconds each")
@pytest.mark.parametrize("name", SMALL)
def test_the_doctor_passes_every_model(name: str) -> None:
    proofs = by_letter(doctor(interp.load(f"zoo:{name}")))
    assert {proof["status"] for proof in proofs.values()} <= {"pass", "na"}
    assert proofs["b"]["status"] == "pass"


def test_numbers_are_written_exactly() -> None:
    found = numbers.check(zoo.path("numbers"), seed=5, count=200)
    assert min(found["held_out"]["digits"], found["held_out"]["words"]) > 0.97  # of 200; `interp zoo check` has 2,000
    assert set(found) == {"held_out", "held_out_length", "trained_on"}
    assert found["held_out"]["count"] == 200


@pytest.mark.parametrize("task", [numbers, numbers_decoder])
def test_answers_of_a_batch_are_those_of_one_at_a_time(task: Any) -> None:
    """Questions of different lengths are padded on the left, which must change nothing; the weights are drawn at random."""
    model = task.build_model(task.Recipe(seed=2)).double().eval()
    questions = ["digits: seven", "words: 864868", "digits: eight hundred thousand twelve"]
    assert numbers.answers(model, questions) == [numbers.answers(model, [q])[0] for q in questions]


def test_tones_are_written_down() -> None:
    found = tones.check(zoo.path("tones"), seed=5, count=100)
    assert found["held_out"] > 0.97
    assert list(found["by_length"]) == ["2", "3", "4", "5", "6"]
    assert found["by_noise"]["-10"] < found["by_noise"]["30"]


def test_brackets_are_told_right() -> None:
    found = brackets.check(zoo.path("brackets"), seed=5, count=400)
    assert list(found) == ["held_out", "held_out_lengths"]
    for row in found.values():
        assert min(row[kind] for kind in brackets.KINDS) >= 0.995  # of 400; `interp zoo check` has 2,000


def test_digits_are_told_right_with_every_seed() -> None:
    pytest.importorskip("sklearn")
    found = digits.check(zoo.path("digits"))
    assert [row["seed"] for row in found["models"].values()] == list(range(5))
    assert found["mean"] >= 0.98
    assert found["lowest"] >= 350 / 360  # seed 3 has 8 wrong
    assert all(0.95 < row["neighbours_1"] < 1 for row in found["models"].values())


def test_check_measures_the_weights_it_is_given(tmp_path: Path) -> None:
    """The same folder with an untrained model in it does badly."""
    shutil.copytree(zoo.path("brackets"), tmp_path / "b")
    training.export(brackets.build_model(brackets.Recipe(seed=9)), tmp_path / "b")
    status, found = run("check", "brackets", "--model", tmp_path / "b", "--seed", 3)
    assert status == 0
    assert (found["held_out"]["balanced"] + found["held_out"]["one_swap"]) / 2 < 0.6


def test_a_sampled_sound_is_heard_as_it_was_dialled_layer_by_layer(tmp_path: Path) -> None:
    from interp.lenses import DecoderLens

    status, made = run("sample", "tones", "--text", "4071", "--out", tmp_path / "t.wav")
    assert (status, made["answer"]) == (0, "4071")
    from interp.cli.lens import _file

    model = interp.load("zoo:tones")
    x = _file(model, "zoo:tones", "audio", tmp_path / "t.wav")
    said = DecoderLens(model).generate(x)
    own = model.module.generate(**x)
    assert said[-1].texts == ["4071"]
    assert torch.equal(said[-1].ids, own)
    assert said[-1].error_rate == 0 < said[0].error_rate


def test_a_sampled_picture_is_read(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("sklearn")
    from interp.cli.lens import _file

    for digit in ("0", "7"):
        assert run("sample", "digits", "--text", digit, "--out", tmp_path / "p.png")[1]["answer"] == digit
        model = interp.load("zoo:digits")
        x = _file(model, "zoo:digits", "image", tmp_path / "p.png")
        assert model(x).logits.argmax().item() == int(digit)


def test_samples_of_text_say_what_is_right(tmp_path: Path) -> None:
    status, made = run("sample", "numbers", "--text", "864,868", "--out", tmp_path / "n.txt")
    assert status == 0
    assert made["text"] in ("words: 864868", "digits: " + numbers.words(864868))
    assert (tmp_path / "n.txt").read_text() == made["text"] + "\n"
    assert run("sample", "numbers", "--seed", 3) == run("sample", "numbers", "--seed", 3)
    assert run("sample", "numbers", "--seed", 3)[1]["held_out"]
    assert run("sample", "brackets", "--text", "())(")[1]["answer"] == "unbalanced"
    assert run("sample", "brackets", "--seed", 4)[1]["held_out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "books"), "books reads any text"),
        (("sample", "tone"), "Did you mean 'tones'"),
        (("train", "books"), "give --text FOLDER"),
        (("check", "books"), "give --text FOLDER"),
        (("train", "tones", "--text", "."), "leave --text out"),
        (("check", "number"), "Did you mean 'numbers'"),
    ],
)
def test_wrong_use_of_the_small_models_says_what_to_type(arguments: tuple[str, ...], message: str) -> None:
    status, result = run(*arguments)
    assert status == 2
    assert message in result["error"]


TINY = brackets.Recipe(steps=6, batch=8, warmup=2, decay=3, d_model=16, heads=2, d_mlp=24, layers=1, seed=3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_run_stopped_and_resumed_ends_in_the_same_bytes(dtype: str, tmp_path: Path) -> None:
    recipe = replace(TINY, dtype=dtype)
    whole = training.train("brackets", zoo.task("brackets"), tmp_path / "whole", recipe, save_every=3)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, brackets, "batch", 3)
        with pytest.raises(KeyboardInterrupt):
            training.train("brackets", zoo.task("brackets"), tmp_path / "part", recipe, save_every=3)
    part = training.train("brackets", zoo.task("brackets"), tmp_path / "part", recipe, save_every=3)
    assert digests(part) == digests(whole)
    assert interp.load(part).tokenizer("(())")["input_ids"] == [1, 3, 3, 4, 4]


def test_the_learning_rate_of_a_small_run_rises_stays_and_falls() -> None:
    recipe = training.Recipe(steps=100, warmup=10, decay=40)
    assert [recipe.rate(step) for step in (0, 4, 9, 60, 80, 99)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 1 / 40])


def test_every_matrix_moves_by_muon_and_everything_else_by_adam() -> None:
    for task in (numbers, numbers_decoder, tones, brackets, digits):
        recipe = task.Recipe()
        model = task.build_model(recipe)
        muon, adam = training.optimisers(model, recipe)
        names = {id(p): name for name, p in model.named_parameters()}
        matrices = {names[id(p)] for p in muon.param_groups[0]["params"]}
        others = {names[id(p)] for p in adam.param_groups[0]["params"]}
        assert matrices.isdisjoint(others)
        learnt = {name for name, p in model.named_parameters() if p.requires_grad}
        assert matrices | others == learnt
        assert not any("embed" in name or "shared" in name or "classifier" in name for name in matrices)
        assert all(model.get_parameter(name).ndim == 2 for name in matrices)


def test_a_dry_run_of_a_small_model_writes_nothing(tmp_path: Path) -> None:
    status, plan = run("train", "brackets", "-o", tmp_path / "run", "--steps", 40, "--dry-run")
    assert status == 0
    assert plan["rows"] == 40 * brackets.Recipe().batch
    assert plan["recipe"]["steps"] == 40
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["numbers", "tones"])
def test_inputs_told_the_answer_so_far_make_the_model_say_the_rest(name: str, tmp_path: Path) -> None:
    assert run("inputs", name, "-o", tmp_path / "x.safetensors", "--count", 40, "--seed", 3)[0] == 0
    inputs, _ = load_tensors(tmp_path / "x.safetensors")
    ids, there = inputs["decoder_input_ids"], inputs["decoder_attention_mask"][:, 1:].bool()
    with torch.no_grad():
        said = interp.load(f"zoo:{name}", dtype="float32").module(**inputs).logits.argmax(-1)
    assert (said[:, :-1] == ids[:, 1:])[there].double().mean() > 0.97


@pytest.mark.parametrize("name", ["digits", "brackets", "numbers_decoder"])
def test_inputs_are_what_the_model_takes(name: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert run("inputs", name, "-o", tmp_path / f"{seed}.safetensors", "--count", 5, "--seed", seed)[0] == 0
    one, other = (load_tensors(tmp_path / f"{seed}.safetensors")[0] for seed in (0, 1))
    assert any(not torch.equal(one[key], other[key]) for key in one)
    model = interp.load(f"zoo:{name}")
    site = "blocks.1.resid_post"
    assert model.record(one, site)[site].shape[0] == 5


def test_inputs_that_cannot_be_written(tmp_path: Path) -> None:
    assert "books reads text" in run("inputs", "books", "-o", tmp_path / "x.safetensors")[1]["error"]
    assert run("inputs", "digits", "-o", tmp_path / "x.pt")[1]["error"].endswith("x.safetensors.")
