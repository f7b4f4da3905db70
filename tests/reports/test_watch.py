"""What one pass keeps, against code that keeps everything."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

import interp
from interp.reports import watch
from interp.reports.latents import latent_examples, neighbours
from interp.reports.watch import BINS, Kept, Watch, apart, bin_of, edge, first, uniform
from tests.reports.test_latents import VOCABULARY, everything, grouped, tiny_dictionary, tiny_model


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in (60, 25, 3, 60, 1, 44, 60)]


@pytest.fixture(scope="module")
def codes(model: interp.Model, windows: list[list[int]]) -> torch.Tensor:
    """f of every token [tokens, m]."""
    return torch.cat(everything(model, tiny_dictionary(), windows)).detach()


@pytest.fixture(scope="module")
def seen(model: interp.Model, windows: list[list[int]]) -> Watch:
    return watched(model, grouped(windows))


def watched(model: interp.Model, groups: list[list[list[int]]], latents: range = range(40), seed: int = 0) -> Watch:
    found = Watch(tiny_dictionary(), model, latents, top=5, sample=4, window=3, seed=seed)
    for group in groups:
        found.add(group)
    return found


def test_bins_are_four_to_a_doubling() -> None:
    values = np.geomspace(2**-15, 2**15, 997)
    bins = bin_of(values)
    assert all(edge(b) <= v * (1 + 1e-12) and v < edge(b + 1) * (1 + 1e-12) for b, v in zip(bins, values, strict=True))
    assert edge(BINS // 2) == 1.0
    assert edge(BINS // 2 + 4) == 2.0
    assert bin_of(np.array([1e-30, 1e30])).tolist() == [0, BINS - 1]


def test_first_is_a_sort_of_each_group() -> None:
    rng = np.random.default_rng(0)
    group, key = rng.integers(7, size=200), rng.integers(20, size=200).astype(float)
    kept, rank = first(group, key, 3)
    wanted = [i for g in range(7) for i in sorted(np.flatnonzero(group == g), key=lambda i: (key[i], i))[:3]]
    assert kept.tolist() == wanted
    assert rank.tolist() == [0, 1, 2] * 7
    assert len(first(group[:0], key[:0], 3)[0]) == 0


def test_contexts_stand_apart_as_a_greedy_search_would_have_them() -> None:
    rng = np.random.default_rng(1)
    group, position = np.repeat(np.arange(5), 40), np.tile(np.arange(40), 5)
    value = rng.integers(1, 9, size=200).astype(float)  # many ties
    wanted = set()
    for g in range(5):
        taken: list[int] = []
        for i in sorted(np.flatnonzero(group == g), key=lambda i: (-value[i], position[i])):
            if len(taken) < 4 and all(abs(position[i] - position[j]) > 5 for j in taken):
                taken.append(i)
        wanted |= set(taken)
    shuffled = rng.permutation(200)
    kept = apart(group[shuffled], position[shuffled], value[shuffled], 5, 4)
    assert set(shuffled[kept].tolist()) == wanted


def test_counts_are_those_of_every_token(seen: Watch, codes: torch.Tensor) -> None:
    f = codes.numpy().astype(np.float32)
    assert np.array_equal(seen.fired, (f > 0).sum(0))
    assert np.allclose(seen.total, f.sum(0), rtol=1e-5)
    assert np.array_equal(seen.maximum, f.max(0))
    for latent in range(40):
        bins = bin_of(f[f[:, latent] > 0, latent])
        assert np.array_equal(seen.histogram[latent], np.bincount(bins, minlength=BINS))


def test_tokens_are_those_it_fires_on(seen: Watch, codes: torch.Tensor, windows: list[list[int]]) -> None:
    ids = np.concatenate([np.array(w) for w in windows])
    for latent in range(40):
        f = codes[:, latent].numpy()
        count, mass = Counter(ids[f > 0].tolist()), np.bincount(ids, f, minlength=VOCABULARY)
        assert dict(zip(seen.on[latent].indices.tolist(), seen.on[latent].data.tolist(), strict=True)) == count
        assert np.allclose(seen.mass[latent, :VOCABULARY].toarray()[0], mass, rtol=1e-5)
    assert np.array_equal(seen.occurrences[0, :VOCABULARY].toarray()[0], np.bincount(ids, minlength=VOCABULARY))


def test_latents_that_fire_together(
    seen: Watch, codes: torch.Tensor, model: interp.Model, windows: list[list[int]]
) -> None:
    fires = (codes > 0).double().numpy()
    assert np.array_equal(seen.together.toarray(), fires.T @ fires)
    with np.errstate(invalid="ignore"):  # of latents that never fired
        phi = np.corrcoef(fires.T)
    told = latent_examples(tiny_dictionary(), model, grouped(windows), range(40), top=0, each=0)
    for latent in told.latents:
        for partner in latent.partners:
            assert partner.correlation == pytest.approx(phi[latent.index, partner.index])
        common = (fires.T @ fires)[latent.index] >= 3
        others = [phi[latent.index, j] for j in range(40) if j != latent.index and common[j]]
        assert [p.correlation for p in latent.partners] == pytest.approx(
            [c for c in sorted(others, reverse=True)[:10] if c > 0]
        )


def test_drawn_firings_are_the_first_of_a_shuffle_in_each_bin(seen: Watch, codes: torch.Tensor) -> None:
    """The bins that reach down three octaves from the strongest stand for themselves, all below them are one."""
    f = codes.numpy().astype(np.float32)
    for latent in np.flatnonzero(seen.maximum):
        floor = bin_of(f[:, latent].max()[None])[0] - watch.DEPTH
        bins = np.maximum(bin_of(np.maximum(f[:, latent], 1e-30)), floor)
        for b in np.unique(bins[f[:, latent] > 0]):
            members = f[(bins == b) & (f[:, latent] > 0), latent]
            drawn = seen.sample.of(latent * BINS + b, latent * BINS + b + 1)
            assert len(drawn.value) == min(4, len(members))
            assert set(drawn.value) <= set(members)


def test_draws_are_uniform() -> None:
    """Of the mean of n draws 5 deviations, 5 / √(12 n); of a histogram of 50 bins, χ² below its mean + 5 deviations."""
    n = 100_000
    draws = uniform(3, np.arange(n) % 10, np.arange(n) // 10)
    counts = np.histogram(draws, 50, (0, 1))[0]
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * n)
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 49 + 5 * np.sqrt(98)
    assert len(np.unique(draws)) == n
    assert not np.array_equal(draws, uniform(4, np.arange(n) % 10, np.arange(n) // 10))


def test_neither_batches_nor_the_choice_of_latents_change_what_is_kept(
    seen: Watch, model: interp.Model, windows: list[list[int]]
) -> None:
    """Padding and batches move float64 sums by rounding alone, which float32 activations do not show."""
    alone = watched(model, [[w] for w in windows])
    for mine, theirs in ((seen.top, alone.top), (seen.sample, alone.sample)):
        assert np.array_equal(mine.group, theirs.group)
        assert np.array_equal(mine.contexts.document, theirs.contexts.document)
        assert np.array_equal(mine.contexts.position, theirs.contexts.position)
        assert np.array_equal(mine.contexts.ids, theirs.contexts.ids)
        assert np.allclose(mine.contexts.activations, theirs.contexts.activations, rtol=1e-5)
    few = watched(model, grouped(windows), range(7, 12))
    assert np.array_equal(few.top.contexts.position, seen.top.of(7, 12).position)
    assert np.array_equal(few.sample.contexts.position, seen.sample.of(7 * BINS, 12 * BINS).position)


def test_what_is_rare_is_forgotten_when_there_is_too_much(
    seen: Watch, model: interp.Model, windows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "ITEMS", 2)
    small = watched(model, [[w] for w in windows])
    assert small.mass.nnz <= 4 * 2 * 40
    assert small.together.nnz <= 4 * 2 * 40
    alive = np.flatnonzero(seen.maximum)
    heaviest = [int(row.indices[row.data.argmax()]) for row in (seen.mass[i] for i in alive)]
    found = [set(small.mass[i].indices.tolist()) for i in alive]
    assert np.mean([h in f for h, f in zip(heaviest, found, strict=True)]) > 0.8
    assert np.array_equal(small.fired, seen.fired)


def test_a_group_keeps_no_more_than_it_may() -> None:
    rng = np.random.default_rng(0)
    kept, keys, groups = Kept(6, 3, window=1), rng.random(300), rng.integers(6, size=300)
    for part in np.split(np.arange(300), 10):
        index = part[kept.wants(groups[part], keys[part])]
        n = len(index)
        made = watch.Contexts(index, index, keys[index], keys[index], np.zeros((n, 3), np.int32), np.zeros((n, 3)))
        kept.add(groups[index], keys[index], made)
    for g in range(6):
        assert kept.of(g, g + 1).value.tolist() == sorted(keys[groups == g])[:3]
    assert kept.of(1, 4).value.size == 9


def test_strata_are_fifths_of_the_range_at_edges_of_bins(model: interp.Model, windows: list[list[int]]) -> None:
    told = latent_examples(tiny_dictionary(), model, grouped(windows), range(40), top=1, each=3)
    for latent in (latent for latent in told.latents if latent.firings):
        assert latent.strata[0].high == latent.maximum
        assert sum(s.firings for s in latent.strata) == latent.firings
        for stratum in latent.strata:
            cuts = [c / latent.maximum * 5 for c in (stratum.low, stratum.high)]
            # half a bin is a factor of 2^(1/8)
            assert all(c == 0 or min(abs(np.log2(c / k)) for k in range(1, 6)) < 1 / 8 + 1e-9 for c in cuts)
            assert all(stratum.low <= c.activation <= stratum.high for c in stratum.contexts)
        for above, below in pairwise(latent.strata):
            assert above.low >= below.high


def test_neighbours_are_the_nearest_rows() -> None:
    dictionary = tiny_dictionary()
    W = torch.nn.functional.normalize(dictionary.W_dec.detach())
    for i, near in zip((3, 17), neighbours(dictionary, [3, 17], count=4), strict=True):
        cosines = (W @ W[i]).index_fill(0, torch.tensor(i), -2)
        assert [j for j, _ in near] == cosines.topk(4).indices.tolist()
        assert [c for _, c in near] == pytest.approx(cosines.topk(4).values.tolist(), abs=1e-6)
