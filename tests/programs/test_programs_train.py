"""Training: resumed to the same bytes, refused folders, a task that is learnt; and `interp program`."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from circuits.cli.program import app
from circuits.cli.rasp import app as rasp
from circuits.programs import TASKS, Recipe, load, readout, train
from circuits.programs import training as module
from circuits.programs.labelled import KINDS, labelled
from circuits.programs.measure import measure, outputs
from circuits.programs.program import COUNT, Head, Program
from circuits.programs.readout import fitted
from circuits.programs.recipes import RECIPES, recipe, shipped
from interp.errors import Failed, WrongUse
from tests.programs.test_programs import tiny
from tests.spoken import spoken

RUNNER = CliRunner()
SMALL = Recipe(readable=True, seeds=12, copies=4, generations=2, steps=40, batch=16, layers=1, seed=3)
told, refused = spoken(app)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 10)
    monkeypatch.setattr(module, "CHECKED", 50)
    monkeypatch.setattr(readout, "STEPS", 10)
    return tiny("histogram", 3)


def test_a_run_tells_of_the_best_seeds(small, tmp_path):
    """Whenever others are left behind, and at the end of each generation."""
    whole = train(small, tmp_path / "whole", SMALL)
    assert train(small, tmp_path / "whole", SMALL, resume=True) == whole
    with open(tmp_path / "whole" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [(r["generation"], r["step"], r["seeds"]) for r in rows if r["place"] == "0"]
    assert ends == [("0", s, "8") for s in ("5", "15", "30", "40")] + [("1", s, "8") for s in ("5", "15", "30", "40")]
    assert float(rows[-1]["temperature"]) == pytest.approx(SMALL.cold, abs=1e-3)
    with pytest.raises(WrongUse, match=r"lr 0\.05, not 0\.1"):
        train(small, tmp_path / "whole", Recipe(**(vars(SMALL) | {"lr": 0.1})), resume=True)


def test_a_stopped_run_goes_on_to_the_same_bytes(small, tmp_path, monkeypatch):
    """Stopped three times: before seeds are left behind, at the beginning of the second generation, and within it."""
    whole = train(small, tmp_path / "whole", SMALL)
    update, steps = module.Learner.update, []

    def killed(learner):
        steps.append((learner.generation, learner.step))
        if steps.count(steps[-1]) == 1 and steps[-1] in ((0, 26), (1, 1), (1, 26)):
            raise KeyboardInterrupt
        return update(learner)

    monkeypatch.setattr(module.Learner, "update", killed)
    cut = tmp_path / "cut"
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(small, cut, SMALL, resume=bool(steps))
        assert not (cut / "program.json").exists()
        with pytest.raises(WrongUse, match="add --resume"):
            train(small, cut, SMALL)
    assert train(small, cut, SMALL, resume=True) == whole
    assert [steps[steps.index(stop) + 1] for stop in ((0, 26), (1, 1), (1, 26))] == [(0, 20), (1, 0), (1, 20)]
    for name in ("program.json", "metrics.csv", "recipe.json"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert {f.name for f in cut.iterdir()} == {"program.json", "metrics.csv", "recipe.json"}


def test_reverse_is_learnt_from_random_parameters(tmp_path):
    """Two letters, up to three of them: where the end is, what that leaves, and what stands there; right on every input."""
    task = replace(TASKS["reverse"], longest=3, letters=("a", "b"), labels=("a", "b"))
    sizes = {"closest": 1, "count": 0, "count_tables": 0, "readable": True}
    recipe = Recipe(seed=3, seeds=96, generations=3, copies=56, steps=160, batch=12, **sizes)
    assert module.accuracy(train(task, tmp_path / "run", recipe), readout.everything(task)) == 1


def test_a_readout_that_can_be_right_becomes_right():
    """Sort from planted counts of each letter and the position: a concave sum, so votes exist that are right on every input."""
    task = tiny("sort", 4)
    d = task.length + 1
    heads = tuple(Head(f"count_{i}", COUNT, "positions", "tokens", "ones", (i + 1,) * d) for i in range(5))
    zero = {h.name: ((0,) * 5,) for h in heads} | {"positions": tuple((0,) * 5 for _ in range(d))}
    program = Program("sort", task.vocabulary, task.labels, task.length, d, False, heads, zero, (0,) * 5)
    batch = task.encode(list(task.everything()))
    assert module.accuracy(program, batch) < 0.5
    assert module.accuracy(fitted(program, task), batch) == 1
    one = replace(program, votes={"positions": zero["positions"]})
    read = fitted(one, task)
    assert len(read.votes) == 1 and module.accuracy(read, batch) > 0.3


def test_a_damaged_state_is_named(tmp_path):
    made = module.Learner(tiny("sort", 3), SMALL)
    (tmp_path / "state.safetensors").write_bytes(b"no")
    with pytest.raises(Failed, match="Delete the folder"):
        made.load(tmp_path / "state.safetensors")


def test_the_command_trains_prints_and_runs(tmp_path):
    """`histogram` for a few steps: the files it leaves, the same bytes again, and all that can be asked of them."""
    small = ["--seeds", 2, "--generations", 1, "--steps", 3, "--batch", 8, "--layers", 1, "--count", 1, "--readable"]
    made = told("train", "reverse", "-o", tmp_path / "a", *small)
    assert made["inputs"] == 19_530 and made["every"] and 0 <= made["tokens"] <= 1
    assert set(made["by_length"]) == set("123456")
    file = tmp_path / "a" / "reverse.py"
    assert told("train", "reverse", "-o", tmp_path / "b", *small)["tokens"] == made["tokens"]
    lines = file.read_text().splitlines()
    other = (tmp_path / "b" / "reverse.py").read_text().splitlines()
    assert [a for a, b in zip(lines, other, strict=True) if a != b] in (
        [],
        [lines[2]],
    )  # the command, which names no folder
    assert told("run", tmp_path / "a", "--all")["tokens"] == made["tokens"]
    assert len(told("run", tmp_path / "a", "--input", "abc")["labels"]) == 3
    assert (
        told("run", tmp_path / "a", "--input", '["a","b"]')["labels"]
        == told("run", tmp_path / "a", "--input", "ab")["labels"]
    )
    assert RUNNER.invoke(app, ["print", str(tmp_path / "a")]).stdout == file.read_text()
    assert "labels = " in RUNNER.invoke(app, ["print", str(tmp_path / "a"), "--rasp"]).stdout
    RUNNER.invoke(app, ["print", str(tmp_path / "a"), "--whole", "-o", str(tmp_path / "whole.py")])
    program = load(tmp_path / "a" / "program.json")
    assert all(step.name in (tmp_path / "whole.py").read_text() for step in program.steps)
    assert "one of --input" in refused("run", tmp_path / "a")
    assert "no token 'z'" in refused("run", tmp_path / "a", "--input", "az")
    assert "train TASK -o FOLDER" in refused("run", tmp_path / "none", "--input", "a")
    assert "Did you mean 'reverse'" in refused("train", "revers", "-o", tmp_path / "c")


def test_tasks_and_recipes_are_known():
    assert set(told("tasks")) == set(TASKS) | set(KINDS)
    assert set(RECIPES) <= set(TASKS) | set(KINDS)
    assert recipe("reverse", {"seed": 4}).seed == 4
    with pytest.raises(WrongUse, match="'sed'"):
        recipe("reverse", {"sed": 4})


def sentences(count: int) -> list[str]:
    """Tags that follow from a word and the one before it."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)] + ["the", "a"]  # more than there are kinds
    rows = []
    for _ in range(count):
        row = [words[i] for i in rng.integers(len(words), size=rng.integers(2, 7))]
        tags = [
            "D" if w in ("the", "a") else "N" if i and row[i - 1] in ("the", "a") else "V" for i, w in enumerate(row)
        ]
        rows.append(" ".join(f"{w}/{t}" for w, t in zip(row, tags, strict=True)))
    return rows


