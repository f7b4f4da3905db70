"""Record a model's activations over text into a store: the step before every training."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp import ranks
from interp.errors import WrongUse, check_keys
from interp.store.layout import row_bytes
from interp.store.placing import Sent
from interp.store.reader import Store, open_store
from interp.store.writer import StoreWriter

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    from interp.model import Model, Together, Tokens

    Readable = Model | Together

COMMIT_EVERY = 16  # batches between two points to go on from


@dataclass(frozen=True)
class Plan:
    """What a recording will take: windows of text, rows, bytes on disk, minutes on this machine."""

    windows: int
    rows: int
    bytes: int
    minutes: float


def windows(model: Readable, texts: Iterable[str], context: int) -> Iterator[tuple[int, list[int]]]:
    """(Number of the text, token ids) of windows of at most `context` tokens, none across two texts.

    Each begins with the tokenizer's own start token, if it has one.
    """
    if model.tokenizer is None:
        name = str(model.id).removeprefix("zoo:")
        made = f" `interp zoo inputs {name} -o {name}.safetensors` makes some." if name != model.id else ""
        raise WrongUse(
            f"{model.id} has no tokenizer, so text cannot be recorded: pass a model with one, or ready inputs (--inputs).{made}"
        )
    return token_windows(model.tokenizer, texts, context)


def token_windows(tokenizer: Any, texts: Iterable[str], context: int) -> Iterator[tuple[int, list[int]]]:
    """`windows` by a tokenizer alone."""
    start = list(tokenizer("")["input_ids"])[:1] if tokenizer.bos_token_id is not None else []
    start = start if start == [tokenizer.bos_token_id] else []
    size = context - len(start)
    for number, text in enumerate(texts):
        ids: list[int] = []
        for paragraph in text.split("\n\n"):
            ids += tokenizer(paragraph + "\n\n", add_special_tokens=False)["input_ids"]
            while len(ids) >= size:
                yield number, start + ids[:size]
                ids = ids[size:]
        if ids:
            yield number, start + ids


def batches(
    model: Readable, texts: Iterable[str], context: int, batch: int, skip: int = 0
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Windows in groups of `batch`, with the number of each one's text; the first `skip` windows are left out."""
    stream = itertools.islice(windows(model, texts, context), skip, None)
    while group := list(itertools.islice(stream, batch)):
        yield [number for number, _ in group], [ids for _, ids in group]


def padded(model: Readable, group: Sequence[Sequence[int]]) -> tuple[Tokens, Tensor]:
    """A group as `Tokens`, and which positions are kept: real tokens but a beginning-of-sequence token (an outlier everywhere)."""
    tokens = model.pad(group)
    keep = tokens.mask.clone()
    bos = getattr(model.tokenizer, "bos_token_id", None)
    if bos is not None:
        keep[:, 0] &= tokens.ids[:, 0] != bos
    return tokens, keep


def plan(
    model: Readable,
    sites: Sequence[str],
    texts: Data,
    *,
    tokens: int | None,
    dtype: str,
    batch: int,
    context: int,
) -> Plan:
    """Count the rows of a recording, and time one batch of it, of which each process of several takes its share."""
    names, rows, count, seconds, each = model.names(sites), 0, 0, 0.0, 0
    for numbers, group in groups(model, texts, context, batch):
        if not count:
            each = len(kept_rows(model, names, group)[1]) // len(numbers)  # of an input
            begin = time.perf_counter()
            kept_rows(model, names, group)
            seconds = time.perf_counter() - begin
        count += 1
        rows += each * len(numbers) if isinstance(group, dict) else sum(len(g) for g in group)
        if tokens is not None and rows >= tokens:
            break
    rows = min(rows, tokens or rows)
    size = rows * row_bytes({n: model.width(n) for n in names}, dtype)
    return Plan(count * batch, rows, size, count * seconds / 60 / ranks.ranks())


