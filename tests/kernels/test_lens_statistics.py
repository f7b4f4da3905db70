"""Every form of `lens_statistics` against the definitions, in float64.

Under TRITON_INTERPRET=1 the form is Triton's, in its interpreter: `test_interpreter.py` runs this file so.
"""

from __future__ import annotations

import sys

import pytest
import torch
from forms import FORMS, INTERPRETED

from interp.kernels import counted, lens_statistics
from interp.kernels.lens_statistics import Found

MODULE = sys.modules["interp.kernels.lens_statistics"]
NUMBERS = ("top_log_prob", "entropy", "kl_forward", "kl_backward", "log_prob")
form = pytest.mark.parametrize("form", FORMS if INTERPRETED else [*FORMS, "few"])  # few: that of a CPU for few scores
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="says nothing of the Triton form")


def plain(z, z_f, asked, k):
    """As the definitions read: likeliest and ranks by counting, equals in order of their number; 0 log 0 = 0."""
    p, q = z.log_softmax(-1), z_f.log_softmax(-1)
    order = torch.arange(z.shape[-1])
    before = (z[..., None, :] > z[..., None]) | (
        (z[..., None, :] == z[..., None]) & (order < order[:, None])
    )  # [s, n, v, who stands before v]
    top = before.sum(-1).argsort(-1)[..., :k]
    best = z_f.argmax(-1)
    asked = torch.cat([best[:, None], asked], dim=1).expand(len(z), -1, -1)

    def mean(p, x):
        return torch.where(p.exp() > 0, p.exp() * x, torch.zeros((), dtype=z.dtype)).sum(-1)

    rank = 1 + (z[..., None, :] > z.gather(-1, asked)[..., None]).sum(-1)
    return Found(
        best, top, p.gather(-1, top), -mean(p, p), mean(q, q - p), mean(p, p - q), p.gather(-1, asked), rank
    )  # fmt: skip


