"""What a picture says of a program is what the interpreter says, and what it says of the weights is their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from circuits.cli.rasp import app
from circuits.rasp import evaluate, run
from circuits.rasp.compile import compile_program
from circuits.rasp.compile.wrapped import wrapped
from circuits.rasp.errors import RaspError
from circuits.rasp.pictures import picture

PROGRAMS = {
    "hist": ("same = select(tokens,tokens,==); x = selector_width(same);", "ab<", "a<b<"),
    "before": ('x = aggregate(select(indices,indices-1,==), tokens, "-");', "ab<", "<ba"),
    "mean": ("x = aggregate(select(indices,indices,<=), indices);", "ab", "abba"),
    "sort": ("x = sort(tokens,tokens);", "abc", "cabba"),
}


def drawn(name, causal=False):
    text, vocabulary, tokens = PROGRAMS[name]
    nodes = {"x": run(text).value("x")}
    compiled = compile_program(nodes, list(vocabulary), 5, causal)
    return nodes, compiled, picture(nodes, compiled, tokens)


@pytest.mark.parametrize(  # what is sorted among earlier tokens only has no value
    ("name", "causal"), [*((name, False) for name in PROGRAMS), ("hist", True), ("before", True), ("mean", True)]
)
def test_heads_attend_where_the_program_selects(name, causal):
    """Attention is alike over what is selected, to float32; values are the interpreter's; the tool's own record is the same."""
    nodes, compiled, seen = drawn(name, causal)
    tokens = PROGRAMS[name][2]
    assert seen.off < 1e-6
    assert seen.outputs["x"] == list(evaluate(nodes["x"], tokens, causal).values)
    cache = wrapped(compiled).record(compiled.ids([tokens]), "blocks.*.attn.pattern")
    for head in seen.heads:
        block, number = re.findall(r"\d+", head.name)
        pattern = cache[f"blocks.{block}.attn.pattern"][0, int(number), 1:]
        assert torch.allclose(head.attention, pattern, atol=1e-6)


def test_the_selector_is_the_one_of_the_program():
    _, _, seen = drawn("hist")
    rows = evaluate(run(PROGRAMS["hist"][0]).value("same"), "a<b<").rows
    assert seen.heads[0].selected.tolist() == [[bool(x) for x in row] for row in rows]
    assert seen.heads[0].writes == ["x"]
    assert seen.values["x"] == ("blocks.0.resid_post", [1, 2, 1, 2])
    frame = seen.to_frame()
    assert len(frame) == 4 * 5
    assert frame[frame["selected"]].groupby("query")["attention"].first().tolist() == pytest.approx([1 / 2, 1 / 3] * 2)


def test_weights_that_attend_elsewhere_are_seen():
    nodes, compiled, _ = drawn("before")
    compiled.model.blocks[0].attn.q.weight.zero_()
    assert picture(nodes, compiled, "<ba").off > 0.3


def test_an_input_that_the_model_does_not_take():
    nodes, compiled, _ = drawn("mean")
    with pytest.raises(RaspError, match="at most 5 tokens"):
        picture(nodes, compiled, "ababab")


def test_the_page_and_the_figure(tmp_path: Path):
    """Every token is escaped, nothing is fetched or run."""
    _, _, seen = drawn("hist")
    figure = seen.plot()
    assert len(figure.data) == 2 * len(seen.heads) and "&lt;" in figure.layout.yaxis.ticktext
    seen.write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt; → BOS: 0.333" in page
    assert not re.search(r"<script|<link|https?://(?!www\.w3\.org)", page)
    assert page.count("<rect") == 4 * 4 + 4 * 5


def test_the_command(tmp_path: Path):
    (tmp_path / "p.rasp").write_text(PROGRAMS["sort"][0])
    runner = CliRunner()
    made = [
        "compile",
        str(tmp_path / "p.rasp"),
        "--var",
        "x",
        "--vocab",
        "abc",
        "--max-len",
        "4",
        "-o",
        str(tmp_path / "m"),
    ]
    assert runner.invoke(app, made).exit_code == 0
    done = runner.invoke(app, ["draw", str(tmp_path / "m"), "--input", "cab", "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").stat().st_size > 1000
    wrong = runner.invoke(app, ["draw", str(tmp_path / "m"), "--input", "xyz", "-o", str(tmp_path / "other.html")])
    assert wrong.exit_code == 1
    assert not (tmp_path / "other.html").exists()
