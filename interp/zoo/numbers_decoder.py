"""`zoo:numbers_decoder`: the task of `zoo:numbers` for a decoder alone, of as many parameters.

A Llama-type model that reads the question and its end mark, and goes on with the answer: same tokenizer, same numbers,
same steps. What the two differ in is how the answer reaches what was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.zoo import training
from interp.zoo.numbers import END, PAD, check, drawn, measure, prepare, sample, tokenizer

__all__ = ["Recipe", "batch", "build_model", "check", "measure", "prepare", "sample"]


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Every number of the training run."""

    steps: int = 1600
    decay: int = 1200
    d_model: int = 96
    heads: int = 4
    d_mlp: int = 226
    layers: int = 7


def build_model(recipe: Recipe) -> Any:
    """The untrained model, seeded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=END,
        )
    )


def batch(recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Questions with their answers [batch, pos]; only the answers are to be told."""
    questions, answers = drawn(recipe, step)
    asked, told = tokenizer()(questions)["input_ids"], tokenizer()(answers)["input_ids"]
    longest = max(len(q) + len(a) for q, a in zip(asked, told, strict=True))
    ids = torch.full((len(asked), longest), PAD)
    labels = torch.full_like(ids, -100)
    for i, (q, a) in enumerate(zip(asked, told, strict=True)):
        ids[i, : len(q) + len(a)] = torch.tensor(q + a)
        labels[i, len(q) : len(q) + len(a)] = torch.tensor(a)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}
