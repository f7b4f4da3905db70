"""Probes against scikit-learn; k-sparse probing, SCR, TPP and absorption where the answer is known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from typer import Typer
from typer.testing import CliRunner

import interp
from interp.cli import eval as eval_command
from interp.dictionaries import Dictionary, DictionaryConfig
from interp.dictionaries.absorption import absorbed, absorption, main_latents
from interp.dictionaries.labelled import Labelled, absorbs, pooled, probed, read_labelled
from interp.dictionaries.probing import fit_probe, scr, sparse_probing, task, tpp
from interp.errors import Failed, WrongUse

Measure = Callable[[float], None]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def basis(rows: int, d: int, seed: int = 1) -> Tensor:
    """Orthonormal rows, float64."""
    return torch.linalg.qr(torch.randn(d, rows, generator=generator(seed), dtype=torch.float64))[0].T.contiguous()


@pytest.mark.check(
    "dictionaries 4.2 probe", formula="w of scikit-learn's LogisticRegression on standard columns", tolerance=1e-5
)
@pytest.mark.parametrize("C", [1.0, 0.03])
def test_a_probe_is_scikit_learns(C: float, measured: Measure) -> None:
    """Columns of very different scales, one that never varies; both stop at a gradient of about 1e-9."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = torch.randn(200, 5, generator=generator(2), dtype=torch.float64) * torch.tensor([1.0, 0.01, 30.0, 0.0, 2.0]) + 3
    t = x[:, 0] + 40 * x[:, 1] + torch.randn(200, generator=generator(3)) > 3 + 120
    scaler = StandardScaler().fit(x.numpy())
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(scaler.transform(x.numpy()), t.numpy())
    probe = fit_probe(x, t, C)
    measured(np.abs(probe.w.numpy() * scaler.scale_ - theirs.coef_[0]).max())
    assert probe.accuracy(x, t) == theirs.score(scaler.transform(x.numpy()), t.numpy())
    assert probe.accuracy(x, t) > 0.7


def test_as_many_rows_of_each_sort() -> None:
    truth = torch.arange(60) % 3 == 0
    question = task(truth, seed=4)
    assert (len(question.train), len(question.test)) == (32, 8)
    assert truth[question.train].sum() == 16 and truth[question.test].sum() == 4
    assert not set(question.train.tolist()) & set(question.test.tolist())
    sorts = torch.arange(60) % 4
    four = task(truth, 4, sorts)
    assert torch.bincount(sorts[four.train]).tolist() == [12] * 4
    for bad, counts in ((torch.ones(60) > 0, r"\[60\]"), (torch.arange(60) < 4, r"\[56, 4\]")):
        with pytest.raises(WrongUse, match=f"5 of each sort; there are {counts}"):
            task(bad)
    for labels, said in ((["a"] * 9, "there is only a"), (["a"] * 9 + ["b", "c"], "b, c have fewer")):
        with pytest.raises(WrongUse, match=said):
            sparse_probing(torch.rand(len(labels), 3), labels)


# ------------------------------------------------------------ k-sparse probing


@pytest.mark.check(
    "dictionaries 4.2 sparse probing", formula="1 − accuracy where one latent is the label", tolerance=0.0
)
def test_one_latent_that_is_the_label_is_enough(measured: Measure) -> None:
    """40 latents of noise, three that are the labels: k = 1 finds each and is always right."""
    labels = [("cat", "dog", "emu")[i % 3] for i in range(240)]
    f = torch.rand(240, 40, generator=generator(5), dtype=torch.float64)
    for number, (name, scale) in enumerate({"cat": 1.0, "dog": 0.9, "emu": 1.3}.items()):
        f[:, 10 * number] = scale * torch.tensor([float(label == name) for label in labels])
    x = torch.randn(240, 6, generator=generator(6), dtype=torch.float64)
    table = sparse_probing(f, labels, x, ks=(1, 2))
    one = table[table["k"] == 1]
    assert [latents[0] for latents in one["latents"]] == [0, 10, 20]
    measured(float(1 - one["accuracy"].min()))
    chance = table[table["k"] == 0]["accuracy"]  # x knows nothing
    assert (chance - 0.5).abs().max() < 0.3
    assert table.groupby("label")["k"].apply(list).tolist() == [[1, 2, 0]] * 3


# ------------------------------------------------------------ spurious correlation removal


