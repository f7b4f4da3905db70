"""Training: the same steps as autograd and torch's AdamW, a planted bigram map found, runs that go on, stop and spike rules."""

from __future__ import annotations

import copy
import csv
import json

import pytest
import torch
from torch import nn

from circuits import bigram
from circuits.bigram import Mask, Recipe, training
from circuits.bigram.measure import scores
from circuits.bigram.training import SoftMask, cross_entropy
from interp import Failed, WrongUse
from interp.model import load
from tests.bigram.toy import Decoder, sampled, tiers, transitions
from tests.model.shapes import module

V = 12


def published(
    net: nn.Module, target, batches, recipe: Recipe, steps: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """As the paper says it: σ(τ m) and W ⊙ M in the graph, the penalty a term of the loss, torch's own AdamW."""
    net = copy.deepcopy(net)
    names = [n for n, p in net.named_parameters() if n.startswith("blocks.")]
    m = {n: torch.zeros_like(net.get_parameter(n)).requires_grad_() for n in names}
    for n in names:
        m[n].data[net.get_parameter(n) == 0] = -1e6
    optimiser = torch.optim.AdamW(m.values(), lr=recipe.lr)
    losses, tau, size = [], 1.0, sum(t.numel() for t in m.values())
    for ids in batches[:steps]:
        M = {n: torch.sigmoid(tau * m[n]) for n in names}
        logits = torch.func.functional_call(net, {n: net.get_parameter(n) * M[n] for n in names}, ids)
        loss = -(target(ids) * logits.log_softmax(-1)).sum(-1).mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        (loss + recipe.penalty * sum(t.sum() for t in M.values()) / size).backward()
        optimiser.step()
        tau *= recipe.factor
    return losses, {n: t.detach() for n, t in m.items()}


@pytest.mark.check(
    "bigram training", formula="one blocked pass = σ(τ m) in autograd and torch.optim.AdamW", tolerance=1e-10
)
def test_a_step_is_that_of_the_paper(monkeypatch, measured):
    """20 steps in float64, blocks of 100 entries, a planted zero, all settings away from their defaults."""
    net = Decoder(transitions(V, 1), noise=0.5).double()
    net.blocks[0].mlp.first.weight[3, 4] = 0
    recipe = Recipe(penalty=3.0, steps=40, lr=0.03, batch=3, context=9)
    counts = bigram.count(sampled(transitions(V, 1), 50, 9, 0), V)
    batches = [torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(i)) for i in range(20)]

    def target(ids):
        return counts.distribution(ids).double()

    losses, m = published(net, target, batches, recipe, 20)
    monkeypatch.setattr(training, "BLOCK", 100)
    soft = SoftMask(load(net), recipe)
    for ids, loss in zip(batches, losses, strict=True):
        measured(abs(soft.backward(ids, target) - loss))
        kept, high, undecided = soft.update()
    found = dict(zip(soft.parameters, soft._split(soft.m), strict=True))
    for name, t in m.items():
        real = t > -1e5
        measured(float((found[name] - t)[real].abs().max()))
    M = torch.cat([torch.sigmoid(recipe.factor**20 * t).flatten() for t in m.values()])
    assert kept == int((M > 0.5).sum())
    assert high == int((M > 0.9).sum())
    assert undecided == len(M) - high - int((M < 0.1).sum())
    assert not soft.hard()["blocks.0.mlp.first.weight"][3, 4]
    assert not soft.grad.any()


