"""What the distributions that a lens reads say, beside the model's own last one; see `interp.kernels.lens_statistics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.kernels import lens_statistics
from interp.kernels.lens_statistics import Found, slices
from interp.lenses.readout import Readout

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BYTES = {"cpu": 2**27, "cuda": 2**29}  # for what is held of some tokens at all sites


def statistics(
    head: Readout,
    states: Sequence[Float[Tensor, "n ..."]],
    mapped: Callable[[int, Float[Tensor, "n ..."]], Float[Tensor, "n ..."]],
    last: Float[Tensor, "n ..."],
    asked: Int[Tensor, "n m"],
    k: int,
) -> Found:
    """Of each of the `states` as `mapped` by its number to what the head reads, beside the `last` of the stream.

    Where the head is one linear layer its product is part of the op, and no scores are kept; else scores are made of a
    few tokens at a time.
    """
    linear = head.linear
    weight, bias, multiplier, cap = linear or (None, None, 1.0, 0.0)
    made, width = (head.normed, linear[0].shape[1]) if linear else (head, head.width)
    found = []
    for part in chunks(len(last), len(states) * width, last):
        h, h_f = torch.stack([made(mapped(i, x[part])) for i, x in enumerate(states)]), made(last[part])
        found.append(lens_statistics(h, h_f, weight, bias, multiplier, cap, asked[part].to(h.device), k))
    best, *others = zip(*found, strict=True)
    return Found(torch.cat(best), *(torch.cat(parts, dim=1) for parts in others))


def chunks(count: int, numbers: int, like: Tensor) -> Iterator[slice]:
    """Slices of `count` tokens that need so many numbers each, within the bytes allowed."""
    size = BYTES.get(like.device.type, 2**27) // (numbers * max(4, like.element_size()))
    return slices(max(1, count), size)