def test_tagging_and_classification_are_read_from_files(tmp_path):
    """Splits, unknown words, cutting, and a few steps of the command; the printed file agrees with the program."""
    file = tmp_path / "tags.txt"
    file.write_text("\n".join(sentences(300)) + "\nrare/V the/D\n", encoding="utf-8")
    task = labelled("tagging", file, length=4)
    assert task.labels == ("D", "N", "V") and task.letters[-1] == "<unk>" and len(task.letters) == 43
    assert len(task.held_out) == pytest.approx(len(task.compared) * 10 / 9, abs=2)
    assert task.held_out[-1] == ("rare", "the") and task.answer(("rare", "the")) == ["V", "D"]
    assert task.encode([("rare", "the")]).tokens[0, 1] == len(task.letters)
    assert not set(task.held_out) & set(task.draw(np.random.default_rng(0), 2000))
    small = ["--seeds", 2, "--steps", 5, "--batch", 8, "--layers", 1, "--words", 2]
    made = told("train", "tagging", "--data", file, "-o", tmp_path / "run", *small)
    program, wide = load(tmp_path / "run" / "program.json"), labelled("tagging", file)
    assert program.steps[0].kinds != program.steps[1].kinds
    batch = wide.encode(wide.held_out)
    found = program.run(batch.tokens, batch.real)
    said = outputs(tmp_path / "run" / "tagging.py", wide.held_out)
    assert said == [[wide.labels[v] for v in row[1 : len(b) + 1]] for b, row in zip(wide.held_out, found, strict=True)]
    assert made["inputs"] == len(wide.held_out)
    assert len(told("run", tmp_path / "run", "--input", '["the", "unheard"]')["labels"]) == 2
    assert "give --data FILE" in refused("run", tmp_path / "run", "--all")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{'ab'[i % 2]}\tword{i % 7} and word{i} more" for i in range(40)), encoding="utf-8")
    classes = labelled("classification", texts)
    assert classes.labels == ("a", "b") and classes.answer(classes.held_out[0])[1:] == [None] * 3
    assert (classes.encode(classes.held_out).labels >= 0).sum() == len(classes.held_out)
    for kind, line in (("tagging", "no tags here"), ("classification", "no tab here")):
        texts.write_text(f"{line}\n" * 30, encoding="utf-8")
        with pytest.raises(WrongUse, match="a line of a file for"):
            labelled(kind, texts)


