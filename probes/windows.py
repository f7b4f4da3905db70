"""What geometry is measured on: full windows of text, token ids, or ready inputs, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from interp.model.model import Model

Data = str | Iterable[str] | Tensor | Mapping[str, Tensor]  # a text, texts, ids [window, pos], ready inputs


def full_windows(model: Model, texts: str | Iterable[str], context: int, tokens: int) -> Int[Tensor, "window pos"]:
    """Windows of exactly `context` tokens, until there are `tokens` of them (at least one window); shorter ones are left out.

    Raises `WrongUse` if no text is as long as a window, and for a window without room for a token.
    """
    from interp.store.recording import windows

    if context < 2:
        raise WrongUse(f"a window of {context} tokens has nothing to compare: give --context 2 or more.")
    given, longest = [texts] if isinstance(texts, str) else texts, 0
    found: list[list[int]] = []
    for _, ids in windows(model, given, context):
        longest = max(longest, len(ids))
        if len(ids) == context:
            found.append(ids)
        if len(found) >= max(1, tokens // context):
            break
    if not found:
        raise WrongUse(
            f"the text is shorter than the window: {longest} tokens at most, for windows of {context}. Give a longer text, "
            f"or a shorter window (--context {max(2, longest)})."
        )
    return torch.tensor(found, device=model.device)


def batches(
    model: Model, data: Data, context: int, tokens: int, batch: int
) -> Iterator[tuple[Any, Bool[Tensor, "batch pos"] | None]]:
    """(Input of the model, which positions are kept): all but a beginning-of-sequence token, an outlier everywhere, and padding.

    None: every position, of inputs that are no tokens.
    """
    if isinstance(data, Mapping):
        count = len(next(iter(data.values())))
        for start in range(0, count, batch):
            part = {name: t[start : start + batch].to(model.device) for name, t in data.items()}
            mask = part.get("attention_mask")
            yield part, None if mask is None else mask.bool()
        return
    if isinstance(data, Tensor):
        if data.ndim != 2 or data.is_floating_point() or not data.numel():
            raise WrongUse(f"token ids are [window, pos], one or more of each; these are {tuple(data.shape)}.")
        ids = data.to(model.device)
    else:
        ids = full_windows(model, data, context, tokens)
    bos = getattr(model.tokenizer, "bos_token_id", None)
    for part in ids.split(batch):
        keep = torch.ones_like(part, dtype=torch.bool)
        keep[:, 0] = part[:, 0] != bos if bos is not None else True
        yield part, keep


def token_windows(model: Model, data: Data, context: int, tokens: int) -> Int[Tensor, "window pos"]:
    """All windows at once, of token ids. Raises `WrongUse` for ready inputs without them."""
    if isinstance(data, Mapping):
        if "input_ids" not in data:
            raise WrongUse(f"tokens are moved about here, and the inputs have none: {', '.join(data)}.")
        return data["input_ids"].to(model.device)
    return torch.cat([x for x, _ in batches(model, data, context, tokens, 64)])


def of_windows(t: Tensor, keep: Bool[Tensor, "batch pos"] | None) -> list[Tensor]:
    """The kept positions of each window of a site [batch, pos, ...], as copies [kept, d]."""
    if keep is None or keep.shape != t.shape[:2]:
        return [part.flatten(1).clone() for part in t]
    return [part[k.to(part.device)].flatten(1) for part, k in zip(t, keep, strict=True)]