def drawn(s=3, n=5, d=7, v=61, m=2, scale=1.0, dtype=torch.float64, whole=False, seed=3):
    """(states, final, W, b, asked): Gaussian, or small whole numbers, of which every sum is exact and most are ties."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, by=1.0):
        if whole:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return (by * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    states, final, W, b = draw(s, n, d), draw(n, d), draw(v, d, by=scale / d**0.5), draw(v, by=0.3)
    return states, final, W, b, torch.randint(v, (n, m), generator=generator)


def run(form, monkeypatch, *args):
    """The op in a form, all it returns written over what was there: NaN, or 99."""
    monkeypatch.setattr(MODULE, "FEW", 2**60 if form == "few" else 0)
    monkeypatch.setenv("INTERP_KERNELS", "cpu" if form == "few" else form)
    empty = MODULE.fake
    monkeypatch.setattr(
        MODULE, "fake", lambda *a: Found(*(t.fill_(torch.nan if t.is_floating_point() else 99) for t in empty(*a)))
    )
    return Found(*lens_statistics(*args))


def apart(got, want):
    """The largest difference of any number, absolute below 1 and relative above; infinities must be alike."""
    far = 0.0
    for name in NUMBERS:
        a, b = getattr(got, name).double(), getattr(want, name).double()
        assert a.shape == b.shape
        assert torch.equal(a.isinf() | a.isnan(), b.isinf() | b.isnan()), name
        known = b.isfinite()
        assert torch.equal(a[b.isinf()], b[b.isinf()])
        if bool(known.any()):
            far = max(far, float(((a - b).abs() / b.abs().clamp(min=1.0))[known].max()))
    return far


# ---------------------------------------------------------------- the numbers


@pytest.mark.check(
    "lenses F1 (statistics in one pass)",
    formula="H = log s − w/s, KL(f‖l) = a − log s_f + log s, KL(l‖f) = b/s − log s + log s_f",
    tolerance=1e-10,
)
@form
@pytest.mark.skipif(INTERPRETED, reason="Triton's products are in float32")
@pytest.mark.parametrize(("v", "scale", "multiplier", "cap"), [(2, 1, 1, 0), (61, 3, 0.7, 0), (700, 30, 1, 9.0)])
def test_in_float64_it_is_the_plain_formula(form, v, scale, multiplier, cap, measured, monkeypatch):
    states, final, W, b, asked = drawn(v=v, scale=scale)
    got = run(form, monkeypatch, states, final, W, b, multiplier, cap, asked, min(4, v))
    z, z_f = (multiplier * (h @ W.T + b) for h in (states, final))
    z, z_f = (cap * torch.tanh(x / cap) if cap else x for x in (z, z_f))
    want = plain(z, z_f, asked, min(4, v))
    measured(apart(got, want))
    for name in ("best", "top", "rank"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    assert bool((got.kl_forward >= -1e-12).all() and (got.entropy >= 0).all())


@form
@pytest.mark.parametrize("n", [1, 5, 37])
@pytest.mark.parametrize(("v", "cap"), [(61, 0.0), (403, 30.0)])
def test_in_float32_it_is_good_to_a_hundred_thousandth_of_a_nat(form, n, v, cap, monkeypatch):
    """The bar is absolute, since a divergence is a difference of large terms."""
    states, final, W, _, asked = drawn(s=2, n=n, v=v, scale=8.0, dtype=torch.float32)
    got = run(form, monkeypatch, states, final, W, None, 1.3, cap, asked, 3)
    z, z_f = (1.3 * (h.double() @ W.double().T) for h in (states, final))
    z, z_f = (cap * torch.tanh(x / cap) if cap else x for x in (z, z_f))
    want = plain(z, z_f, asked, 3)
    assert apart(got, want) < 1e-5
    for name in ("best", "top", "rank"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@form
@pytest.mark.parametrize("v", [5, 61, 403])
def test_equal_scores_share_a_rank_and_come_in_order(form, v, monkeypatch):
    """Whole numbers, most of them ties; some tokens masked by a bias of -inf, as vocabularies are that are padded."""
    states, final, W, b, asked = drawn(v=v, dtype=torch.float32, whole=True)
    b[1], b[-1] = -torch.inf, -torch.inf
    asked[0, 0] = 1
    got = run(form, monkeypatch, states, final, W, b, 1.0, 0.0, asked, 4)
    want = plain(states.double() @ W.double().T + b, final.double() @ W.double().T + b, asked, 4)
    for name in ("best", "top", "rank"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    assert apart(got, want) < 1e-5


@form
def test_a_token_that_only_one_of_the_two_rules_out(form, monkeypatch):
    """KL(p ‖ q) is infinite where p > 0 and q = 0, and the other way nothing is lost."""
    z, z_f = torch.tensor([[[1.0, 2.0, -torch.inf]], [[1.0, 2.0, 0.5]]]), torch.tensor([[2.0, 1.0, 0.3]])
    got = run(form, monkeypatch, z, z_f, None, None, 1.0, 0.0, torch.tensor([[2]]), 3)
    want = plain(z.double(), z_f.double(), torch.tensor([[2]]), 3)
    assert got.kl_forward[0].isinf().all()
    assert apart(got, want) < 1e-6
    swapped = run(form, monkeypatch, z_f[None], z[0], None, None, 1.0, 0.0, torch.tensor([[2]]), 3)
    assert swapped.kl_backward.isinf().all()
    assert swapped.kl_forward.isfinite().all()


@form
def test_scores_that_are_no_distribution(form, monkeypatch):
    """NaN, +inf, or nothing but -inf: NaN, rank 0, the first k; other tokens and states are as they were."""
    _, _, _, _, asked = drawn(v=61)
    generator = torch.Generator().manual_seed(5)
    z, z_f = torch.randn(3, 5, 61, generator=generator), torch.randn(5, 61, generator=generator)
    clean = run(form, monkeypatch, z, z_f, None, None, 1.0, 0.0, asked, 3)
    z[0, 1, 7], z[1, 2, 60], z[2, 3], z_f[4, 9] = torch.nan, torch.inf, -torch.inf, torch.nan
    got = run(form, monkeypatch, z, z_f, None, None, 1.0, 0.0, asked, 3)
    for s, n in ((0, 1), (1, 2), (2, 3)):
        assert got.top[s, n].tolist() == [0, 1, 2]
        assert not got.rank[s, n].any()
        assert all(bool(getattr(got, name)[s, n].isnan().all()) for name in NUMBERS)
    assert got.best[4] == 0
    assert bool(got.kl_forward[:, 4].isnan().all() and got.kl_backward[:, 4].isnan().all())
    assert torch.equal(got.entropy[:, 4], clean.entropy[:, 4])
    good = torch.ones(3, 5, dtype=torch.bool)
    good[0, 1] = good[1, 2] = good[2, 3] = good[:, 4] = False
    assert all(torch.equal(getattr(got, name)[good], getattr(clean, name)[good]) for name in Found._fields[1:])


@form
def test_a_distribution_beside_itself(form, monkeypatch):
    """KL is 0, every rank of a rank's token is its place; the entropy of equal scores is log V."""
    _, z, *_ = drawn(d=300, scale=2.0, dtype=torch.float32)
    got = run(form, monkeypatch, z[None], z, None, None, 1.0, 0.0, z.argsort(1, descending=True)[:, :4], 4)
    assert float(got.kl_forward.abs().max()) < 1e-6
    assert float(got.kl_backward.abs().max()) < 1e-6
    assert torch.equal(got.rank[0], torch.tensor([1, 1, 2, 3, 4]).expand(5, -1))
    assert torch.equal(got.top[0], z.argsort(1, descending=True)[:, :4])
    zero = torch.zeros(1, 300)
    flat = run(form, monkeypatch, zero[None], zero, None, None, 1.0, 0.0, torch.tensor([[9]]), 2)
    assert float(flat.entropy) == pytest.approx(torch.tensor(300.0).log().item())
    assert flat.top.tolist() == [[[0, 1]]]
    assert flat.rank.tolist() == [[[1, 1]]]


