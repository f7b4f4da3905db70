"""Transformers built by hand: small models whose weights are set, each for one thing a transformer can or cannot do."""

from circuits.machines.machine import MACHINES, Machine, build
from circuits.machines.saved import load, save, wrapped

__all__ = ["MACHINES", "Machine", "build", "load", "save", "wrapped"]
