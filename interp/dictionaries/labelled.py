"""Labelled text: read from a file, turned into one row of activations a text, and what a dictionary says of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.dictionaries.absorption import absorption
from interp.dictionaries.probing import scr, sparse_probing, tpp
from interp.errors import Failed, WrongUse, check_keys

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from interp.dictionaries.dictionary import Dictionary
    from interp.model import Model

COLUMNS = ("text", "label", "spurious")


@dataclass(frozen=True)
class Labelled:
    """Texts with a label each, and, for spurious correlation removal, a second one."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    spurious: tuple[str, ...] = ()


def read_labelled(path: str | Path) -> Labelled:
    """A .csv with the columns text, label[, spurious], or a .jsonl of objects with these keys.

    Raises `WrongUse` for another suffix, an unknown or missing column, or a line without one; `Failed` for broken JSON.
    """
    path = Path(path)
    rows = list(_rows(path))
    if not rows:
        raise WrongUse(f"{path} holds no labelled text.")
    for number, row in enumerate(rows, 1):
        check_keys(row, COLUMNS, f"{path}, row {number}")
        empty = [name for name in COLUMNS if (name in rows[0] or name != "spurious") and row.get(name) in (None, "")]
        if empty:
            raise WrongUse(f"{path}, row {number} has no {' and no '.join(empty)}: every text needs one.")
    columns = [tuple(str(row[name]) for row in rows) for name in COLUMNS if name in rows[0]]
    return Labelled(*columns)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise WrongUse(f"There is no file {path}: give a .csv or .jsonl with text and label.")
    with open(path, newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
        elif path.suffix == ".jsonl":
            yield from (_object(path, number, line) for number, line in enumerate(file, 1) if line.strip())
        else:
            raise WrongUse(f"{path} is neither .csv nor .jsonl: labelled text is read from these.")


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Failed(f"{path}, line {number} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise Failed(f"{path}, line {number} is no JSON object with text and label.")
    return row


@torch.no_grad()
def pooled(
    D: Dictionary, model: Model, texts: Iterable[str], pool: str = "mean", context: int = 128, batch: int = 8
) -> tuple[Float[Tensor, "texts d_in"], Float[Tensor, "texts m"]]:
    """What D reads, and its latents, in float64, one row a text: their mean over its first `context` tokens, or its `last` one.

    A beginning-of-sequence token is not counted. Raises `WrongUse` for a text without tokens or another `pool`.
    """
    from interp.store.recording import padded

    check_keys([pool], ("mean", "last"), "pool")
    xs: list[Tensor] = []
    fs: list[Tensor] = []
    for group in _groups(model, texts, context, batch):
        inputs, keep = padded(model, group)
        if pool == "last":
            keep &= keep.cumsum(1) == keep.sum(1, keepdim=True)
        cache = model.record(inputs, list(D.config.reads))
        x = torch.cat([cache[site][keep].flatten(1) for site in D.config.reads], -1)
        text = keep.nonzero()[:, 0]
        for rows, found in ((x, xs), (D.encode(x.to(D.b_dec.device)), fs)):
            total = torch.zeros(len(group), rows.shape[1], dtype=torch.float64)
            found.append(total.index_add(0, text.cpu(), rows.cpu().double()) / keep.sum(1, keepdim=True).cpu())
    return torch.cat(xs), torch.cat(fs)


def _groups(model: Model, texts: Iterable[str], context: int, batch: int) -> Iterator[list[list[int]]]:
    """Token ids of the first `context` tokens of each text, in groups."""
    if model.tokenizer is None:
        raise WrongUse(f"{model.id} has no tokenizer: pass a model with one.")
    bos = model.tokenizer.bos_token_id
    start = [bos] if bos is not None and list(model.tokenizer("")["input_ids"])[:1] == [bos] else []
    group: list[list[int]] = []
    for number, text in enumerate(texts):
        ids: Sequence[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise WrongUse(f"Text number {number} has no tokens: {text!r}.")
        group.append([*start, *ids][:context])
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


# ------------------------------------------------------------ what a dictionary says of it


def probed(
    D: Dictionary, model: Model, data: Labelled, context: int = 128, seed: int = 0
) -> dict[str, dict[str, float]]:
    """k-sparse probing and TPP, means over labels, and SCR if the data have a spurious label; by k and by n.

    On means over each text's tokens. A dictionary that writes elsewhere than it reads is probed only: TPP and SCR take
    what latents write from what is read. Raises `WrongUse` if SCR is asked of a label that has not two values.
    """
    x, f = pooled(D, model, data.texts, "mean", context)
    sparse = sparse_probing(f, data.labels, x, seed=seed).groupby("k")["accuracy"].mean()
    found = {"sparse_probing": {f"k={k}" if k else "x": float(v) for k, v in sparse.items()}}
    if not D.config.autoencoder:
        return found
    W = D.W_dec.detach().cpu()
    table = tpp(x, f, W, data.labels, seed=seed)
    found["tpp"] = {f"n={n}": float(v) for n, v in zip(table["n"], table["tpp"], strict=True)}
    if data.spurious:
        table = scr(x, f, W, _two(data.labels, "label"), _two(data.spurious, "spurious"), seed=seed)
        found["scr"] = {f"n={n}": float(v) for n, v in zip(table["n"], table["scr"], strict=True)}
    return found


def absorbs(
    D: Dictionary, model: Model, data: Labelled, context: int = 128, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Absorption at the last token of each text, means over labels.

    Raises `WrongUse` for a dictionary that writes elsewhere than it reads.
    """
    if not D.config.autoencoder:
        raise WrongUse("Absorption is of autoencoders: it compares what latents write with what is read.")
    x, f = pooled(D, model, data.texts, "last", context)
    table = absorption(x, f, D.W_dec.detach().cpu(), data.labels, seed)
    return {"absorption": {name: float(table[name].mean()) for name in ("fraction", "full")}}


def _two(values: Sequence[str], name: str) -> Bool[Tensor, " texts"]:
    kinds = sorted(set(values))
    if len(kinds) != 2:
        raise WrongUse(f"SCR takes two values of {name}; there are {len(kinds)}: {', '.join(kinds[:5])}.")
    return torch.tensor([value == kinds[1] for value in values])
