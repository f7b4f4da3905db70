"""The dictionaries that ship: they load, fit their model, and say by which of the documented commands they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import interp
from interp import zoo
from interp.cli.convert import convert
from interp.dictionaries import evaluate, load_dictionary, rows_of
from interp.errors import WrongUse
from interp.files import load_tensors
from interp.texts import default_text

SHAPES = {"sae": (1, False), "transcoder": (1, False), "crosscoder": (2, False), "clt": (2, True)}


@pytest.fixture(scope="module")
def books() -> interp.Model:
    return interp.load("zoo:books")


@pytest.mark.parametrize("name", SHAPES)
def test_a_bundled_dictionary_fits_its_model(name: str, books: interp.Model) -> None:
    """On text that comes after the 60,000 tokens of training; in float32, though its file is half as long."""
    D = load_dictionary(f"zoo:books/{name}")
    assert (len(D.config.reads), D.config.cross_layer) == SHAPES[name]
    assert D.config.autoencoder == (name in ("sae", "crosscoder"))
    assert D.b_dec.dtype == torch.float32
    found = evaluate(D, rows_of(D, books, default_text()[-25:], 1500))
    assert found.fvu < 0.5
    assert 8 < found.l0 < 32
    with books.attach(D) as attached:
        assert attached.latents[0] in books.sites()
    made = json.loads((zoo.dictionary_path(f"books/{name}") / "config.json").read_text(encoding="utf-8"))["made"]
    page = Path(__file__).parents[2].joinpath("docs", "zoo.md").read_text(encoding="utf-8")
    assert f"    {made['command']}\n" in page


def test_convert_writes_the_numbers_in_the_dtype_asked_for(tmp_path: Path) -> None:
    """Widened and narrowed again: the same numbers, and half of the bytes."""
    app = typer.Typer()
    app.command()(convert)
    shipped = load_tensors(zoo.dictionary_path("books/sae") / "weights.safetensors")[0]
    for where, dtype in (("zoo:books/sae", "float32"), (str(tmp_path / "float32"), "bfloat16")):
        words = [where, str(tmp_path / dtype), "--to", "interp", "--dtype", dtype, "--json"]
        assert CliRunner().invoke(app, words).exit_code == 0
        found = load_tensors(tmp_path / dtype / "weights.safetensors")[0]
        assert all(torch.equal(found[name], t.to(found[name].dtype)) for name, t in shipped.items())
        assert {str(t.dtype) for t in found.values()} == {f"torch.{dtype}"}
    wrong = CliRunner().invoke(app, ["zoo:books/sae", str(tmp_path / "x"), "--to", "interp", "--dtype", "float23"])
    assert wrong.exit_code == 2
    assert "float32" in wrong.stderr


def test_a_name_that_is_not_there_is_told_what_is() -> None:
    with pytest.raises(WrongUse, match=r"the zoo has no dictionary 'books/sea'\. Did you mean 'books/sae'"):
        load_dictionary("zoo:books/sea")
