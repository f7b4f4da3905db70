"""Planted data is what it says, and the scores of what was found are what they are by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from interp.dictionaries import planted, recovery
from interp.dictionaries.seeds import Interval, interval
from interp.errors import WrongUse

Measure = Callable[[float], None]


def share_within(shown: float, p: float, n: int) -> bool:
    """Whether a share of n rows is within 4 standard errors of p."""
    return abs(shown - p) < 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize(
    "data",
    [
        planted.superposed(3000, 1, d=10, features=14, l0=2.5),
        planted.orthonormal(3000, 1, d=10),
        planted.correlated(3000, 1, d=10, features=12, l0=2.0),
        planted.hierarchical(3000, 1, parents=3, children=2, d=10),
        planted.pair(3000, 1, d=5, features=14),
        planted.sums(3000, 1, parts=2, d=10, features=14),
    ],
)
def test_rows_are_sums_of_the_features_that_are_there(data: planted.Planted) -> None:
    """Least squares of each row on the directions said to be in it leaves nothing; 1e-5 is float32."""
    for x, fires in zip(data.x[:60].double(), data.fires[:60], strict=True):
        D = data.directions[fires].double()
        f = torch.linalg.lstsq(D.T, x[:, None]).solution if len(D) else torch.zeros(0, 1, dtype=torch.float64)
        assert (D.T @ f - x[:, None]).norm() < 1e-5
        assert len(D) == 0 or f.min() > 0.2
    first, last = data.split(1000)
    assert (len(first.x), len(last.fires)) == (2000, 1000)
    assert torch.equal(torch.cat([first.x, last.x]), data.x)


def test_correlated_features_come_together_as_normal_numbers_do() -> None:
    """P(both) of two features of a group is that of a bivariate normal; of two groups, p²; 4 standard errors."""
    from scipy.stats import multivariate_normal, norm

    n, p, rho = 30_000, 3 / 12, 0.7
    data = planted.correlated(n, 5, rho=rho, group=3, d=8, features=12, l0=3.0)
    together = (data.fires.double().T @ data.fires.double()) / n
    edge = norm.ppf(p)
    both = multivariate_normal.cdf([edge, edge], [0, 0], [[1, rho], [rho, 1]])
    assert both > 2 * p**2
    for i in range(12):
        for j in range(i + 1):
            wanted = p if i == j else both if i // 3 == j // 3 else p**2
            assert share_within(together[i, j].item(), wanted, n), (i, j)
    with pytest.raises(WrongUse, match="group=5 must divide features=12"):
        planted.correlated(10, 0, group=5, features=12)


def test_children_come_with_their_parents_alone() -> None:
    n = 40_000
    data = planted.hierarchical(n, 2, parents=3, children=2, p=0.3, q=0.8, d=8)
    assert data.parents is not None
    assert data.parents.tolist() == [-1, -1, -1, 0, 0, 1, 1, 2, 2]
    parent = data.fires[:, data.parents.clamp(min=0)]
    assert not (data.fires & ~parent)[:, 3:].any()
    assert data.fires[:, 3:].view(n, 3, 2).sum(2).max() == 1
    for feature in range(9):
        wanted = 0.3 if feature < 3 else 0.3 * 0.8 / 2
        assert share_within(data.fires[:, feature].double().mean().item(), wanted, n)


def test_a_pair_has_features_of_one_site_and_of_both() -> None:
    """Labels of the planted directions themselves: exactly 0, ½ and 1 once the sites' sizes are divided out."""
    data = planted.pair(100, 3, exclusive=0.4, scale=3.0, d=6, features=20)
    norms = torch.stack([half.norm(dim=1) for half in data.directions.double().split(6, dim=1)], 1)
    rho = recovery.relative_norms(norms, torch.tensor([1.0, 3.0]))
    assert torch.allclose(rho, torch.tensor([0.0] * 4 + [1.0] * 4 + [0.5] * 12, dtype=torch.float64), atol=1e-6)
    assert recovery.label(rho).tolist() == [0] * 4 + [2] * 4 + [1] * 12
    assert recovery.relative_norms(torch.zeros(1, 2), torch.ones(2)).tolist() == [0.5]


def test_features_write_to_their_layer_and_above() -> None:
    """Of three layers: x reads the features of its own layer alone, y all those at it and below."""
    data = planted.across_layers(200, 3, layers=3, d=8, features=12)
    x, y, writes = data.x.view(200, 3, 8), data.y.view(200, 3, 8), data.writes.view(12, 3, 8)
    lengths = writes.norm(dim=2)
    assert torch.allclose(lengths, (torch.arange(3) >= data.layer[:, None]).float())
    for layer in range(3):
        silent = ~data.fires[:, data.layer == layer].any(1)
        assert (x[:, layer].norm(dim=1) == 0).equal(silent)
        below = ~data.fires[:, data.layer <= layer].any(1)
        assert (y[:, layer].norm(dim=1) == 0).equal(below)
    one = data.fires.sum(1) == 1
    row, feature = int(one.nonzero()[0]), int(data.fires[one][0].nonzero())
    f = data.x[row].norm()  # its direction in x is of length one
    assert 0.5 <= f <= 1.5
    assert torch.allclose(data.y[row], f * data.writes[feature], atol=1e-6)
    with pytest.raises(WrongUse, match="layers=3 must divide features=10"):
        planted.across_layers(10, 0, layers=3, features=10)


