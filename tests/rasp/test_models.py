"""A compiled program as a model among others: sites by the program's names, TransformerLens, files."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

import interp
from circuits.rasp import run
from circuits.rasp.compile import compile_program
from circuits.rasp.compile.hooked import to_transformer_lens
from circuits.rasp.compile.saved import load, save
from circuits.rasp.compile.wrapped import wrapped
from circuits.rasp.variants import rotated, with_layer_norm
from interp.errors import Failed, WrongUse
from interp.model.proof import by_letter, doctor

TWO = "hist = selector_width(select(tokens,tokens,==)); place = length-1-indices; reverse = aggregate(select(indices,place,==),hist);"
DYCK = 'load "paper_examples"; hist = dyck1_ptf; reverse = aggregate(select(indices,length-1-indices,==),tokens,"-");'


def compiled_of(text: str, vocabulary: str, length: int, causal: bool = False):
    program = run(text)
    return compile_program({n: program.value(n) for n in ("hist", "reverse")}, list(vocabulary), length, causal)


def proven(model: interp.Model) -> set[str]:
    """The letters of the proofs that pass; none may fail."""
    proofs = by_letter(doctor(model, gradients=2))
    assert not {letter: p["reason"] for letter, p in proofs.items() if p["status"] == "fail"}
    return {letter for letter, p in proofs.items() if p["status"] == "pass"}


@pytest.fixture(scope="module")
def two():
    return compiled_of(TWO, "abc", 5)


@pytest.fixture(scope="module")
def model(two):
    return wrapped(two)


def test_every_variable_is_a_site_that_holds_its_values(two, model):
    text = "cabca"
    found = model.record(text, [v.name for v in two.variables])
    for variable in two.variables:
        held = found[variable.name][0, 1:]
        assert held.shape == (5, len(variable.directions))
        if not variable.number:
            torch.testing.assert_close(held.sum(-1), torch.ones(5))  # one value is on, the others are off
    tokens = next(v for v in two.variables if v.name == "tokens")
    assert [tokens.values[i] for i in found["tokens"][0, 1:].argmax(-1)] == list(text)
    hist = next(v for v in two.variables if v.name == "hist")
    levels = torch.tensor(hist.levels, dtype=torch.float32)
    nearest = (found["hist"][0, 1:] - levels).abs().argmin(-1)
    assert [hist.values[i] for i in nearest] == [text.count(t) for t in text]


def test_patching_a_variable_changes_what_is_computed_from_it(two, model):
    other = model.record("aaaaa", ["hist"])
    with model.edit(interp.Patch("hist", other)):
        logits = model("abcab")[:, 1:].split([len(v) for v in two.outputs.values()], -1)
    for name, each in zip(two.outputs, logits, strict=True):
        assert [two.outputs[name][i] for i in each[0].argmax(-1)] == [5] * 5, name


def test_every_direction_is_labelled_and_belongs_to_a_variable(two):
    assert len(two.labels) == two.model.embed.embedding_dim
    assert all(two.labels)
    assert {d for v in two.variables for d in v.directions} == set(range(1, len(two.labels)))


def test_directions_are_used_again():
    compiled = compiled_of(DYCK, "()", 5)
    again = [v for v in compiled.variables if v.until]
    assert again
    assert any("; " in label for label in compiled.labels)
    assert sum(len(v.directions) for v in compiled.variables) > compiled.model.embed.embedding_dim


def test_a_name_cannot_be_given_twice(two):
    fresh = wrapped(two)
    fresh.name_parts({"blocks.0.resid_pre": ("blocks.0.resid_post", [0])})
    with pytest.raises(WrongUse, match="is a site already"):
        fresh.sites()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("text", "letters"), [(TWO, "abc"), (DYCK, "()")])
def test_transformer_lens_has_the_same_logits(text, letters, causal):
    pytest.importorskip("transformer_lens")
    compiled = compiled_of(text, letters, 4, causal)
    hooked = to_transformer_lens(compiled)
    for n in range(1, 5):
        ids = compiled.ids(list(itertools.product(letters, repeat=n)))
        torch.testing.assert_close(hooked(ids), compiled.model(ids), rtol=1e-5, atol=1e-4)
    with pytest.raises(WrongUse, match="has norms"):
        to_transformer_lens(with_layer_norm(compiled))


@pytest.mark.slow("a model is examined twice, with gradients by differences")
@pytest.mark.parametrize("causal", [False, True])
def test_a_folder_is_loaded_and_passes_the_doctor(tmp_path, causal):
    compiled = compiled_of(DYCK, "()", 4, causal)
    save(compiled, tmp_path / "model", DYCK)
    assert vars(load(tmp_path / "model")) | {"model": None} == vars(compiled) | {"model": None}
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(w.numel() for w in weights.values()) == compiled.model.sizes()["parameters"]
    model = interp.load(tmp_path / "model")
    assert set(model.parts) == {v.name for v in compiled.variables}
    torch.testing.assert_close(model("(())"), compiled.model(compiled.ids(["(())"])), rtol=0, atol=0)
    assert interp.load(tmp_path / "model", dtype="float64").dtype == torch.float64
    assert {"b", "c", "d", "e", "g", "h"} <= proven(model)


def test_gradients_of_heads_far_sharper_than_their_scores_are_proven():
    """Scores of thousands: a step of 1e-5 of them bends a softmax, whose own scale is 1."""
    compiled = compile_program({"x": run("x = sort(tokens,tokens);").value("x")}, list("abc"), 4)
    assert by_letter(doctor(wrapped(compiled)))["g"]["status"] == "pass"


@pytest.mark.parametrize("name", ["config.json", "circuit.json", "model.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    compiled = rotated(compile_program({"x": run("x = tokens;").value("x")}, ["a"], 1))
    save(compiled, tmp_path / "model", "x = tokens;")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(Failed, match=name):
        load(tmp_path / "model")


def test_a_folder_of_a_kind_that_nothing_opens(tmp_path):
    (tmp_path / "config.json").write_text('{"interp_model": "rsap"}')
    with pytest.raises(WrongUse, match="Did you mean 'rasp'"):
        interp.load(tmp_path)