def record_text(
    model: Readable,
    sites: Sequence[str],
    texts: Data,
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
    Beginning-of-sequence tokens are left out. In place of text, ready inputs (`read_inputs`): a row is one position of one
    input, where its attention_mask (a decoder's site: decoder_attention_mask) is not 0; an input is a document.

    Interrupted, it goes on with `resume=True` from its last commit and ends in the same bytes. Raises what
    `StoreWriter.append` raises: NaN or inf are named by site and row, int8 rows that lose more than `max_fvu` of the
    variance by site and FVU, the first of them at the first batch; and nothing is lost.

    Under `torchrun` every process calls it and runs the model on its share of the batches (`forwarded`); the first one
    writes, the same bytes that one process writes with as many threads. Raises `Failed` if one of them is lost.
    """
    names = model.names(sites)
    widths = {n: model.width(n) for n in names}
    expected = expected_rows or tokens or 1_000_000
    ranks.start()
    asked = {"model": model.id, "sites": names, "context": context, "tokens": tokens}
    ranks.same(asked | {"batch": batch, "dtype": dtype, "seed": seed})
    shared = partial(forwarded, model, names, texts, context, batch, tokens)
    if ranks.rank():
        list(shared(None))
    else:
        with StoreWriter(
            out, widths=widths, dtype=dtype, seed=seed, expected_rows=expected, meta=asked | (meta or {}),
            resume=resume, max_fvu=max_fvu,
        ) as writer:  # fmt: skip
            _write(writer, shared, tokens)
    ranks.wait()
    return open_store(out)


def _write(writer: StoreWriter, shared: Callable[[tuple[int, int, bool]], Iterator[Part]], tokens: int | None) -> None:
    """Append what `shared` gives from where the store stands, up to `tokens` rows."""
    from tqdm.auto import tqdm

    begun = writer.rows, int((writer.cursor or {}).get("windows", 0)), writer.complete
    with tqdm(total=tokens, initial=writer.rows, desc="recording", unit=" rows", mininterval=1) as bar:
        for turn, (windows, documents, kept, rows) in enumerate(_sent(writer, shared(begun), tokens)):
            writer.append(rows, documents, kept)
            bar.update(len(documents))
            if turn % COMMIT_EVERY == COMMIT_EVERY - 1:
                writer.commit({"windows": windows})


def _sent(writer: StoreWriter, parts: Iterator[Part], tokens: int | None) -> Iterator[Part]:
    """Parts of up to `tokens` rows in all; those that are sent from a GPU one turn late, when the model runs on the next."""
    late: list[Part] = []
    count = writer.rows
    for windows, documents, kept, states in parts:
        room = None if tokens is None else tokens - count
        documents, kept = documents[:room], kept[:room]
        count += len(documents)
        rows = writer.send(states, kept)
        yield from late
        late = [(windows, documents, kept, rows)]
        if not any(isinstance(values, Sent) for values in rows.values()):
            yield from late
            late = []
    yield from late


def forwarded(
    model: Readable,
    names: Sequence[str],
    texts: Data,
    context: int,
    batch: int,
    tokens: int | None,
    begun: tuple[int, int, bool] | None,
) -> Iterator[Part]:
    """Windows so far, document of each row that is kept, its number, and rows of every site, a group at a time, until `tokens` rows.

    `begun` is rank 0's to say, where the store stands: rows, windows, whether it is complete. Rank r of R runs the model on
    groups r, r + R, r + 2R, … and hands the rows to rank 0, which alone yields. Every rank tokenises the whole text.
    """
    rows, windows, complete = ranks.told(begun)[0]
    found = iter(()) if complete else groups(model, texts, context, batch, windows)
    while tokens is None or rows < tokens:
        turn = list(itertools.islice(found, ranks.ranks()))
        if ranks.ranks() > 1:
            ranks.same({"text": f"of checksum {zlib.crc32(repr(turn).encode()):08x} at window {windows}"})
        if not turn:
            return
        mine = _with_documents(model, names, *turn[ranks.rank()]) if ranks.rank() < len(turn) else []
        shapes = ranks.told([(tuple(t.shape), t.dtype) for t in mine])
        for owner, (numbers, _) in enumerate(turn):
            if tokens is not None and rows >= tokens:
                return
            part = ranks.handed(mine, shapes[owner], owner)
            rows, windows = rows + shapes[owner][0][0][0], windows + len(numbers)
            if not ranks.rank():
                yield windows, part[0], part[1], dict(zip(names, part[2:], strict=True))


def _with_documents(model: Readable, names: Sequence[str], numbers: list[int], group: Group) -> list[Tensor]:
    """The document of each kept row of a group, its number, and rows of every site: of several processes the kept ones alone."""
    states, kept = _states(model, names, group)
    documents = torch.tensor(numbers)[_window(kept, states, numbers)]
    if ranks.ranks() > 1:
        states, kept = _gathered(states, kept), torch.arange(len(kept))
    return [documents, kept, *states.values()]


def kept_rows(
    model: Readable, names: Sequence[str], group: Group
) -> tuple[dict[str, Float[Tensor, "n width"]], Int64[Tensor, " n"]]:
    """The kept rows of every site over a group of windows or inputs, and which of them each comes from."""
    states, kept = _states(model, names, group)
    count = len(next(iter(group.values()))) if isinstance(group, dict) else len(group)
    return _gathered(states, kept), _window(kept, states, range(count))


def _window(kept: Int64[Tensor, " n"], states: Mapping[str, Tensor], of: Sequence[int]) -> Int64[Tensor, " n"]:
    return kept // max(1, len(next(iter(states.values()))) // len(of))


def _gathered(states: Mapping[str, Tensor], kept: Int64[Tensor, " n"]) -> dict[str, Float[Tensor, "n width"]]:
    return {name: x[kept.to(x.device)].cpu() for name, x in states.items()}


def _states(
    model: Readable, names: Sequence[str], group: Group
) -> tuple[dict[str, Float[Tensor, "positions width"]], Int64[Tensor, " n"]]:
    """Every position of every site over a group, and the numbers of those that are kept."""
    if isinstance(group, dict):
        cache = model.record(group, names)
        kept = kept_positions(names, cache, group).flatten().nonzero().flatten().cpu()
    else:
        tokens, keep = padded(model, group)
        kept = keep.flatten().nonzero().flatten().cpu()  # before the pass, which a GPU would finish first
        cache = model.record(tokens, names)
        for name in names:
            if cache[name].shape[:2] != keep.shape:
                raise WrongUse(
                    f"{name!r} has {cache[name].shape[1]} positions for windows of {keep.shape[1]} tokens, so its rows are no "
                    "tokens of the text: record it from ready inputs (--inputs FILE)."
                )
    states = {name: cache[name].flatten(0, 1).flatten(1) for name in names}
    return states, kept


def kept_positions(
    names: Sequence[str], cache: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Bool[Tensor, "batch pos"]:
    """The real positions of sites recorded from ready inputs. Raises `WrongUse` if the sites have other positions each."""
    keeps = {name: _kept(name, cache[name], inputs) for name in names}
    first = keeps[names[0]]
    odd = next((name for name in names if not torch.equal(keeps[name], first)), None)
    if odd is not None:
        raise WrongUse(f"{names[0]!r} and {odd!r} have other positions: record each into a store of its own.")
    return first


def _kept(name: str, x: Tensor, inputs: Mapping[str, Tensor]) -> Bool[Tensor, "batch pos"]:
    """The positions of a site that are real: all, unless the mask of its side says otherwise."""
    source = name.endswith((".cross_attn.k", ".cross_attn.v", ".cross_attn.k_raw"))
    mask = inputs.get("decoder_attention_mask" if name.startswith("decoder.") and not source else "attention_mask")
    return mask.bool().cpu() if mask is not None and mask.shape == x.shape[:2] else torch.ones(x.shape[:2]).bool()


# ---------------------------------------------------------------- ready inputs

Data = Iterable[str] | Mapping[str, Tensor]  # texts, or inputs
Group = Sequence[Sequence[int]] | dict[str, Tensor]  # of windows, or of inputs
Part = tuple[
    int, Tensor, Tensor, Mapping[str, Tensor | Sent]
]  # of a recording: windows so far, document and number of each row kept, rows


def groups(model: Readable, texts: Data, context: int, batch: int, skip: int = 0) -> Iterator[tuple[list[int], Group]]:
    """`batches` of text, or of inputs by their numbers."""
    if not isinstance(texts, Mapping):
        yield from batches(model, texts, context, batch, skip)
        return
    count = len(next(iter(texts.values())))
    for begin in range(skip, count, batch):
        part = {name: t[begin : begin + batch].to(model.device) for name, t in texts.items()}
        part = {name: t.to(model.dtype) if t.is_floating_point() else t for name, t in part.items()}
        yield list(range(begin, min(begin + batch, count))), part


def read_data(model: Readable, text: str | None, dataset: str | None, inputs: str | Path | None) -> Data:
    """Documents as `read_texts` gives them, or the inputs of a file. Raises `WrongUse` for both."""
    from interp.texts import read_texts

    if inputs is None:
        return read_texts(text, dataset)
    if text is not None or dataset is not None:
        raise WrongUse("give text or --inputs, not both.")
    return read_inputs(inputs, model)


def read_inputs(path: str | Path, model: Readable) -> dict[str, Tensor]:
    """Ready inputs of a model from a safetensors file: its forward's arguments by name (pixel_values, input_features,
    input_ids, decoder_input_ids, masks, …), each [inputs, ...].

    Raises `WrongUse` for a file that is none, for arguments the model does not take, and for other numbers of inputs.
    """
    from interp.files import load_tensors
    from interp.model.live import accepted

    if not Path(path).is_file():
        raise WrongUse(f"there is no file {path}: --inputs is a safetensors file of the model's inputs, each [n, ...].")
    try:
        tensors = load_tensors(path)[0]
    except ValueError as error:
        raise WrongUse(str(error)) from error
    known = accepted(model.module)
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()) or not tensors.keys() & known.keys():
        check_keys(tensors, known, f"The forward of {model.id}")
    counts = {name: len(t) if t.ndim else 0 for name, t in tensors.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise WrongUse(
            f"{path} should hold tensors of as many inputs each, one or more; it holds {counts or 'nothing'}."
        )
    return tensors
