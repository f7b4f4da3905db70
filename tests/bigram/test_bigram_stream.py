"""How the stream turns: planted rotations, ridge maps against least squares, recalls on a model that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from circuits.bigram.stream import Moments, angle, similarity, turning
from interp import WrongUse
from interp.model import load
from tests.bigram.toy import sampled, transitions
from tests.model.shapes import module


def rotation(d: int, degrees: float) -> torch.Tensor:
    """d / 2 blocks that rotate by the same angle, in a random basis."""
    t = math.radians(degrees)
    block = torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    return basis @ torch.block_diag(*[block] * (d // 2)) @ basis.T


@pytest.mark.check(
    "bigram C5 (rotation)", formula="X_out = s X R + c: the median angle is R's whatever s, degrees", tolerance=1e-3
)
@pytest.mark.parametrize("degrees", [0.0, 17.0, 90.0, 133.0])
@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_a_planted_rotation_is_measured(degrees, scale, measured):
    X = torch.randn(5000, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.linspace(
        1, 3, 16
    )
    fit = Moments()
    for part in X.split(1024):
        fit.add(part, scale * part @ rotation(16, degrees) + 7)
    A, c, r2 = fit.ridge(alpha=1e-6)
    measured(abs(angle(A) - degrees))
    assert torch.allclose(c, torch.full((16,), 7.0, dtype=torch.float64), atol=1e-6)
    assert r2 == pytest.approx(1)


def test_a_random_matrix_has_an_angle_of_about_ninety():
    A = torch.randn(400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert angle(A) == pytest.approx(90, abs=6)


def test_the_map_is_that_of_ridge_regression():
    """Against least squares on the centred rows with √α I below them; R² by its definition."""
    rng = np.random.default_rng(0)
    X, noise = rng.normal(size=(300, 6)) + 2, rng.normal(size=(300, 4))
    Y = X @ rng.normal(size=(6, 4)) + noise - 3
    fit = Moments()
    for a, b in zip(np.array_split(X, 7), np.array_split(Y, 7), strict=True):
        fit.add(torch.from_numpy(a), torch.from_numpy(b))
    A, c, r2 = fit.ridge(alpha=5.0)
    below = (
        np.concatenate([X - X.mean(0), math.sqrt(5.0) * np.eye(6)]),
        np.concatenate([Y - Y.mean(0), np.zeros((6, 4))]),
    )
    wanted = np.linalg.lstsq(*below, rcond=None)[0]
    assert np.abs(A.numpy() - wanted).max() < 1e-10
    assert np.abs(c.numpy() - (Y.mean(0) - X.mean(0) @ wanted)).max() < 1e-10
    left = Y - X @ wanted - c.numpy()
    assert r2 == pytest.approx(1 - np.square(left).sum() / np.square(Y - Y.mean(0)).sum(), abs=1e-10)
    assert np.abs(fit.covariance.numpy() - np.cov(X.T, bias=True)).max() < 1e-10


def test_too_few_tokens_for_a_map_are_refused():
    fit = Moments()
    fit.add(torch.randn(63, 16), torch.randn(63, 16))
    with pytest.raises(WrongUse, match="needs at least 64 tokens, and the text has 63"):
        fit.ridge()


def test_similarity_leaves_the_largest_direction_out():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(400, 8, dtype=torch.float64, generator=rng)
    loud = torch.randn(400, 1, dtype=torch.float64, generator=rng) * 50 * torch.linspace(0, 1, 8, dtype=torch.float64)
    a, b = (torch.cov(x.T) for x in (X, X + loud))
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, 7 * a) == pytest.approx(1)
    assert float((a * b).sum() / (a.norm() * b.norm())) < 0.6 < similarity(a, b)


def test_the_ends_of_the_stream_are_told_right():
    """The first site is the embedding and the last is the output: no angle, R² and recall of 1 there."""
    model = load(module("llama"))
    found = turning(model, torch.tensor(sampled(transitions(61, 0), 40, 16, 0)))
    assert found.sites == ("blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(3)))
    assert float(found.to_input[0]) < 0.01 > float(found.to_output[-1])
    assert float(found.r2_input[0]) > 0.99 < float(found.r2_output[-1])
    assert found.input_recall[0].tolist() == [1, 1, 1] == found.output_recall[-1].tolist()
    assert bool((found.input_recall.diff(dim=1) >= 0).all())
    assert bool((found.covariance.diagonal() - 1).abs().max() < 1e-6)
    assert torch.allclose(found.covariance, found.covariance.T)
    assert list(found.to_frame().columns)[:3] == ["site", "to_input", "to_output"]
    assert len(found.plot().data) == 5
