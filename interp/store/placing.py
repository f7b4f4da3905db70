"""Rows of a site into the memory where they wait for the disk, in the store's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from interp.kernels.record_rows import record_rows
from interp.store.memory import words

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped
    from torch import Tensor

    from interp.store.int8 import Coding

Norms = Callable[[], "Float[Tensor, ' r']"]


def placed(
    values: Float[Tensor, "n width"],
    source: Int64[Tensor, " r"],
    slots: Int64[Tensor, " r"],
    ring: Sequence[Shaped[Tensor, "places w"]],
    coding: Coding | None,
) -> Norms:
    """Begin to put the rows `source` into `slots` of the ring: rows, and scales of int8. What is returned ends it: norms."""
    if values.is_cuda:
        return brought(values, source, slots, ring, coding)
    norms = record_rows(values.cpu(), source, slots, *ring, *((coding.pivot, coding.sums) if coding else ()))
    return lambda: norms


def brought(
    values: Float[Tensor, "n width"],
    source: Int64[Tensor, " r"],
    slots: Int64[Tensor, " r"],
    ring: Sequence[Shaped[Tensor, "places w"]],
    coding: Coding | None,
) -> Norms:
    """`placed` by way of the device where the rows are made ready: their bytes come over while those of other sites are made."""
    device, count = values.device, len(slots)
    made = [torch.empty(count, column.shape[1], dtype=column.dtype, device=device) for column in ring]
    about = [coding.pivot.to(device), torch.zeros_like(coding.sums, device=device)] if coding else []
    norms = record_rows(values, source.to(device), torch.arange(count, device=device), *made, *about)
    here = [
        torch.empty(t.shape, dtype=t.dtype, pin_memory=values.is_cuda).copy_(t, non_blocking=True)
        for t in (norms, *made, *about[1:])
    ]

    def end() -> Float[Tensor, " r"]:
        if values.is_cuda:
            torch.cuda.current_stream(device).synchronize()
        for column, rows in zip(ring, here[1:], strict=False):
            words(column).numpy()[slots.numpy()] = words(rows).numpy()
        if coding:
            coding.sums.add_(here[-1])
        return here[0]

    return end
