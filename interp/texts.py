"""Where text comes from: a file, a folder of files, a data set of the hub, or Python's own help texts; and tokens as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from interp.errors import Failed, WrongUse

SUFFIXES = (".txt", ".md")
SPACE = "▁"  # how SentencePiece vocabularies write a space


def default_text() -> list[str]:
    """The default text on every machine: Python's `pydoc_data.topics`, one document a topic, repeated paragraphs dropped."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    documents = []
    for text in topics.values():
        fresh = [p for p in dict.fromkeys(text.split("\n\n")) if p.strip() and p not in seen]
        seen.update(fresh)
        if fresh:
            documents.append("\n\n".join(fresh))
    return documents


def read_file(path: Path) -> str:
    """The text of a file. Raises `WrongUse` if it is missing, empty or not UTF-8 text."""
    if not path.is_file():
        raise WrongUse(f"there is no text file {path}.")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WrongUse(
            f"{path} is not UTF-8 text (byte {error.start} is {data[error.start]:#04x}): give a plain-text file."
        ) from error
    if "\x00" in text:
        raise WrongUse(f"{path} holds zero bytes: it is a binary file, not text.")
    if not text.strip():
        raise WrongUse(f"{path} is empty.")
    return text.replace("\r\n", "\n")


def read_texts(text: str | Path | None = None, dataset: str | None = None) -> Iterator[str]:
    """Documents of a file, of a folder's .txt and .md files by name, of a hub data set's column "text", or the default text.

    Raises `WrongUse` for a path that is not there or holds no text.
    """
    if text is not None and dataset is not None:
        raise WrongUse("give --text or --dataset, not both.")
    if dataset is not None:
        yield from _hub(dataset)
    elif text is None:
        yield from default_text()
    elif Path(text).is_dir():
        files = sorted(p for p in Path(text).iterdir() if p.suffix in SUFFIXES)
        if not files:
            raise WrongUse(f"the folder {text} holds no {' or '.join(SUFFIXES)} file.")
        yield from (read_file(p) for p in files)
    else:
        yield read_file(Path(text))


def documents(texts: str | Path | Iterable[str]) -> Iterable[str]:
    """One text, those of a file or folder (`read_texts`), or the texts themselves."""
    return read_texts(texts) if isinstance(texts, Path) else [texts] if isinstance(texts, str) else texts


def _hub(name: str) -> Iterator[str]:
    """The column "text" of the split "train", streamed; of a folder: as `save_to_disk` left it, or parquet, JSON lines or text."""
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        raise Failed("--dataset needs the package 'datasets': pip install datasets.") from error
    saved = any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        rows = load_from_disk(name) if saved else load_dataset(name, split="train", streaming=True)
        rows = rows["train"] if (Path(name) / "dataset_dict.json").is_file() else rows
        yield from (row["text"] for row in rows)
    except KeyError as error:
        raise WrongUse(
            f"the data set {name!r} has no {error}: its split 'train' should have a column 'text'."
        ) from error
    except Exception as error:
        raise Failed(f"the data set {name!r} could not be read: {error}") from error


def token_texts(tokenizer: Any) -> Callable[[Sequence[int]], list[str]]:
    """A function from token ids to the text of each token alone; without a tokenizer, to the ids in brackets."""
    if tokenizer is None:
        return lambda ids: [f"[{i}]" for i in ids]
    known: dict[int, str] = {}

    def texts(ids: Sequence[int]) -> list[str]:
        for i in ids:
            if i not in known:
                known[i] = _token_text(tokenizer, i)
        return [known[i] for i in ids]

    return texts


def _token_text(tokenizer: Any, i: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(i)
    if isinstance(piece, str) and piece.startswith(SPACE):  # decoding a single one would drop its space
        return piece.replace(SPACE, " ")
    return tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)
