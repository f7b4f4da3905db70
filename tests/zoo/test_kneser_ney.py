from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from interp.errors import WrongUse
from interp.zoo import kneser_ney

VOCABULARY = 7


def corpus(seed: int, length: int = 60, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Tokens from a skewed distribution without the last id, which stays unseen."""
    weights = 1 / np.arange(1, vocabulary)
    return np.random.default_rng(seed).choice(vocabulary - 1, length, p=weights / weights.sum())


def counts_by_order(ids: list[int], n: int) -> list[Counter[tuple[int, ...]]]:
    """c(g) for the orders 1 … n, straight from the definition: occurrences, below the top distinct predecessors."""
    grams = [{tuple(ids[i : i + k]) for i in range(len(ids) - k + 1)} for k in range(n + 1)]
    result = [Counter(g[1:] for g in grams[k + 1]) for k in range(1, n)]
    return [*result, Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))]


def brute_force(ids: list[int], n: int, vocabulary: int, context: tuple[int, ...], token: int) -> float:
    """P_n(token | context) by recursion over dictionaries."""
    p = 1 / vocabulary
    for k, c in enumerate(counts_by_order(ids, n)[: len(context) + 1], 1):
        history = context[len(context) - k + 1 :]
        seen = [count for gram, count in c.items() if gram[:-1] == history]
        if not seen:
            break
        once, twice = (sum(count == j for count in c.values()) for j in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        p = (max(c[(*history, token)] - discount, 0) + discount * len(seen) * p) / sum(seen)
    return p


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_equals_the_definition_computed_with_dictionaries(n: int) -> None:
    ids, held = corpus(0), np.concatenate([corpus(1, 25), [VOCABULARY - 1], corpus(2, 5)])
    found = kneser_ney.fit(ids, n, VOCABULARY).probability(held)
    for i, token in enumerate(held):
        context = tuple(int(t) for t in held[max(0, i - n + 1) : i])
        # 1e-13: some ten float64 operations on numbers below 60
        assert found[i] == pytest.approx(brute_force(ids.tolist(), n, VOCABULARY, context, token), rel=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_probabilities_of_a_context_sum_to_one_seen_or_not(n: int) -> None:
    ids = corpus(3)
    model = kneser_ney.fit(ids, n, VOCABULARY)
    seen = [ids[i : i + n - 1] for i in range(len(ids) - n)]
    drawn = list(np.random.default_rng(4).integers(0, VOCABULARY, (50, n - 1)))
    for context in [*seen, *drawn, np.full(n - 1, VOCABULARY - 1)]:
        total = sum(model.probability(np.append(context, token))[-1] for token in range(VOCABULARY))
        assert abs(total - 1) < 1e-12  # seven float64 numbers of order one


def test_every_probability_is_positive_also_without_singletons() -> None:
    ids = np.tile([0, 1, 2], 20)  # nothing occurs once: the estimate of the discount would be zero
    for n in (1, 2, 3):
        assert (kneser_ney.fit(ids, n, VOCABULARY).probability(np.arange(VOCABULARY)) > 0).all()


def test_order_one_is_discounted_frequency() -> None:
    ids = np.array([0, 0, 0, 1, 1, 2])  # n1 = 1, n2 = 1: D = 1/3, three kinds, six tokens
    p = kneser_ney.fit(ids, 1, 5).probability(np.array([0, 2, 4]))
    np.testing.assert_allclose(p, [(3 - 1 / 3 + 1 / 5) / 6, (1 - 1 / 3 + 1 / 5) / 6, (1 / 5) / 6], rtol=1e-15)


def test_vocabulary_too_large_to_pack_a_gram_into_64_bits() -> None:
    small, held = corpus(5), corpus(6, 30)
    spread = np.arange(VOCABULARY) * 40_000  # ids up to 2.4e5: five of them need 90 bits
    few, many = kneser_ney.fit(small, 5, VOCABULARY), kneser_ney.fit(spread[small], 5, int(spread[-1]) + 1)
    for a, b in zip(few.orders, many.orders, strict=True):
        assert a.discount == b.discount
        np.testing.assert_array_equal(a.counts, b.counts)
    assert (many.probability(spread[held]) > 0).all()


def test_bits_of_what_was_learnt_by_heart_are_few() -> None:
    ids = np.tile(np.arange(VOCABULARY), 200)
    assert kneser_ney.bits(kneser_ney.fit(ids, 3, VOCABULARY), ids)[2:].max() < 0.01


@pytest.mark.parametrize(("ids", "n"), [([0, 1, 9], 2), ([0, -1], 1), ([0, 1], 3), ([0, 1], 0)])
def test_wrong_use_is_refused(ids: list[int], n: int) -> None:
    with pytest.raises(WrongUse):
        kneser_ney.fit(np.array(ids), n, VOCABULARY)


def test_ids_outside_the_vocabulary_are_refused_when_scoring() -> None:
    with pytest.raises(WrongUse, match="outside a vocabulary of 7"):
        kneser_ney.fit(corpus(0), 2, VOCABULARY).probability(np.array([0, 7]))