def test_sums_are_short_and_orthonormal_features_can_be_read_off() -> None:
    data = planted.sums(50, 4, parts=3)
    assert torch.allclose(data.x.norm(dim=1), torch.ones(50), atol=1e-6)
    assert (data.fires.sum(1) == 3).all()
    whole = planted.orthonormal(500, 4)
    c = whole.x @ whole.directions.T
    assert c[~whole.fires].abs().max() < 1e-5
    assert 0.5 - 1e-5 < c[whole.fires].min() < c[whole.fires].max() < 1.5 + 1e-5


def test_a_finite_state_source_walks_its_graph() -> None:
    """Only ways that there are, each as often as any; a state's own vector says what follows it."""
    data = planted.finite_state(40_000, 6, states=7, edges=3, d=9, noise=0.1)
    assert (data.T.sum(1) - 1).abs().max() < 1e-6
    assert set(data.T.flatten().tolist()) == {0.0, data.T.max().item()}
    steps = torch.zeros(7, 7).index_put((data.state[:-1], data.state[1:]), torch.ones(39_999), accumulate=True)
    assert not steps[data.T == 0].any()
    for row, T in zip(steps, data.T, strict=True):
        assert all(share_within(s, 1 / 3, int(row.sum())) for s in (row / row.sum())[T > 0].tolist())
    assert torch.allclose(data.following(data.centres), data.T.double(), atol=1e-6)
    assert (data.x - data.centres[data.state]).std().item() == pytest.approx(0.1, rel=0.02)
    with pytest.raises(WrongUse, match="edges=9: a state has 1 to 7 ways out"):
        planted.finite_state(10, 0, states=7, edges=9)


# ------------------------------------------------------------ scores


@pytest.mark.check(
    "dictionaries 4.2 matched F1", formula="Hungarian-matched F1 = the best over all permutations", tolerance=1e-12
)
def test_matched_f1_is_the_best_of_all_permutations(measured: Measure) -> None:
    """Four features and five latents: every one-to-one choice tried, F1 from precision and recall."""
    generator = torch.Generator().manual_seed(8)
    fires = torch.rand(90, 4, generator=generator) < 0.3
    f = torch.rand(90, 5, generator=generator, dtype=torch.float64) * (torch.rand(90, 5, generator=generator) < 0.4)
    f[:, 1] = fires[:, 2] * 0.3  # one is found

    def f1(j: int, i: int) -> float:
        both = (fires[:, j] & (f[:, i] > 0)).sum().item()
        precision, recall = both / (f[:, i] > 0).sum().item(), both / fires[:, j].sum().item()
        return 2 * precision * recall / (precision + recall) if both else 0.0

    best = max(sum(f1(j, i) for j, i in enumerate(order)) / 4 for order in permutations(range(5), 4))
    measured(abs(recovery.matched_f1(fires, f) - best))
    assert recovery.f1_scores(fires, f)[2, 1] == 1
    assert recovery.matched_f1(fires, torch.zeros(90, 1)) == 0


def absorbing(data: planted.Planted, absorbed: int) -> tuple[Tensor, Tensor]:
    """The decoder and the code in which the first `absorbed` children write their parents too, whose latents are then silent."""
    assert data.parents is not None
    children = (data.parents >= 0).nonzero().flatten()[:absorbed]
    W, f = data.directions.double().clone(), data.fires.double().clone()
    for child in children.tolist():
        parent = int(data.parents[child])
        W[child] += W[parent]
        f[:, parent] *= 1 - f[:, child]
    return W, f


@pytest.mark.check(
    "dictionaries 4.2 parents", formula="recall of a parent's latent with a planted share of absorbing children", tolerance=1e-12
)  # fmt: skip
def test_parents_recall_where_children_absorb_them(measured: Measure) -> None:
    """Orthonormal directions, children that absorb counted by hand: recall where they are there is the others' share."""
    data = planted.hierarchical(4000, 7, parents=2, children=2, d=20)
    assert data.parents is not None
    basis = torch.linalg.qr(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))[0].T
    data = planted.Planted(data.fires.float() @ basis, basis, data.fires, data.parents)
    counts = data.fires.double().sum(0)
    for absorbed in range(5):
        W, f = absorbing(data, absorbed)
        assert torch.allclose(f @ W, data.x.double(), atol=1e-5)  # the reconstruction is perfect either way
        found = recovery.parent_recall(data, W, f)
        gone = [counts[2 + 2 * parent : 2 + min(absorbed, 2 * parent + 2)].sum() for parent in range(2)]
        shares = [gone[parent] / counts[2 + 2 * parent : 4 + 2 * parent].sum() for parent in range(2)]
        measured(abs(found["alone"] - 1))
        measured(abs(found["with_child"] - (1 - sum(shares).item() / 2)))
        measured(abs(found["absorbed"] - sum(shares).item() / 2))
    with pytest.raises(WrongUse, match="no parents"):
        recovery.parent_recall(planted.superposed(10, 0), torch.ones(3, 64), torch.ones(10, 3))


def test_intervals_of_seeds_are_students() -> None:
    from scipy.stats import t

    values = [0.7, 0.9, 0.85, 0.6, 0.95]
    mean, half = interval(values)
    scale = torch.tensor(values).std().item() / 5**0.5
    low, high = t.interval(0.95, 4, loc=sum(values) / 5, scale=scale)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6)
    assert str(Interval(0.5, 0.25)) == "0.500 ± 0.250"
    assert str(interval([0.5])) == "0.500"
