"""TransformerLens' HookedTransformer and TransformerBridge, `run_with_cache`. Run by benchmarks/record.py in .bench/tl."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

sys.path.insert(0, str(Path(__file__).parent))
from recording import Recorder, serve

NAMES = {"residuals": ("hook_resid_post",), "outputs": ("hook_resid_post", "hook_attn_out", "hook_mlp_out")}


def hooked(net: Any) -> HookedTransformer:
    """A HookedTransformer with the same weights."""
    c = net.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_heads=c.n_head, d_head=c.n_embd // c.n_head, d_mlp=4 * c.n_embd,
        d_vocab=c.vocab_size, n_ctx=c.n_positions, act_fn="gelu_new", normalization_type="LN", device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config)
    model.load_and_process_state_dict(
        convert_gpt2_weights(net, config), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return model.eval()


def build(net: nn.Module, ids: Tensor, folder: Path, recorder: str) -> Recorder:
    model: Any = hooked(net) if recorder == "HookedTransformer" else None
    if model is None:
        model = TransformerBridge.boot_transformers(str(folder), device="cpu")

    def record(group: str) -> list[Tensor]:
        wanted = NAMES.get(group)
        keep = None if wanted is None else lambda name: name.endswith(wanted)
        with torch.no_grad():
            return list(model.run_with_cache(ids, names_filter=keep)[1].values())

    return {group: lambda group=group: record(group) for group in (*NAMES, "everything")}


if __name__ == "__main__":
    serve(build, {"transformer-lens": version("transformer-lens"), "transformers": version("transformers")})
