"""`largest`: every form gives what a stable sort of whole rows gives, ties, infinities and NaN among the entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.dictionaries import RowsSource, TrainConfig
from interp.dictionaries.trainer import Trainer
from interp.kernels import counted, largest

FORMS = [pytest.param(f, id=name) for name, f in largest.forms.items() if name != "triton"]


def whole(z: Tensor, c: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """By a stable sort, which keeps equal entries in the order of their columns."""
    y = z if c is None else z.to(c.dtype) + c
    values, indices = y.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "m", "k"),
    [(0, 40, 3), (300, 37, 5), (30, 37, 37), (5, 20, 1), (7, 4100, 32), (4, 4100, 300), (50, 33, 32), (3, 1000, 31)],
)
@pytest.mark.parametrize("bound", [None, 2, 60])
def test_the_largest_of_rows(form, dtype, rows: int, m: int, k: int, bound: int | None) -> None:
    """With small integers most entries tie, some rows far beyond the k; m is no multiple of a group's 32 columns."""
    generator = torch.Generator().manual_seed(m + k)
    z = torch.randn(rows, m, generator=generator)
    z = (z if bound is None else (z * bound).round().clamp(-bound, bound)).to(dtype)
    c = torch.randn(m, generator=generator) if bound is None else torch.zeros(m)
    c = c.to(torch.promote_types(dtype, torch.float32))
    same(form(z, c, k), whole(z, c, k))
    same(form(c.expand(rows, m), None, k), whole(c.expand(rows, m), None, k))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_what_is_not_finite_is_ordered(form, nan: float) -> None:
    """NaN of either sign comes first, then infinity; −0 equals 0; nothing but −∞ still gives valid columns."""
    z = torch.full((4, 70), -torch.inf)
    z[0, [64, 3, 9]] = torch.tensor([torch.inf, nan, torch.inf])
    z[1, [69, 2, 33]] = torch.tensor([0.0, -0.0, -1.0])
    z[2] = -torch.linspace(1, 2, 70)
    for dtype in (torch.float32, torch.bfloat16):
        values, indices = form(z.to(dtype), torch.zeros(70), 4)
        assert values[0, 0].isnan()
        assert indices[:, :3].tolist() == [[3, 9, 64], [2, 69, 33], [0, 1, 2], [0, 1, 2]]
        assert values[0, 1:].tolist() == [torch.inf, torch.inf, -torch.inf]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        z, c = torch.randn(7, 500, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.ones(500)
        for n in (1, 2, 7):
            same(largest(z[:n], c, 9), whole(z[:n], c, 9))
    finally:
        torch.set_num_threads(before)


def test_without_a_bias_it_is_the_same_op() -> None:
    torch.library.opcheck(torch.ops.interp.largest, (torch.randn(5, 90), None, 4), test_utils="test_faketensor")


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_training_goes_through_it(kind: str) -> None:
    pytest.importorskip("numba")
    rows = torch.randn(600, 24, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(TrainConfig.from_dict({"kind": kind, "latents": 6000, "k": 5, "batch": 300}), RowsSource(rows))
    trainer.begin()
    with counted() as calls:
        trainer.update(rows[:300], rows[:300])
    assert set(calls) == {("largest", "cpu"), ("sddmm", "cpu"), ("weight_gradient", "cpu")}


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("v", [40, 300, 64 * 4 * 7 + 13, 5000])
def test_the_largest_are_found_through_blocks(k: int, v: int) -> None:
    z = torch.randint(50, (40, v), generator=torch.Generator().manual_seed(k)).float()
    same(largest.forms["reference"](z, None, k), whole(z, None, k))