def test_what_the_page_says_can_be_typed():
    """The commands of docs/programs.md that do not train, and its Python."""
    page = (Path(__file__).parents[2] / "docs" / "programs.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    typed = re.findall(r"^interp program ((?:print|run|tasks).*?)(?:  .*)?$", page, re.MULTILINE)
    assert len(typed) >= 5
    for line in typed:
        if "-o " not in line and "--all" not in line:
            assert RUNNER.invoke(app, shlex.split(line)).exit_code == 0, line
    assert RUNNER.invoke(app, shlex.split("run sort --input cab")).stdout.split() == ["a", "b", "c"]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_program_that_ships_does_what_is_said_of_it(name):
    """On 2,000 drawn inputs, within five standard errors at each length; the file is the program's."""
    folder, task = shipped()[name], TASKS[name]
    said = json.loads((folder / "scores.json").read_text())
    bodies = task.draw(np.random.default_rng(3), 2000)
    found = measure(folder / f"{name}.py", task, bodies)
    for length, share in found.by_length.items():
        expected, count = said["by_length"][str(length)], sum(len(b) == length for b in bodies)
        assert abs(share - expected) <= 5 * (expected * (1 - expected) / count) ** 0.5, length
    assert RUNNER.invoke(app, ["print", name]).stdout == (folder / f"{name}.py").read_text()
    ran = told("run", name, "--input", json.dumps(bodies[0]))["labels"]
    assert ran == outputs(folder / f"{name}.py", bodies[:1])[0]


def test_a_learnt_program_becomes_weights_that_are_verified(tmp_path):
    """Histogram as it ships: printed in RASP, compiled, verified on every input of up to four tokens."""
    file, folder = tmp_path / "histogram.rasp", tmp_path / "weights"
    assert RUNNER.invoke(app, ["print", "histogram", "--rasp", "-o", str(file)]).exit_code == 0
    vocabulary = json.dumps(TASKS["histogram"].vocabulary)
    asked = ["compile", str(file), "--var", "labels", "--vocab", vocabulary, "--max-len", "4", "-o", str(folder)]
    assert RUNNER.invoke(rasp, asked).exit_code == 0
    found = RUNNER.invoke(rasp, ["verify", str(folder), "--json"])
    assert found.exit_code == 0
    verdict = json.loads(found.stdout)
    assert (verdict["inputs"], verdict["wrong"], verdict["undefined"]) == (sum(7**n for n in range(1, 5)), 0, 0)
