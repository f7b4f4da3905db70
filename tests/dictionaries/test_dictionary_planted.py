"""Planted features: the scores themselves, and whether training finds what was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.dictionaries import RowsSource, TopK, TrainConfig, evaluate, train
from interp.dictionaries.planted import across_layers, sparse_mlp, superposed
from interp.dictionaries.recovery import FOUND, cosines, recovery

Measure = Callable[[float], None]


@pytest.mark.check("dictionaries 4.2 MMCS", formula="mean_j max_i cos(d*_j, d_i) of known angles", tolerance=1e-12)
def test_scores_of_known_dictionaries(measured: Measure) -> None:
    """Directions turned by known angles, in another order and length, among others that are orthogonal to them."""
    true = torch.eye(6, dtype=torch.float64)[:3]
    angles = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)
    turned = true * angles.cos()[:, None] + torch.eye(6, dtype=torch.float64)[3:] * angles.sin()[:, None]
    found = recovery(true, 3 * turned[[2, 0, 1]])
    measured(abs(found["mmcs"] - angles.cos().mean().item()))
    measured(abs(found["hungarian"] - angles.cos().mean().item()))
    assert found["recovered"] == pytest.approx(2 / 3)  # cos 0.6 = 0.825

    # One learned direction between two true ones: MMCS counts it twice, the matching does not.
    between = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.float64)
    found = recovery(true[:2], between)
    measured(abs(found["mmcs"] - 0.5**0.5))
    measured(abs(found["hungarian"] - 0.5**0.5 / 2))


@pytest.mark.parametrize("zipf", [False, True])
def test_planted_rows_are_as_described(zipf: bool) -> None:
    """Σ p_i = 4 and E f² = 13/12: E‖x‖² and the largest direction's share follow; 4 standard errors."""
    planted = superposed(20_000, seed=3, zipf=zipf)
    assert planted.x.shape == (20_000, 64)
    assert torch.allclose(planted.directions.norm(dim=1), torch.ones(256), atol=1e-6)
    p = 1 / torch.arange(1, 257).double() if zipf else torch.ones(256).double()
    p = 4 * p / p.sum()
    mean = p @ planted.directions.double()  # E f = p, since E U(½, 3⁄2) = 1
    error = (planted.x.double().mean(0) - mean).norm()
    spread = (planted.x.double().var(0).sum() / 20_000).sqrt()
    assert error < 4 * spread
    again = superposed(20_000, seed=3, zipf=zipf)
    assert torch.equal(again.x, planted.x)


def random_decoder(like: torch.Tensor) -> torch.Tensor:
    """As many random directions."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(9))


@pytest.mark.slow("trains on 200,000 rows and on 870,000: 3 s and 12 s on an idle core")
@pytest.mark.check(
    "dictionaries 4.3 planted directions", formula="1 − share of 256 directions at cosine > 0.9", tolerance=0.05
)
@pytest.mark.parametrize(("zipf", "steps"), [(False, 400), (True, 1700)])
def test_superposed_directions_are_recovered(tmp_path: Path, zipf: bool, steps: int, measured: Measure) -> None:
    """256 directions in 64 dimensions, mean L0 4, m = 512, k = 4. Small batches and a high rate: made for speed.

    A random decoder's best cosines show what the score is worth, the one-to-one matching that none is counted twice.
    """
    planted = superposed(100_000, seed=11, zipf=zipf)
    config = TrainConfig(TopK(4), latents=512, steps=steps, batch=512, lr=5e-3, save_every=steps)
    D = train(config, RowsSource(planted.x), tmp_path)
    found, chance = (recovery(planted.directions, W) for W in (D.W_dec, random_decoder(D.W_dec)))
    measured(1 - found["recovered"])
    assert found["mmcs"] > 0.97
    assert found["hungarian"] > 0.95
    assert chance["recovered"] == 0
    assert chance["mmcs"] < 0.5


@pytest.mark.proof
@pytest.mark.slow("the command's defaults, over 3,000 steps: a minute and two")
@pytest.mark.check("dictionaries 4.3 planted directions, defaults", formula="1 − share at cosine > 0.9", tolerance=0.05)
@pytest.mark.parametrize("zipf", [False, True])
def test_superposed_directions_with_defaults(tmp_path: Path, zipf: bool, measured: Measure) -> None:
    planted = superposed(200_000, seed=12, zipf=zipf)
    D = train(TrainConfig(TopK(4), latents=512, steps=3000), RowsSource(planted.x), tmp_path)
    measured(1 - recovery(planted.directions, D.W_dec)["recovered"])


def test_the_planted_mlp_is_sparse() -> None:
    mlp = sparse_mlp(5000, seed=2, active=5)
    fires = (mlp.x @ mlp.W_in + mlp.b_in > 0).sum(1)
    assert fires.max() == 5
    assert fires.double().mean() > 0.1
    y = (mlp.x @ mlp.W_in + mlp.b_in).relu() @ mlp.W_out + mlp.b_out
    assert torch.allclose(y, mlp.y, atol=1e-5)


@pytest.mark.slow("trains on 700,000 rows: 9 s on an idle core")
@pytest.mark.check(
    "dictionaries 3.1 planted MLP", formula="held-out FVU of a transcoder, k = twice the active units", tolerance=0.01
)
def test_a_sparse_mlp_is_transcoded(tmp_path: Path, measured: Measure) -> None:
    mlp = sparse_mlp(60_000, seed=3, active=8, hidden=48)
    config = TrainConfig(TopK(16), latents=128, steps=1400, batch=512, lr=4e-3, save_every=1400)
    D = train(config, RowsSource(mlp.x[:50_000], mlp.y[:50_000]), tmp_path)
    measured(evaluate(D, RowsSource(mlp.x[50_000:], mlp.y[50_000:])).fvu)


@pytest.mark.slow("trains on 256,000 rows: 6 s on an idle core")
@pytest.mark.check(
    "dictionaries 3.2 planted layers",
    formula="1 − share of the features that a decoder row of the right layer is found for, cosine over both layers > 0.9",
    tolerance=0.05,
)
def test_features_across_layers_are_found_in_their_layer(tmp_path: Path, measured: Measure) -> None:
    """A cross-layer transcoder of 128 latents, at the true L0: half of the 48 features write to both layers."""
    data, d = across_layers(60_000, 0), 32
    ends = [{f"{layer}.{end}": d for layer in range(2)} for end in ("in", "write")]
    config = TrainConfig(TopK(3), latents=128, cross_layer=True, steps=1000, batch=256, lr=5e-3, save_every=1000)
    D = train(config, RowsSource(data.x[:-8000], data.y[:-8000], *ends), tmp_path)
    best = cosines(data.writes, D.W_dec).max(1)
    right = (best.values > FOUND) & (best.indices // 64 == data.layer)
    measured(1 - right.double().mean().item())
