"""One pass over text with a dictionary at its site, in memory that does not grow with the text.

Kept of each latent looked at: how often and how strongly it fired, a histogram in fixed logarithmic bins, the tokens it
fired on, the latents that fired with it, its strongest contexts, and contexts drawn at random within each bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix

from interp.errors import WrongUse
from interp.store.recording import padded

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from interp.dictionaries import Dictionary
    from interp.model import Model, Together

OCTAVE, BINS = 4, 128  # bin b holds activations from 2^((b − 64) / 4) up to the next; the first and last are open
DEPTH = 12  # bins below a latent's strongest so far that are drawn from apart; what is weaker is drawn from as one
ITEMS = 1024  # tokens, and partners, of a latent that are counted: past four times as many, the rarest are forgotten
IDS = 2**31 - 1  # more than any vocabulary


def bin_of(value: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The bin of each activation: ⌊4 log₂ f⌋ + 64, within 0 … 127."""
    return np.clip(np.floor(OCTAVE * np.log2(value)).astype(np.int64) + BINS // 2, 0, BINS - 1)


def edge(b: int) -> float:
    """The activation at which bin `b` begins."""
    return float(2.0 ** ((b - BINS // 2) / OCTAVE))


def first(
    group: Int[np.ndarray, " n"], key: Float[np.ndarray, " n"], count: int
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " kept"]]:
    """Indices of the `count` smallest keys of each group, by group and key, and each one's rank; of equals, the first."""
    order = np.lexsort((key, group))
    start = np.flatnonzero(np.diff(group[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(start, np.diff(start, append=len(order)))
    return order[rank < count], rank[rank < count]


def apart(
    group: Int[np.ndarray, " n"],
    position: Int[np.ndarray, " n"],
    value: Float[np.ndarray, " n"],
    near: int,
    count: int,
) -> Int[np.ndarray, " kept"]:
    """In each group: the strongest, then the strongest more than `near` from those before, up to `count` of them."""
    left, kept = np.lexsort((position, -value, group)), [np.empty(0, np.int64)]
    while len(left) and len(kept) <= count:
        fresh = np.diff(group[left], prepend=-1) != 0
        best = left[fresh]
        kept.append(best)
        rival = best[np.cumsum(fresh) - 1]
        left = left[np.abs(position[left] - position[rival]) > near]
    return np.concatenate(kept)


def uniform(seed: int, *numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """A draw from [0, 1) that is a function of the seed and the numbers alone (the mixer of splitmix64)."""
    x = np.full_like(numbers[0], seed, dtype=np.uint64)
    for number in numbers:
        x = (x + number.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Firings:
    """Every firing in a group of windows, in the order of the text; `slot` numbers the latents looked at, −1 is another."""

    ids: Int[np.ndarray, "windows pos"]  # −1 past the end of a window
    place: Int[np.ndarray, " tokens"]  # of the tokens that count, in `ids` laid flat
    token: Int[np.ndarray, " n"]  # which of those fired
    latent: Int[np.ndarray, " n"]
    slot: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]

    def __getitem__(self, index: Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]) -> Firings:
        """Some of them."""
        return Firings(self.ids, self.place, *(a[index] for a in (self.token, self.latent, self.slot, self.value)))

    @property
    def cell(self) -> Int[np.ndarray, " n"]:
        """Where in `ids`, laid flat."""
        return self.place[self.token]

    @property
    def window(self) -> Int[np.ndarray, " n"]:
        """In which window of the group."""
        return self.cell // self.ids.shape[1]

    @property
    def position(self) -> Int[np.ndarray, " n"]:
        """Where in that window."""
        return self.cell % self.ids.shape[1]


@dataclass(frozen=True)
class Contexts:
    """Firings with the tokens around them, `window` on either side, and the latent's activation at each."""

    document: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]
    draw: Float[np.ndarray, " n"]
    ids: Int[np.ndarray, "n around"]  # −1 outside the window of text
    activations: Float[np.ndarray, "n around"]

    def __getitem__(self, index: Int[np.ndarray, " k"] | slice) -> Contexts:
        """Some of them."""
        return Contexts(*(getattr(self, f.name)[index] for f in fields(self)))

    def __add__(self, other: Contexts) -> Contexts:
        """These, then others."""
        return Contexts(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    @staticmethod
    def none(window: int) -> Contexts:
        """No contexts."""
        flat, wide = np.empty(0), np.empty((0, 2 * window + 1), np.float32)
        return Contexts(flat.astype(np.int64), flat.astype(np.int64), flat, flat, wide.astype(np.int32), wide)


class Kept:
    """The `count` contexts of smallest key in each group, groups in order: a heap each, or a random sample each.

    The best of a union is the best of the bests, so groups may be merged as the text goes by.
    """

    def __init__(self, groups: int, count: int, window: int) -> None:
        self.count = count
        self.group, self.key, self.contexts = np.empty(0, np.int64), np.empty(0), Contexts.none(window)
        self.bound = np.full(groups, np.inf if count else -np.inf)  # no larger key can enter

    def wants(self, group: Int[np.ndarray, " n"], key: Float[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
        """Indices of those that may enter."""
        may = np.flatnonzero(key < self.bound[group])
        return may[first(group[may], key[may], self.count)[0]]

    def add(self, group: Int[np.ndarray, " n"], key: Float[np.ndarray, " n"], contexts: Contexts) -> None:
        """Let some in, and the worst out."""
        group, key = np.concatenate([self.group, group]), np.concatenate([self.key, key])
        best, rank = first(group, key, self.count)
        self.group, self.key, self.contexts = group[best], key[best], (self.contexts + contexts)[best]
        full = rank == self.count - 1
        self.bound[self.group[full]] = self.key[full]

    def of(self, start: int, stop: int) -> Contexts:
        """Those of groups `start` to `stop` − 1."""
        return self.contexts[slice(*np.searchsorted(self.group, [start, stop]))]


class Watch:
    """What was seen of `latents`; `add` shows it more text.

    Memory: about (top + 13 sample) contexts of 8 (2 window + 1) bytes, and at most 8,192 counts, for each latent.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        model: Model | Together,
        latents: Sequence[int],
        *,
        top: int = 20,
        sample: int = 6,
        window: int = 16,
        seed: int = 0,
    ) -> None:
        m, n = dictionary.config.latents, len(latents)
        if any(not 0 <= i < m for i in latents):
            wrong = next(i for i in latents if not 0 <= i < m)
            raise WrongUse(f"There is no latent {wrong}: this dictionary has latents 0 to {m - 1}.")
        self.dictionary, self.model, self.latents, self.window, self.seed = dictionary, model, latents, window, seed
        self.slots = np.full(m, -1)
        self.slots[list(latents)] = np.arange(n)
        self.tokens = self.windows = 0
        self.fired = np.zeros(m, np.int64)  # tokens on which each latent of the dictionary fired
        self.maximum, self.total = np.zeros(n), np.zeros(n)
        self.histogram = np.zeros((n, BINS), np.int64)
        self.occurrences = np.zeros(0, np.int64)  # of each token
        self.on, self.mass = csr_matrix((n, IDS)), csr_matrix((n, IDS))  # firings, and their sum, on each token
        self.together = csr_matrix((n, m))  # tokens on which another latent fired too
        self.top, self.sample = Kept(n, top, window), Kept(n * BINS, sample, window)

    def add(self, group: Sequence[Sequence[int]]) -> None:
        """Run the model over some windows of token ids; a beginning-of-sequence token is context, but not counted."""
        found = self._firings(group)
        mine = found[found.slot >= 0]
        self.tokens += len(found.place)
        self.fired += np.bincount(found.latent, minlength=len(self.fired))
        self._count(found, mine)
        self._keep_top(mine)
        self._keep_sample(mine)
        self.windows += len(group)

    @torch.no_grad()
    def _firings(self, group: Sequence[Sequence[int]]) -> Firings:
        tokens, keep = padded(self.model, group)
        reads = self.dictionary.config.reads
        cache = self.model.record(tokens, reads)
        x = torch.cat([cache[site][keep.to(cache[site].device)].flatten(1) for site in reads], dim=-1)
        code = self.dictionary.active(x.to(self.dictionary.b_dec.device))
        row, column = (code.values > 0).nonzero(as_tuple=True)
        parts = row, code.indices[row, column], code.values[row, column].float()
        token, latent, value = (t.cpu().numpy() for t in parts)
        ids = torch.where(tokens.mask, tokens.ids, -1).cpu().numpy()
        return Firings(ids, np.flatnonzero(keep.cpu().numpy()), token, latent, self.slots[latent], value)

    def _count(self, found: Firings, mine: Firings) -> None:
        n, seen = len(self.latents), found.ids.ravel()[found.place]
        np.maximum.at(self.maximum, mine.slot, mine.value)
        self.total += np.bincount(mine.slot, mine.value, minlength=n)
        bins = np.bincount(mine.slot * BINS + bin_of(mine.value), minlength=n * BINS)
        self.histogram += bins.reshape(n, BINS)
        there = np.bincount(seen, minlength=len(self.occurrences))
        there[: len(self.occurrences)] += self.occurrences
        self.occurrences = there
        at = mine.slot, seen[mine.token]
        self.on = self.on + csr_matrix((np.ones(len(mine.slot)), at), shape=self.on.shape)
        self.mass = self.mass + csr_matrix((mine.value.astype(float), at), shape=self.mass.shape)
        if self.mass.nnz > 4 * ITEMS * n:
            kept = heaviest(self.mass, ITEMS)
            self.on, self.mass = only(self.on, kept), only(self.mass, kept)
        fires = csr_matrix((np.ones(len(found.token)), (found.token, found.latent)), (len(seen), len(self.fired)))
        looked = csr_matrix((np.ones(len(mine.slot)), (mine.slot, mine.token)), (n, len(seen)))
        self.together = self.together + looked @ fires
        if self.together.nnz > 4 * ITEMS * n:
            self.together = only(self.together, heaviest(self.together, ITEMS))

    def _keep_top(self, mine: Firings) -> None:
        """Weaker firings than those kept cannot enter, nor keep others from it: contexts are found among the rest."""
        strong = mine[np.flatnonzero(-mine.value < self.top.bound[mine.slot])]
        group = strong.slot * len(mine.ids) + strong.window
        strong = strong[apart(group, strong.position, strong.value, 2 * self.window, self.top.count)]
        strong = strong[self.top.wants(strong.slot, -strong.value)]
        self.top.add(strong.slot, -strong.value, self._contexts(mine, strong))

    def _keep_sample(self, mine: Firings) -> None:
        strongest = bin_of(np.maximum(self.maximum, edge(0)))
        slot, bins = np.divmod(self.sample.group, BINS)
        self.sample.group = slot * BINS + np.maximum(bins, strongest[slot] - DEPTH)
        group = mine.slot * BINS + np.maximum(bin_of(mine.value), strongest[mine.slot] - DEPTH)
        draw = self._draw(mine)
        drawn = self.sample.wants(group, draw)
        self.sample.add(group[drawn], draw[drawn], self._contexts(mine, mine[drawn]))

    def _draw(self, mine: Firings) -> Float[np.ndarray, " n"]:
        return uniform(self.seed, mine.latent, self.windows + mine.window, mine.position)

    def _contexts(self, mine: Firings, chosen: Firings) -> Contexts:
        """`chosen` with what stands around them, and the activations there of the same latent, looked up in `mine`."""
        length = mine.ids.shape[1]
        around = np.arange(-self.window, self.window + 1)
        inside = (chosen.position[:, None] + around >= 0) & (chosen.position[:, None] + around < length)
        cell = np.where(inside, chosen.cell[:, None] + around, 0)
        ids = np.where(inside, mine.ids.ravel()[cell], -1).astype(np.int32)
        key = mine.slot * mine.ids.size + mine.cell
        order = np.argsort(key)
        wanted = chosen.slot[:, None] * mine.ids.size + cell
        at = order[np.minimum(np.searchsorted(key, wanted, sorter=order), len(key) - 1)] if len(key) else wanted
        activations = np.where(inside & (key[at] == wanted), mine.value[at], 0).astype(np.float32)
        document = self.windows + chosen.window
        return Contexts(document, chosen.position, chosen.value, self._draw(chosen), ids, activations)


def row_of(weights: csr_matrix, row: int) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The columns and values of a row's entries."""
    inside = slice(*weights.indptr[row : row + 2])
    return weights.indices[inside], weights.data[inside]


def heaviest(weights: csr_matrix, count: int) -> Bool[np.ndarray, " nonzero"]:
    """Which of the matrix's entries are among the `count` largest of their row."""
    rows = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    kept = np.zeros(weights.nnz, bool)
    kept[first(rows, -weights.data, count)[0]] = True
    return kept


def only(weights: csr_matrix, kept: Bool[np.ndarray, " nonzero"]) -> csr_matrix:
    """The matrix with those entries alone."""
    rows = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    return csr_matrix((weights.data[kept], (rows[kept], weights.indices[kept])), shape=weights.shape)
