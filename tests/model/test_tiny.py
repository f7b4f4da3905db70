"""Tiny models of any type: sizes cut by rules, and of every kind of layer at least one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from interp import WrongUse
from interp.model.tiny import (
    config_class,
    cut,
    fields,
    kept_layers,
    model_classes,
    sections,
    special,
    tiny,
    tiny_config,
)
from interp.model.twin import names

TEXT = ["llama", "gemma3_text", "gemma4_text", "deepseek_v3", "jamba", "zamba2", "mamba2", "gpt_neo", "t5", "esm"]
OTHER = ["vit", "wav2vec2", "detr", "qwen2_vl", "llama4"]


def parts(config: Any) -> list[Any]:
    return [config, *(p for v in fields(config).values() if isinstance(v, PretrainedConfig) for p in parts(v))]


@pytest.mark.parametrize("kind", TEXT + OTHER)
def test_a_tiny_model_is_small_and_its_sizes_and_tokens_fit(kind):
    model = tiny(kind)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000 and not model.training
    for part in parts(model.config):
        given = fields(part)
        heads = given.get("num_attention_heads", given.get("encoder_attention_heads", 4))
        assert heads == 4 and given.get("num_hidden_layers", 3) >= 3, (part.model_type, heads)
        vocabulary = given.get("vocab_size") or names()["tokens"]
        held = {v for k, v in given.items() if re.fullmatch(names()["special"], k) and isinstance(v, int)}
        assert all(v < vocabulary for v in held) and vocabulary <= names()["tokens"]


@pytest.mark.parametrize("kind", TEXT)
def test_a_tiny_model_reads_text(kind):
    model, ids = tiny(kind), torch.randint(3, 31, (2, 7), generator=torch.Generator().manual_seed(0))
    more = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits = model(input_ids=ids, **more).logits
    assert logits.shape == (2, 5 if more else 7, 61) and bool(logits.isfinite().all())


def test_every_kind_of_layer_is_there():
    def config(kind: str) -> Any:
        return tiny_config(config_class(kind)())

    assert config("gemma3_text").layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert config("gpt_neo").attention_layers == ["global", "local", "global"]
    assert config("zamba2").layers_block_type == ["linear_attention", "hybrid"] * 2
    assert config("jamba").layers_block_type == ["mamba", "attention", "mamba"]
    assert config("jamba").layers_num_experts == [1, 8, 1]
    moe = config("glm4_moe_lite")
    assert moe.mlp_layer_types == ["dense", "sparse", "sparse"] and moe.num_experts_per_tok == 2
    assert config("qwen3_moe").mlp_only_layers == [0]
    assert config("llama").num_key_value_heads == 2 and config("bert").num_attention_heads == 4
    assert config("deepseek_v3").num_key_value_heads == 4  # keys of all heads are made of one latent
    gemma4 = config("gemma4_text").per_layer_config
    assert [layer.head_dim for layer in gemma4] == [8, 8, 16]  # 256 and 512 in the real model


def test_a_part_that_needs_another_package_is_replaced():
    backbone = tiny("detr").config.backbone_config
    assert backbone.model_type == "resnet" and backbone.hidden_sizes == [16, 32, 64, 128]


def test_the_same_seed_gives_the_same_model():
    first, again, other = (dict(tiny("llama", seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(p, again[name]) for name, p in first.items())
    assert not all(torch.equal(p, other[name]) for name, p in first.items())


def test_an_unknown_type_is_told_the_nearest():
    with pytest.raises(WrongUse, match=r"no model type 'lama'.*llama"):
        tiny("lama")


def test_a_part_of_other_models_says_so():
    with pytest.raises(WrongUse, match="part of others"):
        tiny("sam_mask_decoder")
    assert [c.__name__ for c in model_classes("llama4")] == ["Llama4ForConditionalGeneration"]  # not its text alone


# ---------------------------------------------------------------- the rules, one by one


@pytest.fixture
def rules(monkeypatch):
    table = {
        "tiny": [
            ["kernels", 2, "first"],
            ["kernels|depths", 3, "each"],
            ["channels", 8, "divide"],
            ["widths?|vocab_size", 16],
        ],
        "depth": ["num_layers"],
        "indices": "global_layers",
        "tokens": 61,
    }
    monkeypatch.setattr("interp.model.tiny.names", lambda: table)


def test_a_size_is_cut_by_the_first_rule_that_fits(rules):
    assert cut("vocab_size", 50_000) == 16 and cut("vocab_size", 5) == 5
    assert cut("other", 50_000) == 50_000 and cut("width", True) is True and cut("width", 0.5) == 0.5
    assert cut("widths", (96, 192, 240)) == (16, 32, 40)  # ratios, in quarters of the size
    assert cut("widths", [512, 64]) == [128, 16] and cut("widths", [4, 8]) == [4, 8]
    assert cut("depths", [2, 2, 18, 2]) == [2, 2, 3, 2]
    assert cut("channels", [3, 64, 128]) == [3, 8, 16]  # three colours stay three
    assert cut("kernels", [10, 3, 2]) == [3, 3]  # one rule keeps the first two, the next cuts them


def test_layers_are_kept_by_kind(rules):
    given = {
        "num_layers": 6,
        "kinds": ["a", "a", "a", "a", "b", "a"],
        "global_layers": [5],
        "thetas": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],  # too many values to be kinds
        "stages": [1, 2],
    }
    kept = kept_layers(given, 3, {4: {"width": 64}})
    assert kept == {
        "num_layers": 3,
        "kinds": ["a", "b", "a"],
        "global_layers": [2],
        "thetas": [1.0, 5.0, 6.0],
        "per_layer_config": {1: {"width": 16}},
    }
    assert kept_layers(given | {"width": 32}, 3, {4: {"width": 64}})["per_layer_config"] == {1: {"width": 32}}
    assert kept_layers({"num_layers": 6, "out_indices": [2, 4, 5, 6]}, 3, {}) == {
        "num_layers": 4,
        "out_indices": [1, 2, 3, 4],
    }
    assert kept_layers({"stages": [1, 2]}, 3, {}) == {}


def test_special_tokens_stay_apart(rules):
    ids: dict[int, int] = {}
    assert special(50_256, ids) == 60 and special([2, 128_001, 50_256], ids) == [2, 59, 60]
    assert special(31, ids) == 31 and special(-1, ids) == -1 and special(None, ids) is None


def test_sections_of_a_rope_fill_the_pairs():
    rope = {"rope_theta": 1.0, "mrope_section": [24, 20, 20]}
    assert sections(rope, 4)["mrope_section"] == [1, 1, 2] and sections(rope, 32)["mrope_section"] == [12, 10, 10]
    assert sections({"full": {"rope_theta": 1.0}}, 6) == {"full": {"rope_theta": 1.0, "mrope_section": [2, 2, 2]}}
