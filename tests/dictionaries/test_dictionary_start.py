"""Where training starts: scales, the geometric median, the first directions, and the rows in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.dictionaries import Dictionary, RowsSource, StoreSource
from interp.dictionaries.start import geometric_median, initialise, scale_to, scales
from interp.errors import Failed, WrongUse

Make = Callable[..., Dictionary]
Measure = Callable[[float], None]


@pytest.mark.check(
    "dictionaries 4.1 geometric median", formula="‖Σ (x_i − g)/‖x_i − g‖‖ / n; the middle of a line", tolerance=1e-6
)
def test_geometric_median(rows: Tensor, measured: Measure) -> None:
    """At the minimum the unit vectors cancel; an outlier does not move it; points of the data are no trap."""
    g = geometric_median(rows)
    away = rows - g
    measured(((away / away.norm(dim=1, keepdim=True)).sum(0).norm() / len(rows)).item())
    far = torch.cat([rows, 1e9 * torch.ones(1, 9, dtype=rows.dtype)])
    assert (geometric_median(far, iterations=2000) - g).norm() < 0.02

    # Symmetric about a data point that the mean hits at once: the divisor is zero where the minimum is.
    line = torch.tensor([[-5.0, 0], [-1, 0], [0, 0], [1, 0], [5, 0]])
    measured(geometric_median(line).norm().item())
    # Five copies of a point outweigh two others: Weiszfeld's steps end on a data point.
    heavy = torch.tensor([[1.0, 2.0]] * 5 + [[9.0, 2.0], [1.0, 7.0]])
    measured((geometric_median(heavy, iterations=2000) - torch.tensor([1.0, 2.0])).norm().item())
    assert torch.equal(geometric_median(torch.ones(4, 3)), torch.ones(3, dtype=torch.float64))


def test_median_started_on_a_data_point_moves_on() -> None:
    """The mean is a data point, but not the minimum: the guard must not stop there."""
    x = torch.tensor([[0.0, 0.0], [-1.0, 0.5], [-1.0, -0.5], [2.0, 0.0]])
    assert torch.equal(x.mean(0), x[0])
    g = geometric_median(x, iterations=5000)
    around = torch.cartesian_prod(torch.linspace(-0.5, 0.5, 201), torch.linspace(-0.5, 0.5, 201)).double()
    best = around[(around[:, None] - x).norm(dim=2).sum(1).argmin()]
    assert (g - best).norm() < 0.01


def test_scales(make: Make, rows: Tensor) -> None:
    D = make(d_out=6)
    (s_x,), (s_y,) = scales(D, rows, rows[:, :6], (9, 1))
    assert (s_x * rows).square().sum(1).mean().item() == pytest.approx(9, rel=1e-12)
    assert (s_y * rows[:, :6]).square().sum(1).mean().item() == pytest.approx(1, rel=1e-12)
    (s_x,), (s_y,) = scales(make(), rows, rows, (9, 9))
    assert s_x == s_y == scale_to(9, rows, "in")


@pytest.mark.parametrize("value", [0.0, 3.0, float("nan"), float("inf")])
def test_rows_without_variance_are_refused(value: float) -> None:
    with pytest.raises(Failed, match=r"blocks\.1\.mlp\.out"):
        scale_to(2.0, torch.full((5, 2), value), "blocks.1.mlp.out")


def test_first_weights(make: Make, rows: Tensor) -> None:
    for kind in ({}, {"d_out": 9}):
        D = make(**kind)
        initialise(D, rows, rows, seed=1)
        assert torch.allclose(D.W_dec.norm(dim=1), torch.ones(120, dtype=torch.float64), atol=1e-6)
        assert torch.equal(D.W_enc, D.W_dec.T) == D.config.autoencoder
        centre = geometric_median(rows) if D.config.autoencoder else rows.mean(0)
        assert torch.allclose(D.b_dec, centre)
        assert torch.allclose(D.b_pre, centre)
        other = make(**kind)
        initialise(other, rows, rows, seed=2)
        assert not torch.allclose(D.W_dec, other.W_dec)


# ------------------------------------------------------------ sources


def test_rows_come_once_a_pass_whatever_the_batch(rows: Tensor) -> None:
    source = RowsSource(rows, torch.arange(400.0)[:, None])
    stream = torch.cat([y for _, y in source.batches(37, seed=5, start=0, stop=40)]).flatten().long()
    for epoch in range(3):
        assert stream[400 * epoch : 400 * (epoch + 1)].sort().values.tolist() == list(range(400))
    assert not torch.equal(stream[:400], stream[400:800])
    x, y = next(source.batches(37, seed=5, start=20, stop=21))
    assert torch.equal(y.flatten().long(), stream[20 * 37 : 21 * 37])
    assert torch.equal(x, rows[y.flatten().long()].float())
    assert x.dtype == torch.float32
    assert torch.equal(torch.cat([y for _, y in source.once(37)]).flatten(), torch.arange(400.0))


def test_batches_larger_than_the_data(rows: Tensor) -> None:
    y = torch.cat([y for _, y in RowsSource(rows[:7], torch.arange(7.0)[:, None]).batches(20, 0, 0, 7)])
    assert y.flatten().long().bincount().tolist() == [20] * 7


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(3), None, "rows must be a float tensor"),
        (torch.zeros(3, 2, dtype=torch.int64), None, "got torch.int64"),
        (torch.zeros(1, 2), None, "two rows or more"),
        (torch.zeros(3, 2), torch.zeros(3), "targets must be a float tensor"),
        (torch.zeros(3, 2), torch.zeros(4, 2), "3 rows but 4 targets"),
    ],
)
def test_rows_of_the_wrong_shape(x: Tensor, y: Tensor | None, said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        RowsSource(x, y)


class FakeStore:
    """What a source asks of a store: rows in order, half precision, no shuffle."""

    def __init__(self) -> None:
        self.rows, self.meta = 10, {"model": "of that name"}
        self.widths = {"in": 3, "out": 2, "more": 1}
        self.values = {s: torch.arange(10.0)[:, None].expand(10, w) + i for i, (s, w) in enumerate(self.widths.items())}

    def batches(
        self, size: int, seed: int, sites: list[str], epochs: int, start: int, drop_last: bool
    ) -> Iterator[dict[str, Any]]:
        each = range(0, 10 - size + 1 if drop_last else 10, size)
        numbers = [(e, at) for e in range(epochs) for at in each][start:]
        for _, at in numbers:
            yield {s: self.values[s][at : at + size].bfloat16() for s in sites}


def test_store_source() -> None:
    source = StoreSource(FakeStore(), "in", ["out", "more"])
    assert (source.d_in, source.d_out, source.rows) == (3, 3, 10)
    assert (source.reads, source.writes) == (("in",), ("out", "more"))
    batches = list(source.batches(4, seed=0, start=1, stop=5))
    assert [x[0, 0].item() for x, _ in batches] == [4, 0, 4, 0]
    x, y = batches[0]
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)
    assert y[0].tolist() == [5, 5, 6]
    assert sum(len(x) for x, _ in source.once(4)) == 10
    x, y = next(StoreSource(FakeStore(), "in").batches(4, 0, 0, 1))
    assert x is y
    with pytest.raises(WrongUse, match="no 'inn'; it holds in, out, more"):
        StoreSource(FakeStore(), "inn")
    with pytest.raises(WrongUse, match="batch=10 or less"):
        next(source.batches(11, 0, 0, 1))