@pytest.mark.check("bigram C3 (planted)", formula="share of the kept weights outside the planted MLP", tolerance=0.01)
def test_a_planted_map_is_found(tmp_path, measured):
    """The bigram map in the MLP of block 0 (one-hot, relu, log P); random heads and a random MLP around it spoil the model.

    The counts are P exactly. The mask passes r = .99, and no weight that is zero is kept.
    """
    P = tiers(V, 2)
    net = Decoder(P, noise=0.3)
    mlp = net.blocks[0].mlp
    mlp.first.weight.zero_()[:, :V] = torch.eye(V)
    mlp.second.weight.zero_()[V:] = (P / P.min()).log().T
    model, text, held = load(net), sampled(P, 400, 24, 0), torch.tensor(sampled(P, 60, 24, 1))
    counts = bigram.count([[a, b] for a in range(V) for b in range(V) for _ in range(round(1000 * float(P[a, b])))], V)
    assert float((counts.distribution(torch.arange(V)[None])[0] - P).abs().max()) < 1e-6
    recipe = Recipe(penalty=20.0, steps=300, lr=0.02, batch=16, context=24)
    mask = bigram.train(model, text, counts.distribution, tmp_path, recipe)
    assert mask.about["stopped"]
    assert mask.about["undecided_share"] < 0.01
    assert scores(model, counts, held).r < 0.5
    assert scores(mask.apply(model), counts, held).r > 0.99
    for name, p in model.module.named_parameters():
        if name in mask.bits:
            assert not (mask.bits[name] & (p == 0)).any()
    frame = mask.to_frame(model)
    measured(1 - frame[(frame.block == "blocks.0") & (frame.part == "mlp")].kept.sum() / mask.kept)


