"""Dictionaries in every format: which one a folder is of, and from one to another.

A format is a module: NAME, HOLDS (its files), `found(path)`, `read(path)`, and `write(dictionary, path, about)`, which
returns what the format has no place for and raises where that would change a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.dictionaries.dictionary import Dictionary
from interp.errors import WrongUse, nearest
from interp.interop import circuit_tracer, dictionary_learning, gemma_scope, own, saelens, sparsify
from interp.interop.parts import Read

FORMATS: dict[str, Any] = {
    format.NAME: format for format in (saelens, sparsify, dictionary_learning, gemma_scope, circuit_tracer, own)
}


def detect(path: str | Path) -> Any:
    """The format that `path` is of. Raises `WrongUse` listing the formats, and what was found there."""
    path = Path(path)
    for format in FORMATS.values():
        if format.found(path):
            return format
    if not path.exists():
        raise WrongUse(f"{path} does not exist.")
    inside = sorted(child.name for child in path.iterdir())[:8] if path.is_dir() else [path.name]
    formats = "; ".join(f"{name}: {format.HOLDS}" for name, format in FORMATS.items())
    raise WrongUse(f"{path} is no dictionary: it holds {', '.join(inside) or 'nothing'}. Formats are {formats}.")


def read(path: str | Path) -> Read:
    """The dictionary in a folder of any format, or in the folder of a file of one, and what is said beside it."""
    path = Path(path)
    if path.is_file() and not any(format.found(path) for format in FORMATS.values()):
        path = path.parent
    return detect(path).read(path)


def write(D: Dictionary, path: str | Path, to: str, about: dict[str, Any] | None = None) -> list[str]:
    """Write a dictionary in the format named `to`; returns what that format has no place for.

    Raises `WrongUse` if there is no such format, or it cannot hold what this dictionary computes; nothing is then left.
    """
    name = to.replace("-", "_")
    if name not in FORMATS:
        raise WrongUse(f"There is no format {to!r}.{nearest(name, FORMATS)} Formats are {', '.join(FORMATS)}.")
    path = Path(path)
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        return FORMATS[name].write(D, path, about or {})
    except WrongUse:
        if new:
            path.rmdir()
        raise
