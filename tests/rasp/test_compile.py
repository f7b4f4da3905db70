"""Compiled weights against the interpreter, on every input."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from circuits.cli.rasp import app
from circuits.rasp import RaspError, evaluate, run
from circuits.rasp.compile import compile_sop, verify
from circuits.rasp.compile.verify import drawn

MIXED = "s = select(tokens,tokens,==) or select(indices,indices,<);"
NESTED = "s = (select(tokens,tokens,==) and not select(indices,indices,>)) or (select(tokens,indices,!=) and select(length,indices,>));"
PAPER = 'load "paper_examples";'

COUNTS = 'hist = selector_width(select(tokens,tokens,==)); x = hist if tokens=="a" else 0;'

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
    "a mean or a string": ('x = aggregate(select(tokens,"a",==),indices,"none");', "ab", 5),
    "a mean or a bool": ("x = aggregate(select(indices,indices,<),indices,True);", "ab", 4),
    "a mean of what may be strings": (
        'set example "a"\nx = aggregate(select(indices,indices,<),aggregate(select(tokens,"a",==),indices,"none"),7);',
        "ab",
        4,
    ),
    "a bool or 0": ('x = aggregate(select(indices,indices-1,==),tokens=="a");', "ab", 4),
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_weights_compute_the_program_on_every_input(name, causal):
    text, vocabulary, length = PROGRAMS[name]
    node = run(text).value("x")
    verdict = verify(node, compile_sop(node, list(vocabulary), length, causal))
    assert verdict.wrong == 0
    assert verdict.failing_input is None
    assert verdict.worst_margin > 0.9
    assert verdict.inputs == sum(len(vocabulary) ** n for n in range(1, length + 1))
    assert verdict.undefined < verdict.inputs
    assert verdict.exhaustive_to == length


def test_an_undefined_input_is_counted():
    node = run('x = aggregate(select(tokens,"a",==),tokens,"-");').value("x")
    verdict = verify(node, compile_sop(node, ["a", "b"], 3))
    assert (verdict.inputs, verdict.undefined, verdict.wrong) == (14, 5, 0)  # two or more "a": no mean of strings


ZEROED = {
    "conditions": (COUNTS, "ab", 3),
    "shift": ('x = shift(tokens,1,"_");', "ab", 3),
    "two layers": ("x = aggregate(select(indices,length-1-indices,==),tokens);", "ab", 3),
    "a mixed selector": (MIXED + "x = aggregate(not s,indices,-1);", "ab", 2),
}


@pytest.mark.parametrize("name", ZEROED)
def test_every_weight_that_an_input_needs_is_missed_by_verify(name):
    """Each weight is set to 0 in turn: verify finds an input where the model is wrong if and only if there is one."""
    text, vocabulary, length = ZEROED[name]
    node = run(text).value("x")
    compiled = compile_sop(node, list(vocabulary), length)
    inputs = ["".join(t) for n in range(1, length + 1) for t in itertools.product(vocabulary, repeat=n)]
    right = {tokens: list(evaluate(node, tokens).values) for tokens in inputs}
    needed = 0
    for weight in compiled.model.parameters():
        for place in weight.nonzero().tolist():
            value = weight[tuple(place)].item()
            weight[tuple(place)] = 0.0
            broken = {tokens for tokens in inputs if not sure(compiled, tokens, right[tokens])}
            verdict = verify(node, compiled)
            assert bool(broken) == (verdict.wrong > 0)
            assert (verdict.failing_input is None) == (not broken)
            if broken:
                needed += 1
                assert "".join(verdict.failing_input) in broken
            weight[tuple(place)] = value
    assert needed > 20
    assert verify(node, compiled).wrong == 0


def sure(compiled: Any, tokens: str, right: list[Any]) -> bool:
    """Whether the right logit is the greatest, alone, at every position."""
    logits, values = compiled.logits([tokens])["x"][0], compiled.outputs["x"]
    return all(
        all(row[values.index(value)] > other for i, other in enumerate(row) if values[i] != value)
        for row, value in zip(logits.tolist(), right, strict=True)
    )


def test_equal_selectors_are_one_head():
    text = "a = aggregate(select(tokens,tokens,==),indices);"
    text += 'b = aggregate(select(tokens,tokens,==),indicator(tokens=="a")); x = (a>1) == (b>0);'
    compiled = compile_sop(run(text).value("x"), ["a", "b"], 3)
    assert compiled.model.sizes()["heads_per_layer"] == [1, 0]


def test_counting_is_exact_to_128_in_float32():
    compiled = compile_sop(run("x = selector_width(select(tokens,tokens,==));").value("x"), ["a", "b"], 128)
    for a in (0, 1, 2, 63, 64, 126, 127, 128):
        tokens = ["a"] * a + ["b"] * (128 - a)
        assert compiled.apply(tokens) == [tokens.count(t) for t in tokens]
    assert compiled.model.embed.weight.dtype == torch.float32


def test_labels_name_every_direction():
    compiled = compile_sop(run(COUNTS).value("x"), ["a", "b"], 2)
    assert len(compiled.labels) == compiled.model.embed.weight.shape[1]
    assert compiled.labels[0] == "bos"
    assert compiled.labels[1] == "tokens='a'"
    assert "hist (number)" in compiled.labels[3]
    assert any("x=2" in label for label in compiled.labels)


def test_refusals():
    node = run("x = tokens;").value("x")
    compiled = compile_sop(node, ["a", "b"], 2)
    assert compiled.apply("ba") == ["b", "a"]
    with pytest.raises(RaspError, match="not in the vocabulary"):
        compiled.apply("c")
    with pytest.raises(RaspError, match="at most 2"):
        compiled.apply("aaa")
    with pytest.raises(RaspError, match="at least one token"):
        compiled.apply("")
    with pytest.raises(RaspError, match="at most 1,000 tokens, a model for 1,001 is too large"):
        compile_sop(node, ["a"], 1001)


def test_programs_that_no_weights_compute():
    """A mean over a bool counts it as a number and a single one stays what it is; and where there is no value, no logit."""
    with pytest.raises(RaspError, match="<text>:1:5: means of numbers with bools among them are not compiled"):
        compile_sop(run("x = aggregate(full_s,True if indices==0 else 2);").value("x"), ["a"], 3)
    with pytest.raises(RaspError, match="x has no value on any input of at most 2"):
        compile_sop(run("x = max(aggregate(select(length,3,<),tokens),1);").value("x"), ["a"], 2)


def test_the_greatest_safe_length_is_named():
    node = run("x = aggregate(select(tokens,tokens,==),100000+indices);").value("x")
    with pytest.raises(RaspError, match="the greatest length that is safe is") as refused:
        compile_sop(node, ["a", "b"], 12)
    safe = int(str(refused.value).partition("is safe is ")[2].split()[0])
    assert verify(node, compile_sop(node, ["a", "b"], safe)).wrong == 0
    with pytest.raises(RaspError, match=f"is safe is {safe}"):
        compile_sop(node, ["a", "b"], safe + 1)
    with pytest.raises(RaspError, match="is safe is 1\\n"):
        compile_sop(run('x = aggregate(full_s,10^7+indicator(tokens=="a"));').value("x"), ["a", "b"], 4)


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
    weights["blocks.0.attn.o.weight"][:] = 0.0  # one weight that is not 0
    save_file(weights, folder / "model.safetensors")
    verdict = interp("verify", str(folder), status=1)
    assert verdict["wrong"] > 0
    assert set(verdict["failing_input"]) <= set("abc")


def test_several_variables_are_one_model(tmp_path):
    program, target = tmp_path / "p.rasp", tmp_path / "model"
    program.write_text('hist = selector_width(select(tokens,tokens,==));\nfirst = tokens=="a" and indices==0;\n')
    interp("compile", str(program), "--var", "hist, first", "--vocab", "ab", "--max-len", "3", "-o", str(target))
    assert interp("apply", str(target), "--input", "aba") == {
        "hist": {"values": [2, 1, 2], "type": "int"},
        "first": {"values": [True, False, False], "type": "bool"},
    }
    assert interp("verify", str(target))["inputs"] == 14
    weights = load_file(target / "model.safetensors")
    weights["unembed.weight"][-1] = 0.0  # the second variable's
    save_file(weights, target / "model.safetensors")
    assert interp("verify", str(target), status=1)["wrong"] > 0


def test_what_a_program_loads_is_saved_with_it(tmp_path):
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "one.rasp").write_text('load "two";\ndef twice(s) { return join(s,s); }')
    (tmp_path / "src" / "sub" / "two.rasp").write_text("def join(a,b) { return a+b; }")
    (tmp_path / "src" / "p.rasp").write_text('load "sub/one";\nload "paper_examples";\nx = twice(reverse);')
    source, target, turned = tmp_path / "src", str(tmp_path / "model"), str(tmp_path / "turned")
    interp("compile", str(source / "p.rasp"), "--var", "x", "--vocab", "ab", "--max-len", "3", "-o", target)
    source.rename(tmp_path / "elsewhere")
    assert sorted(path.name for path in Path(target).rglob("*.rasp")) == ["one.rasp", "program.rasp", "two.rasp"]
    assert interp("verify", target)["wrong"] == 0
    interp("vary", target, "--as", "rotated", "-o", turned)
    assert interp("verify", turned)["inputs"] == 14


def test_a_causal_program_sees_only_what_came_before(tmp_path):
    program, target = tmp_path / "p.rasp", tmp_path / "model"
    program.write_text("hist = selector_width(select(tokens,tokens,==)); n = length;\n")
    words = ["--var", "hist,n", "--vocab", "ab", "--max-len", "4", "--causal", "-o", str(target)]
    interp("compile", str(program), *words)
    found = interp("apply", str(target), "--input", "abaa")
    assert (found["hist"]["values"], found["n"]["values"]) == ([1, 1, 2, 3], [1, 2, 3, 4])
    alone = interp("run", str(program), "--var", "hist", "--input", "abaa", "--causal")
    assert alone["values"] == [1, 1, 2, 3]
    assert interp("verify", str(target))["wrong"] == 0


def test_what_is_too_much_to_run_is_drawn():
    node = run("x = selector_width(select(tokens,tokens,==));").value("x")
    compiled = compile_sop(node, list("abcdefgh"), 9)
    inputs = list(drawn(compiled.vocabulary, 9, 400))
    assert len(inputs) == 400
    assert {len(set(tokens)) for tokens in inputs} == set(range(1, 9))
    assert {tokens.count("a") for tokens in inputs} == set(range(10))
    assert inputs == list(drawn(compiled.vocabulary, 9, 400))
    assert any(len(set(tokens)) == 5 for tokens in drawn(list("abcdefgh"), 5, 100))  # all different, where they can be


def test_lengths_beyond_the_exhaustive_ones_are_verified_too(monkeypatch):
    verifying = importlib.import_module("circuits.rasp.compile.verify")
    monkeypatch.setattr(verifying, "EXHAUSTIVE", 30)
    monkeypatch.setattr(verifying, "DRAWN", 100)
    node = run("x = selector_width(select(tokens,tokens,==));").value("x")
    compiled = compile_sop(node, list("abc"), 5)
    verdict = verify(node, compiled)
    assert (verdict.exhaustive_to, verdict.inputs, verdict.wrong) == (3, 3 + 9 + 27 + 100, 0)
    compiled.outputs["x"][-1] = -1  # a width of 5 is only seen among what is drawn
    assert set(verify(node, compiled).failing_input) in ({"a"}, {"b"}, {"c"})


def test_wrong_use_of_the_commands(folder, tmp_path):
    program = str(tmp_path / "p.rasp")
    rest = ["--vocab", "ab", "--max-len", "2", "-o", str(tmp_path / "new")]
    assert "Did you mean 'hist'" in interp("compile", program, "--var", "hits", *rest, status=2)["error"]
    assert "a selector" in interp("compile", program, "--var", "s", *rest, status=2)["error"]
    used = ["--vocab", "ab", "--max-len", "2", "-o", str(folder)]
    assert "not empty" in interp("compile", program, "--var", "hist", *used, status=2)["error"]
    assert "no compiled program" in interp("verify", str(tmp_path), status=2)["error"]
    assert "not in the vocabulary" in interp("apply", str(folder), "--input", "xyz", status=1)["error"]


def test_variants_are_made_and_verified_by_commands(folder, tmp_path):
    turned = interp("vary", str(folder), "--as", "rotated", "-o", str(tmp_path / "turned"))
    assert (turned["wrong"], turned["right"], turned["inputs"]) == (0, 1.0, 120)
    assert interp("verify", str(tmp_path / "turned"))["wrong"] == 0
    assert interp("apply", str(tmp_path / "turned"), "--input", "abca")["values"] == [2, 1, 1, 2]
    interp("draw", str(tmp_path / "turned"), "--input", "abca", "-o", str(tmp_path / "page.html"))
    learnt = interp("vary", str(folder), "--as", "mimic", "--d-model", "8", "--steps", "2", "-o", str(tmp_path / "few"))
    assert (learnt["d_model"], learnt["of"]) == (8, 5)
    assert learnt["wrong"] > 0
    assert interp("verify", str(tmp_path / "few"), status=1)["wrong"] == learnt["wrong"]
    circuit = json.loads((tmp_path / "turned" / "circuit.json").read_text())
    assert torch.tensor(circuit["basis"]).shape == (5, 5)
    for words, message in (
        (["--as", "mimick"], "give --as rotated, layer-norm, compressed or mimic"),
        (["--as", "compressed"], "give --d-model, below the 5"),
        (["--as", "rotated", "--d-model", "3"], "--d-model is for variants that are trained"),
    ):
        assert message in interp("vary", str(folder), *words, status=2)["error"]
    assert "this is a variant (rotated)" in interp("vary", str(tmp_path / "turned"), "--as", "mimic", status=2)["error"]
