"""Where a trainer's rows come from: tensors in memory, or a store on disk. Batch number i is the same on every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Pair = tuple[Tensor, Tensor]


class Source(Protocol):
    """Rows (x, y) to train on; for an autoencoder y is x."""

    rows: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    d_in: int
    d_out: int
    widths_in: tuple[int, ...]  # of the sites read, which lie side by side in x
    widths_out: tuple[int, ...]
    digest: str | None  # of the text that the rows are computed from while they are read
    meta: dict[str, Any]  # what is known of them: the model, the text

    def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[Pair]:
        """Batches number `start` to `stop` − 1 of the endless shuffled stream that `seed` names, in float32."""

    def once(self, size: int) -> Iterator[Pair]:
        """Every row once, in float32."""


class RowsSource:
    """Rows in memory: x [rows, d_in] and, for a transcoder, y [rows, d_out] of the same rows, in any float dtype.

    Row number p of the stream is row π_e(p mod rows), e = ⌊p / rows⌋, π_e an exact permutation drawn from (seed, e):
    every pass shows every row once, and batches run on over the end of a pass. `reads` and `writes` name the sites
    that lie side by side in x and y, with their widths; one each, named rows and targets, unless given.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows d_in"],
        y: Float[Tensor, "rows d_out"] | None = None,
        reads: Mapping[str, int] | None = None,
        writes: Mapping[str, int] | None = None,
    ):
        for name, t in (("rows", x), ("targets", y)):
            if t is not None and not (t.ndim == 2 and len(t) > 1 and t.is_floating_point()):
                raise WrongUse(
                    f"{name} must be a float tensor [rows, width] of two rows or more; got {t.dtype} {list(t.shape)}."
                )
        if y is not None and len(y) != len(x):
            raise WrongUse(f"There are {len(x)} rows but {len(y)} targets: row i of one belongs to row i of the other.")
        self.x, self.y = x, y
        self.digest: str | None = None
        self.meta: dict[str, Any] = {}
        self.rows, self.d_in, self.d_out = len(x), x.shape[1], (x if y is None else y).shape[1]
        reads = reads or {"rows": self.d_in}
        writes = writes or (reads if y is None else {"targets": self.d_out})
        self.reads, self.writes = tuple(reads), tuple(writes)
        self.widths_in, self.widths_out = tuple(reads.values()), tuple(writes.values())
        if (sum(self.widths_in), sum(self.widths_out)) != (self.d_in, self.d_out):
            raise WrongUse(f"The widths of {reads} and {writes} do not add up to {self.d_in} and {self.d_out}.")

    def _pair(self, index: Tensor | slice) -> Pair:
        x = self.x[index].float()
        return x, x if self.y is None else self.y[index].float()

    def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[Pair]:
        """See `Source.batches`."""
        return map(self._pair, shuffled(self.rows, size, seed, start, stop))

    def once(self, size: int) -> Iterator[Pair]:
        """See `Source.once`; in the order given."""
        for begin in range(0, self.rows, size):
            yield self._pair(slice(begin, begin + size))


def shuffled(rows: int, size: int, seed: int, start: int, stop: int) -> Iterator[Int[Tensor, " size"]]:
    """The rows of batches number `start` to `stop` − 1: every pass shows each once, batches run on over its end."""
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    for number in range(start, stop):
        parts, position = [], number * size
        while position < (number + 1) * size:
            if epoch != position // rows:
                epoch = position // rows
                order = permutation(rows, seed, epoch)
            offset = position % rows
            parts.append(order[offset : offset + (number + 1) * size - position])
            position += len(parts[-1])
        yield torch.cat(parts)


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 … n − 1 that depends on (seed, epoch) alone [n]."""
    import numpy as np

    word = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(word))


class StoreSource:
    """Rows of an activation store, or of a `Stream`: `reads` and `writes` name its sites; several are laid side by side."""

    def __init__(self, store: Any, reads: str | Sequence[str], writes: str | Sequence[str] | None = None):
        self.store, self.rows = store, store.rows
        self.digest: str | None = getattr(store, "digest", None)
        self.meta: dict[str, Any] = store.meta
        self.reads = (reads,) if isinstance(reads, str) else tuple(reads)
        self.writes = self.reads if writes is None else (writes,) if isinstance(writes, str) else tuple(writes)
        for site in self.reads + self.writes:
            if site not in store.widths:
                raise WrongUse(f"The store has no {site!r}; it holds {', '.join(store.widths)}.")
        self.widths_in, self.widths_out = (tuple(store.widths[s] for s in sites) for sites in (self.reads, self.writes))
        self.d_in, self.d_out = sum(self.widths_in), sum(self.widths_out)

    def _pair(self, batch: dict[str, Tensor]) -> Pair:
        x = _beside(batch, self.reads)
        return x, x if self.reads == self.writes else _beside(batch, self.writes)

    @property
    def _sites(self) -> list[str]:
        return list(dict.fromkeys(self.reads + self.writes))

    def _served(self, size: int, seed: int, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        """The rows of each site apart; those that do not fill a batch at the end of a pass wait for the next shuffle."""
        if size > self.rows:
            raise WrongUse(
                f"A batch of {size} rows cannot be filled: the store holds {self.rows}. Use batch={self.rows} or less."
            )
        passes = -(-stop // (self.rows // size))
        stream = self.store.batches(size, seed=seed, sites=self._sites, epochs=passes, start=start, drop_last=True)
        for _, batch in zip(range(start, stop), stream, strict=False):
            yield batch

    def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[Pair]:
        """See `Source.batches`."""
        return map(self._pair, self._served(size, seed, start, stop))

    def once(self, size: int) -> Iterator[Pair]:
        """See `Source.once`."""
        stream = self.store.batches(size, seed=0, sites=self._sites, epochs=1, start=0, drop_last=False)
        return map(self._pair, stream)


def together(sources: Sequence[Source], size: int, seed: int, start: int, stop: int) -> Iterator[list[Pair]]:
    """`Source.batches` of several sources at once, a pair for each, reading every row once.

    Raises `WrongUse` unless they share their rows: all the same source, or sites of one store.
    """
    first = sources[0]
    if all(source is first for source in sources):
        yield from ([pair] * len(sources) for pair in first.batches(size, seed, start, stop))
        return
    views = [source for source in sources if isinstance(source, StoreSource)]
    if len(views) < len(sources) or any(view.store is not views[0].store for view in views):
        raise WrongUse("Dictionaries are trained together on one stream: the same rows, or sites of the same store.")
    for batch in StoreSource(views[0].store, sum((view.reads + view.writes for view in views), ()))._served(
        size, seed, start, stop
    ):
        rows = {site: part.float() for site, part in batch.items()}
        pairs = {(view.reads, view.writes): view._pair(rows) for view in views}
        yield [pairs[view.reads, view.writes] for view in views]


def _beside(batch: dict[str, Tensor], sites: Sequence[str]) -> Tensor:
    """The sites' rows side by side, in float32; a single one without a copy."""
    parts = [batch[site].float() for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
