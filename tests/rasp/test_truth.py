"""What is said of a compiled model is so: its circuit, its variables under interventions, its variants, and the scores."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from circuits.rasp import evaluate, run
from circuits.rasp.compile import compile_program, verify
from circuits.rasp.compile.circuit import edges, possible_edges
from circuits.rasp.compile.columns import mark
from circuits.rasp.compile.saved import load, save
from circuits.rasp.compile.wrapped import wrapped
from circuits.rasp.scores import edge_ranking, feature_recovery, node_ranking, ranked, upstream
from circuits.rasp.trained import attention_off, compressed, divergence, mimic
from circuits.rasp.truth import Truth, interchange_accuracy, random_pairs, true_alignment
from circuits.rasp.variants import rotated, with_layer_norm
from interp.errors import WrongUse

COUNTS = 'hist = selector_width(select(tokens,tokens,==)); x = hist if tokens=="a" else 0;'
PROGRAMS = {
    "counts": (COUNTS, "abc", 4),
    "sort": ("x = sort(tokens,tokens);", "abc", 3),
    "dyck2": ('load "paper_examples"; x = dyck2_ptf;', "(){}", 3),
}


def made(name: str, causal: bool = False):
    text, vocabulary, length = PROGRAMS[name]
    nodes = {"x": run(text).value("x")}
    return nodes, compile_program(nodes, list(vocabulary), length, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_causal_model_is_the_program(name, causal):
    nodes, compiled = made(name, causal)
    truth = Truth(nodes, compiled)
    for n in range(1, compiled.length + 1):
        for tokens in itertools.product(compiled.vocabulary, repeat=n):
            try:
                right = evaluate(nodes["x"], tokens, causal).values
            except Exception:
                continue
            assert list(map(mark, truth.values(list(tokens))["x"])) == list(map(mark, right))


def test_every_variable_of_a_compiled_model_passes_interchange_and_a_wrong_place_does_not():
    nodes, compiled = made("sort")
    truth, model = Truth(nodes, compiled), wrapped(compiled)
    pairs = random_pairs(compiled, 12, seed=3)
    for variable in truth.variables:
        found = interchange_accuracy(truth, model, variable, true_alignment(compiled, variable), pairs)
        assert found["positions"] == found["inputs"] == 1.0, variable
    found = interchange_accuracy(truth, model, "tokens", true_alignment(compiled, "indices"), pairs)
    assert found["changed"] > 0.3
    assert found["positions"] < 0.8
    turned = rotated(compiled, seed=5)
    other = wrapped(turned)
    assert interchange_accuracy(truth, other, "place", true_alignment(turned, "place"), pairs)["positions"] == 1.0
    axes = true_alignment(compiled, "place")
    assert interchange_accuracy(truth, other, "place", axes, pairs)["positions"] < 1.0


def test_the_circuit_is_saved_and_is_the_models(tmp_path):
    _, compiled = made("counts")
    save(compiled, tmp_path / "m", COUNTS)
    circuit = json.loads((tmp_path / "m" / "circuit.json").read_text())
    found = {(e["sender"], e["receiver"], e["part"], e["variable"]) for e in circuit["edges"]}
    assert ("embed", "blocks.0.attn.0", "q", "tokens") in found
    assert ("blocks.0.attn.0", "blocks.0.mlp", "in", "hist") in found
    assert ("blocks.0.mlp", "logits", "in", "x") in found
    assert {(e[0], e[1]) for e in found} <= {(s, r) for s, r, _ in possible_edges(compiled)}
    assert circuit["possible_edges"] == len(possible_edges(compiled)) > len(edges(compiled))


def test_scores_by_hand():
    found = ranked({"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}, {"a", "c"})
    assert found.recall.tolist() == [0.5, 1.0, 1.0]
    assert found.precision.tolist() == pytest.approx([1.0, 2 / 3, 0.5])
    assert found.false_positive_rate.tolist() == [0.0, 0.5, 1.0]
    assert found.auc == pytest.approx(0.875)  # of 4 pairs 3 are right and one is a tie
    assert found.average_precision == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert len(found.to_frame()) == 3
    assert len(found.plot().data) == 2
    with pytest.raises(WrongUse, match="true and false"):
        ranked({"a": 1.0}, {"a"})
    with pytest.raises(WrongUse, match="have no score"):
        ranked({"a": 1.0, "b": 0.0}, {"c"})


def test_edges_and_nodes_are_ranked():
    _, compiled = made("dyck2")
    true = {(e.sender, e.receiver, "in" if e.part == "erased" else e.part) for e in edges(compiled)}
    perfect = edge_ranking(compiled, dict.fromkeys(true, 1.0))
    assert (perfect.auc, perfect.average_precision) == (1.0, 1.0)
    rng = np.random.default_rng(0)
    chance = [edge_ranking(compiled, {e: rng.random() for e in possible_edges(compiled)}).auc for _ in range(200)]
    assert abs(np.mean(chance) - 0.5) < 0.03
    assert "blocks.3.mlp" not in upstream(compiled, "opener")
    assert node_ranking(compiled, "opener", dict.fromkeys(upstream(compiled, "opener"), 1.0)).auc == 1.0
    with pytest.raises(WrongUse, match="no edge"):
        edge_ranking(compiled, {("logits", "embed", "in"): 1.0})
    with pytest.raises(WrongUse, match="Did you mean 'opener'"):
        upstream(compiled, "openr")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_rotation_and_layer_norm_change_nothing_that_comes_out(name, causal, tmp_path):
    nodes, compiled = made(name, causal)
    for variant in (rotated(compiled, seed=2), with_layer_norm(compiled)):
        assert verify(nodes, variant).wrong == 0
        assert attention_off(compiled, variant)["greatest"] < 1e-3
        save(variant, tmp_path / variant.variant, PROGRAMS[name][0])
        again = load(tmp_path / variant.variant)
        torch.testing.assert_close(again.basis, variant.basis, rtol=0, atol=0)
        ids = compiled.ids([compiled.vocabulary[:3]])
        torch.testing.assert_close(again.model(ids), variant.model(ids), rtol=0, atol=0)
        assert verify(nodes, again).wrong == 0
    basis = rotated(compiled, seed=2).basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)))
    assert (basis.abs().max(1).values < 0.99).all()  # no direction is an axis
    assert feature_recovery(basis, basis)["recovered"] == 1.0
    assert feature_recovery(basis, torch.eye(len(basis)))["recovered"] < 0.2


def test_the_stream_with_layer_norm_holds_what_the_basis_says():
    _, compiled = made("counts")
    variant, ids = with_layer_norm(compiled), compiled.ids(["abca"])
    torch.testing.assert_close(variant.model.stream(ids) @ variant.basis.T / 2, compiled.model.stream(ids))


def test_learnt_models_are_deterministic_and_say_what_is_known_of_them():
    _, compiled = made("counts")
    a, b = (compressed(compiled, 6, steps=5, progress=False) for _ in range(2))
    torch.testing.assert_close(a.basis, b.basis, rtol=0, atol=0)
    site, rows = a.place("tokens")
    assert (site, rows.shape, a.model.unembed.in_features) == ("blocks.0.resid_pre", (3, 6), 6)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3))
    student = mimic(compiled, d_model=16, steps=5, progress=False)
    assert student.model.sizes()["heads_per_layer"] == compiled.model.sizes()["heads_per_layer"]
    with pytest.raises(WrongUse, match="not known"):
        true_alignment(student, "tokens")
    with pytest.raises(WrongUse, match="ask for fewer"):
        compressed(compiled, 9, progress=False)


def test_the_divergence_is_the_closed_form_and_its_gradient_is_the_difference():
    """KL of Bernoulli laws; d KL / d score = pattern - target, also where the pattern is sure of a wrong key."""
    wanted = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    scores = torch.tensor([[0.0, 0.0], [-30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = divergence(wanted, scores)
    closed = (0.25 * math.log(0.5) + 0.75 * math.log(1.5) + 30.0 + math.log1p(math.exp(-30.0))) / 2
    assert found.item() == pytest.approx(closed, rel=1e-12)
    found.backward()
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(-1) - wanted) / 2, rtol=0, atol=1e-12)
    hidden = torch.tensor([[0.0, -torch.inf]], requires_grad=True)  # a later position of a causal head
    divergence(torch.tensor([[1.0, 0.0]]), hidden).backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.slow("two small models are trained")
def test_training_brings_back_the_function_and_the_attention():
    nodes, compiled = made("counts")
    narrow = compressed(compiled, 8, steps=500, progress=False)
    student = mimic(compiled, d_model=32, steps=500, progress=False)
    for variant, least in ((narrow, 0.97), (student, 0.99)):
        verdict = verify(nodes, variant)
        assert 1 - verdict.wrong / verdict.positions >= least, variant.variant
        assert attention_off(compiled, variant)["mean"] < 0.1