def test_an_interrupted_run_ends_in_the_same_mask(tmp_path, monkeypatch):
    P = transitions(V, 3)
    model, text = load(Decoder(P)), sampled(P, 60, 16, 0)
    target = bigram.count(text, V).distribution
    recipe = Recipe(penalty=2.0, steps=60, lr=0.02, batch=4, context=16, seed=5)
    whole = bigram.train(model, text, target, tmp_path / "whole", recipe, {"towards": "counts"})
    monkeypatch.setattr(training, "SAVE_EVERY", 5)
    calls = 0

    def stops(ids):
        nonlocal calls
        calls += 1
        if calls == 13:
            raise KeyboardInterrupt
        return target(ids)

    with pytest.raises(KeyboardInterrupt):
        bigram.train(model, text, stops, tmp_path / "cut", recipe, {"towards": "counts"})
    with pytest.raises(WrongUse, match="add --resume"):
        bigram.train(model, text, target, tmp_path / "cut", recipe, {"towards": "counts"})
    with pytest.raises(WrongUse, match=r"with penalty 2\.0, not 3\.0"):
        bigram.train(model, text, target, tmp_path / "cut", Recipe(**vars(recipe) | {"penalty": 3.0}), resume=True)
    again = bigram.train(model, text, target, tmp_path / "cut", recipe, {"towards": "counts"}, resume=True)
    assert all(torch.equal(again.bits[n], b) for n, b in whole.bits.items())
    files = [(tmp_path / d / "metrics.csv").read_text() for d in ("whole", "cut")]
    assert files[0] == files[1]
    assert not (tmp_path / "cut" / "state.safetensors").exists()
    loaded = bigram.train(model, text, stops, tmp_path / "cut", recipe, {"towards": "counts"}, resume=True)
    assert loaded.kept == whole.kept  # finished: nothing runs
    assert json.loads((tmp_path / "cut" / "recipe.json").read_text())["about"] == {"towards": "counts"}
    with open(tmp_path / "cut" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == again.about["steps_done"]
    assert int(rows[-1]["kept"]) == again.kept


def test_a_damaged_state_is_named(tmp_path, monkeypatch):
    P = transitions(V, 3)
    model, text = load(Decoder(P)), sampled(P, 60, 16, 0)
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    soft = SoftMask(model, Recipe())
    soft.save(tmp_path / "state.safetensors")
    data = (tmp_path / "state.safetensors").read_bytes()
    (tmp_path / "state.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Failed, match="Delete the folder"):
        bigram.train(model, text, bigram.count(text, V).distribution, tmp_path, Recipe(context=16), resume=True)


def test_towards_the_model_itself(tmp_path):
    """An "optimal" subnetwork without penalty: it is nearer to the model than to what the model says without blocks."""
    P = transitions(V, 4)
    model, text = load(Decoder(P, noise=0.3)), sampled(P, 200, 16, 0)
    own = bigram.own_distribution(model)
    mask = bigram.train(model, text, own, tmp_path, Recipe(0.0, steps=200, lr=0.03, batch=8, context=16))
    ids = torch.tensor(text[:50])
    p = own(ids)
    with torch.no_grad():
        own_loss, kept, empty = (
            float(cross_entropy(m(ids), p)) for m in (model, mask.apply(model), bigram.whole(model, False).apply(model))
        )
    assert kept - own_loss < 0.5 * (empty - own_loss)
    assert mask.kept > mask.size / 3


def test_any_function_of_the_prefix_is_a_target(tmp_path):
    """Towards "always token 3": the mask makes the model say so more than the whole or the empty model does."""
    P = transitions(V, 5)
    model, text = load(Decoder(P, noise=0.5)), sampled(P, 100, 16, 0)

    def three(ids):
        return nn.functional.one_hot(torch.full_like(ids, 3), V).float()

    mask = bigram.train(model, text, three, tmp_path, Recipe(0.0, steps=100, lr=0.05, batch=8, context=16))
    ids = torch.tensor(text[:20])
    with torch.no_grad():
        said = [float(m(ids).softmax(-1)[..., 3].mean()) for m in (model, mask.apply(model))]
    assert said[1] > 2 * said[0]


def test_logits_beyond_the_vocabulary_have_no_probability():
    logits = torch.randn(1, 2, 5, dtype=torch.float64)
    p = torch.tensor([[[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    wanted = -(0.2 * log_p[0, 0, 0] + 0.3 * log_p[0, 0, 1] + 0.5 * log_p[0, 0, 2] + log_p[0, 1, 0]) / 2
    assert float(cross_entropy(logits, p)) == pytest.approx(float(wanted), abs=1e-12)
    with pytest.raises(WrongUse, match="of 6 tokens, and the model has 5 logits"):
        cross_entropy(logits, torch.rand(1, 2, 6))


def test_spikes_are_over_when_the_mean_before_them_is_reached_again():
    calm = [3.0] * 300
    assert bigram.stable(calm)
    spike = [*calm[:100], 3.4, 3.3, *calm[:198]]
    assert bigram.stable(spike)
    assert not bigram.stable(calm[:100] + [3.4] * 200)  # never back
    assert not bigram.stable(calm[:100] + [3.4] * 150 + [3.0] * 50)  # back, but in the last 100 steps
    assert bigram.stable(calm[:100] + [3.2] * 200)  # neither 0.25 nor a quarter more
    assert not bigram.stable([0.5] * 100 + [0.7] * 200)  # a quarter of little


def test_recipes_and_models_that_make_no_sense(tmp_path):
    for wrong in ({"penalty": -1.0}, {"lr": 0.0}, {"steps": 0}, {"context": 1}, {"dtype": "float16"}):
        with pytest.raises(WrongUse):
            Recipe(**wrong)
    assert Recipe(steps=15_000).factor == 1.001
    assert Recipe(steps=1500).factor == pytest.approx(1.001**10)
    target = bigram.count([], 61).distribution
    text = [[5] * 16]
    with pytest.raises(WrongUse, match="shorter than one window of 128 tokens"):
        bigram.train(load(module("llama")), text, target, tmp_path / "a")
    with pytest.raises(WrongUse, match="not causal"):
        bigram.train(load(module("bert")), text, target, tmp_path / "b", Recipe(context=16))
    with pytest.raises(WrongUse, match="no logits at each of them"):
        bigram.train(load(module("t5")), text, target, tmp_path / "c", Recipe(context=16))
    assert not (tmp_path / "b").exists()


def test_weights_in_sixteen_bits_are_trained_in_thirty_two(tmp_path):
    model = load(module("llama", torch.bfloat16))
    text = torch.randint(61, (40, 16), generator=torch.Generator().manual_seed(0)).tolist()
    mask = bigram.train(model, text, bigram.count(text, 61).distribution, tmp_path, Recipe(1.0, 0, 5, 0.01, context=16))
    assert Mask.load(tmp_path).kept == mask.kept
    assert mask.apply(model).dtype == torch.bfloat16
    assert SoftMask(model, Recipe()).W.dtype == torch.float32
