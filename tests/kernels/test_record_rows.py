"""Every form of `record_rows`: the rows bit for bit, norms and sums against float64, and nothing written elsewhere.

Under TRITON_INTERPRET=1 the form is Triton's, in its interpreter: `test_ops.py` runs this file so.
"""

from __future__ import annotations

import pytest
import torch
from forms import FORMS, INTERPRETED

from interp.kernels import counted, record_rows
from interp.kernels.record_rows import GROUP, TINY, moments
from interp.store import StoreWriter

form = pytest.mark.parametrize("form", FORMS)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="says nothing of the Triton form")
SIZES = [(1, 1, 1), (37, 20, 130), (9, 9, 300), (5, 0, 7), (4, 3, 256)] + [(700, 601, 33)] * (not INTERPRETED)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def drawn(n: int, r: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that lie with gaps between their numbers, features of unequal size and mean; which are kept; where they go."""
    torch.manual_seed(n + width)
    x = (torch.randn(n, 2 * width) * torch.logspace(-2, 1, 2 * width) + torch.linspace(-5, 5, 2 * width))[:, ::2].to(
        dtype
    )
    return x, torch.randperm(n)[:r], torch.randperm(n + 3)[:r]


def untouched(ring: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return ring[[i for i in range(len(ring)) if i not in set(slots.tolist())]]


@form
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize(("n", "r", "width"), SIZES)
def test_rows_are_rounded_to_the_nearest(form, dtype, stored, n, r, width):
    """Ties to even, by torch; sums and norms relative to sums of absolute values, in float32 at least: 2e-6."""
    x, kept, slots = drawn(n, r, width, dtype)
    ring, sums = torch.full((n + 3, width), 99.0, dtype=stored), torch.zeros(3, width, dtype=torch.float64)
    norms = record_rows.forms[form](x, kept, slots, ring, None, None, sums)
    wanted = x[kept].to(stored)
    assert torch.equal(ring[slots], wanted)
    assert (untouched(ring, slots) == 99).all()
    assert norms.dtype == torch.float32
    assert torch.allclose(norms.double(), x[kept].double().norm(dim=1), rtol=2e-6, atol=0)
    y, lost = x[kept].double(), x[kept].double() - wanted.double()
    far = torch.stack([y.abs(), y.square(), lost.square()]).sum(1)
    assert ((sums - torch.stack([y, y.square(), lost.square()]).sum(1)).abs() <= 2e-6 * far + 1e-300).all()


@form
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "r", "width"), SIZES)
def test_codes_and_scales_are_those_of_the_formula(form, dtype, n, r, width):
    """In float32, a group at a time; what is read back is at most half a step off."""
    x, kept, slots = drawn(n, r, width, dtype)
    groups, pivot = -(-width // GROUP), torch.linspace(-5, 5, width)
    codes, scales = torch.full((n + 3, width), 99, dtype=torch.int8), torch.full((n + 3, groups), torch.nan).bfloat16()
    sums = torch.ones(3, width, dtype=torch.float64)
    norms = record_rows.forms[form](x, kept, slots, codes, scales, pivot, sums)
    assert (untouched(codes, slots) == 99).all()
    assert untouched(scales, slots).isnan().all()
    y, back = x[kept].float() - pivot, torch.empty(r, width, dtype=torch.float64)
    for g in range(groups):
        part = slice(g * GROUP, g * GROUP + GROUP)
        scale = (y[:, part].abs().amax(1) / 127).clamp(min=TINY).bfloat16() if r else scales[slots, g]
        assert torch.equal(scales[slots, g], scale)
        assert torch.equal(codes[slots][:, part], (y[:, part] * (1 / scale.float())[:, None]).round().to(torch.int8))
        back[:, part] = scale.double()[:, None] * codes[slots][:, part]
        assert ((back[:, part] - y[:, part]).abs() <= 0.5001 * scale.double()[:, None]).all()
    assert torch.allclose(norms.double(), x[kept].double().norm(dim=1), rtol=2e-6, atol=0)
    y, lost = y.double(), back - y.double()
    assert torch.allclose(sums[:2], 1 + torch.stack([y, y.square()]).sum(1), rtol=2e-6, atol=1e-5)
    assert torch.allclose(sums[2], 1 + lost.square().sum(0), rtol=1e-5)


@form
@pytest.mark.parametrize("stored", [torch.int8, *FLOATS])
def test_what_is_not_finite_shows_in_its_norm_alone(form, stored):
    x, places = torch.ones(6, 140), torch.arange(6)
    x[1, 139], x[2, 0], x[4, 70] = torch.nan, -torch.inf, torch.finfo(torch.float32).max
    ring, coded = torch.zeros(6, 140, dtype=stored), stored == torch.int8
    about = (torch.zeros(6, 2).bfloat16(), torch.full((140,), 0.5)) if coded else ()
    norms = record_rows.forms[form](x, None, places, ring, *about)
    assert torch.isfinite(norms).tolist() == [True, False, False, True, False, True]  # the square of row 4 overflows
    if not coded:
        assert torch.equal(ring.isnan(), x.isnan())
        assert torch.equal(ring.isinf(), x.to(stored).isinf())


@form
def test_means_and_variances_of_features_far_from_zero(form):
    """Added up over calls of unequal size, mean 3e4 times the deviation: 1e-6 of the variance of what float32 holds, by two passes."""
    torch.manual_seed(0)
    x = 30 + torch.randn(150, 5) * 1e-3
    sums, ring = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(150, 5)
    for part in torch.arange(150).split(64):
        record_rows.forms[form](x, part, part, ring, None, None, sums)
    mean, variance, lost = moments(sums, 150)
    assert torch.allclose(mean, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(variance, x.double().var(0, correction=0), rtol=1e-6)
    assert not lost.any()


@not_interpreted
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_runs_agree_bit_for_bit_whatever_the_threads(threads):
    x, kept, slots = drawn(900, 800, 140, torch.float32)
    before = torch.get_num_threads()

    def made():
        codes, scales = torch.zeros(903, 140, dtype=torch.int8), torch.zeros(903, 2).bfloat16()
        sums = torch.zeros(3, 140, dtype=torch.float64)
        return record_rows(x, kept, slots, codes, scales, torch.zeros(140), sums), codes, scales, sums

    wanted = made()
    torch.set_num_threads(threads)
    try:
        assert all(map(torch.equal, made(), wanted))
    finally:
        torch.set_num_threads(before)


@not_interpreted
def test_float64_is_kept():
    x = torch.randn(7, 5, dtype=torch.float64)
    ring = torch.zeros(7, 5, dtype=torch.float64)
    norms = record_rows(x, None, torch.arange(7), ring)
    assert torch.equal(ring, x)
    assert torch.equal(norms, x.norm(dim=1))


@not_interpreted
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_the_store_goes_through_it_and_every_form_writes_the_same_shards(dtype, tmp_path, monkeypatch):
    """Appends of more rows than a region of memory holds, with and without rows left out."""
    torch.manual_seed(0)
    x, kept = torch.randn(500, 40) * 3 + 7, torch.randperm(500)[:300]
    found = {}
    for name in ("", "reference", "cpu"):
        monkeypatch.setenv("INTERP_KERNELS", name)
        with (
            counted() as calls,
            StoreWriter(
                tmp_path / f"_{name}", widths={"a": 40}, dtype=dtype, expected_rows=800, pile_bytes=20_000
            ) as store,
        ):
            store.append({"a": x}, torch.arange(500))
            store.append({"a": x}, torch.arange(300), kept)
        assert {op for op, _ in calls} == {"record_rows"}
        found[name] = store._index.shards
    assert found[""] == found["reference"] == found["cpu"]
