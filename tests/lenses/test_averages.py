"""Means and bands over text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp import WrongUse
from interp.lenses import Lens
from interp.lenses.averages import interval

TEXTS = [
    "The class statement. " * 12,
    "A word is enough.",
    "Names refer to objects; names are introduced by names. " * 9,
]


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return Lens(interp.load(tiny_folder))


def test_means_are_over_all_tokens(lens, tmp_path):
    """The same windows one by one, joined and averaged; the last token of a window has no next one."""
    found = lens.over(TEXTS, context=32, batch=2)
    from interp.store.recording import windows

    alone = [lens(lens.model.pad([ids])) for _, ids in windows(lens.model, TEXTS, 32)]
    assert found.counts["entropy"].tolist() == [[len(t.pos)] * 3 for t in alone]
    kl = torch.cat([t.kl_forward for t in alone], dim=1).double().mean(1)
    assert torch.allclose(found.mean("kl_forward"), kl, atol=1e-6)
    entropies = torch.cat([t.cross_entropy for t in alone], dim=1).double()
    assert torch.allclose(found.mean("cross_entropy"), entropies.nanmean(1), atol=1e-5)
    assert float(found.mean("agreement")[-1]) == 1.0
    frame = found.to_frame()
    assert bool((frame["low"] <= frame["mean"] + 1e-12).all() and (frame["mean"] <= frame["high"] + 1e-12).all())
    figure = found.plot("entropy")
    assert np.allclose(figure.data[2].y, found.mean("entropy"))
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    again = lens.over(tmp_path, context=32)
    assert torch.allclose(again.mean("kl_forward"), kl, atol=1e-6)
    assert len(lens.over(TEXTS, context=32, batch=1, tokens=33).counts["entropy"]) == 2


def test_the_band_covers_the_mean_as_often_as_it_says():
    """400 experiments of 60 windows with known mean 0: the 95 % band misses it in about 5 % (three standard errors: 3.3 %)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 400, generator=generator, dtype=torch.float64)
    low, high = interval(x, torch.ones(60, 1))
    missed = float(((low > 0) | (high < 0)).double().mean())
    assert 0.02 < missed < 0.085


def test_bad_values_and_texts(lens, tmp_path):
    found = lens.over(TEXTS[1])
    with pytest.raises(WrongUse, match="Did you mean 'entropy'"):
        found.mean("entropi")
    with pytest.raises(WrongUse, match="no text file"):
        lens.over(tmp_path / "none.txt")
    with pytest.raises(WrongUse, match="empty"):
        lens.over([])
