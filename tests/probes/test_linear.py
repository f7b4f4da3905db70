"""Probes on planted data whose answer is known, with controls, folds, and labels that find their tokens."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

import interp
from interp.dictionaries.labelled import Labelled
from interp.errors import Failed, WrongUse
from interp.model import load
from probes.cli.probe import probe as command
from probes.labels import Labels, of_numbers, of_positions, of_texts, of_words, read_words, reviews, states, tagged
from probes.linear import ALPHAS, KINDS, cross_validate, fit, folds_of, left_out, numbered, probe, randomised
from tests.model.shapes import module


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def blobs(classes=3, n=300, d=8, far=6.0, seed=0):
    """States around a mean for each class."""
    y = torch.arange(n) % classes
    return normal(n, d, seed=seed) + far * normal(classes, d, seed=seed + 1)[y], y


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize("kind", list(KINDS))
def test_classes_that_stand_apart_are_told_by_every_kind(kind):
    x, y = blobs()
    found = fit(kind, x[:200], y[:200], ("a", "b", "c"), k=4)
    assert found.score(x[200:], y[200:]) == 1.0
    fold = folds_of(torch.arange(300), 5)
    assert bool((cross_validate(kind, x, y, ("a", "b", "c"), fold, k=4) == 1).all())
    if kind == "sparse":
        assert bool(((found.W != 0).sum(0) == 4).all())


@pytest.mark.check(
    "geometry linear probes",
    formula="least squares and ridge by their normal equations; 1 - R² of a linear number",
    tolerance=1e-9,
)
def test_numbers(measured):
    x = 2 + normal(80, 5) * torch.tensor([1.0, 3, 0.1, 1, 1])
    y = x @ normal(5, seed=1) + 7
    measured(abs(1 - fit("linear", x, y, ()).score(x, y)))
    y = y + normal(80, seed=2)
    ones = torch.cat([x, torch.ones(80, 1, dtype=x.dtype)], 1)
    wanted = ones @ torch.linalg.solve(ones.T @ ones, ones.T @ y)
    measured(float((fit("linear", x, y, ()).predict(x) - wanted).abs().max()))
    z = (x - x.mean(0)) / x.std(0, correction=0)
    w = torch.linalg.solve(z.T @ z + 3 * torch.eye(5, dtype=x.dtype), z.T @ (y - y.mean()))
    measured(float((fit("ridge", x, y, (), alpha=3.0).predict(x) - (z @ w + y.mean())).abs().max()))
    wide = torch.cat([x, x], 1)  # not of full rank: the same prediction
    measured(float((fit("linear", wide, y, ()).predict(wide) - fit("linear", x, y, ()).predict(x)).abs().max()))


@pytest.mark.check(
    "geometry ridge", formula="errors on each row by a fit to the others, by brute force", tolerance=1e-9
)
def test_ridge_leaves_rows_out(measured):
    """Each row really left out, the others fitted with a column of ones without penalty."""
    x, y = normal(30, 6), normal(30, 2, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    squares, V = torch.linalg.eigh(x.T @ x)
    for alpha in (0.1, 10.0):
        total, penalty = 0.0, torch.diag(torch.tensor([alpha] * 6 + [0.0], dtype=x.dtype))
        for i in range(30):
            rest = torch.arange(30) != i
            ones = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1)
            w = torch.linalg.solve(ones[rest].T @ ones[rest] + penalty, ones[rest].T @ y[rest])
            total += float((y[i] - ones[i] @ w).square().sum())
        measured(abs(left_out(x @ V, squares, y, alpha) - total))
    z = x / x.std(0, correction=0)
    squares, V = torch.linalg.eigh(z.T @ z)
    best = min(ALPHAS, key=lambda alpha: left_out(z @ V, squares, y[:, :1], alpha))
    assert torch.equal(fit("ridge", x, y[:, 0], ()).W, fit("ridge", x, y[:, 0], (), alpha=best).W)


def test_the_difference_of_means_and_the_middle():
    x, y = blobs(2, 40)
    found = fit("mean-difference", x, y, ("a", "b"))
    a, b = x[y == 0].mean(0), x[y == 1].mean(0)
    assert torch.allclose(found.W[:, 1] - found.W[:, 0], b - a)
    middle = found.scores((a + b)[None] / 2)[0]
    assert float(middle[0] - middle[1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["logistic", "mean-difference", "sparse"])
def test_a_class_that_a_fold_lacks_is_never_told(kind):
    x, y = blobs()
    found = fit(kind, x[y < 2], y[y < 2], ("a", "b", "c"))
    assert set(found.predict(x).tolist()) == {0, 1}
    with pytest.raises(WrongUse, match="labels are numbers: use linear or ridge"):
        fit(kind, x, y.double(), ())


def test_folds_never_split_a_group_and_are_about_as_large():
    groups = torch.tensor([g for g in range(30) for _ in range(1 + g % 4)])
    fold = folds_of(groups, 4, seed=3)
    assert all(len(fold[groups == g].unique()) == 1 for g in range(30))
    sizes = torch.bincount(fold)
    assert int(sizes.max() - sizes.min()) <= 4
    assert torch.equal(fold, folds_of(groups, 4, seed=3))
    for folds in (1, 31):
        with pytest.raises(WrongUse, match="cannot be made"):
            folds_of(groups, folds)


# ---------------------------------------------------------------- of a model


def planted(rows=60, n=6, seed=0):
    """Random prompts; the label is what the token two before the last is, odd or even."""
    ids = torch.randint(3, 61, (rows, n), generator=torch.Generator().manual_seed(seed))
    labels = tuple("odd" if int(row[-3]) % 2 else "even" for row in ids)
    return Labels(tuple(map(tuple, ids.tolist())), tuple(range(rows)), ((n - 3,),) * rows, labels, tuple(range(rows)))


def test_what_the_embedding_holds_is_told_and_controls_fail():
    """The label is a function of the token, of 58 kinds in 400 rows: told from its embedding; of shuffled labels by chance."""
    model, data = load(module("gpt2")), planted(400)
    found = probe(model, data, ["embed", "blocks.*.resid_post"], folds=4)
    assert found.mean("embed") > 0.75
    assert abs(found.mean("embed", "shuffled") - found.chance) < 0.1
    assert {c for _, c in found.scores} == {"", "shuffled", "random"}
    assert found.mean(found.best) == max(found.mean(s) for s, c in found.scores if not c)
    assert len(found.to_frame()) == 4 * 3 * 4
    assert len(found.plot().data) == 3
    assert found.probes["embed"].W.shape == (32, 2)
    assert sum(found.classes.values()) == 400
    with pytest.raises(WrongUse, match="no probe of 'embd'"):
        found.mean("embd")


def test_random_weights_are_another_model_and_the_first_one_stays():
    model = load(module("llama"))
    x = torch.tensor([[5, 9, 11]])
    before = model(x).logits
    other = randomised(model, 3)
    assert not torch.allclose(other(x).logits, before)
    assert torch.equal(model(x).logits, before)
    assert other.names("blocks.*.resid_post") == model.names("blocks.*.resid_post")


def test_states_are_those_recorded_of_each_text_alone():
    """Texts of other lengths in one batch, tokens and means of tokens."""
    model, site = load(module("llama", torch.float64)), "blocks.1.resid_post"
    data = Labels(
        ((5, 9, 11), (7, 8), (30, 2, 2, 2)), (0, 1, 2, 2), ((2,), (0, 1), (0,), (1, 2, 3)), ("a",) * 4, (0, 1, 2, 2)
    )
    found = states(model, data, site, batch=3)[site]
    for row in range(4):
        alone = model.record(torch.tensor([data.ids[data.window[row]]]), site)[site][0]
        assert torch.allclose(found[row], alone[list(data.positions[row])].mean(0), atol=1e-5)


# ---------------------------------------------------------------- labels


def test_words_find_their_last_tokens(tiny_folder):
    model = interp.load(tiny_folder)
    words = ["The", "classes", "of", "42", "objects", "."]
    data = of_words(model, [(words, ["at", "nn", "in", "cd", None, "."])])
    assert data.labels == ("at", "nn", "in", "cd", ".")
    for (place,), word in zip(data.positions, ["The", "classes", "of", "42", "."], strict=True):
        assert model.tokenizer.decode(data.ids[0][: place + 1], skip_special_tokens=True).endswith(word)
    with pytest.raises(WrongUse, match="labels do not match tokens: sentence 0 has 6 words and 2 labels"):
        of_words(model, [(words, ["at", "nn"])])
    with pytest.raises(WrongUse, match="no tokenizer that tells"):
        of_words(load(module("gpt2")), [(["a"], ["b"])])
    short = of_words(model, [(words, ["at", "nn", "in", "cd", None, "."])], context=2)
    assert len(short.labels) <= 1


def test_texts_and_what_is_made_of_their_tokens(tiny_folder):
    model = interp.load(tiny_folder)
    texts = Labelled(("The class.", "An object"), ("a", "b"))
    for pool in ("mean", "last", "first"):
        data = of_texts(model, texts, pool)
        assert all(0 not in where for where in data.positions)  # not <s>
        assert all(len(w) == 1 for w in data.positions) == (pool != "mean")
    with pytest.raises(WrongUse, match="pool has no 'max'"):
        of_texts(model, texts, "max")
    with pytest.raises(WrongUse, match="2 texts and 1 labels"):
        of_texts(model, Labelled(("a", "b"), ("x",)))
    with pytest.raises(WrongUse, match="text number 1 has no tokens"):
        of_texts(model, Labelled(("a", ""), ("x", "y")))


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(WrongUse, match="rows and labels do not match"):
        Labels(((1, 2),), (0, 0), ((0,), (1,)), ("a",), (0, 0))
    with pytest.raises(WrongUse, match="positions \\[2\\] of window 0 are not there"):
        Labels(((1, 2),), (0,), ((2,),), ("a",), (0,))
    with pytest.raises(WrongUse, match="windows are 0 to 0"):
        Labels(((1, 2),), (1,), ((0,),), ("a",), (0,))


def test_labels_that_tell_nothing_are_refused():
    with pytest.raises(WrongUse, match="all 3 labels are 'a': there is nothing to tell apart"):
        numbered(["a"] * 3)
    with pytest.raises(WrongUse, match="there are no labels"):
        numbered([])
    with pytest.raises(WrongUse, match="b: fewer than 5 rows"):
        numbered(["a"] * 9 + ["b"])
    y, classes = numbered([1.0, 2.0])
    assert classes == ()
    assert y.tolist() == [1.0, 2.0]
    model = load(module("gpt2"))
    data = planted(20)
    with pytest.raises(WrongUse, match="labels are numbers"):
        probe(model, Labels(data.ids, data.window, data.positions, tuple(map(float, range(20))), data.groups), "embed")
    with pytest.raises(WrongUse, match="list of controls"):
        probe(model, planted(20), "embed", controls=["shuffle"])
    with pytest.raises(WrongUse, match="list of probes"):
        probe(model, planted(20), "embed", kind="lasso")


def test_positions_and_numbers(tiny_folder):
    model = interp.load(tiny_folder)
    data = of_positions(model, ["The class of an object is its type. " * 60], context=32, windows=4)
    assert set(data.labels) == {1.0, 9.0, 17.0, 25.0}
    assert len(data.labels) == 16
    with pytest.raises(WrongUse, match="shorter than the window"):
        of_positions(model, ["The class"], context=32)
    data = of_numbers(model, 20, highest=99)
    assert len(set(data.labels)) == 20
    for ids, (place,), n in zip(data.ids, data.positions, data.labels, strict=True):
        assert place == len(ids) - 1
        assert model.tokenizer.decode(ids).endswith(f"{n:.0f}")
    with pytest.raises(WrongUse, match=r"ends in \{\}"):
        of_numbers(model, 20, template="{} men")


# ---------------------------------------------------------------- files


@pytest.fixture
def corpora(tmp_path):
    with zipfile.ZipFile(tmp_path / "tagged.zip", "w") as file:
        line = "\n\tThe/at classes/nns of/in-hl 42/cd objects/nns ././. The/at type/nn ./.\n"
        file.writestr("brown/ca01", line.replace("././.", "./.") * 12)
        file.writestr("brown/README", "no text")
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as file:
        for i in range(8):
            file.writestr(f"movie/neg/{i}.txt", f"a bad class {i}")
            file.writestr(f"movie/pos/{i}.txt", f"an object of {i} types")
    return tmp_path


def test_corpora_are_read(corpora):
    sentences = tagged(corpora / "tagged.zip", sentences=5, tags=2)
    assert len(sentences) == 5
    assert sentences[0][0][:3] == ["The", "classes", "of"]
    assert set(sentences[0][1]) == {"at", "nn", None}
    data = reviews(corpora / "reviews.zip", 6)
    assert data.labels == ("neg",) * 3 + ("pos",) * 3
    assert data.texts[3] == "an object of 0 types"
    with pytest.raises(WrongUse, match="no two folders"):
        reviews(corpora / "tagged.zip")
    with pytest.raises(WrongUse, match="no text of words and tags"):
        tagged(corpora / "reviews.zip")
    with pytest.raises(WrongUse, match="is no zip file"):
        tagged(corpora / "none.zip")


def test_the_command_on_files_and_tasks(tiny_folder, corpora, tmp_path, capsys):
    folder, site = str(tiny_folder), ["blocks.1.resid_post"]
    command(folder, task="number", rows=20, site=site, folds=3, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["metric"] == "R²"
    assert [s["control"] for s in told["scores"]] == [None, "shuffled", "random"]
    command(folder, task="part-of-speech", corpus=corpora / "tagged.zip", rows=12, site=site, kind="ridge", folds=3)
    assert "ridge probes" in capsys.readouterr().out
    command(
        folder, task="sentiment", corpus=corpora / "reviews.zip", rows=16, site=site, control=["none"], as_json=True
    )
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == {"neg": 8, "pos": 8}
    assert len(told["scores"]) == 1
    labels = tmp_path / "words.jsonl"
    labels.write_text('{"words": ["The", "class"], "labels": ["at", "nn"]}\n' * 12)
    command(folder, labels=labels, site=site, kind="mean-difference", as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"] == 24
    labels = tmp_path / "texts.csv"
    labels.write_text("text,label\n" + "".join(f"class {i},a\nobject {i},b\n" for i in range(8)))
    command(folder, labels=labels, site=site, pool="last", as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"] == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"words": ["a", "b"], "labels": ["x"]}', "labels do not match tokens"),
        ('{"words": ["a"], "tags": ["x"]}', "is not {"),
        ('{"words": ["a"], "labels": ["x"]}\n' * 9, "nothing to tell apart"),
    ],
)
def test_the_command_refuses_bad_labels(tiny_folder, tmp_path, capsys, content, message):
    file = tmp_path / "labels.jsonl"
    file.write_text(content)
    with pytest.raises(SystemExit) as stop:
        command(str(tiny_folder), labels=file)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_refuses_what_it_cannot_do(tiny_folder, tmp_path, capsys):
    def refused(**options):
        with pytest.raises(SystemExit):
            command(str(tiny_folder), **options)
        return capsys.readouterr().err

    assert "one of the two" in refused()
    assert "list of tasks" in refused(task="colour")
    assert "needs --corpus" in refused(task="sentiment")
    assert "takes no --corpus" in refused(task="number", corpus=tmp_path / "x.zip")
    assert "There is no file" in refused(labels=tmp_path / "none.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"words"')
    with pytest.raises(Failed, match="no JSON"):
        list(read_words(tmp_path / "broken.jsonl"))
