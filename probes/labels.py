"""Labelled states: which positions of which texts are a row, and what it is called; and labels that are known without a person.

A row is one token, or the mean of several. Words with a label each, texts with a label each, positions, and numbers in text.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.dictionaries.labelled import Labelled
from interp.errors import Failed, WrongUse, check_keys
from probes.windows import full_windows

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.model.model import Model

POOLS = ("mean", "last", "first")
Label = str | float


@dataclass(frozen=True)
class Labels:
    """Rows of states: row i is the mean over `positions[i]` of window `window[i]`, and is called `labels[i]`.

    `groups`: rows of one group are never split between folds. Labels that are all numbers are numbers, others classes.
    """

    ids: tuple[tuple[int, ...], ...]
    window: tuple[int, ...]
    positions: tuple[tuple[int, ...], ...]
    labels: tuple[Label, ...]
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = [len(self.window), len(self.positions), len(self.labels), len(self.groups)]
        if len(set(sizes)) > 1:
            raise WrongUse(
                f"rows and labels do not match: {sizes[0]} windows, {sizes[1]} positions, {sizes[2]} labels, {sizes[3]} groups."
            )
        for w, where in zip(self.window, self.positions, strict=True):
            if not 0 <= w < len(self.ids) or not where or not all(0 <= p < len(self.ids[w]) for p in where):
                raise WrongUse(
                    f"positions {list(where)} of window {w} are not there: windows are 0 to {len(self.ids) - 1}"
                    + (f", this one has {len(self.ids[w])} tokens." if 0 <= w < len(self.ids) else ".")
                )


@torch.no_grad()
def states(model: Model, data: Labels, sites: str | Sequence[str], batch: int = 8) -> dict[str, Float[Tensor, "row d"]]:
    """The rows at each site, in float64; windows of all lengths, padded on the right.

    Raises `WrongUse` for sites without positions of their own tokens.
    """
    names = model.names(sites)
    found = {n: torch.zeros(len(data.labels), model.width(n), dtype=torch.float64) for n in names}
    rows: dict[int, list[int]] = {}
    for row, w in enumerate(data.window):
        rows.setdefault(w, []).append(row)
    order = sorted(rows, key=lambda w: len(data.ids[w]))
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        cache = model.record(model.pad([data.ids[w] for w in group]), names)
        for n in names:
            if cache[n].shape[1] < max(len(data.ids[w]) for w in group):
                raise WrongUse(f"{n!r} has {cache[n].shape[1]} positions, fewer than the tokens that are labelled.")
            for i, w in enumerate(group):
                x = cache[n][i].flatten(1).double().cpu()
                for row in rows[w]:
                    found[n][row] = x[list(data.positions[row])].mean(0)
    return found


# ---------------------------------------------------------------- words and texts


def of_words(
    model: Model, sentences: Iterable[tuple[Sequence[str], Sequence[str | None]]], context: int = 512
) -> Labels:
    """Words with a label each, joined by spaces; a row is a word's last token, a label None leaves its word out.

    Words behind `context` tokens are left out. Raises `WrongUse` where a sentence has other numbers of words and labels, or a
    word does not end where a token does, and without a tokenizer that tells where its tokens stand.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        raise WrongUse(
            f"{model.id} has no tokenizer that tells where its tokens stand in the text: words find no tokens."
        )
    ids: list[tuple[int, ...]] = []
    window, positions, labels = [], [], []
    for number, (words, given) in enumerate(sentences):
        if len(words) != len(given):
            raise WrongUse(
                f"labels do not match tokens: sentence {number} has {len(words)} words and {len(given)} labels."
            )
        made = model.tokenizer(" ".join(words), return_offsets_mapping=True)
        ends = {end: i for i, (begin, end) in enumerate(made["offset_mapping"]) if end > begin}
        at = 0
        for word, label in zip(words, given, strict=True):
            at += len(word)
            if at not in ends:
                raise WrongUse(f"labels do not match tokens: no token ends where {word!r} does, in sentence {number}.")
            if label is not None and ends[at] < context:
                window.append(len(ids))
                positions.append((ends[at],))
                labels.append(label)
            at += 1
        ids.append(tuple(made["input_ids"][:context]))
    return Labels(tuple(ids), tuple(window), tuple(positions), tuple(labels), tuple(window))


def of_texts(model: Model, data: Labelled, pool: str = "mean", context: int = 512) -> Labels:
    """Texts with a label each: the mean over a text's first `context` tokens, or the `last` or `first` of them.

    A beginning-of-sequence token is not counted. Raises `WrongUse` for an unknown pool, other numbers of texts and labels,
    and a text without tokens.
    """
    check_keys([pool], POOLS, "pool")
    if len(data.texts) != len(data.labels):
        raise WrongUse(f"labels do not match texts: {len(data.texts)} texts and {len(data.labels)} labels.")
    ids, positions = [], []
    bos = getattr(model.tokenizer, "bos_token_id", None)
    for number, text in enumerate(data.texts):
        row = tuple(model.tokens(text).ids[0, :context].tolist())
        real = tuple(range(int(row[0] == bos), len(row)))
        if not real:
            raise WrongUse(f"text number {number} has no tokens: {text!r}.")
        ids.append(row)
        positions.append({"mean": real, "last": real[-1:], "first": real[:1]}[pool])
    rows = tuple(range(len(ids)))
    return Labels(tuple(ids), rows, tuple(positions), tuple(data.labels), rows)


