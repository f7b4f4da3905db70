"""Counts against counting by hand, back-off, streaming, files, and the text known again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from circuits import bigram
from circuits.bigram import Counts, counts
from interp import Failed, WrongUse

V = 7
TEXT = [[0, 1, 2, 0, 1, 3], [1, 2, 2, 2], [5], [0, 1, 2, 6, 0, 1, 2, 2]]


def by_hand(n: int, context: tuple[int, ...]) -> np.ndarray:
    """p(. | context): of the longest end of it that was ever followed by something."""
    grams = Counter()
    for ids in TEXT:
        padded = (V,) * (n - 1) + tuple(ids)
        grams.update(padded[i : i + n] for i in range(len(ids)))
    for start in range(len(context) + 1):
        end = context[start:]
        follows = [sum(c for g, c in grams.items() if g[start:] == (*end, b)) for b in range(V)]
        if sum(follows):
            return np.array(follows) / sum(follows)
    raise AssertionError("a unigram is always there")


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_distributions_are_those_counted_by_hand(n):
    """Every context of the text, and random ones, most of which were never seen."""
    found = bigram.count(TEXT, V, n)
    assert found.total == sum(map(len, TEXT))
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(V, (12, 6), generator=generator)
    p = found.distribution(ids)
    assert p.shape == (12, 6, V)
    for row in range(12):
        for t in range(6):
            whole = (V,) * (n - 1) + tuple(ids[row, : t + 1].tolist())
            context = whole[len(whole) - (n - 1) :]
            assert p[row, t].numpy() == pytest.approx(by_hand(n, context), abs=1e-7)


def test_a_seen_context_has_zeros_and_an_unseen_one_the_unigram():
    found = bigram.count(TEXT, V)
    after = found.distribution(torch.tensor([[0, 2, 4]]))[0]
    assert after[0].tolist() == [0, 1, 0, 0, 0, 0, 0]  # a 1 follows every 0
    unigram = torch.bincount(torch.tensor([i for ids in TEXT for i in ids]), minlength=V) / found.total
    assert torch.allclose(after[2], unigram)  # no 4 in the text
    empty = bigram.count([], V)
    assert torch.equal(empty.distribution(torch.tensor([[3]])), torch.full((1, 1, V), 1 / V))


@pytest.mark.parametrize("n", [2, 3])
def test_streaming_counts_the_same(monkeypatch, n):
    rng = np.random.default_rng(3)
    text = [rng.integers(50, size=rng.integers(1, 40)).tolist() for _ in range(200)]
    whole = bigram.count(text, 50, n)
    monkeypatch.setattr(counts, "BUFFER", 64)
    again = bigram.count(iter(text), 50, n)
    for name in ("contexts", "starts", "tokens", "counts", "marks"):
        assert np.array_equal(getattr(whole, name), getattr(again, name)), name
    assert again.hash == whole.hash


def test_lower_orders_are_those_counted_directly():
    """Exactly: every token ends one gram of each order."""
    three = bigram.count(TEXT, V, 3)
    two = bigram.count(TEXT, V, 2)
    for name in ("contexts", "starts", "tokens", "counts"):
        assert np.array_equal(getattr(three.shorter, name), getattr(two, name)), name


def test_what_is_saved_is_read(tmp_path):
    found = bigram.count([[i % 300 for i in range(2000)] * 40], 300)
    found.save(tmp_path / "c.safetensors")
    again = Counts.load(tmp_path / "c.safetensors")
    assert again.hash == found.hash
    assert np.array_equal(again.marks, found.marks)
    assert len(again.marks) > 0
    data = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Failed, match="no whole file of counts"):
        Counts.load(tmp_path / "c.safetensors")
    with pytest.raises(WrongUse, match="interp bigram count"):
        Counts.load(tmp_path / "none.safetensors")


def test_text_that_was_counted_is_known_again():
    rng = np.random.default_rng(0)
    seen, unseen = (rng.integers(1000, size=(200, 128)).tolist() for _ in range(2))
    found = bigram.count(seen, 1000)
    assert found.overlap(seen) == 1
    assert found.overlap(unseen) == 0
    assert found.overlap(seen + unseen) == pytest.approx(0.5, abs=0.1)
    joined = [i for ids in seen for i in ids]
    shifted = [joined[i : i + 64] for i in range(7, 20_000, 64)]  # cut at other places
    assert found.overlap(shifted) > 0.7
    assert found.overlap([[1, 2, 3]]) == 0


class Tokenizer:
    def __init__(self, words: str) -> None:
        self.words = words

    def get_vocab(self):
        return {w: i for i, w in enumerate(self.words)}


def test_bad_input_is_named():
    with pytest.raises(WrongUse, match="outside a vocabulary of 7"):
        bigram.count([[0, 8]], V)
    with pytest.raises(WrongUse, match=r"n=4 is not 1 to 3"):
        bigram.count([[0]], 128_000, 4)
    with pytest.raises(WrongUse, match="n=0"):
        bigram.count([[0]], V, 0)
    found = bigram.count(TEXT, V, tokenizer=Tokenizer("abcdefg"))
    found.check(Tokenizer("abcdefg"))
    with pytest.raises(WrongUse, match="another tokenizer"):
        found.check(Tokenizer("abcdegf"))
    with pytest.raises(WrongUse, match="the counts are of 7 tokens"):
        found.distribution(torch.tensor([[7]]))
