"""What programs are learnt for: sequences of tokens and the right label at each, at the sizes of the paper.

An input is a body of letters; a task puts `<s>` before it, and `</s>` behind it where the end is needed. Lengths count
both: 8 positions for most tasks, 16 for Dyck. Source: Weiss, Goldberg & Yahav 2021; Friedman, Wettig & Chen 2023, section 4.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

START, END = "<s>", "</s>"
UNKNOWN = "<unk>"  # the letter, of tasks that have it, that all others are read as
MOST = 1_000_000  # inputs that are all tried
Body = tuple[str, ...]
Answer = Callable[[Sequence[str]], list[str | None]]  # None: the position is not asked for


@dataclass(frozen=True)
class Batch:
    """Inputs as numbers, padded to the task's length: what is at a position, whether it is one, which label is right (-1: none)."""

    tokens: Int[np.ndarray, "batch pos"]
    real: Bool[np.ndarray, "batch pos"]
    labels: Int[np.ndarray, "batch pos"]


@dataclass(frozen=True)
class Task:
    """A function from bodies to labels, and which bodies there are."""

    name: str
    about: str
    letters: tuple[str, ...]
    labels: tuple[str, ...]
    longest: int
    """letters of a body"""
    answer: Answer
    end: bool = False
    """whether `</s>` follows the body"""
    causal: bool = False
    """whether positions see only what comes before them"""
    kinds: tuple[tuple[str, ...], ...] = ()
    """the letters that may stand at positions 0, 1, 0, 1, … if not all may; as many at each"""
    drawn: Callable[[np.random.Generator], Body] | None = None
    """how bodies are drawn, if not as `draw` says; a program is then judged on drawn ones"""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens, `<s>` first."""
        return (START, *self.letters, END) if self.end else (START, *self.letters)

    @property
    def length(self) -> int:
        """Positions of the longest input."""
        return self.longest + 1 + self.end

    def _allowed(self, length: int) -> list[tuple[str, ...]]:
        return [self.kinds[i % len(self.kinds)] if self.kinds else self.letters for i in range(length)]

    @property
    def countable(self) -> bool:
        """Whether there are so few bodies that all can be tried."""
        return sum(math.prod(map(len, self._allowed(n))) for n in range(1, self.longest + 1)) <= MOST

    def everything(self) -> Iterator[Body]:
        """Every body, short ones first. Raises `WrongUse` where there are too many."""
        if not self.countable:
            raise WrongUse(f"{self.name} has too many inputs to try them all.")
        for length in range(1, self.longest + 1):
            yield from itertools.product(*self._allowed(length))

    def draw(self, rng: np.random.Generator, count: int) -> list[Body]:
        """Half are of every length and every number of different letters equally often, half any of all bodies, most of
        which are long; or as the task draws them."""
        if self.drawn:
            return [self.drawn(rng) for _ in range(count)]
        allowed = self._allowed(self.longest)
        many = float(len(allowed[0])) ** np.arange(self.longest)
        any_length = rng.choice(self.longest, p=many / many.sum(), size=count) + 1
        half, most = rng.random(count) < 0.5, len(allowed[0])
        lengths = np.where(half, rng.integers(1, self.longest + 1, size=count), any_length).tolist()
        different = np.where(half, rng.integers(1, most + 1, size=count), most)
        orders = rng.random((count, most)).argsort(1)
        picks = rng.integers(2**31, size=(count, self.longest)) % different[:, None]
        rows = np.take_along_axis(orders, picks, axis=1).tolist()
        return [
            tuple(a[p] for a, p in zip(allowed[:n], row, strict=False)) for n, row in zip(lengths, rows, strict=True)
        ]

    def checked(self, rng: np.random.Generator, count: int) -> list[Body]:
        """What seeds are compared on."""
        return self.draw(rng, count)

    def tested(self, fresh: int = 50_000, seed: int = 10_000) -> Iterable[Body]:
        """What a program is judged on: every body, or `fresh` drawn ones that no training draws."""
        return self.draw(np.random.default_rng([seed]), fresh) if self.drawn else self.everything()

    def encode(self, bodies: Sequence[Body]) -> Batch:
        """Bodies as numbers. Raises `WrongUse` for a token that is no letter of the task, and for a body too long or empty."""
        place = {token: i for i, token in enumerate(self.letters, 1)}
        named = {label: i for i, label in enumerate(self.labels)}
        shape = (len(bodies), self.length)
        tokens, real, labels = np.zeros(shape, np.int64), np.zeros(shape, bool), np.full(shape, -1)
        for i, body in enumerate(bodies):
            n = len(body)
            if not 1 <= n <= self.longest:
                raise WrongUse(f"{self.name} takes 1 to {self.longest} tokens, not {n}.")
            try:
                other = place.get(UNKNOWN)
                tokens[i, 1 : n + 1] = [place[t] if other is None else place.get(t, other) for t in body]
            except KeyError as error:
                raise WrongUse(f"{self.name} has no token {error}. It has: {' '.join(self.letters)}.") from None
            real[i, : n + 1 + self.end] = True
            if self.end:
                tokens[i, n + 1] = len(self.letters) + 1
            labels[i, 1 : n + 1] = [-1 if label is None else named[label] for label in self.answer(body)]
        return Batch(tokens, real, labels)


def _histogram(body: Sequence[str]) -> list[str | None]:
    return [str(body.count(letter)) for letter in body]


def _double_histogram(body: Sequence[str]) -> list[str | None]:
    counts = Counter(body)
    kinds = Counter(counts.values())
    return [str(kinds[counts[letter]]) for letter in body]


def _most_frequent(body: Sequence[str]) -> list[str | None]:
    """Letters by how often they occur, of equals the earlier first; then `<s>` until the length of the body."""
    ranked = [letter for letter, _ in Counter(body).most_common()]
    return [*ranked, *[START] * (len(body) - len(ranked))]


def _induction(body: Sequence[str]) -> list[str | None]:
    """At each letter: the digit that followed its last occurrence, or `?`."""
    after: dict[str, str] = {}
    found: list[str | None] = []
    for i, token in enumerate(body):
        found.append(None if i % 2 else after.get(token, "?"))
        if i % 2:
            after[body[i - 1]] = token
    return found


def _dyck(pairs: Sequence[str]) -> Answer:
    """Of each prefix: `T` balanced, `P` the beginning of a balanced string, `F` neither."""
    opener = {pair[1]: pair[0] for pair in pairs}

    def answer(body: Sequence[str]) -> list[str | None]:
        stack: list[str] = []
        found: list[str | None] = []
        broken = False
        for token in body:
            if token not in opener:
                stack.append(token)
            elif not stack or stack.pop() != opener[token]:
                broken = True
            found.append("F" if broken else "P" if stack else "T")
        return found

    return answer


def _brackets(pairs: Sequence[str], length: int) -> Callable[[np.random.Generator], Body]:
    """Half of the strings are random, half begin with a balanced one of random length and go on at random."""
    letters = "".join(pairs)

    def balanced(rng: np.random.Generator, half: int) -> list[str]:
        made: list[str] = []
        stack: list[str] = []
        while half or stack:
            if half and (not stack or rng.random() < 0.5):
                pair = pairs[int(rng.integers(len(pairs)))]
                made.append(pair[0])
                stack.append(pair[1])
                half -= 1
            else:
                made.append(stack.pop())
        return made

    def draw(rng: np.random.Generator) -> Body:
        begun = balanced(rng, int(rng.integers(1, length // 2 + 1))) if rng.random() < 0.5 else []
        rest = rng.integers(len(letters), size=length - len(begun))
        return (*begun, *(letters[i] for i in rest))

    return draw


def _dyck_task(name: str, pairs: Sequence[str]) -> Task:
    about = f"of each beginning of 15 brackets {' '.join(pairs)}: T balanced, P may become so, F cannot"
    answer, drawn = _dyck(pairs), _brackets(pairs, 15)
    return Task(name, about, tuple("".join(pairs)), ("T", "P", "F"), 15, answer, causal=True, drawn=drawn)


_FIVE, _SIX = tuple("abcde"), tuple("abcdef")
_COUNTS = tuple("1234567")
_PLACES = (tuple("abcd"), tuple("0123"))

TASKS = {
    task.name: task
    for task in (
        Task(
            "induction",
            "letters and digits in turn; at a letter, the digit after its last occurrence",
            (*_PLACES[0], *_PLACES[1]),
            (*_PLACES[1], "?"),
            9,
            _induction,
            causal=True,
            kinds=_PLACES,
        ),
        Task("reverse", "the letters from last to first", _FIVE, _FIVE, 6, lambda body: [*body[::-1]], end=True),
        Task("histogram", "how often each letter occurs", _SIX, _COUNTS, 7, _histogram),
        Task("double_histogram", "how many letters occur as often as this", _SIX, _COUNTS[:6], 7, _double_histogram),
        Task("sort", "the letters in order", _FIVE, _FIVE, 6, lambda body: [*sorted(body)], end=True),
        Task("most_frequent", "each letter once, the most frequent first", _SIX, (*_SIX, START), 7, _most_frequent),
        _dyck_task("dyck1", ("()",)),
        _dyck_task("dyck2", ("()", "{}")),
    )
}


def task(name: str) -> Task:
    """The task of that name. Raises `WrongUse` for any other."""
    if name not in TASKS:
        raise WrongUse(f"there is no task {name!r}.{nearest(name, TASKS)} There are: {', '.join(TASKS)}.")
    return TASKS[name]
