"""n-gram counts of any text, exact, read once: what follows each context of n - 1 tokens, and how often.

    p(b | a) = c(a b) / Σ_b' c(a b'),   of a context never seen: that of the context without its first token, at last 1 / V

Nothing is smoothed and nothing pruned, so p(b | a) = 0 where a was seen and never b after it. Before a sequence stand
n - 1 pseudo-tokens with id V. Source: Chang & Bergen 2025 (arXiv:2504.15471), section 3.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import Failed, WrongUse
from interp.files import load_tensors, save_tensors

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Keys = Int[np.ndarray, " n"]

FORMAT = 1
BUFFER = 2**22  # tokens counted at once
SPAN, ONE_IN = 16, 256  # of all runs of 16 tokens one in 256 is remembered, by its hash


@dataclass(frozen=True, eq=False)
class Counts:
    """Grams in the order of their contexts, as a sparse matrix by rows.

    contexts: sorted keys Σ_i a_i (V + 1)^(n-1-i) of the contexts a_1 … a_{n-1} [contexts]; the row of context i is
    starts[i] … starts[i + 1] of tokens and counts [grams]; marks: sorted hashes of runs of the text, by which it is
    known again; tokenizer: the hash of the vocabulary the ids belong to, "" if they were counted without one.
    """

    n: int
    vocabulary: int
    contexts: Int[np.ndarray, " contexts"]
    starts: Int[np.ndarray, " contexts+1"]
    tokens: Int[np.ndarray, " grams"]
    counts: Int[np.ndarray, " grams"]
    marks: Int[np.ndarray, " marks"]
    tokenizer: str = ""

    @property
    def total(self) -> int:
        """How many tokens were counted."""
        return int(self.counts.sum())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what was counted, by which a run names its counts."""
        digest = hashlib.sha256(f"{self.n} {self.vocabulary}".encode())
        for array in (self.contexts, self.starts, self.tokens, self.counts):
            digest.update(array.astype(np.int64).tobytes())
        return digest.hexdigest()

    @cached_property
    def shorter(self) -> Counts:
        """The counts of order n - 1 in the same text: the first token of every context dropped."""
        context = np.repeat(self.contexts, np.diff(self.starts)) % (self.vocabulary + 1) ** max(self.n - 2, 0)
        keys, at = np.unique(context * (self.vocabulary + 1) + self.tokens, return_inverse=True)
        counts = np.bincount(at, self.counts, len(keys)).astype(np.int64)
        return _table(self.n - 1, self.vocabulary, keys, counts, self.marks[:0], self.tokenizer)

    # ------------------------------------------------------------ probabilities

    def keys(self, ids: Int[Tensor, "batch pos"]) -> Int[np.ndarray, "batch pos"]:
        """The key of the context that ends with each token: it and the n - 2 before it [batch, pos].

        Raises `WrongUse` for ids outside the vocabulary.
        """
        x = ids.cpu().numpy().astype(np.int64)
        if x.size and not 0 <= x.min() <= x.max() < self.vocabulary:
            raise WrongUse(f"token ids run from {x.min()} to {x.max()}; the counts are of {self.vocabulary} tokens.")
        x = np.pad(x, ((0, 0), (max(self.n - 2, 0), 0)), constant_values=self.vocabulary)
        return _keys(x, self.n - 1, self.vocabulary)

    def distribution(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """p(· | the tokens up to each position), float32."""
        keys = self.keys(ids)
        rows = np.zeros((keys.size, self.vocabulary), dtype=np.float32)
        self._fill(rows, np.arange(keys.size), keys.ravel())
        return torch.from_numpy(rows).view(*keys.shape, -1)

    def _fill(self, rows: Float[np.ndarray, "n vocab"], which: Keys, keys: Keys) -> None:
        """Write the distribution after context `keys[i]` into row `which[i]`."""
        if self.n == 0:
            rows[which] = 1 / self.vocabulary
            return
        at = _places(self.contexts, keys)
        seen = at >= 0
        grams, of = self._grams(at[seen])
        rows[which[seen][of], self.tokens[grams]] = self._p[grams]
        if not seen.all():
            self.shorter._fill(rows, which[~seen], keys[~seen] % (self.vocabulary + 1) ** max(self.n - 2, 0))

    def _grams(self, at: Keys) -> tuple[Keys, Keys]:
        """(Places of all grams of these contexts, which of the contexts each belongs to)."""
        first, size = self.starts[at], self.starts[at + 1] - self.starts[at]
        of = np.repeat(np.arange(len(at)), size)
        return np.arange(size.sum()) - np.repeat(size.cumsum() - size, size) + first[of], of

    @cached_property
    def _p(self) -> Float[np.ndarray, " grams"]:
        size = np.diff(self.starts)
        totals = np.add.reduceat(self.counts, self.starts[:-1]) if len(size) else self.counts
        return (self.counts / np.repeat(totals, size)).astype(np.float32)

    # ------------------------------------------------------------ the text, and the file

    def overlap(self, sequences: Iterable[Sequence[int]]) -> float:
        """The share of the text's runs of 16 tokens that were in the text counted, from one in 256; 0 if it has too few to tell."""
        found = np.concatenate(
            [self.marks[:0], *(_marks(x, self.vocabulary) for x in _joined(sequences, self.vocabulary, 1))]
        )
        return float((_places(self.marks, found) >= 0).mean()) if len(found) else 0.0

    def check(self, tokenizer: Any) -> None:
        """Raise `WrongUse` if the counts are of ids of another tokenizer."""
        if self.tokenizer and self.tokenizer != vocabulary_hash(tokenizer):
            raise WrongUse(
                "the counts were made with another tokenizer, so its ids mean other tokens: count the text again with "
                "`interp bigram count MODEL --text TEXT -o FILE`."
            )

    def save(self, path: str | Path) -> None:
        """One safetensors file; tokens and counts in as few bytes as they need."""
        small = {name: torch.from_numpy(_narrow(getattr(self, name))) for name in ("tokens", "counts")}
        whole = {name: torch.from_numpy(getattr(self, name)) for name in ("contexts", "starts", "marks")}
        about = {"format": FORMAT, "n": self.n, "vocabulary": self.vocabulary, "tokenizer": self.tokenizer}
        save_tensors(path, small | whole, about)

    @classmethod
    def load(cls, path: str | Path) -> Counts:
        """What `save` wrote. Raises `WrongUse` for a path without such a file, `Failed` for one that is damaged."""
        if not Path(path).is_file():
            raise WrongUse(
                f"there are no counts in {path}: `interp bigram count MODEL --text TEXT -o {path}` makes them."
            )
        try:
            tensors, meta = load_tensors(path)
            arrays = {name: t.numpy().astype(np.int64) for name, t in tensors.items()}
            return cls(meta["n"], meta["vocabulary"], **arrays, tokenizer=meta["tokenizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise Failed(f"{path} is no whole file of counts: {error}") from error


def vocabulary_hash(tokenizer: Any) -> str:
    """SHA-256 of the tokens by id."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


# ---------------------------------------------------------------- counting


def count(sequences: Iterable[Sequence[int]], vocabulary: int, n: int = 2, tokenizer: Any = None) -> Counts:
    """Count the n-grams of sequences of token ids, in memory that grows with distinct n-grams, not with the text.

    Raises `WrongUse` for an n below 1 or so large that (V + 1)^n does not fit 63 bits, and for an id outside the vocabulary.
    """
    if n < 1 or (vocabulary + 1) ** n >= 2**63:
        most = next(k for k in range(1, 64) if (vocabulary + 1) ** (k + 1) >= 2**63)
        raise WrongUse(f"n={n} is not 1 to {most}, as far as keys of {vocabulary} tokens fit a 64-bit integer.")
    keys = marks = np.zeros(0, dtype=np.int64)
    counts = keys
    for joined in _joined(sequences, vocabulary, n):
        grams = _keys(joined, n, vocabulary)[joined[n - 1 :] < vocabulary]
        keys, counts = _added(keys, counts, *np.unique(grams, return_counts=True))
        marks = np.union1d(marks, _marks(joined, vocabulary))
    return _table(n, vocabulary, keys, counts, marks, "" if tokenizer is None else vocabulary_hash(tokenizer))


def _joined(sequences: Iterable[Sequence[int]], vocabulary: int, n: int) -> Iterator[Keys]:
    """Sequences one after the other, at least n - 1 pseudo-tokens before each, `BUFFER` tokens at a time."""
    pad = [vocabulary] * max(n - 1, 1)
    buffer: list[int] = []
    for ids in sequences:
        buffer += pad
        buffer += ids
        if len(buffer) >= BUFFER:
            yield _checked(buffer, vocabulary)
            buffer = []
    if buffer:
        yield _checked(buffer, vocabulary)


def _checked(ids: list[int], vocabulary: int) -> Keys:
    joined = np.array(ids, dtype=np.int64)
    if joined.min() < 0 or joined.max() > vocabulary:
        raise WrongUse(f"token ids run from {joined.min()} to {joined.max()}, outside a vocabulary of {vocabulary}.")
    return joined


def _keys(ids: Int[np.ndarray, "... pos"], size: int, vocabulary: int) -> Int[np.ndarray, "... pos"]:
    """The key of each run of `size` tokens [..., pos - size + 1]; of no tokens: 0 everywhere."""
    length = ids.shape[-1] - max(size, 1) + 1
    keys = np.zeros((*ids.shape[:-1], length), dtype=np.int64)
    for i in range(size):
        keys = keys * (vocabulary + 1) + ids[..., i : i + length]
    return keys


def _added(keys: Keys, counts: Keys, fresh: Keys, number: Keys) -> tuple[Keys, Keys]:
    """Two sorted tables as one."""
    both, at = np.unique(np.concatenate([keys, fresh]), return_inverse=True)
    total = np.zeros(len(both), dtype=np.int64)
    total[at[: len(keys)]] = counts
    total[at[len(keys) :]] += number
    return both, total


def _table(n: int, vocabulary: int, keys: Keys, counts: Keys, marks: Keys, tokenizer: str) -> Counts:
    """Rows from sorted keys of whole grams."""
    context, tokens = np.divmod(keys, vocabulary + 1)
    contexts, starts = np.unique(context, return_index=True)
    return Counts(n, vocabulary, contexts, np.append(starts, len(keys)), tokens, counts, marks, tokenizer)


def _places(table: Keys, keys: Keys) -> Keys:
    """Where each key stands in a sorted table, -1 if nowhere."""
    if not len(table):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, at, -1)


def _marks(joined: Keys, vocabulary: int) -> Keys:
    """Hashes of the runs of `SPAN` tokens within sequences, those of them that are kept, sorted."""
    length = len(joined) - SPAN + 1
    if length < 1:
        return np.zeros(0, dtype=np.int64)
    factors = np.random.default_rng(0).integers(2**63, size=SPAN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes, inside = np.zeros(length, dtype=np.uint64), np.ones(length, dtype=bool)
    for i, factor in enumerate(factors):
        ids = joined[i : i + length]
        hashes += (ids.astype(np.uint64) + np.uint64(1)) * factor
        inside &= ids < vocabulary
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    return np.unique((hashes[inside & (hashes >> np.uint64(56) == 0)] >> np.uint64(1)).astype(np.int64))


def _narrow(values: Keys) -> np.ndarray:
    """The same numbers in the smallest unsigned type that holds them."""
    most = int(values.max()) if len(values) else 0
    return values.astype(next(t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if most <= np.iinfo(t).max))
