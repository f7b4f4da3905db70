"""Measures of a matrix of states against closed forms, brute force, and data whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from interp.errors import WrongUse
from probes import measures as m


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


# ---------------------------------------------------------------- one matrix from another


@pytest.mark.check("geometry 7 linearity", formula="1 - score of Y = X A + b", tolerance=1e-12)
def test_linear_data_score_one(measured):
    x = normal(200, 7)
    y = x @ normal(7, 5, seed=1) + normal(5, seed=2)
    measured(abs(1 - m.linearity(x, y)))
    wide = torch.cat([x, x @ normal(7, 6, seed=3)], 1)  # 13 columns of rank 7: singular values at rounding
    measured(abs(1 - m.linearity(wide, y)))


@pytest.mark.check("geometry 7 invariance", formula="score of (X B + b, s Y + c) = score of (X, Y)", tolerance=1e-12)
def test_linearity_is_of_the_span(measured):
    x, noise = normal(300, 6), normal(300, 4, seed=1)
    y = torch.tanh(x @ normal(6, 4, seed=2)) + 0.3 * noise
    plain = m.linearity(x, y)
    moved = m.linearity(x @ normal(6, 6, seed=3) + 5, -3 * y + 100)
    measured(abs(plain - moved))
    measured(abs(1 - m.linearity(x, 3 + torch.zeros(300, 4))))
    A = torch.linalg.lstsq(m.unit(x), m.unit(y)).solution
    measured(abs(plain - (1 - float((m.unit(x) @ A - m.unit(y)).square().sum()))))


def test_noise_scores_its_chance_and_hides_behind_the_stream():
    """Independent data: d/(n - 1); an update of noise 1 % as large as the stream is linear with it, and not without."""
    x, noise = normal(500, 20), normal(500, 20, seed=1)
    scores = [m.linearity(normal(500, 20, seed=s), normal(500, 20, seed=s + 100)) for s in range(20)]
    assert np.mean(scores) == pytest.approx(20 / 499, abs=0.003)  # of 20 draws, standard error .0006
    assert m.linearity(x, x + 0.01 * noise) > 0.9998
    assert m.linearity(x, 0.01 * noise) < 0.06
    with pytest.raises(WrongUse, match="give more than 21 tokens"):
        m.linearity(normal(21, 20), normal(21, 3))
    with pytest.raises(WrongUse, match="30 and 20 rows"):
        m.linearity(normal(30, 3), normal(20, 3))


@pytest.mark.check("geometry CKA", formula="by the n × n Gram matrices; turned, scaled and moved", tolerance=1e-12)
def test_cka(measured):
    x, y = normal(40, 6), normal(40, 9, seed=1) + 2
    y[:, :3] += normal(40, 6) @ normal(6, 3, seed=2)
    H = torch.eye(40, dtype=torch.float64) - 1 / 40
    K, L = H @ x @ x.T @ H, H @ y @ y.T @ H
    measured(abs(m.cka(x, y) - float((K * L).sum() / (K.norm() * L.norm()))))
    measured(abs(m.cka(x, y) - m.cka(7 * x @ rotation(6) - 3, y @ rotation(9, seed=4))))
    measured(abs(1 - m.cka(x, x)))


@pytest.mark.check("geometry Procrustes", formula="2 (1 - s) = min over rotations of ‖X̃ R - Ỹ‖²", tolerance=1e-12)
def test_procrustes(measured):
    x, y = normal(50, 6), normal(50, 6, seed=1)
    a, b = m.unit(x), m.unit(y)
    R, _ = orthogonal_procrustes(a.numpy(), b.numpy())
    measured(abs(2 * (1 - m.procrustes(x, y)) - float((a @ torch.from_numpy(R) - b).square().sum())))
    measured(abs(1 - m.procrustes(x, 4 * x @ rotation(6) + 1)))
    wide = torch.cat([x @ rotation(6), torch.zeros(50, 3, dtype=x.dtype)], 1)
    measured(abs(1 - m.procrustes(x, wide)))


# ---------------------------------------------------------------- how many directions


@pytest.mark.check(
    "geometry 8 matrix entropy", formula="log T of orthogonal rows, 0 of equal ones, α → 1", tolerance=1e-9
)
def test_matrix_entropy(measured):
    z = normal(12, 40)
    for alpha in (0.5, 0.99, 1.0, 2.0):
        measured(abs(m.matrix_entropy(3 * rotation(40)[:12], alpha) - math.log(12)))
    for alpha in (1.0, 2.0):
        measured(abs(m.matrix_entropy(torch.ones(9, 1, dtype=z.dtype) * z[:1], alpha)))
    p = torch.linalg.eigvalsh(z @ z.T)
    p = p / p.sum()
    measured(abs(m.matrix_entropy(z) + float((p * p.log()).sum())))
    measured(abs(m.matrix_entropy(z, 2.0) + float(p.square().sum().log())))
    assert m.matrix_entropy(z, 1 - 1e-6) == pytest.approx(m.matrix_entropy(z), abs=1e-5)


def test_participation_and_anisotropy_of_known_spectra():
    """Columns of variance 4, 1, 1 exactly: (4+1+1)²/(16+1+1) = 2, and 4/6 along one direction."""
    q = torch.linalg.qr(torch.cat([torch.ones(60, 1, dtype=torch.float64), normal(60, 3)], 1)).Q[:, 1:]
    x = q * torch.tensor([2.0, 1.0, 1.0]) @ rotation(3) + 10
    assert m.participation_ratio(x) == pytest.approx(2.0, rel=1e-10)
    assert m.anisotropy(x) == pytest.approx(4 / 6, rel=1e-10)
    assert math.isnan(m.participation_ratio(torch.full((5, 3), 0.1)))
    assert math.isnan(m.anisotropy(torch.full((5, 3), 0.1)))


@pytest.mark.parametrize("k", [2, 5])
def test_two_nn_finds_the_dimension_of_a_cube(k):
    """Uniform in a k-cube, turned into 20 dimensions; a fifth of 3000 ratios: standard error k/√600, near edges a little less."""
    x = torch.rand(3000, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    placed = torch.cat([x, torch.zeros(3000, 20 - k, dtype=x.dtype)], 1) @ rotation(20) + 3
    assert m.two_nn(placed) == pytest.approx(k, rel=0.15)
    assert m.two_nn(torch.cat([placed, placed[:500]])) == pytest.approx(m.two_nn(placed), rel=1e-9)  # seen twice


def test_two_nearest_by_brute_force():
    x = 50 + normal(700, 3)
    far = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    wanted = far.topk(2, largest=False).values
    found = torch.cat([m._two_nearest(x, start) for start in (0, 512)])
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert math.isnan(m.two_nn(x[:2]))
    assert math.isnan(m.two_nn(x[:1].expand(9, 3)))


# ---------------------------------------------------------------- how alike the rows are


@pytest.mark.check(
    "geometry 9 rank one", formula="equal rows: residual 0, cosine 1; orthonormal rows: cosine 0", tolerance=1e-12
)
def test_equal_rows_and_orthonormal_rows(measured):
    same = normal(1, 8).expand(9, 8)
    for norm in ("frobenius", "composite"):
        measured(m.rank_one_residual(same, norm))
    measured(abs(1 - m.mean_cosine(same)))
    measured(abs(m.mean_cosine(rotation(8)[:5])))
    x = normal(9, 8)
    cosines = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for i in range(9) for j in range(9) if i != j]
    measured(abs(m.mean_cosine(x) - float(np.mean(cosines))))


def test_the_mean_row_is_the_nearest_of_rank_one():
    """Moving it anywhere makes ‖X - 1 xᵀ‖_F larger; and both norms as they are defined."""
    x = normal(9, 4) + 1
    least = m.rank_one_residual(x) * x.norm()
    for seed in range(5):
        assert (x - x.mean(0) - 0.01 * normal(4, seed=seed)).norm() > least
    r = (x - x.mean(0)).numpy()
    wanted = math.sqrt(np.linalg.norm(r, 1) * np.linalg.norm(r, np.inf))
    wanted /= math.sqrt(np.linalg.norm(x.numpy(), 1) * np.linalg.norm(x.numpy(), np.inf))
    assert m.rank_one_residual(x, "composite") == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(WrongUse, match="neither 'frobenius'"):
        m.rank_one_residual(x, "nuclear")


def test_partition_ratio_is_one_without_a_preferred_direction():
    """±e_i: Z is the same along every axis; a common shift prefers one; and the sum written out."""
    eye = 0.7 * torch.eye(4, dtype=torch.float64)
    assert m.partition_ratio(torch.cat([eye, -eye])) == pytest.approx(1.0, abs=1e-12)
    x = normal(30, 4) + torch.tensor([3.0, 0, 0, 0])
    vectors = np.linalg.eigh((x.T @ x).numpy())[1].T
    Z = [np.exp(x.numpy() @ (s * c)).sum() for c in vectors for s in (1, -1)]
    assert m.partition_ratio(x) == pytest.approx(min(Z) / max(Z), rel=1e-9)
    assert m.partition_ratio(x) < 0.01
    assert m.partition_ratio(1e4 * x) == 0.0  # no overflow


# ---------------------------------------------------------------- the order of positions


def order(n, seed=0, d=64):
    return normal(n, d, seed=seed)


def test_adjacency_by_brute_force_and_of_no_order():
    x = order(14)
    C = torch.nn.functional.normalize(x, dim=1)
    C = C @ C.T
    triples = [(i, j, k) for i in range(14) for k in range(i) for j in range(k)]
    wanted = np.mean([float(C[i, k] > C[i, j]) for i, j, k in triples])
    assert m.adjacency(x) == pytest.approx(wanted, abs=1e-12)
    assert np.mean([m.adjacency(order(48, s)) for s in range(20)]) == pytest.approx(0.5, abs=0.02)
    assert m.adjacency(torch.ones(9, 4)) == pytest.approx(0.5)
    assert math.isnan(m.adjacency(order(2)))


@pytest.mark.check(
    "geometry 10 averaging", formula="cos(i, j) = √(min/max) of causal means of iid values", tolerance=0.02
)
def test_uniform_causal_averages_hold_their_order(measured):
    """Width 2048, mean over 30 seeds; one seed of width 64 scores 0.98."""
    means = []
    for seed in range(30):
        x = order(40, seed, 2048).cumsum(0) / torch.arange(1, 41)[:, None]
        x = torch.nn.functional.normalize(x, dim=1)
        means.append(x @ x.T)
    i = torch.arange(1.0, 41.0, dtype=torch.float64)
    wanted = (torch.minimum(i, i[:, None]) / torch.maximum(i, i[:, None])).sqrt()
    measured(float((torch.stack(means).mean(0) - wanted).abs().max()))
    x = order(48).cumsum(0) / torch.arange(1, 49)[:, None]
    assert m.adjacency(x) > 0.95


def test_long_windows_are_judged_at_evenly_spaced_positions():
    x = order(600).cumsum(0)
    assert m.adjacency(x) > 0.9
    assert m.adjacency(order(600)) == pytest.approx(0.5, abs=0.02)


# ---------------------------------------------------------------- coding rate


@pytest.mark.check("circuits W1", formula="log det(I + a ZᵀZ) = log det(I + a ZZᵀ)", tolerance=1e-10)
def test_coding_rate_from_either_side(measured):
    for n, d in ((30, 8), (8, 30)):
        z = normal(n, d)
        a = d / (n * 0.3**2)
        for gram in (z.T @ z, z @ z.T):
            eye = torch.eye(len(gram), dtype=z.dtype)
            measured(abs(float(m.coding_rate(z, 0.3) - 0.5 * torch.logdet(eye + a * gram))))


@pytest.mark.check(
    "circuits W2", formula="∂R^c/∂Z = a Z U (I + a V_kᵀV_k)⁻¹ Uᵀ; to first order, the Neumann term", tolerance=1e-10
)
def test_gradient_of_the_compression(measured):
    n, d, p, eps = 20, 9, 3, 0.7
    z, u = normal(n, d).requires_grad_(), torch.stack([rotation(d, s)[:, :p] for s in range(3)])
    gradient = torch.autograd.grad(m.compression(z @ u, eps), z)[0]
    a, v = p / (n * eps**2), (z @ u).detach()
    inverse = torch.linalg.inv(torch.eye(p, dtype=z.dtype) + a * v.mT @ v)
    measured(float((gradient - a * (v @ inverse @ u.mT).sum(0)).abs().max()))
    # first order in a: (I + a G)⁻¹ = I - a G + O(a²), so the rest shrinks with a³
    rests = []
    for scale in (1e-3, 5e-4):
        v = (scale * z.detach() @ u).requires_grad_()
        exact = torch.autograd.grad(m.compression(v, eps), v)[0]
        w = v.detach()
        rests.append(float((exact - a * (w - a * w @ w.mT @ w)).norm()))
    assert rests[0] / rests[1] == pytest.approx(2**5, rel=0.05)  # w is linear in the scale: a⁵ in all


@pytest.mark.check(
    "circuits W3", formula="one ISTA step never raises ½‖x - D z‖² + λ‖z‖₁, z ≥ 0, η ≤ 1/‖D‖²", tolerance=0.0
)
def test_an_ista_step_goes_down(measured):
    for seed in range(10):
        D, z = normal(8, 8, seed=seed), torch.relu(normal(5, 8, seed=seed + 50))
        eta = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2

        def loss(a, D=D, x=z):
            return 0.5 * (x - a @ D.T).square().sum(1) + 0.1 * a.abs().sum(1)

        step = m.ista(z, D, eta, 0.1)
        assert bool((step >= 0).all())
        measured(float((loss(step) - loss(z)).clamp(min=0).max()))


@pytest.mark.check(
    "circuits W4", formula="Q = K = V: the scores are symmetric and positive semidefinite", tolerance=1e-12
)
def test_attention_of_one_map(measured):
    z, u = normal(12, 9), torch.stack([rotation(9, s)[:, :3] for s in range(2)])
    written = torch.zeros_like(z)
    for k in range(2):
        v = z @ u[k]
        scores = v @ v.T
        measured(float((scores - scores.T).abs().max()))
        measured(max(0.0, -float(torch.linalg.eigvalsh(scores)[0])))
        written += scores.softmax(-1) @ v @ u[k].T
    measured(float((m.mssa(z, u, 0.5) - 3 / (12 * 0.25) * written).abs().max()))


@pytest.mark.check(
    "circuits W5", formula="R(Z) = R^c(Z; U) for data in orthogonal subspaces, one coefficient", tolerance=1e-12
)
def test_rate_is_compression_in_orthogonal_subspaces(measured):
    q = rotation(9)
    u = torch.stack([q[:, 3 * k : 3 * k + 3] for k in range(3)])
    z = torch.cat([normal(10, 3, seed=k) @ u[k].T for k in range(3)])
    measured(abs(float(m.coding_rate(z, 0.5, dim=3) - m.compression(z @ u, 0.5))))


# ---------------------------------------------------------------- attention and neurons


@pytest.mark.check(
    "geometry 9 attention entropy", formula="uniform causal row i: log(i + 1), share 1; one-hot: 0", tolerance=1e-12
)
def test_attention_entropy(measured):
    n = 12
    uniform = torch.ones(n, n, dtype=torch.float64).tril()
    uniform = uniform / uniform.sum(1, keepdim=True)
    found = m.attention_entropy(torch.stack([uniform, torch.eye(n, dtype=torch.float64)]))
    measured(abs(float(found[0, 0]) - float(torch.arange(1, n + 1).double().log().mean())))
    measured(abs(float(found[1, 0]) - 1))
    measured(float(found[:, 1].abs().max()))
    first = m.attention_entropy(torch.ones(1, 1, 1))
    assert float(first[0, 0]) == 0.0
    assert math.isnan(float(first[1, 0]))


def test_hoyer():
    a = torch.tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [0, 0, 0, 0]])
    assert m.hoyer(a)[:2].tolist() == [0.0, 1.0]
    assert math.isnan(float(m.hoyer(a)[2]))