KEYS = ("words", "labels")


def read_words(path: str | Path) -> Iterator[tuple[list[str], list[str | None]]]:
    """Sentences of a .jsonl file, an object a line: {"words": [...], "labels": [...]}, a label null for a word without one.

    Raises `WrongUse` for other keys, `Failed` for broken JSON.
    """
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Failed(f"{path}, line {number} is no JSON: {error}.") from error
        if not isinstance(row, dict) or set(row) != set(KEYS):
            raise WrongUse(f'{path}, line {number} is not {{"words": [...], "labels": [...]}}.')
        yield [str(w) for w in row["words"]], [None if v is None else str(v) for v in row["labels"]]


# ---------------------------------------------------------------- labels that are known


def of_positions(
    model: Model, texts: str | Iterable[str], context: int = 128, windows: int = 64, every: int = 8
) -> Labels:
    """Where a token stands: full windows, every so many tokens a row, its position the number to tell.

    Raises `WrongUse` for a text shorter than a window.
    """
    ids = full_windows(model, texts, context, windows * context).tolist()
    rows = [(w, p) for w in range(len(ids)) for p in range(1, context, every)]
    window = tuple(w for w, _ in rows)
    return Labels(
        tuple(map(tuple, ids)), window, tuple((p,) for _, p in rows), tuple(float(p) for _, p in rows), window
    )


def of_numbers(
    model: Model, count: int = 300, highest: int = 999, template: str = "There were {}", seed: int = 0
) -> Labels:
    """Numbers written in digits at the end of a sentence; a row is the last token, the number what is to be told.

    Raises `WrongUse` for more numbers than there are, or a template without its end in {}.
    """
    if not template.endswith("{}") or not 2 <= count <= highest + 1:
        raise WrongUse(
            f"give a template that ends in {{}}, not {template!r}, and 2 to {highest + 1} numbers, not {count}."
        )
    draw = torch.randperm(highest + 1, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    ids = tuple(tuple(model.tokens(template.format(n)).ids[0].tolist()) for n in draw)
    rows = tuple(range(count))
    return Labels(ids, rows, tuple((len(i) - 1,) for i in ids), tuple(float(n) for n in draw), rows)


def tagged(path: str | Path, sentences: int = 500, tags: int = 10) -> list[tuple[list[str], list[str | None]]]:
    """The first sentences of a zip of word/tag files (the Brown corpus), of every 10th file; the commonest `tags` kinds are labels.

    A kind is a tag's first two letters, without its suffixes. Raises `WrongUse` for a file that holds no such text.
    """
    found: list[tuple[list[str], list[str]]] = []
    for text in _members(path, lambda name: name.rsplit("/", 1)[-1][:1] == "c", step=10):
        for line in filter(str.strip, text.splitlines()):
            pairs = [token.rpartition("/") for token in line.split()]
            if pairs and all(word and tag for word, _, tag in pairs):
                found.append(([word for word, _, _ in pairs], [tag.split("-")[0][:2] for _, _, tag in pairs]))
    if not found:
        raise WrongUse(f"{path} holds no text of words and tags, as the/at jury/nn said/vbd.")
    step = max(1, len(found) // sentences)
    found = found[::step][:sentences]
    kinds = Counter(tag for _, given in found for tag in given if tag.isalpha())
    kept = {tag for tag, _ in kinds.most_common(tags)}
    return [(words, [tag if tag in kept else None for tag in given]) for words, given in found]


def reviews(path: str | Path, texts: int = 200) -> Labelled:
    """As many texts of each folder of a zip of FOLDER/NAME.txt (the movie reviews: neg, pos), in the order of their names.

    Raises `WrongUse` for a file without two such folders.
    """
    with _zip(path) as file:
        names = sorted(n for n in file.namelist() if n.endswith(".txt") and n.count("/") >= 1)
        kinds = sorted({n.split("/")[-2] for n in names})
        if len(kinds) < 2:
            raise WrongUse(f"{path} has no two folders of .txt files, whose names would be the labels.")
        chosen = [n for k in kinds for n in [m for m in names if m.split("/")[-2] == k][: texts // len(kinds)]]
        read = tuple(file.read(n).decode("utf-8", "replace") for n in chosen)
    return Labelled(read, tuple(n.split("/")[-2] for n in chosen))


def _members(path: str | Path, wanted: Any, step: int) -> Iterator[str]:
    with _zip(path) as file:
        names = sorted(n for n in file.namelist() if not n.endswith("/") and wanted(n))
        for name in names[::step]:
            yield file.read(name).decode("utf-8", "replace")


def _zip(path: str | Path) -> zipfile.ZipFile:
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        raise WrongUse(f"{path} is no zip file.")
    return zipfile.ZipFile(path)
