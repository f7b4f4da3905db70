"""What an operator makes of atoms. The same table serves `1+2` and, element by element, s-ops."""

from __future__ import annotations

import math
import operator
import re
import reprlib
from collections.abc import Callable
from typing import Any

from circuits.rasp.errors import RaspError
from circuits.rasp.syntax import Atom

BITS = 10_000  # of an integer
ITEMS = 100_000  # of a string or list
LEVELS = 100  # of lists in lists that are compared

TYPES = {bool: "bool", int: "int", float: "float", str: "string"}


def is_atom(value: object) -> bool:
    """Whether value is an int, float, str or bool."""
    return type(value) in TYPES


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxlong = 2, 8, 8, 60, 60


def brief(value: object) -> str:
    """A value in an error message: cut where it is long or deep."""
    return _short.repr(value)


def size(value: object) -> int:
    """How much work it is to copy or compare the value: the atoms in a list or dict, an eighth of a string's length.

    Raises `RaspError` for more than `ITEMS` and for lists more than `LEVELS` deep.
    """
    if isinstance(value, str):
        return len(value) // 8
    level: list[Any] = [value]
    total = 0
    for _ in range(LEVELS):
        total += len(level)
        if total > ITEMS:
            raise RaspError(f"a list of more than {ITEMS:,} elements")
        nested = [each for each in level if isinstance(each, list | dict)]
        if not nested:
            return total
        level = [item for each in nested for item in (each.values() if isinstance(each, dict) else each)]
    raise RaspError(f"lists nested more than {LEVELS} deep")


def apply(op: str, *values: Any) -> Any:
    """The value of `op` on these values (atoms; for `in` and `index` also a list or dict).

    Raises `RaspError` where Python raises, and for results over `BITS`, over `ITEMS`, infinite or complex.
    """
    try:
        return checked(OPS[op](*values))
    except RaspError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise RaspError(_said(op, values, error)) from None


def compare(op: str, keys: list[Any], query: Any) -> bytes:
    """A selector's row: 1 where key op query holds. Raises `RaspError` where they cannot be compared."""
    holds = OPS[op]
    try:
        return bytes(holds(key, query) for key in keys)
    except TypeError as error:
        raise RaspError(f"{error} (selecting with query {brief(query)})") from None


def sequence_type(values: list[Any]) -> str:
    """`bool`, `int` (bools among them too), `float` (any numbers) or `string`; the values stay as they are.

    Raises `RaspError` for anything else, and for strings among others.
    """
    types = {type(value) for value in values}
    if not types <= TYPES.keys():
        raise RaspError(f"a sequence holds bools, ints, floats or strings, not {_listed(values)}")
    if str in types and len(types) > 1:
        raise RaspError(f"a sequence with values of different types: {_listed(values)}")
    return TYPES[max(types, key=list(TYPES).index)]


def _listed(values: list[Any]) -> str:
    text = ", ".join(brief(v) if is_atom(v) else type(v).__name__ for v in values[:8])
    return f"({text}{', ...' if len(values) > 8 else ''})"


def _said(op: str, values: tuple[Any, ...], error: Exception) -> str:
    shown = ", ".join(brief(v) for v in values)
    if isinstance(error, KeyError):
        return f"no key {brief(values[-1])} in the dict"
    return f"{error} (in {op} of {shown})"


def checked(value: Any) -> Any:
    """The value itself. Raises `RaspError` if it is too large, infinite, complex or no number."""
    if type(value) is int and value.bit_length() > BITS:
        raise RaspError(f"an integer of more than {BITS:,} bits")
    if isinstance(value, complex) or (type(value) is float and not math.isfinite(value)):
        raise RaspError(f"{value} is not a number that RASP has")
    if isinstance(value, str | list) and len(value) > ITEMS:
        raise RaspError(f"a string or list of more than {ITEMS:,} elements")
    return value


def _times(a: Any, b: Any) -> Any:
    for text, count in ((a, b), (b, a)):
        if isinstance(text, str | list) and isinstance(count, int) and len(text) * count > ITEMS:
            raise RaspError(f"a string or list of more than {ITEMS:,} elements")
    return a * b


def _power(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int) and a.bit_length() * b > BITS and abs(a) > 1:
        raise RaspError(f"an integer of more than {BITS:,} bits")
    return a**b


def _remainder(a: Any, b: Any) -> Any:
    """The remainder of numbers; of a string and an atom, the string with the atom put in, as Python does it."""
    if isinstance(a, str):
        if not is_atom(b):
            raise RaspError(f"`%` puts an atom into a string, got: {brief(b)}")
        if any(len(digits) > 5 or int(digits) > ITEMS for digits in re.findall("[0-9]+", a)):
            raise RaspError(f"a string of more than {ITEMS:,} elements")
    return a % b


def _round(a: Any) -> int:
    if isinstance(a, str):
        raise RaspError(f"round expects numbers, got: {brief(a)}")
    return round(a)


def _index(container: Any, place: Any) -> Any:
    if isinstance(container, dict):
        return container[place]
    if not isinstance(place, int):
        raise RaspError(f"index into list has to be s-op or integer, got: {brief(place)}")
    if not -len(container) <= place < len(container):
        raise RaspError(f"index {place} out of range for a length of {len(container)}")
    return container[place]


OPS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": _times,
    "/": operator.truediv,
    "%": _remainder,
    "^": _power,
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "and": lambda a, b: bool(a and b),  # of s-ops; of two atoms one of them
    "or": lambda a, b: bool(a or b),
    "not": operator.not_,
    "minus": operator.neg,
    "plus": operator.pos,
    "round": _round,
    "indicator": lambda a: 1 if a else 0,
    "if": lambda condition, value, other: value if condition else other,
    "in": lambda a, container: a in container,
    "index": _index,
}


CASTS: dict[str, Callable[[Atom], Atom]] = {
    "tokens_asis": lambda token: token,
    "tokens_str": str,
    "tokens_int": int,
    "tokens_float": float,
    "tokens_bool": bool,
}
