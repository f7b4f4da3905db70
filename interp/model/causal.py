"""Whether a model's predictions know only what stands before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.model.sweep import output_tensor

if TYPE_CHECKING:
    from interp.model import Model


@torch.no_grad()
def leak(model: Model, inputs: Mapping[str, Tensor], name: str) -> float | None:
    """‖z(x') - z(x)‖ / ‖z(x)‖ of the logits at all tokens but the last, where x' has another last token: 0 if it is causal.

    x are the tokens inputs[name] [batch, pos]. None where there are no logits at each of them.
    """
    ids = inputs[name].clone()
    ids[:, -1] = torch.where(ids[:, -1] == ids[:, -2], ids[:, 0], ids[:, -2])
    z, other = (output_tensor(model.module(**x)) for x in (inputs, {**inputs, name: ids}))
    if z.ndim != 3 or z.shape[:2] != ids.shape:
        return None
    before = z[:, :-1].double()
    return float((other[:, :-1].double() - before).norm() / before.norm().clamp(min=1e-300))
