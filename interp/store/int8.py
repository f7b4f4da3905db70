"""int8 rows: codes in groups of 128 features around a pivot, and how much of the variance they lose.

    y = x − pivot        scale_g = max over f in g of |y_f| / 127        code_f = round(y_f / scale_g)
    x̂ = pivot + scale · code

The pivot is the mean of the first rows, so that a feature with a large constant part does not take the codes of its group.
Scales are bfloat16: 8 bits of scale times 7 of code are exact in float32, so every machine reads the same x̂; they reach as
far as float32; and rounding them costs nothing, since the codes are relative to the rounded scale. `record_rows` writes them.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.kernels.unpack_rows import unpack_rows
from interp.store.memory import memory

if TYPE_CHECKING:
    from jaxtyping import BFloat16, Float, Float32, Float64, Int8
    from torch import Tensor

LOST = 0.1  # a feature that loses more than this share of its variance is counted as lost


@dataclass(frozen=True)
class Coding:
    """How the int8 rows of one site are read, and what they have lost so far."""

    pivot: Float32[Tensor, " width"]
    sums: Float64[Tensor, "3 width"]
    """Σ y, Σ y², Σ (x − x̂)² over the rows."""

    def fvu(self, rows: int) -> float:
        """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖², over the rows so far; 0 where nothing is lost."""
        return float(self.sums[2].sum() / self._variance(rows).sum())

    def lost(self, rows: int) -> int:
        """Features with an FVU of their own over 0.1: drowned by a larger one in their group, or as good as constant."""
        return int((self.sums[2] > LOST * self._variance(rows)).sum())

    def _variance(self, rows: int) -> Float64[Tensor, " width"]:
        """Σ y² − (Σ y)²/n."""
        return (self.sums[1] - self.sums[0].square() / rows).clamp(min=torch.finfo(torch.float64).tiny)

    def copy(self) -> Coding:
        """One with sums of its own."""
        return Coding(self.pivot, self.sums.clone())

    def as_json(self, rows: int) -> dict[str, Any]:
        """For the index; numbers of features as little-endian bytes in base64."""
        told = {"fvu": self.fvu(rows), "lost": self.lost(rows)}
        return told | {name: base64.b64encode(raw.numpy().tobytes()).decode() for name, raw in vars(self).items()}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Coding:
        """What `as_json` wrote."""
        pivot, sums = (bytearray(base64.b64decode(told[name])) for name in ("pivot", "sums"))
        return cls(
            torch.frombuffer(pivot, dtype=torch.float32), torch.frombuffer(sums, dtype=torch.float64).view(3, -1)
        )


def begun(x: Float[Tensor, "n width"]) -> Coding:
    """The coding of a site whose first rows are `x`: pivot = mean."""
    return Coding(x.mean(0, dtype=torch.float64).float(), torch.zeros(3, x.shape[1], dtype=torch.float64))


def decode(
    codes: Int8[Tensor, "n width"], scales: BFloat16[Tensor, "n groups"], pivot: Float32[Tensor, " width"]
) -> Float32[Tensor, "n width"]:
    """x̂ = pivot + scale · code, exact but for the rounding of the sum (`unpack_rows`). Floor, bytes a number: reads 1, writes 4."""
    rows = memory(4 * codes.numel()).view(torch.float32).view(codes.shape)
    unpack_rows(codes, scales, pivot, rows)
    return rows
