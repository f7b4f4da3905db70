"""Interpolated Kneser-Ney: the n-gram model a trained language model must beat.

c(g) of a gram g of the highest order n is how often it occurs; of a lower order, how many distinct tokens were seen
before it. With D_k the discount of order k, h a context of k - 1 tokens, h' the same without its
first token and N(h) the number of distinct tokens with c(h w) > 0:

    P_k(w | h) = (max(c(h w) - D_k, 0) + D_k N(h) P_{k-1}(w | h')) / Σ_w c(h w),    P_0 = 1 / vocabulary

and P_k(w | h) = P_{k-1}(w | h') where h was never followed by anything. This is the form with one discount per order,
D_k = n_1 / (n_1 + 2 n_2), where n_j is the number of k-grams with c = j, not the "modified" one with three
(Kneser & Ney 1995; interpolated as in Chen & Goodman 1999, "An empirical study of smoothing techniques").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Ids = Int[np.ndarray, " pos"]


@dataclass(frozen=True)
class Order:
    """The k-grams of one order, named by their place in `keys`, and what is known of their contexts.

    keys: sorted (place of the first k - 1 tokens among the grams of order k - 1) · vocabulary + last token [grams]
    counts: c(h w) [grams];  totals: Σ_w c(h w) [contexts];  kinds: N(h) [contexts];  discount: D_k
    """

    keys: Int[np.ndarray, " grams"]
    counts: Int[np.ndarray, " grams"]
    totals: Int[np.ndarray, " contexts"]
    kinds: Int[np.ndarray, " contexts"]
    discount: float


@dataclass(frozen=True)
class KneserNey:
    """A fitted model: `orders[k - 1]` holds the k-grams."""

    orders: tuple[Order, ...]
    vocabulary: int

    def probability(self, ids: Ids) -> Float[np.ndarray, " pos"]:
        """P(ids[i] | the n - 1 tokens before it) for every i [pos]; the first tokens see as many as there are.

        Raises `WrongUse` for an id outside the vocabulary.
        """
        ids = _checked(ids, self.vocabulary)
        p = np.full(len(ids), 1 / self.vocabulary)
        contexts = np.zeros(len(ids), dtype=np.int64)  # which gram of k tokens begins at each position, -1 if unseen
        for k, order in enumerate(self.orders[: len(ids)]):
            contexts = contexts[: len(ids) - k]
            grams = _places(order.keys, _keys(contexts, ids[k:], self.vocabulary))
            total = np.where(contexts >= 0, order.totals[contexts], 0)
            count = np.where(grams >= 0, order.counts[grams], 0)
            shared = order.discount * order.kinds[contexts] * p[k:]
            mixed = (np.maximum(count - order.discount, 0) + shared) / np.maximum(total, 1)
            p[k:] = np.where(total > 0, mixed, p[k:])
            contexts = grams
        return p


def fit(ids: Ids, n: int, vocabulary: int) -> KneserNey:
    """Count the k-grams of `ids` (int [pos]) for k = 1 … n; about two seconds an order and 1 GB in all for 5 M tokens.

    Raises `WrongUse` for n < 1, for fewer than n tokens and for an id outside the vocabulary.
    """
    ids = _checked(ids, vocabulary)
    if not 1 <= n <= len(ids):
        raise WrongUse(f"an n-gram model of order {n} cannot be counted on {len(ids)} tokens: n is 1 to that many.")
    tables: list[tuple[Ids, Ids]] = []
    places = np.zeros(len(ids), dtype=np.int64)
    for k in range(n):
        shorter = places  # which gram of k tokens begins at each position
        keys, first, places, counts = np.unique(
            _keys(shorter[: len(ids) - k], ids[k:], vocabulary),
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if k:  # a lower order counts each gram once for every distinct longer gram that ends in it
            tables[-1] = (tables[-1][0], np.bincount(shorter[first + 1], minlength=len(tables[-1][0])))
        tables.append((keys, counts))
    sizes = [1, *(len(keys) for keys, _ in tables)]
    orders = [_order(*table, contexts, vocabulary) for table, contexts in zip(tables, sizes, strict=False)]
    return KneserNey(tuple(orders), vocabulary)


def bits(model: KneserNey, ids: Ids) -> Float[np.ndarray, " pos"]:
    """-log2 P of every token, in bits [pos]."""
    return -np.log2(model.probability(ids))


def _order(keys: Ids, counts: Ids, contexts: int, vocabulary: int) -> Order:
    context = keys // vocabulary
    totals = np.bincount(context, counts, contexts).astype(np.int64)
    kinds = np.bincount(context[counts > 0], minlength=contexts)
    once, twice = (int((counts == j).sum()) for j in (1, 2))
    # Without a gram seen once the estimate is zero, and so would be the probability of everything unseen.
    return Order(keys, counts, totals, kinds, once / (once + 2 * twice) if once else 0.5)


def _keys(contexts: Ids, last: Ids, vocabulary: int) -> Ids:
    return np.where(contexts >= 0, contexts * vocabulary + last, -1)


def _places(sorted_keys: Ids, keys: Ids) -> Ids:
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == keys, at, -1)


def _checked(ids: Ids, vocabulary: int) -> Ids:
    ids = np.asarray(ids).astype(np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise WrongUse(f"token ids run from {ids.min()} to {ids.max()}, outside a vocabulary of {vocabulary}.")
    return ids
