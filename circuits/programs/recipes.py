"""How each task is learnt, and the programs that ship."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from circuits.programs.training import Recipe
from interp.errors import check_keys

LEARNT = Path(__file__).with_name("learnt")  # a folder a program

RECIPES = {
    "histogram": Recipe(seeds=64, generations=1, layers=1, closest=1, count=1, tables=0, count_tables=0),
    "sort": Recipe(seeds=64, layers=1, closest=1, count=6, tables=0, count_tables=0),
    "reverse": Recipe(seeds=2048, generations=8, closest=1, count=0, count_tables=0, readable=True),
    "double_histogram": Recipe(seeds=2048, generations=12, closest=1, count=1, tables=0, readable=True),
    "most_frequent": Recipe(generations=20, closest=4, count=3, cold=0.03),
    "dyck1": Recipe(generations=8, batch=8, cold=0.03, closest=1, tables=0),
    "dyck2": Recipe(generations=14, batch=8, cold=0.03, closest=1, count=4, count_tables=2),
    "induction": Recipe(seeds=64, closest=2, count=0, tables=0, count_tables=0),
    "tagging": Recipe(seeds=2, generations=1, steps=1000, layers=1, count=0, count_tables=0, words=3, kinds=33),
    "classification": Recipe(seeds=32, generations=3, copies=24, layers=1, words=2, kinds=33),
}


def recipe(task: str, given: dict[str, Any] | None = None) -> Recipe:
    """The task's recipe with what is `given` instead. Raises `WrongUse` for a setting that there is not."""
    check_keys(given or {}, [f.name for f in fields(Recipe)], "the recipe")
    return replace(RECIPES.get(task, Recipe()), **(given or {}))


def shipped() -> dict[str, Path]:
    """Folders of the programs that ship, by task."""
    return {file.parent.name: file.parent for file in sorted(LEARNT.glob("*/simplified.json"))}
