"""A model's logits for sequences of token ids, where each position may only know the ones before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.causal import leak
from interp.model.sweep import output_tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.model import Model


def logits_of(model: Model, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """The logits at every position, with gradients where the caller has them on."""
    return output_tensor(model.module(**model.inputs(ids)))


def check_causal(model: Model) -> None:
    """Raise `WrongUse` unless the model gives logits at every position that no later token changes."""
    ids = torch.tensor([[3, 5, 4, 3, 6, 4, 5, 3]], device=model.device)
    far = leak(model, model.inputs(ids), "input_ids")
    if far is None:
        raise WrongUse(f"{model.id} is given 8 tokens and has no logits at each of them: give a decoder.")
    if far > 1e-3:
        raise WrongUse(
            f"{model.id} is not causal: a later token changes its logits at earlier ones, so no function of the prefix is "
            "what it predicts. Give a decoder."
        )
