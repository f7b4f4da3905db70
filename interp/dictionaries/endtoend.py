"""End-to-end dictionaries (Braun et al. 2024, arXiv 2405.12241): trained on what the model says with ŷ in its place.

L = KL(p ‖ p̂) + β mean_l ‖a_l − â_l‖² / ‖a_l − ā_l‖² + what the kind has beside its error: penalties, AuxK

p, a_l: predictions, and the stream after each later block l, of the clean run; p̂, â_l with ŷ in place of y at every token but a
start token; means over these. β = 0 is the paper's e2e, β > 0 its e2e + downstream; the paper sums ‖a_l − â_l‖² as it is,
here each is a share of its variance, so that β means the same in every model. The model itself stays as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.dictionaries.config import TrainConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.kinds import Loss, Now, share
from interp.dictionaries.sources import Pair, Source, shuffled
from interp.dictionaries.trainer import Trainer
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from interp.model import Cache, Model, Tokens

SEVERAL = ("multi_topk", "matryoshka")  # their loss is of several reconstructions at once


class Windows:
    """Windows of text in memory, as a `Source`: a batch is token ids [windows, context], −1 beyond a window's end.

    As many windows a step as have about `size` tokens; every pass shows every window once. `rows` counts tokens.
    """

    def __init__(
        self,
        model: Model,
        reads: Sequence[str],
        writes: Sequence[str],
        texts: Iterable[str],
        tokens: int | None = None,
        context: int = 512,
        meta: Mapping[str, Any] | None = None,
    ):
        from interp.store.recording import windows

        self.model, self.context, self.reads, self.writes = model, context, tuple(reads), tuple(writes)
        found: list[list[int]] = []
        self.rows = 0
        for _, ids in windows(model, texts, context):
            found.append(ids)
            self.rows += len(ids)
            if tokens is not None and self.rows >= tokens:
                break
        if not found:
            raise WrongUse("There is no text to train on.")
        self.ids = torch.full((len(found), context), -1, dtype=torch.int32)
        for row, ids in zip(self.ids, found, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        self.digest: str | None = f"{zlib.crc32(self.ids.numpy().tobytes()):08x}"
        self.meta: dict[str, Any] = {"model": model.id, "context": context, "tokens": tokens, **(meta or {})}
        self.widths_in, self.widths_out = (tuple(model.width(s) for s in sites) for sites in (self.reads, self.writes))
        self.d_in, self.d_out = sum(self.widths_in), sum(self.widths_out)

    def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[Pair]:
        """See `Source.batches`."""
        for index in shuffled(len(self.ids), max(1, size // self.context), seed, start, stop):
            ids = self.ids[index].long()
            yield ids, ids

    def once(self, size: int) -> Iterator[Pair]:
        """See `Source.once`; in the order of the text."""
        for ids in self.ids.long().split(max(1, size // self.context)):
            yield ids, ids


class EndToEnd(Trainer):
    """The trainer whose error is the model's. Raises `WrongUse` for rows without a model, several sites, and some kinds."""

    def __init__(self, config: TrainConfig, source: Source, device: str | torch.device = "cpu"):
        if not isinstance(source, Windows):
            raise WrongUse(
                "end_to_end runs the model in every step: give a MODEL and text; no store, no rows, no --stream."
            )
        if config.kind.name in SEVERAL:
            raise WrongUse(f"{config.kind.name} is not trained end to end: its loss is of several reconstructions.")
        if len(source.reads) > 1 or len(source.writes) > 1:
            raise WrongUse("end_to_end takes an autoencoder or a transcoder, of one site each.")
        super().__init__(config, source, device)
        self.model, self.site = source.model, source.writes[0]
        self.later = _later(self.model, self.site) if config.downstream else []

    def begin(self, sample: Pair | None = None) -> None:
        """Scales and first weights from the rows at the sites."""
        ids, _ = sample or next(self.source.batches(self.sample_rows, self.config.order, 0, 1))
        super().begin(self._rows(*self._clean(ids)[1:]))

    def update(self, ids: Int[Tensor, "windows context"], _: Tensor) -> Loss:
        """One step on windows of token ids; returns the loss before it."""
        inputs, keep, clean = self._clean(ids)
        x, y = self._scaled(*self._rows(keep, clean))
        return self._stepped(x, y, partial(self._loss, inputs, keep, clean))

    @torch.no_grad()
    def _clean(self, ids: Int[Tensor, "windows context"]) -> tuple[Tokens, Bool[Tensor, "windows pos"], Cache]:
        from interp.store.recording import padded

        inputs, keep = padded(self.model, [row[row >= 0].tolist() for row in ids])
        sites = dict.fromkeys((*self.source.reads, self.site, *self.later, "logits"))
        cache = self.model.record(inputs, list(sites))
        if cache["logits"].shape[:2] != keep.shape:
            raise WrongUse(
                f"{self.model.id} does not predict at every token: end_to_end compares what is said at each."
            )
        return inputs, keep, cache

    def _rows(self, keep: Tensor, clean: Cache) -> Pair:
        x, y = (clean[site][keep].flatten(1) for site in (self.source.reads[0], self.site))
        return x, x if self.source.reads == self.source.writes else y

    def _loss(self, inputs: Tokens, keep: Tensor, clean: Cache, D: Dictionary, x: Tensor, y: Tensor, now: Now) -> Loss:
        """The kind's own, with the model's error in place of ‖y − ŷ‖²."""
        local = self.kind.loss(D, x, y, now)
        made = D.decode(local.code, x) / self._spread(y)[1]
        return local._replace(error=self._error(inputs, keep, clean, made))

    def _error(
        self, inputs: Tokens, keep: Tensor, clean: Cache, made: Float[Tensor, "rows d_out"]
    ) -> Float[Tensor, ""]:
        """KL(p ‖ p̂) + β mean_l ‖a_l − â_l‖²/‖a_l − ā_l‖²."""
        from interp.model import Replace

        seen: dict[str, Tensor] = {}

        def put(y: Tensor) -> Tensor:
            return y.clone().index_put(keep.nonzero(as_tuple=True), made.to(y).reshape(-1, *y.shape[2:]))

        def look(site: str, a: Tensor) -> Tensor:
            seen[site] = a
            return a

        looks = [Replace(site, partial(look, site)) for site in self.later]
        with self.model.edit(Replace(self.site, put), *looks):
            logits = self.model(inputs).logits
        p, q = (t[keep].to(made.dtype).log_softmax(-1) for t in (clean["logits"], logits))
        error = (p.exp() * (p - q)).sum(-1).mean()
        if self.later:
            shares = [share((clean[s] - seen[s])[keep].flatten(1), clean[s][keep].flatten(1)) for s in self.later]
            error = error + self.config.downstream * torch.stack(shares).mean().to(error)
        return error


def _later(model: Model, site: str) -> list[str]:
    """The streams after the blocks that follow a site."""
    order = list(model.sites())
    stack = site.split("blocks.")[0]
    found = [s for s in order[order.index(site) + 1 :] if s.endswith(".resid_post") and s.startswith(f"{stack}blocks.")]
    if not found:
        raise WrongUse(f"no block follows {site}: leave downstream out.")
    return found
