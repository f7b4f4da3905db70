"""Lenses in the making: gone on with after an interruption, they end the same; plans cost nothing."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from interp import WrongUse
from interp.lenses import AttentionLens, FutureLens, JacobianLens, Recipe, Shortcut, TunedLens
from interp.lenses.fitting import Job, once
from interp.lenses.future import FromLeastSquares
from interp.lenses.jacobian import Jacobians
from interp.lenses.shortcut import squares
from interp.lenses.tuned import Descent, descent
from interp.model import load
from tests.lenses.test_tuned import Words, numbers
from tests.model.shapes import module

TEXTS = numbers(61, 12, 0)
SGD = Recipe(steps=5, tokens=48, context=16)
ADAM = Recipe(steps=5, tokens=48, context=16, optimizer="adam", lr=0.01)


def job(kind: str) -> Job:
    """Five steps or so of each way to make a lens."""
    model = load(module("llama"), tokenizer=Words())
    if kind in ("sgd", "adam"):
        return descent(Descent(TunedLens(model), SGD if kind == "sgd" else ADAM), TEXTS)
    if kind == "attention":
        return descent(Descent(AttentionLens(model), SGD), TEXTS)
    if kind == "future":
        return descent(FromLeastSquares(FutureLens(model), SGD), TEXTS)  # the first three steps are the fit
    if kind == "jacobian":
        steps = once(model, TEXTS, 32, None, wide=64)
        return Job(Jacobians(JacobianLens(model), 4), steps, {"kind": kind})
    made = squares(Shortcut(model), TEXTS, ridge=1e-3, context=32, tokens=None)
    return Job(made.fitting, once(model, TEXTS, 32, None, wide=64), made.about)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("kind", ["sgd", "adam", "attention", "shortcut", "future", "jacobian"])
def test_an_interrupted_run_ends_in_the_same_bytes(kind, stop, tmp_path, monkeypatch):
    whole = job(kind)
    whole.run(tmp_path / "whole")
    broken = job(kind)
    step, count = broken.fitting.step, itertools.count()

    def breaks(group):
        if next(count) == stop:
            raise KeyboardInterrupt
        return step(group)

    monkeypatch.setattr(broken.fitting, "step", breaks)
    with pytest.raises(KeyboardInterrupt):
        broken.run(tmp_path / "parts")
    assert (tmp_path / "parts" / "state.safetensors").is_file()
    assert not (tmp_path / "parts" / "config.json").exists()
    with pytest.raises(WrongUse, match="--resume"):
        job(kind).run(tmp_path / "parts")
    again = job(kind)
    again.run(tmp_path / "parts", resume=True)
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "parts").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    done = job(kind)
    done.run(tmp_path / "parts", resume=True)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(done.fitting.lens.W, whole.fitting.lens.W, strict=True))


def test_another_recipe_cannot_go_on(tmp_path):
    job("sgd").run(tmp_path)
    with pytest.raises(WrongUse, match="say the same again"):
        job("adam").run(tmp_path, resume=True)
    assert json.loads((tmp_path / "recipe.json").read_text())["optimizer"] == "sgd"


def test_a_plan_counts_and_leaves_nothing(tmp_path):
    plan = job("sgd").plan()
    assert plan["rows"] == 5 * 48
    assert plan["bytes"] == 3 * (32 * 32 + 32) * 4
    assert plan["minutes"] >= 0
    assert job("shortcut").plan()["rows"] == 11 * 32  # one window of twelve is held out
    empty = job("sgd")
    with pytest.raises(WrongUse, match="empty"):
        Job(empty.fitting, [], {}).plan()


def test_every_tenth_window_is_kept_out():
    model = load(module("llama"), tokenizer=Words())
    texts = [str(i) for i in range(25)]

    def read(held_out):
        return [int(i) for group in once(model, texts, 16, None, held_out) for i in group[0].ids.flatten()]

    assert read(True) == [9, 19]
    assert read(False) == [i for i in range(25) if i % 10 != 9]
    assert read(None) == list(range(25))
