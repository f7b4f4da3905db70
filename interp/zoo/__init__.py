"""The zoo: small trained models that ship inside the package."""

from __future__ import annotations

from pathlib import Path

from interp.errors import WrongUse, nearest

WEIGHTS = Path(__file__).with_name("weights")


def names() -> list[str]:
    """The bundled models, by name."""
    return sorted(config.parent.name for config in WEIGHTS.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of a bundled model, a Hugging Face checkpoint with its tokenizer.

    Raises `WrongUse`, naming what there is, for a name that is not bundled.
    """
    if name not in names():
        raise WrongUse(f"the zoo has no {name!r}.{nearest(name, names())} It has: {', '.join(names()) or 'nothing'}.")
    return WEIGHTS / name
