"""Inverse permutation: every input three ways, the Jacobian, and why no causal model can."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.machines import build
from circuits.machines.permutation import everything, ids_of, jacobian, least_margin, margins, outputs, run
from interp.errors import WrongUse


@pytest.mark.parametrize(("causal", "scratch"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize(("n", "symbols", "sharpness"), [(1, 2, 25.0), (3, 3, 25.0), (5, 2, 25.0), (4, 2, 2.0)])
def test_every_input_and_the_least_margin(n, symbols, sharpness, causal, scratch):
    machine = build("permutation", n=n, symbols=symbols, sharpness=sharpness, causal=causal, scratch=scratch)
    assert bool((margins(machine) > 0).all()) == (sharpness > 3)  # a low β does not tell four symbols apart
    machine.model.double()
    assert margins(machine).min().item() == pytest.approx(least_margin(machine), abs=1e-12)


def test_errors_are_below_the_papers_bound():
    """1 - margin ≤ 2 · 3n e^-β: every position but the right one has at most e^-β of its weight, up to layer 1's own error."""
    for b in (5.0, 10.0, 20.0):
        machine = build("permutation", n=4, causal=True, scratch=True, sharpness=b)
        machine.model.double()
        assert 1 - margins(machine).min().item() < 2 * 12 * math.exp(-b * (1 - 24 * math.exp(-b)))


def test_the_causal_jacobian_is_exactly_zero_whatever_the_weights():
    machine = build("permutation", n=4, causal=True)
    permutations, data, _ = everything(4, 2)
    ids = ids_of(machine, permutations, data)[77:78]
    assert bool((jacobian(machine, ids)[:, :, 4:] == 0).all())
    generator = torch.Generator().manual_seed(0)
    for weight in machine.model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    assert bool((jacobian(machine, ids)[:, :, 4:] == 0).all())
    assert jacobian(machine, ids)[:, :, :4].abs().max() > 1e-3
    assert jacobian(build("permutation", n=4), ids)[:, :, 4:].abs().max() > 0.1
    scratch = build("permutation", n=4, causal=True, scratch=True)
    ids = ids_of(scratch, permutations, data)[77:78]
    assert jacobian(scratch, ids)[:, :, 4:8].abs().max() > 0.1


def test_a_causal_model_says_the_same_for_lists_that_differ():
    """The counter-example: two inputs with one permutation and other symbols want other outputs, and get the same bits."""
    machine = build("permutation", n=4, causal=True)
    order = torch.tensor([[2, 0, 3, 1]] * 2)
    data = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    first, second = outputs(machine, ids_of(machine, order, data))
    assert torch.equal(first, second)


def test_in_words():
    machine = build("permutation", n=4, symbols=3)
    assert run(machine, ["2,0,3,1", "abcb"]) == {"answer": "bbac"}
    for arguments in (["2,0"], ["0,0,1,2", "abca"], ["0,1,2,3", "abcz"], ["0,1,2,x", "abca"]):
        with pytest.raises(WrongUse, match="give a permutation"):
            run(machine, arguments)
    with pytest.raises(WrongUse, match="2 to 26 symbols"):
        build("permutation", symbols=1)