def biased_rows() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x, f, W, label, spurious): a latent for each value of a label, thrice for the spurious one, so that probes like it.

    The latents of the label itself are of size .6 to 1. The decoder is the identity, so columns of x are latents.
    """
    four = torch.arange(400) % 4
    label, spurious = four >= 2, four % 2 == 1
    size = 1 - 0.4 * torch.rand(400, 2, generator=generator(7), dtype=torch.float64)
    f = torch.stack([label * size[:, 0], ~label * size[:, 1], *3 * [spurious, ~spurious]], 1).double()
    f = torch.cat([f, torch.zeros(400, 4, dtype=torch.float64)], 1)
    W = torch.eye(12, 14, dtype=torch.float64)
    return f @ W + 0.5, f, W, label, spurious


@pytest.mark.check(
    "dictionaries 4.2 SCR", formula="S_SCR − 1 with the six spurious latents, S_SCR without them", tolerance=1e-12
)
def test_scr_of_latents_that_are_the_bias(measured: Measure) -> None:
    """The biased probe follows the spurious label: right on half of the four. Without its six latents it is right on all."""
    x, f, W, label, spurious = biased_rows()
    table = scr(x, f, W, label, spurious, ns=(6, 12)).set_index("n")
    measured(abs(table["biased"][6] - 0.5))
    measured(abs(table["clean"][6] - 1))
    measured(abs(table["scr"][6] - 1))
    # the direction told is the harder one, whichever label comes first
    assert scr(x, f, W, spurious, label, ns=(6,))["scr"][0] == table["scr"][6]
    # a dictionary without these latents wins nothing back; neither does one that is all error
    for gone in (list(range(2, 8)), list(range(12))):
        blind = f.clone()
        blind[:, gone] = 0
        measured(abs(scr(x, blind, W, label, spurious, ns=(2,))["scr"][0]))


def test_scr_is_zero_where_there_is_no_bias() -> None:
    """Labels that are both as plain: the biased probe may have lost nothing, and nothing is divided by it."""
    x, f, W, label, _ = biased_rows()
    coin = torch.rand(400, generator=generator(8)) < 0.5
    table = scr(x, f, W, label, coin, ns=(2,))
    assert table["scr"].abs().max() < 10
    with pytest.raises(WrongUse, match=r"there are \[200, 0, 0, 200\]"):
        scr(x, f, W, label, label)


# ------------------------------------------------------------ targeted probe perturbation


@pytest.mark.check("dictionaries 4.2 TPP", formula="one latent a label: S_TPP = ½; no latents: 0", tolerance=1e-12)
def test_tpp_of_one_latent_for_each_label(measured: Measure) -> None:
    """Without its latent every row of a label is taken for another: its probe falls to ½, the others stay at 1."""
    labels = ["abc"[i % 3] for i in range(300)]
    f = torch.stack([torch.tensor([float(label == name) for label in labels]) for name in "abc"], 1).double()
    f = torch.cat([f, torch.zeros(300, 5, dtype=torch.float64)], 1)
    W = torch.eye(8, 10, dtype=torch.float64)
    x = f @ W
    table = tpp(x, f, W, labels, ns=(1, 2, 8))
    for value in table["tpp"]:  # more than one changes nothing: the other latents have no positive effect
        measured(abs(value - 0.5))
    measured(table["unintended"].abs().max())
    measured(tpp(x, torch.zeros_like(f), W, labels, ns=(1,))["tpp"].abs().max())
    # one latent for all labels spoils all probes alike
    shared = torch.cat([torch.ones(300, 1, dtype=torch.float64), f], 1)
    both = tpp(x, shared, torch.cat([W[:3].sum(0, keepdim=True), W]), labels, ns=(1,))
    assert both["tpp"][0] == pytest.approx(0.5)


# ------------------------------------------------------------ absorption


@pytest.mark.check(
    "dictionaries S8", formula="hand-built words: 0, 1 and min(S, a − M)/(min(S, a − M) + M)", tolerance=1e-12
)
def test_s8_absorption_of_hand_built_words(measured: Measure) -> None:
    """p = e_0. Latent 0 is main, writes e_0; 1 and 2 write e_0 and more; 3 writes away from it, 4 a little towards it."""
    e = torch.eye(6, dtype=torch.float64)
    W = torch.stack([e[0], e[0] + e[1], 2 * e[0] + e[2], -e[0] + e[3], 0.05 * e[0] + e[4]])
    cos = normalize(W, dim=1)[:, 0]
    words = {  # f, a, fraction, full
        "main alone": ([1.0, 0, 0, 0, 0], 1.0, 0.0, False),
        "absorbed": ([0, 1.0, 0, 0, 0], cos[1].item(), 1.0, True),
        "by two": ([0, 1.0, 0.5, 0, 0], (cos[1] + cos[2] / 2).item(), 1.0, True),
        "in part": ([0.3, 0.7, 0, 0, 0], 0.3 + 0.7 * cos[1].item(), 0.7 * cos[1].item() / (0.3 + 0.7 * cos[1].item()), False),
        "more than is missing": ([0.4, 1.0, 0, 0, 0], 0.8, 0.5, False),
        "too little": ([0.3, 0.1, 0, 0, 0], 1.0, 0.0, False),
        "not in that direction": ([0, 0, 0, 1.0, 0], -0.5, 0.0, False),
        "cosine under .1": ([0, 0, 0, 0, 20.0], 20 * cos[4].item(), 0.0, True),
        "nothing": ([0, 0, 0, 0, 0], 0.0, 0.0, False),
    }  # fmt: skip
    f = torch.tensor([w[0] for w in words.values()], dtype=torch.float64)
    x = torch.zeros(len(words), 6, dtype=torch.float64)
    x[:, 0] = torch.tensor([w[1] for w in words.values()], dtype=torch.float64)
    fraction, full = absorbed(x, f, W, 3 * e[0], [0])
    for found, is_full, (name, (_, _, wanted, fully)) in zip(fraction, full, words.items(), strict=True):
        measured(abs(found.item() - wanted))
        assert bool(is_full) == fully, name


def absorbing_words(share: float) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """(x, f, W, labels): 200 words of two labels; of label A the first `share` have a latent of their own that writes A's direction too."""
    D = basis(22, 24, seed=9)
    a = torch.arange(200) < 100
    kind = torch.arange(200) % 20
    x = a[:, None] * D[20] + ~a[:, None] * D[21] + 0.1 * D[kind]
    f = torch.zeros(200, 22, dtype=torch.float64)
    f[:, 20], f[:, 21] = a.double(), (~a).double()
    W = D.clone()
    own = a & (kind < 20 * share)
    W[: round(20 * share)] = 0.1 * D[: round(20 * share)] + D[20]
    f[own, 20] = 0
    f[own, kind[own]] = 1.0
    return x, f, W, ["A" if is_a else "B" for is_a in a.tolist()]


