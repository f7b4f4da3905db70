"""Compiled weights against the interpreter, on every input."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from circuits.cli.rasp import app
from circuits.rasp import RaspError, run
from circuits.rasp.compile import compile_sop, verify

MIXED = "s = select(tokens,tokens,==) or select(indices,indices,<);"
NESTED = "s = (select(tokens,tokens,==) and not select(indices,indices,>)) or (select(tokens,indices,!=) and select(length,indices,>));"
PAPER = 'load "paper_examples";'

COUNTS = 'x = selector_width(select(tokens,tokens,==)) if tokens=="a" else 0;'

PROGRAMS = {
    "histogram": ("x = selector_width(select(tokens,tokens,==));", "abc", 5),
    "reverse": ("x = aggregate(select(indices,length-1-indices,==),tokens);", "abc", 5),
    "length": ("x = length;", "ab", 6),
    "shift": ('x = shift(tokens,1,"_");', "abc", 4),
    "shares": ('x = aggregate(select(indices,indices,<=),indicator(tokens=="a"));', "ab", 6),
    "sort": ("x = sort(tokens,tokens);", "abc", 5),
    "no attention": ('x = tokens in ["a","e"];', "abe", 3),
    "a constant": ("x = aggregate(full_s,3);", "ab", 3),
    "numbers": ("set example [1,2]\ntokens = tokens_int; x = average(tokens*tokens)-tokens;", [1, 3, -2], 4),
    "mean of means": ("x = aggregate(select(indices,indices,<=),aggregate(full_s,indices));", "ab", 4),
    "zero and False": (
        "p = select(indices,indices-1,==); x = aggregate(p,indices,0) if aggregate(p,indices>0,False) else 1;",
        "ab",
        3,
    ),
    "double histogram": (PAPER + "x = hist2_nobos;", "abc", 4),
    "palindrome": (PAPER + "x = aggregate(full_s,indicator(not (tokens==reverse)))==0;", "ab", 6),
    "dyck1": (PAPER + "x = dyck1_ptf;", "()", 5),
    "dyck2": (PAPER + "x = dyck2_ptf;", "(){}", 4),
    "width of a mixed selector": (MIXED + "x = selector_width(s);", "abc", 4),
    "width of its complement": (MIXED + "x = selector_width(not s);", "abc", 4),
    "mean of a mixed selector": (MIXED + "x = aggregate(s,indices);", "abc", 4),
    "mean of its complement": (MIXED + "x = aggregate(not s,indices,-1);", "abc", 4),
    "a string default": (
        MIXED + 'x = aggregate(select(indices,aggregate(not s,indices,-1),==),tokens,"none");',
        "abc",
        4,
    ),
    "width of a nested selector": (NESTED + "x = selector_width(s);", "01", 4),
    "mean of a nested selector": (NESTED + "x = aggregate(s,indices,0.5);", "01", 4),
    "a nested selector, default": (
        NESTED + 'x = aggregate(s and select(indices,1,==),tokens,"nothing here");',
        "01",
        4,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_weights_compute_the_program_on_every_input(name):
    text, vocabulary, length = PROGRAMS[name]
    node = run(text).value("x")
    verdict = verify(node, compile_sop(node, list(vocabulary), length))
    assert verdict.wrong == 0
    assert verdict.failing_input is None
    assert verdict.worst_margin > 0.9
    assert verdict.inputs == sum(len(vocabulary) ** n for n in range(1, length + 1))
    assert verdict.undefined < verdict.inputs


def test_an_undefined_input_is_counted():
    node = run('x = aggregate(select(tokens,"a",==),tokens,"-");').value("x")
    verdict = verify(node, compile_sop(node, ["a", "b"], 3))
    assert (verdict.inputs, verdict.undefined, verdict.wrong) == (14, 5, 0)  # two or more "a": no mean of strings


@pytest.mark.parametrize("matrix", ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"])
def test_a_changed_weight_is_found(matrix):
    node = run(COUNTS).value("x")
    compiled = compile_sop(node, ["a", "b"], 3)
    weight = getattr(compiled.model.blocks[0], matrix)
    used = weight[:, 1:] if matrix == "W_Q" else weight  # row 0 of W_Q only keeps the BOS position to itself
    used.data[used == used.abs().max()] = 0.0
    verdict = verify(node, compiled)
    assert verdict.wrong > 0
    assert verdict.failing_input is not None


def test_equal_selectors_are_one_head():
    text = (
        "a = aggregate(select(tokens,tokens,==),indices); b = aggregate(select(tokens,tokens,==),indices*2); x = a+b;"
    )
    compiled = compile_sop(run(text).value("x"), ["a", "b"], 3)
    assert [block.W_Q.shape[0] for block in compiled.model.blocks if len(block.W_Q)] == [1]


def test_counting_is_exact_to_128_in_float32():
    compiled = compile_sop(run("x = selector_width(select(tokens,tokens,==));").value("x"), ["a", "b"], 128)
    for a in (0, 1, 2, 63, 64, 126, 127, 128):
        tokens = ["a"] * a + ["b"] * (128 - a)
        assert compiled.apply(tokens) == [tokens.count(t) for t in tokens]
    assert compiled.model.W_E.dtype == torch.float32


def test_labels_name_every_direction():
    compiled = compile_sop(run("hist = selector_width(select(tokens,tokens,==)); " + COUNTS).value("x"), ["a", "b"], 2)
    assert len(compiled.labels) == compiled.model.W_E.shape[1]
    assert compiled.labels[0] == "bos"
    assert {"tokens='a'", "indices=1", "x=2"} <= set(compiled.labels)


def test_refusals():
    node = run("x = tokens;").value("x")
    compiled = compile_sop(node, ["a", "b"], 2)
    assert compiled.apply("ba") == ["b", "a"]
    with pytest.raises(RaspError, match="not in the vocabulary"):
        compiled.apply("c")
    with pytest.raises(RaspError, match="at most 2"):
        compiled.apply("aaa")
    with pytest.raises(RaspError, match="compile for shorter inputs"):
        compile_sop(run("x = aggregate(select(tokens,tokens,==),10000000+indices);").value("x"), ["a", "b"], 12)


def interp(*words: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path):
    program, target = tmp_path / "p.rasp", tmp_path / "model"
    program.write_text("hist = selector_width(select(tokens,tokens,==));\ns = full_s;\n")
    made = interp("compile", str(program), "--var", "hist", "--vocab", "abc", "--max-len", "4", "-o", str(target))
    assert (made["layers"], made["heads_per_layer"]) == (1, [1])
    assert made["parameters"] == sum(w.numel() for w in load_file(target / "model.safetensors").values())
    return target


def test_saved_weights_run_and_are_verified(folder):
    assert interp("apply", str(folder), "--input", "abca") == {"values": [2, 1, 1, 2], "type": "int"}
    verdict = interp("verify", str(folder))
    assert {k: verdict[k] for k in ("inputs", "undefined", "wrong", "failing_input", "exhaustive_to")} == {
        "inputs": 120,
        "undefined": 0,
        "wrong": 0,
        "failing_input": None,
        "exhaustive_to": 4,
    }


def test_a_weight_changed_on_disk_is_found(folder):
    weights = load_file(folder / "model.safetensors")
    weights["blocks.0.W_O"][:] = 0.0  # one weight that is not 0
    save_file(weights, folder / "model.safetensors")
    verdict = interp("verify", str(folder), status=1)
    assert verdict["wrong"] > 0
    assert set(verdict["failing_input"]) <= set("abc")


def test_wrong_use_of_the_commands(folder, tmp_path):
    program = str(tmp_path / "p.rasp")
    rest = ["--vocab", "ab", "--max-len", "2", "-o", str(tmp_path / "new")]
    assert "Did you mean 'hist'" in interp("compile", program, "--var", "hits", *rest, status=2)["error"]
    assert "a selector" in interp("compile", program, "--var", "s", *rest, status=2)["error"]
    used = ["--vocab", "ab", "--max-len", "2", "-o", str(folder)]
    assert "not empty" in interp("compile", program, "--var", "hist", *used, status=2)["error"]
    assert "no compiled program" in interp("verify", str(tmp_path), status=2)["error"]
    assert "not in the vocabulary" in interp("apply", str(folder), "--input", "xyz", status=1)["error"]
