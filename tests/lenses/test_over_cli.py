"""`interp lens over`: means and bands over a text, as the call gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import interp
from interp.cli.over import over
from interp.lenses import Lens

TEXT = "The class statement names a class. Blocks of code are indented. " * 20


def test_means_over_a_file_are_those_of_the_call(tiny_folder, tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT)
    over(str(tiny_folder), text=str(tmp_path / "t.txt"), context=32, as_json=True)
    told = json.loads(capsys.readouterr().out)
    found = Lens(interp.load(tiny_folder)).over(tmp_path / "t.txt", context=32)
    assert (told["kind"], told["tokens"], told["sites"]) == ("logit", found.tokens, list(found.sites))
    assert set(told["means"]) == set(found.sums)
    for value in ("entropy", "kl_forward", "kl_backward", "rank", "cross_entropy", "agreement"):
        rows = told["means"][value]
        assert rows["mean"] == found.mean(value).tolist()
        assert [rows["low"], rows["high"]] == found.band(value).tolist()
    over(str(tiny_folder), text=str(tmp_path / "t.txt"), kind="backward", tokens=40, context=32, as_json=True)
    assert json.loads(capsys.readouterr().out)["sites"] == ["blocks.0.mlp.out", "blocks.1.mlp.out"]


def test_the_table_fits_eighty_columns_and_ends_with_the_first_site(tiny_folder, capsys):
    over(str(tiny_folder), tokens=200, context=32)
    first, names, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("logit lens over 2")
    assert names.split() == ["cross", "entropy", "kl", "forward", "agreement"]
    assert len(rows) == 3
    assert "1.000 [ 1.00,  1.00]" in rows[0]  # the last block is the model
    assert max(map(len, rows)) <= 80


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"text": "none.txt"}, "no text file none.txt"),
        ({"text": "empty.txt"}, "empty.txt is empty"),
        ({"kind": "logits"}, "Did you mean 'logit'"),
        ({"kind": "tuned"}, "goes together"),
        ({"site": ["blocks.9.resid_post"]}, "blocks.9.resid_post"),
        ({"weights": Path("x")}, "holds no lens"),
    ],
)
def test_wrong_use_is_said(tiny_folder, tmp_path, monkeypatch, capsys, how, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(SystemExit) as stopped:
        over(str(tiny_folder), **how, as_json=True)
    assert stopped.value.code == 2
    assert words in json.loads(capsys.readouterr().out)["error"]