@pytest.mark.check("dictionaries S8 (planted)", formula="rate of absorption against the share planted", tolerance=1e-12)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_absorption_is_found_at_the_rate_that_was_planted(share: float, measured: Measure) -> None:
    """Kinds of words spread evenly over label A: probe, main latents and words all found from the labels alone."""
    x, f, W, labels = absorbing_words(share)
    table = absorption(x, f, W, labels).set_index("label")
    assert table["words"].tolist() == [100, 100]
    assert table["main"]["A"] == [20] and table["main"]["B"] == [21]
    measured(abs(table["full"]["A"] - share))
    measured(abs(table["fraction"]["A"] - share))
    measured(table["full"]["B"])


def test_main_latents_stop_where_they_bring_nothing() -> None:
    """A property split over two latents has both; a third that fires on a few words of it adds under .03 of F1."""
    truth = torch.arange(400) % 2 == 0
    half = torch.arange(400) % 4 == 0
    f = torch.stack([truth & half, truth & ~half, truth & (torch.arange(400) < 8)], 1).double()
    assert sorted(main_latents(f, task(truth))) == [0, 1]
    with pytest.raises(WrongUse, match="two labels or more, and 5 texts of each: there is only a"):
        absorption(f, f, torch.eye(3).double(), ["a"] * 400)


# ------------------------------------------------------------ labelled text


