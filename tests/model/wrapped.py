"""Wrapped shapes, solved once for all tests of a file."""

from __future__ import annotations

from functools import cache

import torch

from interp.model import Model, load
from tests.model.shapes import module


@cache
def wrapped(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """One of the shapes, wrapped; shared between tests, so leave it as it is."""
    return load(module(name, dtype))
