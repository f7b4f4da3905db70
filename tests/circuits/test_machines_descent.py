"""A layer of linear attention is a step of gradient descent, in float64 to rounding."""

from __future__ import annotations

import pytest
import torch

from circuits.machines import build
from circuits.machines.descent import check, descended, predicted, run
from interp.errors import WrongUse


@pytest.mark.parametrize(("x", "y", "steps", "rate"), [(3, 2, 1, 0.5), (1, 1, 1, 0.9), (4, 1, 6, 0.2), (2, 3, 3, 0.35)])
def test_layers_are_steps(x, y, steps, rate):
    rows = check(build("descent", x=x, y=y, steps=steps, rate=rate), tasks=20)
    assert [row["examples"] for row in rows] == [1, 5, 20]
    assert max(row["largest_difference"] for row in rows) < 1e-11  # float64, predictions of up to some hundreds


def test_the_steps_are_those_of_the_loss_that_autograd_sees():
    generator = torch.Generator().manual_seed(3)
    points, targets = (torch.randn(7, d, generator=generator, dtype=torch.float64) for d in (3, 2))
    w = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss = (points @ w.T - targets).square().sum() / (2 * len(points))
    (gradient,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(descended(points, targets, 0.4, 1), -0.4 * gradient, rtol=0, atol=1e-14)


def test_many_steps_reach_least_squares():
    generator = torch.Generator().manual_seed(5)
    points = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64)).Q * 8**0.5
    targets = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    machine = build("descent", steps=40, rate=0.5)
    machine.model.double()
    query = torch.randn(3, generator=generator, dtype=torch.float64)
    best = torch.linalg.lstsq(points, targets).solution.T @ query
    torch.testing.assert_close(predicted(machine, points, targets, query), best, rtol=0, atol=1e-9)  # 2^-40 is left


def test_the_querys_target_is_not_looked_at_and_errors_stand_at_the_examples():
    machine = build("descent")
    rows = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    other = rows.clone()
    other[:, -1, 3:] = 7.0
    assert torch.equal(machine.model(rows), machine.model(other))
    w = descended(rows[0, :5, :3], rows[0, :5, 3:], 0.5, 1)
    torch.testing.assert_close(machine.model(rows)[0, :5], rows[0, :5, :3] @ w.T - rows[0, :5, 3:])


def test_a_softmax_is_no_step():
    """The counter-example: exp in place of the product, weights that sum to one, and the prediction is another."""
    points = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    targets, query = torch.tensor([[1.0], [1.0]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    step = descended(points, targets, 1.0, 1) @ query
    weights = torch.softmax((points @ query).flatten(), 0)
    assert step.item() == 0.0
    assert (weights @ targets).item() == pytest.approx(1.0)


def test_without_examples_nothing_is_learnt():
    machine = build("descent")
    assert predicted(machine, torch.zeros(0, 3), torch.zeros(0, 2), torch.ones(3)).tolist() == [0.0, 0.0]


def test_in_words():
    machine = build("descent", x=2, y=1, rate=1.0)
    found = run(machine, ["1,0:2", "0,1:4", "1,1"])
    assert found["prediction"] == pytest.approx([3.0])
    assert found["gradient_descent"] == pytest.approx([3.0])
    for arguments in (["1,0:2"], ["1,0:2", "1"], ["1:2", "1,1"], ["x:2", "1,1"]):
        with pytest.raises(WrongUse):
            run(machine, arguments)
