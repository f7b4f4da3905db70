"""Memory that rows are put in, and how it is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Shaped, UInt8
    from torch import Tensor

BLOCK = 4096  # bytes: what memory, place and length of a write past the page cache divide by


def memory(size: int) -> UInt8[Tensor, " size"]:
    """So many bytes of memory, beginning at a block.

    It is numpy's, which asks for huge pages: a hundredth of the page faults. Rows are scattered in 2/3 of the time, and
    gathered into fresh batches in 1/3.
    """
    made = np.empty(size + BLOCK, dtype=np.uint8)
    skip = -made.ctypes.data % BLOCK
    return torch.from_numpy(made[skip : skip + size])


def raw(x: Shaped[Tensor, "n w"]) -> memoryview:
    """The bytes of a contiguous tensor, shared with it."""
    return x.flatten().view(torch.uint8).numpy().data


def words(x: Shaped[Tensor, "n w"]) -> Shaped[Tensor, "n v"]:
    """The same rows in the widest words that a row divides into: fewer words, faster copies."""
    size = x.shape[1] * x.element_size()
    return x.view(next(w for w in (torch.int64, torch.int32, torch.int16, torch.int8) if size % w.itemsize == 0))
