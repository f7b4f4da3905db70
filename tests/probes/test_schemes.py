"""The constructed layer: what falls as 1/n, what does not fall, and the lemmas' own numbers."""

from __future__ import annotations

import math

import pytest
import torch

from interp import WrongUse
from probes.schemes import (
    SCHEMES,
    Layer,
    alternating,
    from_first,
    perturbed,
    ratios,
    scheme_curve,
    sinusoids,
    total_variation,
)

LENGTHS = (16, 64, 256, 1024)


def test_without_positions_it_falls_as_one_over_n_and_with_alibi_not_at_all():
    curves = {s: scheme_curve(Layer(s), LENGTHS, draws=8) for s in SCHEMES}
    assert -1.2 < curves["none"].slope < -0.8
    alibi = curves["alibi"].l1.mean(0)
    assert float(alibi[-1] / alibi[0]) > 0.8
    assert abs(curves["alibi"].slope) < 0.1
    assert curves["rotary"].slope > -0.7  # what turns does not decay
    frame = curves["none"].to_frame()
    assert frame["n"].tolist() == list(LENGTHS)
    assert len(curves["none"].plot(curves["alibi"]).data) == 2


@pytest.mark.check("squash none", formula="o_n − o* = a*_{n+1} (v_n − o_n), no positions", tolerance=1e-12)
def test_the_difference_in_closed_form(measured):
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(40, 64, generator=draw, dtype=torch.float64) for _ in range(3))
    layer = Layer("none")
    o, again = layer(q[-1], k, v), layer(q[-1], torch.cat([k, k[-1:]]), torch.cat([v, v[-1:]]))
    weight = torch.softmax(torch.cat([k, k[-1:]]) @ q[-1] / 8, 0)[-1]
    measured(float((o - again - weight * (o - v[-1])).abs().max()))


@pytest.mark.check(
    "squash T1 (B.4)", formula="Σ|softmax − softmax| = 2 (e − 1)/(e + 1) at every even n", tolerance=1e-12
)
def test_logits_that_stay_apart_keep_their_distance(measured):
    for n in (2, 10, 1000):
        measured(abs(alternating(n) - 2 * (math.e - 1) / (math.e + 1)))


def test_a_few_logits_that_move_matter_less_and_less():
    """Lemma B.2: 200 of n logits are moved, and the distance falls as 1/n."""
    far = [perturbed(n, seed=1) for n in (400, 2000, 20000)]
    assert 3 < far[0] / far[1] < 7
    assert 8 < far[1] / far[2] < 12
    assert total_variation(torch.zeros(3), torch.zeros(3)) == 0


@pytest.mark.check(
    "squash T5 (ratios)", formula="no positions, no mask: 10 and 11…00… give one output", tolerance=1e-12
)
def test_only_ratios_are_known(measured):
    for times in (2, 7, 100):
        measured(ratios(times))


@pytest.mark.check("squash B.8", formula="1 − [(Λ + I)/2]^L[n, 1] at L = 400, n = 20", tolerance=1e-12)
def test_with_depth_all_comes_from_the_first_token(measured):
    measured(1 - from_first(20, 400))
    assert from_first(20, 1) == pytest.approx(1 / 40)


def test_a_share_of_the_frequencies_goes_from_none_to_rotary():
    draw = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(64, generator=draw), *torch.randn(2, 30, 64, generator=draw)
    assert torch.equal(Layer("rotary", p=0.0)(q, k, v), Layer("none")(q, k, v))
    assert torch.equal(Layer("rotary", p=1.0)(q, k, v), Layer("rotary")(q, k, v))
    assert not torch.allclose(Layer("rotary", p=0.5)(q, k, v), Layer("rotary")(q, k, v))
    falls = [scheme_curve(Layer("rotary", p=p), LENGTHS[:3], draws=8).slope for p in (0.0, 1.0)]
    assert falls[0] < falls[1]


def test_alibi_lowers_logits_by_distance():
    """Two keys alike, three tokens apart: the weights are as e^(-3 m) to 1."""
    q, k = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    v = torch.eye(4, dtype=torch.float64)
    a = Layer("alibi", d=4, slope=0.7)(q, k, v)
    assert float(a[0] / a[3]) == pytest.approx(math.exp(-2.1))
    assert torch.allclose(sinusoids(torch.tensor([0.0]), 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))


def test_bad_requests_are_refused():
    with pytest.raises(WrongUse, match="no scheme"):
        Layer("rope")
    with pytest.raises(WrongUse, match="no rising row"):
        scheme_curve(Layer("none"), [16])
    with pytest.raises(WrongUse, match="from 0 to 1"):
        scheme_curve(Layer("rotary", p=1.5), LENGTHS)
