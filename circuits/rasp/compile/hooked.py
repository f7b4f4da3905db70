"""A compiled model as TransformerLens has it: the same weights, padded where TransformerLens wants all layers alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import Block, CompiledTransformer
from interp.errors import WrongUse

if TYPE_CHECKING:
    from torch import Tensor


def to_transformer_lens(compiled: Compiled) -> Any:
    """A `HookedTransformer` with the same logits; its input is `compiled.ids(...)`. Missing heads and neurons are zeros.

    Raises `WrongUse` if TransformerLens is not installed, and for a variant with norms.
    """
    if type(compiled.model) is not CompiledTransformer:
        raise WrongUse(f"a {compiled.variant} variant has norms, which are not taken along: give one without")
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise WrongUse("TransformerLens is not installed: pip install 'interp-kit[interop]'.") from error
    model = compiled.model
    weights = [block.weights() for block in model.blocks if isinstance(block, Block)]
    config = HookedTransformerConfig(
        n_layers=max(len(weights), 1),
        d_model=model.embed.embedding_dim,
        n_ctx=model.longest_input,
        d_head=_most(weights, ("W_Q", "W_V"), 2),
        n_heads=_most(weights, ("W_Q",), 0),
        d_mlp=_most(weights, ("W_in",), 1),
        d_vocab=model.embed.num_embeddings,
        d_vocab_out=model.unembed.out_features,
        act_fn="relu",
        normalization_type=None,
        attention_dir="causal" if model.causal else "bidirectional",
        use_attn_scale=False,
        default_prepend_bos=False,
        device="cpu",
        seed=0,
    )
    hooked = HookedTransformer(config)
    state = {name: torch.zeros_like(value) for name, value in hooked.named_parameters()}
    state |= {"embed.W_E": model.embed.weight, "pos_embed.W_pos": model.pos_embed.weight}
    state |= {"unembed.W_U": model.unembed.weight.t()}
    for i, block in enumerate(weights):
        for name, weight in block.items():
            place = state[f"blocks.{i}.{'attn' if name in ('W_Q', 'W_K', 'W_V', 'W_O') else 'mlp'}.{name}"]
            place[tuple(slice(size) for size in weight.shape)] = weight
    hooked.load_state_dict(state, strict=False)
    return hooked


def _most(weights: list[dict[str, Tensor]], names: tuple[str, ...], axis: int) -> int:
    """The greatest size of an axis in any layer, at least 1."""
    return max([1, *(block[name].shape[axis] for block in weights for name in names if name in block)])
