"""Transformer programs: models that are trained and then are a program (Friedman, Wettig & Chen 2023)."""

from circuits.programs.measure import Scores, measure
from circuits.programs.printing import printed
from circuits.programs.program import Head, Program, Table, load
from circuits.programs.recipes import recipe, shipped
from circuits.programs.simplify import Simplified, simplify
from circuits.programs.tasks import TASKS, Task, task
from circuits.programs.trace import Trace, trace
from circuits.programs.training import Recipe, train

__all__ = [
    "TASKS",
    "Head",
    "Program",
    "Recipe",
    "Scores",
    "Simplified",
    "Table",
    "Task",
    "Trace",
    "load",
    "measure",
    "printed",
    "recipe",
    "shipped",
    "simplify",
    "task",
    "trace",
    "train",
]
