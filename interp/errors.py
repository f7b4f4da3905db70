"""The two ways to fail: what was asked makes no sense, or it was tried and went wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WrongUse(ValueError):
    """The request itself is wrong; the message says what was asked, what exists nearby, and what to type. Exit 2."""


class Failed(RuntimeError):
    """A sensible request that could not be carried out; the message says why and what is left. Exit 1."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`" Did you mean 'a' or 'b'?"` for the closest names, or `""` if nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def check_keys(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `WrongUse` for the first key of `given` that is not in `known`, naming the nearest."""
    known = list(known)
    for key in given:
        if key not in known:
            raise WrongUse(f"{what} has no {key!r}.{nearest(key, known)} It has: {', '.join(sorted(known))}.")
