"""Edits as JSON, exactly: tensors as nested lists, other runs by the values the edit needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from interp.errors import WrongUse, check_keys, nearest
from interp.model.cache import Cache
from interp.model.edits import KINDS, Edit
from interp.sites import canonical

TENSORS = ("value", "direction", "directions", "source")


def written(edit: Edit) -> dict[str, Any]:
    """{"edit": kind, field: value, ...} without the fields left at their defaults. Raises `WrongUse` for a function."""
    if type(edit).__name__ not in KINDS:
        raise WrongUse(f"{type(edit).__name__} cannot be written as JSON: only {', '.join(KINDS)} can.")
    told: dict[str, Any] = {"edit": type(edit).__name__}
    for f in fields(edit):
        value = getattr(edit, f.name)
        if isinstance(value, Tensor) or f.default is MISSING or value != f.default:
            told[f.name] = _write(value, edit)
    return told


def _write(value: Any, edit: Edit) -> Any:
    if isinstance(value, Tensor):
        numbers = _numbers(value.detach().cpu())
        kind = str(value.dtype).removeprefix("torch.")
        return numbers if kind == "float32" else {"dtype": kind, "values": numbers}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, Cache):
        return _write_cache(value, edit)
    if callable(value):
        raise WrongUse(
            f"{type(edit).__name__}({edit.site!r}) holds a Python function, which no file can hold: give a tensor instead."
        )
    return value


def _write_cache(cache: Cache, edit: Edit) -> dict[str, Any]:
    patterns = [edit.site] if isinstance(edit.site, str) else edit.site
    names = [n for n in cache if any(fnmatchcase(n, canonical(p, cache.post_norm)) for p in patterns)]
    told: dict[str, Any] = {"cache": {n: _write(cache[n], edit) for n in names}}
    if cache.mask is not None and not bool(cache.mask.all()):
        told["mask"] = cache.mask.tolist()
    return told | ({"post_norm": True} if cache.post_norm else {})


def _numbers(t: Tensor) -> Any:
    """A tensor as nested lists; infinities and NaN, which JSON lacks, as strings."""

    def plain(x: Any) -> Any:
        if isinstance(x, list):
            return [plain(y) for y in x]
        return x if not isinstance(x, float) or math.isfinite(x) else str(x)

    numbers = t.tolist()
    return numbers if bool(t.isfinite().all()) else plain(numbers)


# ---------------------------------------------------------------- and back


def edits_from_json(given: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[Edit]:
    """Edits from what `edit.to_json()` gave, one or a list. Plain lists of numbers are float32 tensors.

    Raises `WrongUse` for an unknown kind or key, naming the nearest, and for a missing field.
    """
    return [_read_edit(e) for e in ([given] if isinstance(given, Mapping) else given)]


def _read_edit(given: Any) -> Edit:
    if not isinstance(given, Mapping) or "edit" not in given:
        raise WrongUse(
            f'an edit is an object like {{"edit": "Zero", "site": "blocks.0.mlp.write"}}, not {given!r:.80}.'
        )
    kind = given["edit"]
    if kind not in KINDS:
        raise WrongUse(f"there is no edit {kind!r}.{nearest(str(kind), KINDS)} There are: {', '.join(KINDS)}.")
    rest = {k: v for k, v in given.items() if k != "edit"}
    known = {f.name: f for f in fields(KINDS[kind])}
    check_keys(rest, known, kind)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in rest]
    if missing:
        raise WrongUse(f"{kind} lacks {missing[0]!r}. It has: {', '.join(known)}.")
    return KINDS[kind](**{name: _read(name, value) for name, value in rest.items()})


def _read(name: str, value: Any) -> Any:
    if isinstance(value, Mapping) and "slice" in value:
        return slice(*value["slice"])
    if isinstance(value, Mapping) and "cache" in value:
        check_keys(value, ("cache", "mask", "post_norm"), f"{name}")
        mask = torch.tensor(value["mask"]) if "mask" in value else None
        tensors = {n: _tensor(v) for n, v in value["cache"].items()}
        return Cache(tensors, mask=mask, post_norm=value.get("post_norm", False))
    if (name in TENSORS and value is not None) or isinstance(value, Mapping):
        return _tensor(value)
    return value


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Mapping):
        check_keys(value, ("dtype", "values"), "a tensor")
        dtype = getattr(torch, str(value.get("dtype")), None)
        if not isinstance(dtype, torch.dtype) or "values" not in value:
            raise WrongUse(
                f'a tensor is a list of numbers or {{"dtype": "bfloat16", "values": [...]}}, not {value!r:.80}.'
            )
        return torch.tensor(_finite(value["values"]), dtype=dtype)
    try:
        return torch.tensor(_finite(value), dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise WrongUse(f"a tensor is a list of numbers, not {value!r:.80}: {error}") from error


def _finite(value: Any) -> Any:
    """Strings that stand for infinities and NaN as numbers."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return float(value) if isinstance(value, str) else value
