"""Ops that are worth more than one form: see `registry` for the contract, docs/kernels.md for the list.

A new op is one file here with `reference` (and `cpu`, where that was measured to win), beside it NAME_triton.py where
there is one, and a line below.
"""

from __future__ import annotations

from interp.kernels.above import above
from interp.kernels.attention_statistics import attention_statistics
from interp.kernels.largest import largest
from interp.kernels.lens_statistics import lens_statistics
from interp.kernels.record_rows import record_rows
from interp.kernels.registry import FORMS, OPS, Op, counted
from interp.kernels.sddmm import sddmm
from interp.kernels.unpack_rows import unpack_rows
from interp.kernels.weight_gradient import weight_gradient

__all__ = [
    "FORMS",
    "OPS",
    "Op",
    "above",
    "attention_statistics",
    "counted",
    "largest",
    "lens_statistics",
    "record_rows",
    "sddmm",
    "unpack_rows",
    "weight_gradient",
]
