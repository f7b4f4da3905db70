"""The benchmark at its smallest: both contestants take the same steps, and what is told adds up."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bigram as race
from circuits import bigram
from interp.model import load
from tests.bigram.toy import sampled, transitions
from tests.model.shapes import module


def test_both_formulations_take_the_same_steps():
    model, text = load(module("llama")), sampled(transitions(61, 0), 16, 12, 0)
    ids, counts = torch.tensor(text).view(-1, 2, 12), bigram.count(text, 61)
    told = race.race(model, ids, counts.distribution, "float32", rounds=2, steps=4)
    assert {len(t) for t in told["seconds"].values()} == {2}
    assert told["losses"]["published"] == pytest.approx(told["losses"]["ours"], abs=1e-5)
    found = race.summary(told)
    x = found["published_over_ours"]
    assert x["low"] <= x["value"] <= x["high"]
    assert race.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == {"value": 2.0, "low": 2.0, "high": 2.0}
