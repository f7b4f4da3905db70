"""A model's logits for sequences of token ids, where each position may only know the ones before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.sweep import output_tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.model import Model


def logits_of(model: Model, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """The logits at every position, with gradients where the caller has them on."""
    return output_tensor(model.module(**model.inputs(ids)))


@torch.no_grad()
def check_causal(model: Model) -> None:
    """Raise `WrongUse` unless the model gives logits at every position that no later token changes."""
    ids = torch.tensor([[3, 5, 4, 3, 6, 4, 5, 3]], device=model.device)
    other = ids.clone()
    other[0, -1] = 7
    logits = logits_of(model, ids)
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise WrongUse(f"{model.id} gives {tuple(logits.shape)} for 8 tokens: it has no logits at each of them.")
    change = (logits - logits_of(model, other))[:, :-1].abs().max() / logits.abs().max()
    if float(change) > 1e-3:
        raise WrongUse(
            f"{model.id} is not causal: a later token changes its logits at earlier ones, so no function of the prefix is "
            "what it predicts. Give a decoder."
        )
