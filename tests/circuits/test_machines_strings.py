"""PARITY and FIRST: right on every string, with the margins that the closed forms say."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.machines import build
from circuits.machines.machine import module_of
from circuits.machines.strings import margins, strings
from interp.errors import WrongUse

OPTIONS = [
    {},
    {"log_n": True},
    {"layer_norm": True},
    {"layer_norm": True, "log_n": True},
    {"sharpness": 2.5},
    {"layer_norm": True, "sharpness": 0.7, "eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["parity", "first"])
def test_every_string_to_length_12_in_both_precisions(name, options):
    machine = build(name, **options)
    assert all(row["wrong"] == 0 for row in module_of(name).check(machine, 12, ()))
    machine.model.double()
    rows = module_of(name).check(machine, 12, ())
    assert sum(row["strings"] for row in rows) == 2**13 - 2
    assert all(row["wrong"] == 0 for row in rows)
    assert max(row["largest_difference"] for row in rows) < 1e-12  # float64 through two layers


def test_parity_without_norms_has_the_papers_margin():
    machine = build("parity", sharpness=1.25)
    machine.model.double()
    for n in (5, 7, 101):  # n + 1 positions, an even number
        bits = torch.arange(n).lt(n // 3).long().unsqueeze(0)
        found = margins(machine, bits, module_of("parity").truth(bits))
        assert found.item() == pytest.approx(2 * math.tanh(1.25) / (n + 1) ** 2, rel=1e-9)


@pytest.mark.parametrize("n", [50, 499])
def test_long_strings(n):
    """log n keeps FIRST above ¼; PARITY's margin goes with 1/n² with and without it, and not with norms."""
    bits = torch.randint(2, (3, n), generator=torch.Generator().manual_seed(n))
    found = {}
    for name in ("parity", "first"):
        for options in ({}, {"log_n": True}, {"layer_norm": True, "eps": 1e-20}):
            machine = build(name, **options)
            machine.model.double()
            right = module_of(name).truth(bits)
            measured = margins(machine, bits, right)
            torch.testing.assert_close(measured, module_of(name).margin(machine, bits), rtol=1e-9, atol=0)
            found[name, *options] = measured
    assert bool((found["first", "log_n"] > 0.25).all())
    assert bool((found["first",] < math.e / n).all())
    assert bool((found["parity",] * (n + 1) ** 2 < 2.6).all())
    assert bool((found["parity", "log_n"] * (n + 1) ** 2 < 2.6).all())
    assert bool((found["parity", "layer_norm", "eps"] > 0.99 * 10**0.5).all())  # √d of the ten directions
    assert bool((found["first", "layer_norm", "eps"] > 0.99 * 7**0.5).all())


@pytest.mark.parametrize("name", ["parity", "first"])
def test_without_norms_the_cross_entropy_goes_to_a_coins(name):
    """Hahn 2020: a bit of one token changes what the CLS sees by 1/n, so that it gains nothing in the end."""
    bits = [row["cross_entropy_bits"] for row in module_of(name).check(build(name), 10, (100, 400))]
    assert 0.75 < bits[0] < bits[-1] < 1
    assert bits[-1] > 0.995


def test_the_empty_string_has_no_ones_and_no_margin():
    """PARITY's two heads see the same single position: the construction says nothing of the empty string."""
    machine = build("parity")
    assert margins(machine, strings(0), torch.zeros(1, dtype=torch.long)).item() == 0.0


def test_what_is_no_string():
    for text in ("", "012", "ab"):
        with pytest.raises(WrongUse, match="no string of 0 and 1"):
            module_of("parity").run(build("parity"), [text])
    assert module_of("parity").run(build("parity"), ["0110100"])["answer"] == 1
    assert module_of("first").run(build("first"), ["1000"])["answer"] == 1


def test_bfloat16_is_right_on_short_strings_and_the_margins_say_how_short():
    for name, safe in (("first", 12), ("parity", 4)):
        machine = build(name)
        machine.model.bfloat16()
        for n in range(1, safe + 1):
            bits = strings(n)
            assert bool((margins(machine, bits, module_of(name).truth(bits)) > 0).all()), (name, n)
