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
# Every other architecture the wrapper is tried on by name.
MLP: dict[str, Any] = dict(intermediate_size=48)
PLAIN: dict[str, Any] = TEXT | LAYERS | MLP | dict(max_position_embeddings=64)
PICTURE: dict[str, Any] = LAYERS | MLP | dict(image_size=16, patch_size=8, num_channels=3)
EXPERTS: dict[str, Any] = dict(num_experts_per_tok=2)
BOTH_WAYS: dict[str, Any] = dict(d_model=32, encoder_layers=3, decoder_layers=3, encoder_ffn_dim=48, decoder_ffn_dim=48)
BOTH_WAYS |= dict(encoder_attention_heads=4, decoder_attention_heads=4)
MORE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gptj": (
        hf.GPTJForCausalLM,
        hf.GPTJConfig,
        TEXT | dict(n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4),
    ),
    "gpt_neo": (
        hf.GPTNeoForCausalLM,
        hf.GPTNeoConfig,
        PLAIN
        | dict(num_layers=3, num_heads=4, window_size=4, attention_types=[[["global", "local"], 1], [["global"], 1]]),
    ),
    "opt after norm": (
        hf.OPTForCausalLM,
        hf.OPTConfig,
        PLAIN | dict(ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False),
    ),
    "bloom": (hf.BloomForCausalLM, hf.BloomConfig, TEXT | dict(hidden_size=32, n_layer=3, n_head=4)),
    "falcon one key head": (hf.FalconForCausalLM, hf.FalconConfig, TEXT | LAYERS | dict(multi_query=True, bias=True)),
    "falcon grouped": (
        hf.FalconForCausalLM,
        hf.FalconConfig,
        TEXT | LAYERS | dict(new_decoder_architecture=True, num_kv_heads=2),
    ),
    "falcon alibi": (
        hf.FalconForCausalLM,
        hf.FalconConfig,
        TEXT | LAYERS | dict(alibi=True, multi_query=False, parallel_attn=False, bias=True),
    ),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, TEXT | GQA | dict(sliding_window=4)),
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig, TEXT | GQA | EXPERTS | dict(num_local_experts=4)),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, TEXT | GQA | dict(sliding_window=4)),
    "qwen3_moe": (
        hf.Qwen3MoeForCausalLM,
        hf.Qwen3MoeConfig,
        TEXT | GQA | EXPERTS | dict(num_experts=4, moe_intermediate_size=16),
    ),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, TEXT | LAYERS | MLP | dict(num_key_value_heads=2)),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config, TEXT | LAYERS | MLP | dict(num_key_value_heads=2)),
    "granite": (
        hf.GraniteForCausalLM,
        hf.GraniteConfig,
        TEXT
        | GQA
        | dict(logits_scaling=3.0, residual_multiplier=0.7, embedding_multiplier=2.0, attention_multiplier=0.3)
        | dict(attention_bias=True),
    ),
    "gpt_oss": (
        hf.GptOssForCausalLM,
        hf.GptOssConfig,
        TEXT | GQA | EXPERTS | dict(num_local_experts=4, sliding_window=4, max_position_embeddings=64),
    ),
    "bitnet": (hf.BitNetForCausalLM, hf.BitNetConfig, TEXT | GQA),
    "falcon_mamba": (
        hf.FalconMambaForCausalLM,
        hf.FalconMambaConfig,
        TEXT | dict(hidden_size=32, num_hidden_layers=3, state_size=4),
    ),
    "mamba2": (
        hf.Mamba2ForCausalLM,
        hf.Mamba2Config,
        TEXT
        | dict(hidden_size=32, num_hidden_layers=3, state_size=4, num_heads=4, head_dim=16, n_groups=2, chunk_size=4),
    ),
    "jamba": (
        hf.JambaForCausalLM,
        hf.JambaConfig,
        TEXT
        | GQA
        | EXPERTS
        | dict(num_experts=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1)
        | dict(mamba_d_state=4, mamba_dt_rank=4),
    ),
    "roberta": (
        hf.RobertaForMaskedLM,
        hf.RobertaConfig,
        TEXT | LAYERS | MLP | dict(max_position_embeddings=66),
    ),
    "albert": (hf.AlbertForMaskedLM, hf.AlbertConfig, PLAIN | dict(embedding_size=16)),
    "deberta": (
        hf.DebertaV2ForMaskedLM,
        hf.DebertaV2Config,
        PLAIN
        | dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, position_biased_input=False)
        | dict(share_att_key=True, norm_rel_ebd="layer_norm"),
    ),
    "modernbert": (
        hf.ModernBertForMaskedLM,
        hf.ModernBertConfig,
        PLAIN | dict(local_attention=4, cls_token_id=1, sep_token_id=2),
    ),
    "bart": (
        hf.BartForConditionalGeneration,
        hf.BartConfig,
        TEXT | BOTH_WAYS | dict(max_position_embeddings=64, scale_embedding=True),
    ),
    "whisper": (
        hf.WhisperForConditionalGeneration,
        hf.WhisperConfig,
        TEXT
        | BOTH_WAYS
        | dict(num_mel_bins=8, max_source_positions=20, max_target_positions=64, decoder_start_token_id=1),
    ),
    "deit": (hf.DeiTForImageClassification, hf.DeiTConfig, PICTURE),
    "beit": (
        hf.BeitForImageClassification,
        hf.BeitConfig,
        PICTURE | dict(layer_scale_init_value=0.1, use_relative_position_bias=True),
    ),
    "swin": (
        hf.SwinForImageClassification,
        hf.SwinConfig,
        dict(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
    ),
    "clip": (
        hf.CLIPModel,
        hf.CLIPConfig,
        dict(text_config=PLAIN, vision_config=PICTURE, projection_dim=24),
    ),
    "llava": (
        hf.LlavaForConditionalGeneration,
        hf.LlavaConfig,
        dict(text_config=hf.LlamaConfig(**(TEXT | GQA)), vision_config=hf.CLIPVisionConfig(**PICTURE))
        | dict(image_token_id=60, image_token_index=60, vision_feature_select_strategy="default"),
    ),
}
NAMED = ["gpt2", "llama", "pythia", "gemma2", "bert", "t5", "vit", "mamba"]
NOT_CAUSAL = ["bert", "roberta", "albert", "deberta", "modernbert", "t5", "bart", "whisper"]
NOT_CAUSAL += ["vit", "deit", "beit", "swin", "clip"]
CAUSAL = ["gpt2", "llama", "pythia", "gemma2", "mamba", "qwen3", "opt"]
RECURRENT = ["mamba", "falcon_mamba", "mamba2", "jamba"]
NO_SOFTMAX = ["mamba", "falcon_mamba", "mamba2"]


@cache
def tiny(kind: type[Any], vocabulary: int, width: int, layers: int = 2, seed: int = 0, **more: Any) -> Any:
    """A model of that class with two heads, as it is drawn."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=width, intermediate_size=3 * width // 2, num_hidden_layers=layers, num_attention_heads=2)
    return kind(kind.config_class(vocab_size=vocabulary, **sizes, **more)).eval()


def module(name: str, dtype: torch.dtype = torch.float32, seed: int = 3) -> nn.Module:
    """One of the shapes, randomised; shared between tests, so leave it as it is."""
    kind, config, options = (BUILD | MORE)[name]
    torch.manual_seed(seed)
    built = kind(config(**options)).eval()
    randomise(built, seed)
    with torch.no_grad():
        for p in built.parameters():
            p.mul_(0.7)  # keep float32 errors of three random blocks small
    return built.to(dtype)
