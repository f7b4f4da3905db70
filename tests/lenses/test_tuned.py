"""The tuned lens: untrained it is the logit lens, trained it knows what the blocks to come will add."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import interp
from interp import Failed, WrongUse
from interp.lenses import Lens, Recipe, TunedLens, causal_basis, train_tuned_lens, transfer
from interp.lenses.causal import ablated
from interp.lenses.tuned import Descent
from interp.model import load
from tests.lenses.toy import Linear
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])


class Words:
    """A tokenizer whose words are numbers."""

    bos_token_id = pad_token_id = None

    def __call__(self, text, **_):
        return {"input_ids": [int(w) for w in text.split()]}

    def convert_ids_to_tokens(self, i):
        return str(i)

    decode = None


def numbers(vocabulary: int, count: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(map(str, row)) for row in torch.randint(vocabulary, (count, 32), generator=generator).tolist()]


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.float32), ("gemma2", torch.bfloat16), ("bert", torch.float32)]
)
def test_untrained_it_is_the_logit_lens_bit_for_bit(name, dtype):
    model = load(module(name, dtype))
    tuned, plain = TunedLens(model)(IDS), Lens(model)(IDS)
    assert tuned.kind == "tuned"
    assert tuned.sites == plain.sites
    for field in ("top", "top_log_prob", "entropy", "kl_forward", "kl_backward", "ranks"):
        assert torch.equal(getattr(tuned, field), getattr(plain, field))


@pytest.mark.slow("takes 700 steps to come below 1e-4 nats")
@pytest.mark.check(
    "lenses 1d (tuned lens)", formula="h_L = A h_l + b: KL(model ‖ tuned lens) after training", tolerance=1e-4
)
def test_linear_blocks_are_learned(measured):
    model, texts = load(Linear(5, 7, layers=2), tokenizer=Words()), numbers(7, 64, 0)
    recipe = Recipe(steps=700, tokens=64, context=32, optimizer="adam", lr=0.05, weight_decay=0.0)
    before = Lens(model).over(texts, context=32).mean("kl_forward")
    assert float(before[:-1].min()) > 0.01
    lens = train_tuned_lens(model, texts, recipe=recipe)
    measured(float(lens.over(numbers(7, 8, 1), context=32).mean("kl_forward").max()))
    assert not lens.W[0].requires_grad


def test_the_gradient_is_that_of_the_loss():
    """p - p_f fed back, chunk by chunk, against autograd through KL of everything at once, in float64."""
    net = Linear().double()
    model = load(net)
    lens = TunedLens(model)
    torch.manual_seed(1)
    lens.W = [0.1 * torch.randn_like(w) for w in lens.W]
    lens.b = [0.1 * torch.randn_like(b) for b in lens.b]
    assert lens.W[0].dtype == torch.float64
    ids = torch.randint(11, (3, 7))
    batch = [model.pad(ids[:2].tolist()), model.pad([ids[2, :4].tolist()])]
    losses = Descent(lens, Recipe()).backward(batch)
    total = 0.0
    for layer, site in enumerate(lens.sites):
        parts = []
        for tokens in batch:
            cache = model.record(tokens, [site, lens.head.last])
            q = lens.head(cache[lens.head.last][tokens.mask]).log_softmax(1)
            p = lens.logits(site, cache[site][tokens.mask]).log_softmax(1)
            parts.append((q.exp() * (q - p)).sum(1))
        loss = torch.cat(parts).mean()
        assert float(loss) == pytest.approx(losses[layer], abs=1e-12)
        total = total + loss
    wanted = torch.autograd.grad(total, [*lens.W, *lens.b])
    for t, g in zip([*lens.W, *lens.b], wanted, strict=True):
        assert float((t.grad - g).abs().max()) < 1e-12


def test_what_is_saved_is_the_lens_and_belongs_to_its_model(tmp_path):
    model = load(Linear(), tokenizer=Words())
    recipe = Recipe(steps=3, tokens=64, context=32, bias_only=True)
    lens = train_tuned_lens(model, numbers(11, 8, 0), tmp_path, recipe)
    assert not any(bool(w.any()) for w in lens.W)
    assert any(bool(b.any()) for b in lens.b)
    again = TunedLens.load(tmp_path, model)
    ids = torch.randint(11, (2, 5))
    assert torch.equal(again(ids).kl_forward, lens(ids).kl_forward)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows] == ["0", "1", "2"]
    assert set(rows[0]) == {"step", *lens.sites}
    assert json.loads((tmp_path / "recipe.json").read_text())["bias_only"]
    with pytest.raises(WrongUse, match="trained for another model"):
        TunedLens.load(tmp_path, load(Linear(seed=1)))
    with pytest.raises(WrongUse, match="holds no lens"):
        TunedLens.load(tmp_path / "none", model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": 1}))
    with pytest.raises(WrongUse, match="colour"):
        TunedLens.load(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Failed, match="cannot be read"):
        TunedLens.load(tmp_path, model)


def test_sites_without_a_translator_and_bad_recipes():
    lens = TunedLens(load(module("llama")))
    with pytest.raises(WrongUse, match=r"it has maps for blocks\.0\.resid_pre"):
        lens(IDS, "blocks.1.resid_mid")
    assert TunedLens(lens.model, ["blocks.1.resid_mid"])(IDS).sites == ("blocks.1.resid_mid", "blocks.2.resid_post")
    with pytest.raises(WrongUse, match="neither 'sgd' nor 'adam'"):
        Recipe(optimizer="lion")
    with pytest.raises(WrongUse, match="empty"):
        train_tuned_lens(load(Linear(), tokenizer=Words()), [])


def test_rates_of_the_authors_recipe():
    sgd, adam = Recipe(), Recipe(optimizer="adam")
    assert (sgd.steps, sgd.tokens, sgd.weight_decay, sgd.clip) == (250, 2**18, 1e-3, 1.0)
    assert [sgd.rate(s) for s in (0, 125, 249)] == [1.0, 0.5, 1 / 250]
    assert [adam.rate(s) for s in (0, 49, 50, 150)] == [0.02, 1.0, 1.0, 0.5]
    w = torch.zeros(2, requires_grad=True)
    group = sgd.made([w]).param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (pytest.approx(0.1), 0.9, True)


def test_the_transfer_matrix():
    """On its diagonal a translator reads its own layer: the lens itself, and no KL. Off it, by hand."""
    model = load(module("llama"))
    lens = TunedLens(model)
    torch.manual_seed(0)
    lens.W = [0.05 * torch.randn_like(w) for w in lens.W]
    seen, made = lens(IDS), transfer(lens, IDS)
    assert torch.allclose(made["cross_entropy"].diagonal(), seen.cross_entropy[:-1].double().nanmean(1), atol=1e-5)
    assert float(made["kl"].diagonal().abs().max()) < 1e-6
    h = model.record(IDS, lens.sites[2])[lens.sites[2]].flatten(0, 1)
    own, other = (lens.head(lens.translated(i, h)).double().log_softmax(1) for i in (2, 0))
    assert float(made["kl"][0, 2]) == pytest.approx(float((own.exp() * (own - other)).sum(1).mean()), abs=1e-5)


@pytest.fixture(scope="module")
def basis():
    model = load(module("llama"))
    ids = torch.randint(3, 61, (8, 16), generator=torch.Generator().manual_seed(0))
    lens, site = TunedLens(model), "blocks.1.resid_post"
    x = model.record(ids, site)[site].flatten(0, 1)
    return lens, site, x, causal_basis(lens, site, x, 3)


def test_causal_directions_are_orthonormal_and_the_best_found(basis):
    """No random direction, and no coordinate axis or singular vector it starts from, costs as much as the first."""
    lens, site, x, found = basis
    assert float((found.vectors @ found.vectors.T - torch.eye(3)).abs().max()) < 1e-5
    assert found.energies.tolist() == sorted(found.energies.tolist(), reverse=True)
    clean = lens.logits(site, x).log_softmax(1)

    def cost(v):
        return float((clean.exp() * (clean - lens.logits(site, ablated(x, v, x.mean(0))).log_softmax(1))).sum(1).mean())

    for v, energy in zip(found.vectors, found.energies.tolist(), strict=True):
        assert cost(v) == pytest.approx(energy, rel=1e-3)
    random = torch.nn.functional.normalize(torch.randn(200, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    assert max(cost(v) for v in [*random, *torch.eye(32)]) < float(found.energies[0])


def test_a_full_basis_at_zero_leaves_nothing(basis):
    *_, x, _ = basis
    q = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
    assert float(ablated(x.double(), q, torch.zeros(32, dtype=torch.float64)).abs().max()) < 1e-12
    assert torch.allclose(ablated(x.double(), q, x.double().mean(0)), x.double().mean(0).expand_as(x), atol=1e-12)


def test_causal_bases_that_cannot_be(basis):
    lens, site, x, _ = basis
    with pytest.raises(WrongUse, match="from 1 to 32"):
        causal_basis(lens, site, x, 33)
    with pytest.raises(WrongUse, match="two states"):
        causal_basis(lens, site, x[:1], 2)


@pytest.mark.slow("trains a lens on the bundled model, until every layer is better on text it has not seen")
def test_on_the_bundled_model_held_out_kl_falls_at_every_layer():
    """The whole 95 % band of the difference to the logit lens lies below zero, at every layer."""
    from interp.zoo.corpus import topics

    model, split = interp.load("zoo:books"), topics()
    recipe = Recipe(steps=12, tokens=512, context=128)
    lens = train_tuned_lens(model, [split.train], recipe=recipe)
    tuned, plain = (a.over([split.held_out], context=128, tokens=2000) for a in (lens, Lens(model)))
    mean, (_, high) = tuned.less(plain, "kl_forward")
    assert bool((mean[:-1] < 0).all())
    assert bool((high[:-1] < 0).all())
    assert float(mean[-1]) == 0.0
    with pytest.raises(WrongUse, match="other text"):
        tuned.less(lens.over([split.held_out], context=128, tokens=500), "kl_forward")