def test_labelled_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, two\nthree",yes\nfour,no\n', encoding="utf-8")
    assert read_labelled(tmp_path / "a.csv") == Labelled(("one, two\nthree", "four"), ("yes", "no"))
    lines = [{"text": "é", "label": 1, "spurious": "m"}, {"spurious": "f", "text": "b", "label": 0}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert read_labelled(tmp_path / "a.jsonl") == Labelled(("é", "b"), ("1", "0"), ("m", "f"))


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.txt", "x", WrongUse, "neither .csv nor .jsonl"),
        ("a.csv", "text,label\n", WrongUse, "holds no labelled text"),
        ("a.csv", "text,labels\nx,y\n", WrongUse, "Did you mean 'label'"),
        ("a.csv", "text,label\nx,y\nz,\n", WrongUse, "row 2 has no label"),
        ("a.csv", "text,label,spurious\nx,y,\n", WrongUse, "row 1 has no spurious"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text"', Failed, "line 2 is no JSON"),
        ("a.jsonl", "[1]", Failed, "line 1 is no JSON object"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": "x", "label": "y", "spurious": 1}\n', None, ""),
    ],
)
def test_labelled_text_that_is_none(tmp_path: Path, name: str, content: str, error: Any, said: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    if error is None:  # a second label that the first row has not is none
        assert read_labelled(tmp_path / name).spurious == ()
        return
    with pytest.raises(error, match=said):
        read_labelled(tmp_path / name)
    with pytest.raises(WrongUse, match="There is no file"):
        read_labelled(tmp_path / "none.csv")


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> interp.Model:
    return interp.load(str(tiny_folder))


def relu_dictionary(d: int, site: str) -> Dictionary:
    """Random, 2d latents."""
    D = Dictionary(DictionaryConfig((site,), (site,), d, d, 2 * d, activation="relu"))
    with torch.no_grad():
        for p in D.tensors().values():
            p.copy_(torch.randn(p.shape, generator=generator(11)))
    return D


TEXTS = ["one", "the cat and the dog and so on", "a word or two of this"]


def test_rows_of_a_text_are_means_or_the_last(model: interp.Model) -> None:
    """Against each text alone, without padding or a batch; the first token is the model's own."""
    D = relu_dictionary(32, "blocks.1.resid_post")
    assert model.tokenizer is not None
    for pool in ("mean", "last"):
        x, f = pooled(D, model, TEXTS, pool, context=6, batch=2)
        for number, text in enumerate(TEXTS):
            ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]][:6]
            rows = model.record(torch.tensor([ids]), ["blocks.1.resid_post"])["blocks.1.resid_post"][0, 1:]
            rows = rows if pool == "mean" else rows[-1:]
            assert torch.allclose(x[number], rows.double().mean(0), atol=1e-5)
            assert torch.allclose(f[number], D.encode(rows).detach().double().mean(0), atol=1e-4)
    with pytest.raises(WrongUse, match="pool has no 'first'"):
        pooled(D, model, TEXTS, "first")
    with pytest.raises(WrongUse, match="Text number 1 has no tokens"):
        pooled(D, model, ["one", ""])


def test_what_is_measured_on_labelled_text(model: interp.Model) -> None:
    """Words of one sort and another: every measure has its name; a transcoder is only probed."""
    texts = [f"{a} {i}" for i in range(12) for a in ("cat", "if", "dog", "for")]
    data = Labelled(tuple(texts), ("a", "b") * 24, ("x", "x", "y", "y") * 12)
    D = relu_dictionary(32, "blocks.1.resid_post")
    found = probed(D, model, data)
    assert list(found) == ["sparse_probing", "tpp", "scr"]
    assert list(found["sparse_probing"]) == ["x", "k=1", "k=2", "k=5"]
    assert found["sparse_probing"]["x"] == 1.0  # a random model tells the words apart
    assert list(found["tpp"]) == list(found["scr"]) == ["n=2", "n=5", "n=10", "n=20", "n=50"]
    assert set(absorbs(D, model, data)["absorption"]) == {"fraction", "full"}
    config = DictionaryConfig(("blocks.1.mlp.in",), ("blocks.1.mlp.write",), 32, 32, 8, activation="relu")
    assert list(probed(Dictionary(config), model, data)) == ["sparse_probing"]
    with pytest.raises(WrongUse, match="Absorption is of autoencoders"):
        absorbs(Dictionary(config), model, data)
    with pytest.raises(WrongUse, match="two values of label; there are 3: a, b, c"):
        probed(D, model, Labelled(data.texts, ("a", "b", "c") * 16, data.spurious))


@pytest.mark.slow("loads a model twice and measures in it")
def test_the_command_takes_labelled_text(model: interp.Model, tiny_folder: Path, tmp_path: Path) -> None:
    relu_dictionary(32, "blocks.1.resid_post").save(tmp_path / "D")
    rows = [f"{word} {i},{word}" for i in range(10) for word in ("cat", "dog", "if")]
    (tmp_path / "l.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    (tmp_path / "text.txt").write_text("the cat and the dog. " * 20)
    app = Typer()
    app.command()(eval_command.evaluate)
    words = [str(tmp_path / "D"), str(tiny_folder), "--text", str(tmp_path / "text.txt"), "--context", "32"]
    labels = ["--labels", str(tmp_path / "l.csv")]
    given = [*words, *labels, "--probe", "--absorption", "--out", str(tmp_path / "p.html"), "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {"sparse_probing", "tpp", "absorption", "fvu", "kl"} <= set(told)
    assert "tpp.n=2" in (tmp_path / "p.html").read_text(encoding="utf-8")
    for wrong in ([*words, *labels], [*words, "--probe"], [words[0], "--rows", "X", *labels, "--probe"]):
        assert "Labelled text takes a MODEL" in CliRunner().invoke(app, wrong).stderr
