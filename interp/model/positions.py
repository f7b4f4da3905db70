"""Where the columns of a forward pass stand in each prompt: real tokens are counted from 0, padding is -1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

Pos = int | slice | list[int] | str | Tensor  # "all" | "prompt" | "generated" | "last"


@dataclass(frozen=True)
class Positions:
    """`index` [batch, pos]: the position of each column in its own prompt; `prompt` [batch]: prompt lengths, if generating."""

    index: Int[Tensor, "batch pos"]
    prompt: Int[Tensor, "batch"] | None = None

    def select(self, pos: Pos) -> Bool[Tensor, "batch pos"]:
        """Which columns `pos` means. Negative integers count from each prompt's last real token.

        Raises `WrongUse` for a word it does not know or a mask of another shape.
        """
        index, real = self.index, self.index >= 0
        last = index.amax(dim=1, keepdim=True)
        if isinstance(pos, Tensor) and pos.dtype == torch.bool:
            if pos.shape != index.shape:
                raise WrongUse(
                    f"pos is a mask of shape {tuple(pos.shape)}, but this pass has {tuple(index.shape)} tokens."
                )
            return pos.to(index.device) & real
        if isinstance(pos, str):
            return self._word(pos, last) & real
        if isinstance(pos, slice):
            start, stop, step = pos.indices(int(last.max()) + 1)
            return (index >= start) & (index < stop) & ((index - start) % step == 0) & real
        wanted = torch.as_tensor(pos, device=index.device).reshape(-1)
        exact = torch.where(wanted < 0, last[..., None] + 1 + wanted, wanted)
        return (index[..., None] == exact).any(-1) & real

    def _word(self, word: str, last: Tensor) -> Tensor:
        everywhere = torch.ones_like(self.index, dtype=torch.bool)
        if word == "all":
            return everywhere
        if word == "last":
            return self.index == last
        if word in ("prompt", "generated"):
            if self.prompt is None:
                return everywhere if word == "prompt" else ~everywhere
            inside = self.index < self.prompt[:, None].to(self.index.device)
            return inside if word == "prompt" else ~inside
        raise WrongUse(
            f"pos={word!r} means nothing here: use an int, a slice, a list, a mask, 'all', 'prompt', 'generated' or 'last'."
        )


def of_call(arguments: Mapping[str, Any], prefix: str = "", prompt: Tensor | None = None) -> Positions | None:
    """Positions of a forward call from its mask, its tokens and its cache; `prefix="decoder_"` for a decoder's."""
    tokens = next(
        (arguments[k] for k in (f"{prefix}input_ids", f"{prefix}inputs_embeds") if arguments.get(k) is not None), None
    )
    mask, cache = arguments.get(f"{prefix}attention_mask"), arguments.get("past_key_values")
    if tokens is None:
        return None
    batch, length = tokens.shape[:2]
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        index = (mask.long().cumsum(1) - 1).masked_fill(mask == 0, -1)[:, -length:]
        return Positions(index, prompt)
    past = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
    return Positions(torch.arange(past, past + length, device=tokens.device).expand(batch, -1), prompt)
