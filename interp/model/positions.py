"""Where the columns of a forward pass stand in each prompt: real tokens are counted from 0, padding is -1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """`index` [batch, pos]: the position of each column in its own prompt; `prompt` [batch]: prompt lengths, if generating.

    `keys` [batch, key]: the same for every column a query may look back at, where the pass says so.
    """

    index: Int[Tensor, "batch pos"]
    prompt: Int[Tensor, "batch"] | None = None
    keys: Int[Tensor, "batch key"] | None = None

    def to(self, device: torch.device) -> Positions:
        """The same on another device."""
        moved = (None if t is None else t.to(device) for t in (self.prompt, self.keys))
        return Positions(self.index.to(device), *moved)

    def row(self, number: int) -> Positions:
        """One prompt's positions."""
        part = (None if t is None else t[number : number + 1] for t in (self.prompt, self.keys))
        return Positions(self.index[number : number + 1], *part)

    def select(self, pos: Pos) -> Bool[Tensor, "batch pos"]:
        """Which columns `pos` means. "last" and negative integers count from each prompt's last real token.

        While generating they still mean the prompt's, so that a KV cache makes no difference. Raises `WrongUse` for a
        word it does not know, a mask of another shape, and a slice that runs backwards.
        """
        index, real = self.index, self.index >= 0
        last = index.amax(1, keepdim=True) if self.prompt is None else self.prompt[:, None].to(index.device) - 1
        if isinstance(pos, Tensor) and pos.dtype == torch.bool:
            if pos.shape != index.shape:
                raise WrongUse(
                    f"pos is a mask of shape {tuple(pos.shape)}, but this pass has {tuple(index.shape)} tokens."
                )
            return pos.to(index.device) & real
        if isinstance(pos, str):
            return self._word(pos, last) & real
        if isinstance(pos, slice):
            return self._slice(pos, last + 1) & real
        wanted = torch.as_tensor(pos, device=index.device).reshape(-1)
        exact = torch.where(wanted < 0, last[..., None] + 1 + wanted, wanted)
        return (index[..., None] == exact).any(-1) & real

    def _slice(self, pos: slice, length: Tensor) -> Tensor:
        if pos.step is not None and pos.step < 1:
            raise WrongUse(f"pos={pos!r} runs backwards: give a step of 1 or more.")
        start, stop = (
            None if p is None else (length + p).clamp(min=0) if p < 0 else torch.full_like(length, p)
            for p in (pos.start, pos.stop)
        )
        start = torch.zeros_like(length) if start is None else start
        inside = (self.index >= start) & ((self.index - start) % (pos.step or 1) == 0)
        return inside if stop is None else inside & (self.index < stop)

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


Where = Callable[[str, Tensor], Positions]  # of a site and its tensor


def of_call(
    arguments: Mapping[str, Any], prefix: str = "", prompt: Tensor | None = None, before: Positions | None = None
) -> Positions | None:
    """Positions of a forward call from its mask, its tokens and its cache; `prefix="decoder_"` for a decoder's.

    `prompt`: prompt lengths, while generating. `before`: the pass before, for models whose later passes get neither a
    mask nor a cache that tells its length (recurrent states).
    """
    tokens = next(
        (arguments[k] for k in (f"{prefix}input_ids", f"{prefix}inputs_embeds") if arguments.get(k) is not None), None
    )
    mask, cache = arguments.get(f"{prefix}attention_mask"), arguments.get("past_key_values")
    if tokens is None and not prefix:  # a model of one's own calls them as it likes
        mine = (v for k, v in arguments.items() if not k.startswith("decoder_"))
        tokens = next((v for v in mine if isinstance(v, Tensor) and v.dtype == torch.int64 and v.ndim == 2), None)
    if tokens is None:
        return None
    batch, length = tokens.shape[:2]
    if prompt is not None and len(prompt) != batch:  # several samples, or beams, of each prompt
        prompt = prompt.repeat_interleave(batch // len(prompt))
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        keys = (mask.long().cumsum(1) - 1).masked_fill(mask == 0, -1)
        return Positions(keys[:, -length:], prompt, keys)
    here = torch.arange(length, device=tokens.device).expand(batch, -1)
    if cache is not None and hasattr(cache, "get_seq_length"):
        return Positions(here + int(cache.get_seq_length()), prompt)
    state = arguments.get("cache_params")
    return Positions(here if state is None or before is None else here + before.index[:, -1:] + 1, prompt)
