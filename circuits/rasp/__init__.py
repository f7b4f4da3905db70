"""RASP, the language whose programs are steps that a transformer can do (Weiss, Goldberg, Yahav 2021)."""

from circuits.rasp.analysis import Cost, cost
from circuits.rasp.errors import RaspError
from circuits.rasp.evaluate import Matrix, Sequence, evaluate
from circuits.rasp.interpreter import Interpreter, run
from circuits.rasp.parser import parse
from circuits.rasp.traps import traps

__all__ = ["Cost", "Interpreter", "Matrix", "RaspError", "Sequence", "cost", "evaluate", "parse", "run", "traps"]
