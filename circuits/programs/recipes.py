"""How each task is learnt, and the programs that ship."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from circuits.programs.training import Recipe
from interp.errors import check_keys

LEARNT = Path(__file__).with_name("learnt")  # a folder a program

CALM = Recipe(hot=1.0, cold=0.1, noise=0.3)  # where a step is of use only to later ones

RECIPES = {
    "histogram": Recipe(steps=1000, batch=32, layers=1, closest=1, count=1, tables=0, count_tables=0),
    "sort": Recipe(steps=1000, batch=64, layers=1, closest=1, count=6, tables=0, count_tables=0),
    "reverse": replace(CALM, seeds=16, steps=1200, batch=24, closest=4, count=0, tables=2, count_tables=0),
    "double_histogram": replace(CALM, seeds=16, steps=1000, batch=24, closest=1, count=3, tables=0, count_tables=2),
    "most_frequent": replace(CALM, seeds=8, steps=800, batch=24, closest=3, count=4),
    "dyck1": replace(CALM, seeds=16, steps=1500, batch=16, cold=0.03, closest=1, count=3, tables=0, count_tables=2),
    "dyck2": replace(CALM, seeds=12, steps=1000, batch=12, closest=2, count=4, count_tables=2, counts_vote=False),
    "induction": replace(CALM, seeds=16, steps=500, batch=24, closest=2, count=0, tables=0, count_tables=0),
    "tagging": replace(CALM, seeds=2, steps=1000, batch=16, layers=1, count=0, count_tables=0, words=3, kinds=33),
    "classification": replace(CALM, seeds=2, steps=500, batch=16, layers=1, words=2, kinds=33),
}


def recipe(task: str, given: dict[str, Any] | None = None) -> Recipe:
    """The task's recipe with what is `given` instead. Raises `WrongUse` for a setting that there is not."""
    check_keys(given or {}, [f.name for f in fields(Recipe)], "the recipe")
    return replace(RECIPES.get(task, Recipe()), **(given or {}))


def shipped() -> dict[str, Path]:
    """Folders of the programs that ship, by task."""
    return {file.parent.name: file.parent for file in sorted(LEARNT.glob("*/simplified.json"))}
