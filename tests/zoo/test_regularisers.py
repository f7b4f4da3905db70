"""Penalties against their formulas, and in training: they are added, they lower what they name, and a resumed run keeps them."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from interp.cli.zoo import train as command
from interp.errors import WrongUse
from interp.model.twin import randomise
from interp.zoo import brackets, training
from interp.zoo.regularisers import ETA, LAMBDA_1, LAMBDA_2, Penalty, layer_cosine, seq_vcr


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_layer_cosine_written_out():
    h, mask = [normal(2, 3, 4, seed=s) for s in range(3)], torch.tensor([[True, True, False], [True, False, False]])

    def far(b, t):
        return sum(1 - float(torch.cosine_similarity(x[b, t], y[b, t], dim=0)) for x, y in pairwise(h))

    each = [[far(b, t) for t in range(3)] for b in range(2)]
    assert float(layer_cosine(h)) == pytest.approx(sum(map(sum, each)) / 6, rel=1e-12)
    assert float(layer_cosine(h, mask)) == pytest.approx((each[0][0] + each[0][1] + each[1][0]) / 3, rel=1e-12)
    assert float(layer_cosine([h[0], 3 * h[0]])) == pytest.approx(0, abs=1e-12)


@pytest.mark.check(
    "geometry 9 Seq-VCR", formula="the sum written out, whitened batches, equal rows, padding", tolerance=1e-10
)
def test_seq_vcr(measured):
    B, T, d = 9, 3, 4
    x = 0.8 * normal(B, T, d)  # variances on both sides of 1
    wanted = 0.0
    for t in range(T):
        C = torch.from_numpy(np.cov(x[:, t].T.numpy()))
        for k in range(d):
            wanted += LAMBDA_1 * max(0.0, 1 - float((C[k, k] + ETA).sqrt()))
            wanted += LAMBDA_2 * sum(float(C[k, j]) ** 2 for j in range(d) if j != k)
    measured(abs(float(seq_vcr(x)) - wanted / (T * d)))
    white = (
        torch.linalg.qr(torch.cat([torch.ones(B, 1, dtype=x.dtype), normal(B, d, seed=2)], 1)).Q[:, 1:] * (B - 1) ** 0.5
    )
    measured(float(seq_vcr(white[:, None])))
    same = normal(1, T, d).expand(B, T, d)
    measured(abs(float(seq_vcr(same)) - (1 - ETA**0.5)))
    padded, mask = torch.cat([x, 9 + normal(3, T, d, seed=5)]), torch.ones(B + 3, T, dtype=torch.bool)
    mask[B:] = False
    measured(abs(float(seq_vcr(padded, mask) - seq_vcr(x))))
    x = x.requires_grad_()
    slope = torch.autograd.grad(seq_vcr(x), x)[0]
    measured(float(slope.sum(0).abs().max()))  # what moves all texts alike changes nothing
    assert float(slope.abs().max()) > 0
    with pytest.raises(WrongUse, match="two or more"):
        seq_vcr(x[:1])


def test_penalties_are_refused():
    with pytest.raises(WrongUse, match="Did you mean 'layer-cosine'"):
        Penalty("layer-cos", 1.0)
    with pytest.raises(WrongUse, match="0 or more"):
        Penalty("seq-vcr", -1.0)


@pytest.mark.parametrize("kind", ["layer-cosine", "seq-vcr"])
def test_the_penalty_is_added_to_the_loss_and_falls(kind):
    """Weight 0 leaves the model's own loss; ten steps on one batch, from weights whose layers differ, lower what it names."""
    model = brackets.build_model(brackets.Recipe(d_model=16, layers=3))
    randomise(model, 0)
    inputs, penalty = brackets.batch(brackets.Recipe(batch=32), 0), Penalty(kind, 10.0)

    def losses():
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
            return float(out.loss), float(penalty(out.hidden_states, inputs["attention_mask"].bool()))

    own, before = losses()
    assert training.loss_of(model, inputs, "float32", Penalty(kind, 0.0)).item() == pytest.approx(own, rel=1e-6)
    assert training.loss_of(model, inputs, "float32", penalty).item() == pytest.approx(own + before, rel=1e-5)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        training.loss_of(model, inputs, "float32", penalty).backward()
        optimiser.step()
    assert losses()[1] < 0.9 * before


def test_the_command_trains_with_a_penalty_and_remembers_it(tmp_path, capsys):
    common = dict(text=None, seed=0, device="cpu", dtype=None, dry_run=False, as_json=True)
    command("brackets", out=tmp_path, steps=2, penalty="layer-cosine", penalty_weight=0.5, resume=False, **common)
    assert json.loads((tmp_path / "recipe.json").read_text())["penalty"] == {"kind": "layer-cosine", "weight": 0.5}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command("brackets", out=tmp_path, steps=2, penalty=None, penalty_weight=0.5, resume=True, **common)
    assert "resume it as it was begun" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(
            "books",
            out=tmp_path,
            steps=2,
            penalty="seq-vcr",
            penalty_weight=1.0,
            resume=False,
            **common | {"text": tmp_path},
        )
    capsys.readouterr()
