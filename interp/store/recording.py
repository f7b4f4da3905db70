"""Record a model's activations over text into a store: the step before every training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.store.layout import row_bytes
from interp.store.reader import Store, open_store
from interp.store.writer import StoreWriter

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    from interp.model import Model, Tokens

COMMIT_EVERY = 16  # batches between two points to go on from


@dataclass(frozen=True)
class Plan:
    """What a recording will take: windows of text, rows, bytes on disk, minutes on this machine."""

    windows: int
    rows: int
    bytes: int
    minutes: float


def windows(model: Model, texts: Iterable[str], context: int) -> Iterator[tuple[int, list[int]]]:
    """(Number of the text, token ids) of windows of at most `context` tokens, none across two texts.

    Each begins with the tokenizer's own start token, if it has one.
    """
    if model.tokenizer is None:
        raise WrongUse(f"{model.id} has no tokenizer, so text cannot be recorded: pass a model with one.")
    start = list(model.tokenizer("")["input_ids"])[:1] if model.tokenizer.bos_token_id is not None else []
    start = start if start == [model.tokenizer.bos_token_id] else []
    size = context - len(start)
    for number, text in enumerate(texts):
        ids: list[int] = []
        for paragraph in text.split("\n\n"):
            ids += model.tokenizer(paragraph + "\n\n", add_special_tokens=False)["input_ids"]
            while len(ids) >= size:
                yield number, start + ids[:size]
                ids = ids[size:]
        if ids:
            yield number, start + ids


def batches(
    model: Model, texts: Iterable[str], context: int, batch: int, skip: int = 0
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Windows in groups of `batch`, with the number of each one's text; the first `skip` windows are left out."""
    stream = itertools.islice(windows(model, texts, context), skip, None)
    while group := list(itertools.islice(stream, batch)):
        yield [number for number, _ in group], [ids for _, ids in group]


def padded(model: Model, group: Sequence[Sequence[int]]) -> tuple[Tokens, Tensor]:
    """A group as `Tokens`, and which positions are kept: real tokens but a beginning-of-sequence token (an outlier everywhere)."""
    tokens = model.pad(group)
    keep = tokens.mask.clone()
    bos = getattr(model.tokenizer, "bos_token_id", None)
    if bos is not None:
        keep[:, 0] &= tokens.ids[:, 0] != bos
    return tokens, keep


def plan(
    model: Model,
    sites: Sequence[str],
    texts: Iterable[str],
    *,
    tokens: int | None,
    dtype: str,
    batch: int,
    context: int,
) -> Plan:
    """Count the rows of a recording, and time one batch of it."""
    names, rows, count, seconds = model.names(sites), 0, 0, 0.0
    for _, group in batches(model, texts, context, batch):
        if not count:
            model.record(padded(model, group)[0], names)
            begin = time.perf_counter()
            model.record(padded(model, group)[0], names)
            seconds = time.perf_counter() - begin
        count += 1
        rows += sum(len(g) for g in group)
        if tokens is not None and rows >= tokens:
            break
    rows = min(rows, tokens or rows)
    size = rows * row_bytes({n: model.width(n) for n in names}, dtype)
    return Plan(count * batch, rows, size, count * seconds / 60)


def record_text(
    model: Model,
    sites: Sequence[str],
    texts: Iterable[str],
    out: str | Path,
    *,
    tokens: int | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    resume: bool = False,
    batch: int = 16,
    context: int = 512,
    expected_rows: int | None = None,
    max_fvu: float | None = None,
    meta: dict[str, Any] | None = None,
) -> Store:
    """Record rows of `sites` over `texts` into the folder `out` and open it.

    Stops after `tokens` rows. A row is one real token of one window; the document number of a row is its text's.
    Beginning-of-sequence tokens are left out. Interrupted, it goes on with `resume=True` from its last commit and ends
    in the same bytes. Raises what `StoreWriter.append` raises: NaN or inf are named by site and row, int8 rows that lose
    more than `max_fvu` of the variance by site and FVU, the first of them at the first batch; and nothing is lost.
    """
    from tqdm.auto import tqdm

    names = model.names(sites)
    widths = {n: model.width(n) for n in names}
    about = {"model": model.id, "sites": names, "context": context, "tokens": tokens} | (meta or {})
    expected = expected_rows or tokens or 1_000_000
    with StoreWriter(
        out, widths=widths, dtype=dtype, seed=seed, expected_rows=expected, meta=about, resume=resume, max_fvu=max_fvu
    ) as writer:
        done = int((writer.cursor or {}).get("windows", 0))
        bar = tqdm(total=tokens, initial=writer.rows, desc="recording", unit=" rows", mininterval=1)
        for turn, (origin, group) in enumerate(
            batches(model, texts, context, batch, done) if not writer.complete else ()
        ):
            room = None if tokens is None else tokens - writer.rows
            if room is not None and room <= 0:
                break
            rows, window = kept_rows(model, names, group)
            documents = torch.tensor(origin)[window[:room]]
            done += len(group)
            writer.append({name: r[:room] for name, r in rows.items()}, documents=documents)
            bar.update(len(documents))
            if turn % COMMIT_EVERY == COMMIT_EVERY - 1:
                writer.commit({"windows": done})
        bar.close()
    return open_store(out)


def kept_rows(
    model: Model, names: Sequence[str], group: Sequence[Sequence[int]]
) -> tuple[dict[str, Float[Tensor, "n width"]], Int64[Tensor, " n"]]:
    """The kept rows of every site over a group of windows, and the window that each comes from."""
    tokens, keep = padded(model, group)
    cache = model.record(tokens, names)
    rows = {n: cache[n][keep.to(cache[n].device)].flatten(1).cpu() for n in names}
    return rows, keep.nonzero()[:, 0].cpu()
