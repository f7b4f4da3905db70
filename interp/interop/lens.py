"""Hand a model over to TransformerLens."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from interp.errors import Failed, WrongUse

if TYPE_CHECKING:
    from interp.model import Model


def to_transformer_lens(model: Model) -> Any:
    """A TransformerLens `TransformerBridge` around a copy of the model, weights as they are.

    Raises `WrongUse` if TransformerLens is not installed or the model has no tokenizer, which a bridge cannot do without;
    `Failed` with TransformerLens' own reason where it has no adapter for the architecture.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise WrongUse("TransformerLens is not installed: pip install 'interp-kit[interop]'.") from error
    if model.tokenizer is None:
        raise WrongUse(f"{model.id} was loaded without a tokenizer, and a bridge needs one: load(..., tokenizer=...).")
    name = getattr(model.tokenizer, "name_or_path", "") or model.id
    try:
        # A copy: the bridge changes the attention setting of the model it wraps.
        return TransformerBridge.boot_transformers(
            name, hf_model=copy.deepcopy(model.module), tokenizer=model.tokenizer, device=str(model.device)
        )
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise Failed(f"TransformerLens cannot wrap {type(model.module).__name__}: {error}") from error
