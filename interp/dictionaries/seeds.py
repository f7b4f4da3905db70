"""Numbers of several runs that differ in their seed alone: their mean, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """mean ± half: 95 % of such intervals hold the true mean, if the values are normal; half is NaN for one value."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if self.half > 0 else "")


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of n values: mean ± t_{.975, n−1} s/√n, s² = Σ (v − mean)²/(n − 1)."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Interval(mean, float("nan"))
    s = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    return Interval(mean, float(t.ppf(0.975, n - 1)) * s / n**0.5)
