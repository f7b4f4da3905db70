"""The zoo: small trained models that ship inside the package."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    from interp.zoo.training import Task

WEIGHTS = Path(__file__).with_name("weights")
DICTIONARIES = Path(__file__).with_name("dictionaries")  # of these models, a folder each: MODEL/NAME
RECIPES = ("books", "brackets", "digits", "numbers", "numbers_decoder", "tones")


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


def dictionary_path(name: str) -> Path:
    """The folder of a bundled dictionary, MODEL/NAME. Raises `WrongUse`, naming what there is, for another name."""
    there = sorted(f"{c.parents[1].name}/{c.parent.name}" for c in DICTIONARIES.glob("*/*/config.json"))
    if name not in there:
        raise WrongUse(
            f"the zoo has no dictionary {name!r}.{nearest(name, there)} It has: {', '.join(there) or 'none'}."
        )
    return DICTIONARIES / name


def recipe_name(name: str) -> str:
    """The recipe behind a name: digits_3 is by that of digits, with another seed.

    Raises `WrongUse`, naming what there is, for a name without a recipe.
    """
    known = re.sub(r"_\d+$", "", name)
    if known not in RECIPES:
        raise WrongUse(f"the zoo has no recipe {name!r}.{nearest(name, RECIPES)} It has: {', '.join(RECIPES)}.")
    return known


def task(name: str) -> Task:
    """The file of a small model (any but `books`, which is trained on text that a user gives)."""
    return cast("Task", importlib.import_module(f"interp.zoo.{recipe_name(name)}"))
