"""Tasks from labelled text: a tag for each word, or a class for a text, which is asked for at its first word.

A file has a line a sentence, `word/TAG word/TAG …` for tagging; or a line a text, the class, a tab and the text, for
classification. Of all lines the last tenth is held out, of the rest the last tenth compares seeds; words that occur once in what is
left are `<unk>`. Texts are cut at the length that is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.programs.tasks import UNKNOWN, Body, Task
from interp.errors import WrongUse
from interp.texts import read_file

KINDS = {"tagging": "the tag of each word", "classification": "at its first word, the class of a text"}


@dataclass(frozen=True)
class Labelled(Task):
    """A task whose bodies are those of a file."""

    compared: tuple[Body, ...] = ()
    held_out: tuple[Body, ...] = ()

    @property
    def countable(self) -> bool:
        """What could be written has no end."""
        return False

    def checked(self, rng: np.random.Generator, count: int) -> list[Body]:
        """What seeds are compared on."""
        return list(self.compared[:count])

    def tested(self, fresh: int = 0, seed: int = 0) -> Iterable[Body]:
        """What was held out."""
        return self.held_out


def labelled(kind: str, file: Path, length: int = 32, words: int = 1000) -> Labelled:
    """The task of a file, with its `words` most frequent words. Raises `WrongUse` for a file of another form."""
    rows = [
        _tagged(line, length) if kind == "tagging" else _classed(line, length)
        for line in read_file(file).splitlines()
        if line.strip()
    ]
    known = {body: tags for body, tags in rows if body}  # of a text that comes twice the last
    bodies = list(known)
    if len(bodies) < 20:
        raise WrongUse(f"{file} has {len(bodies)} different lines: a task needs at least 20.")
    kept, end = len(bodies) * 81 // 100, len(bodies) * 9 // 10
    train = bodies[:kept]
    counts = Counter(word for body in train for word in body)
    letters = tuple(word for word, n in counts.most_common(words) if n > 1)
    labels = tuple(sorted({tag for tags in known.values() for tag in tags if tag is not None}))
    return Labelled(
        kind,
        KINDS[kind],
        (*letters, UNKNOWN),
        labels,
        length,
        lambda body: known[tuple(body)],
        drawn=lambda rng: train[int(rng.integers(len(train)))],
        compared=tuple(bodies[kept:end]),
        held_out=tuple(bodies[end:]),
    )


def _tagged(line: str, length: int) -> tuple[Body, list[str | None]]:
    pairs = [token.rpartition("/") for token in line.split()[:length]]
    if not all(word and tag for word, _, tag in pairs):
        raise WrongUse(f"a line of a file for tagging is `word/TAG word/TAG …`, not {line[:60]!r}.")
    return tuple(word for word, _, _ in pairs), [tag for _, _, tag in pairs]


def _classed(line: str, length: int) -> tuple[Body, list[str | None]]:
    label, tab, text = line.partition("\t")
    if not tab or not label:
        raise WrongUse(f"a line of a file for classification is the class, a tab and the text, not {line[:60]!r}.")
    body = tuple(text.split()[:length])
    return body, [label.strip(), *[None] * (len(body) - 1)]
