"""Random tiny models of the shapes the wrapper is proven on. Every parameter is moved away from its default."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import nn

from interp.model.twin import randomise

TEXT: dict[str, Any] = dict(vocab_size=61, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LAYERS: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
GQA: dict[str, Any] = LAYERS | dict(num_key_value_heads=2, head_dim=8, intermediate_size=48)

BUILD: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, TEXT | dict(n_embd=32, n_layer=3, n_head=4, n_positions=64)),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, TEXT | GQA),
    "pythia": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, TEXT | LAYERS | dict(intermediate_size=48)),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, TEXT | GQA | dict(sliding_window=4)),
    "bert": (hf.BertForMaskedLM, hf.BertConfig, TEXT | LAYERS | dict(intermediate_size=48)),
    "t5": (
        hf.T5ForConditionalGeneration,
        hf.T5Config,
        TEXT | dict(d_model=32, d_kv=8, num_layers=3, num_heads=4, d_ff=48, decoder_start_token_id=0),
    ),
    "vit": (
        hf.ViTForImageClassification,
        hf.ViTConfig,
        LAYERS | dict(intermediate_size=48, image_size=16, patch_size=8),
    ),
    "mamba": (hf.MambaForCausalLM, hf.MambaConfig, TEXT | dict(hidden_size=32, num_hidden_layers=3, state_size=4)),
    # Not named anywhere in the toolkit or its data table:
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, TEXT | GQA),
    "opt": (
        hf.OPTForCausalLM,
        hf.OPTConfig,
        TEXT | LAYERS | dict(ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32),
    ),
}
NAMED = ["gpt2", "llama", "pythia", "gemma2", "bert", "t5", "vit", "mamba"]
CAUSAL = ["gpt2", "llama", "pythia", "gemma2", "mamba", "qwen3", "opt"]


@cache
def module(name: str, dtype: torch.dtype = torch.float32, seed: int = 3) -> nn.Module:
    """One of the shapes, randomised; shared between tests, so leave it as it is."""
    kind, config, options = BUILD[name]
    torch.manual_seed(seed)
    built = kind(config(**options)).eval()
    randomise(built, seed)
    with torch.no_grad():
        for p in built.parameters():
            p.mul_(0.7)  # keep float32 errors of three random blocks small
    return built.to(dtype)
