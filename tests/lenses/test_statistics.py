"""The statistics of one pass against the plain formulas, in float64."""

from __future__ import annotations

import pytest
import torch

from interp.lenses.statistics import Final, Statistics, statistics, topk


def plain(z, z_f, asked, k):
    """As the definitions read; ranks and the likeliest by counting, equals in order of their number."""
    p, q = z.log_softmax(1), z_f.log_softmax(1)
    zero = torch.zeros((), dtype=z.dtype)
    n, v = z.shape
    order = [sorted(range(v), key=lambda t, r=r: (-float(z[r, t]), t))[:k] for r in range(n)]
    rank = [[1 + sum(float(z[r, t]) > float(z[r, a]) for t in range(v)) for a in asked[r].tolist()] for r in range(n)]
    return Statistics(
        torch.tensor(order),
        p.gather(1, torch.tensor(order)),
        -torch.where(p.exp() > 0, p.exp() * p, zero).sum(1),
        torch.where(q.exp() > 0, q.exp() * (q - p), zero).sum(1),
        torch.where(p.exp() > 0, p.exp() * (p - q), zero).sum(1),
        p.gather(1, asked),
        torch.tensor(rank),
    )


def scores(v: int, scale: float, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z, z_f = (scale * torch.randn(6, v, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return z, z_f, torch.randint(v, (6, 3), generator=generator)


@pytest.mark.check(
    "lenses F1 (statistics in one pass)",
    formula="H = log s − w/s, KL(f‖l) = a − log s_f + log s, KL(l‖f) = b/s − log s + log s_f",
    tolerance=1e-10,
)
@pytest.mark.parametrize(("v", "scale"), [(2, 1.0), (61, 1.0), (1000, 3.0), (2001, 30.0)])
def test_one_pass_is_the_plain_formula(v, scale, measured):
    z, z_f, asked = scores(v, scale)
    want = plain(z, z_f, asked, min(5, v))
    got = statistics(z.clone(), Final(z_f.clone()), asked, min(5, v))
    for name in ("top_log_prob", "entropy", "kl_forward", "kl_backward", "log_prob"):
        a, b = getattr(got, name), getattr(want, name)
        measured(float(((a - b).abs() / b.abs().clamp(min=1.0)).max()))
    assert torch.equal(got.top, want.top)
    assert torch.equal(got.rank, want.rank)
    assert bool((got.kl_forward >= 0).all() and (got.entropy >= 0).all())


def test_in_float32_it_is_good_to_a_hundred_thousandth_of_a_nat():
    """Scores of the size that large models make: the bar is absolute, since KL is a difference of large terms."""
    z, z_f, asked = scores(20011, 8.0, dtype=torch.float32)
    z, z_f, asked = z[:2], z_f[:2], asked[:2]
    want = plain(z.double(), z_f.double(), asked[:, :1], 1)
    got = statistics(z, Final(z_f), asked[:, :1], 1)
    for name in ("top_log_prob", "entropy", "kl_forward", "kl_backward", "log_prob"):
        assert float((getattr(got, name).double() - getattr(want, name)).abs().max()) < 1e-5


def test_a_distribution_beside_itself():
    """KL is 0 and every rank of a rank's token is its place; the entropy of equal scores is log V."""
    z, _, _ = scores(700, 2.0)
    got = statistics(z.clone(), Final(z.clone()), z.argsort(1, descending=True)[:, :4], 4)
    assert float(got.kl_forward.abs().max()) < 1e-12
    assert float(got.kl_backward.abs().max()) < 1e-12
    assert torch.equal(got.rank, torch.arange(1, 5).expand(6, -1))
    assert torch.equal(got.top, z.argsort(1, descending=True)[:, :4])
    flat = statistics(torch.zeros(1, 700), Final(torch.zeros(1, 700)), torch.tensor([[9]]), 2)
    assert float(flat.entropy) == pytest.approx(torch.tensor(700.0).log().item())
    assert flat.top.tolist() == [[0, 1]]
    assert flat.rank.tolist() == [[1]]


@pytest.mark.parametrize("v", [5, 300, 1291])
def test_equal_scores_share_a_rank_and_come_in_order(v):
    """Few different values, so that most are ties: brute force by sorting on (score, number)."""
    z = torch.randint(4, (20, v), generator=torch.Generator().manual_seed(v)).double()
    z[:, 3] = -torch.inf
    asked = torch.arange(4).expand(20, -1)
    got = statistics(z.clone(), Final(z.flip(0).clone()), asked, 3)
    want = plain(z, z.flip(0), asked, 3)
    assert torch.equal(got.top, want.top)
    assert torch.equal(got.rank, want.rank)
    assert float((got.kl_forward - want.kl_forward).abs().max()) < 1e-10
    assert bool(torch.isfinite(got.entropy).all())


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_largest_are_found_through_blocks(k):
    z = torch.randint(50, (40, 64 * 4 * 7 + 13), generator=torch.Generator().manual_seed(k)).float()
    places, values = topk(z, k)
    wanted = z.sort(dim=1, descending=True, stable=True)
    assert torch.equal(places, wanted.indices[:, :k])
    assert torch.equal(values, wanted.values[:, :k])


def test_no_token_asked_about():
    z, z_f, _ = scores(61, 1.0)
    got = statistics(z, Final(z_f), torch.full((6, 1), -1), 1)
    assert bool(got.log_prob.isnan().all())
    assert not bool(got.rank.any())