@form
def test_nothing_to_read_and_nobody_asked(form, monkeypatch):
    states, final, W, b, asked = drawn(dtype=torch.float32)
    got = run(form, monkeypatch, states[:, :0], final[:0], W, b, 1.0, 0.0, asked[:0], 3)
    assert got.top.shape == (3, 0, 3) and got.rank.shape == (3, 0, 3)
    got = run(form, monkeypatch, states, final, W, b, 1.0, 0.0, torch.full((5, 1), -1), 99)
    assert got.top.shape == (3, 5, 61)
    assert bool(got.log_prob[..., 1].isnan().all())
    assert not got.rank[..., 1].any()
    assert bool(got.rank[..., 0].all())
    assert run(form, monkeypatch, states, final, W, b, 1.0, 0.0, asked[:, :0], 1).rank.shape == (3, 5, 1)


@form
@pytest.mark.skipif(INTERPRETED, reason="the interpreter multiplies the bits of bfloat16 (triton #11584)")
def test_bfloat16_scores_are_rounded_as_the_models_own_are(form, monkeypatch):
    states, final, W, b, asked = drawn(s=2, v=61, scale=3.0, dtype=torch.bfloat16)
    got = run(form, monkeypatch, states, final, W, b, 1.0, 0.0, asked, 3)
    z, z_f = (torch.mm(h.flatten(0, -2), W.T).add(b).unflatten(0, h.shape[:-1]).double() for h in (states, final))
    want = plain(z, z_f, asked, 3)
    assert apart(got, want) < 1e-5
    assert got.entropy.dtype == torch.float32
    assert torch.equal(got.top, want.top) and torch.equal(got.rank, want.rank)


# ---------------------------------------------------------------- how it is done


@not_interpreted
@pytest.mark.parametrize(("bytes_", "rows"), [(1, 1), (4 * 61 * 4 * 3, 2), (4 * 61 * 4 * 5, 3)])
def test_how_many_tokens_at_a_time_changes_nothing(bytes_, rows, monkeypatch):
    args = *drawn(dtype=torch.float64)[:4], 1.0, 0.0, drawn()[4], 3
    whole = run("cpu", monkeypatch, *args)
    monkeypatch.setattr(MODULE, "BYTES", bytes_)
    monkeypatch.setattr(MODULE, "CACHED", rows * 61)
    parts = run("cpu", monkeypatch, *args)
    assert apart(parts, whole) < 1e-12
    assert all(torch.equal(getattr(parts, name), getattr(whole, name)) for name in ("best", "top", "rank"))


@not_interpreted
@pytest.mark.parametrize("form", FORMS)
def test_what_it_is_given_is_left_as_it_was(form, monkeypatch):
    args = *drawn(d=61, dtype=torch.float32)[:2], None, None, 1.0, 0.0, drawn()[4], 3
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    run(form, monkeypatch, *args)
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True) if isinstance(a, torch.Tensor))


@not_interpreted
@pytest.mark.parametrize(("n", "times"), [(134, 1), (135, 0)])
def test_few_scores_are_gone_over_at_once(n, times, monkeypatch):
    states, final, W, b, asked = drawn(s=1, n=n, dtype=torch.float32)
    at_once, called = MODULE.at_once, []
    monkeypatch.setattr(MODULE, "at_once", lambda *args: called.append(1) or at_once(*args))
    with counted() as calls:
        lens_statistics(states, final, W, b, 1.0, 0.0, asked, 3)
    assert calls == {("lens_statistics", "cpu"): 1} and len(called) == times


# ---------------------------------------------------------------- the Triton form's own ways


@pytest.mark.skipif(not INTERPRETED, reason="of the Triton form")
@pytest.mark.parametrize(("programs", "wide", "stretch"), [(1, 1024, 8192), (6, 1024, 8192), (4, 4, 64), (512, 4, 96)])
def test_shares_and_stretches_of_the_vocabulary_are_joined(programs, wide, stretch, monkeypatch):
    """Several tiles a program, several programs, products by torch: among whole numbers, so that ties cross every border."""
    from interp.kernels import lens_statistics_triton as kernels

    for name, value in (("PROGRAMS", programs), ("WIDE", wide), ("STRETCH", stretch), ("BYTES", 1)):
        monkeypatch.setattr(kernels, name, value)
    for kind in kernels.SIZES:
        monkeypatch.setitem(kernels.SIZES, kind, (16, 32, 4, 4))
    for whole, scale in ((True, 1.0), (False, 20.0)):
        states, final, W, b, asked = drawn(s=2, n=21, v=150, m=1, scale=scale, dtype=torch.float32, whole=whole)
        b[[0, 65, 149]] = -torch.inf
        with counted() as calls:
            got = run("triton", monkeypatch, states, final, W, b, 0.5, 0.0, asked, 6)
        assert calls == {("lens_statistics", "triton"): 1}
        z, z_f = (0.5 * (h.double() @ W.double().T + b) for h in (states, final))
        want = plain(z, z_f, asked, 6)
        assert apart(got, want) < 1e-5
        for name in ("best", "top", "rank"):
            assert torch.equal(getattr(got, name), getattr(want, name)), name
