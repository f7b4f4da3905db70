"""Rows of a site from a GPU into the memory where they wait for the disk: they come over while the model runs on.

    stream of the model     forward t │ record_rows t │ forward t + 1 │ …
    stream of the copies                              │ rows t        │
    CPU                                append t − 1   │ … append t

Rows are gathered and put into the store's numbers where they are; the copies wait for that alone, and the CPU for the copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.kernels.record_rows import record_rows
from interp.store.memory import words

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64, Shaped

    from interp.store.int8 import Coding


@dataclass(frozen=True)
class Sent:
    """Rows of a site on their way, in pinned memory; they are there once `event` is past (None: now)."""

    values: Float[Tensor, "n width"]
    norms: Float[Tensor, " r"]
    columns: Sequence[Shaped[Tensor, "r w"]]
    sums: Float64[Tensor, "3 width"] | None
    event: Any

    def put(self, part: slice, slots: Int64[Tensor, " p"], ring: Sequence[Shaped[Tensor, "places w"]]) -> Tensor:
        """Some of them into `slots` of the ring, and their norms."""
        if self.event is not None:
            self.event.synchronize()
        for column, rows in zip(ring, self.columns, strict=True):
            words(column).numpy()[slots.numpy()] = words(rows[part]).numpy()
        return self.norms[part]


def elsewhere(values: Tensor) -> bool:
    """Whether rows are to be sent."""
    return values.is_cuda


def sent(
    values: Float[Tensor, "n width"],
    source: Int64[Tensor, " r"],
    columns: Sequence[tuple[int, torch.dtype]],
    coding: Coding | None,
) -> Sent:
    """Send the rows `source`, as columns of these widths and dtypes. Nothing here waits for the device."""
    device, count = values.device, len(source)
    made = [torch.empty(count, width, dtype=dtype, device=device) for width, dtype in columns]
    about = [_to(coding.pivot, device), torch.zeros_like(coding.sums, device=device)] if coding else []
    norms = record_rows(values, _to(source, device), torch.arange(count, device=device), *made, *about)
    leaving = [norms, *made, *about[1:]]
    if not values.is_cuda:
        return Sent(values, norms, made, about[1] if about else None, None)
    side = _copies(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        here = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in leaving]
    for t in leaving:
        t.record_stream(side)
    return Sent(values, here[0], here[1 : 1 + len(made)], here[-1] if coding else None, side.record_event())


def _to(t: Tensor, device: torch.device) -> Tensor:
    """From pinned memory: from other memory a copy waits for all that the device has been given to do."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


@cache
def _copies(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
