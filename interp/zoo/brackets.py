"""`zoo:brackets`: the recipe of an encoder that says whether brackets are balanced.

A BERT-type classifier of strings of "(" and ")" up to 20 long. What is not balanced is mostly near to it: one swap
away, where counting finds no mistake, or one bracket turned, where the count is all that is wrong. Strings of three
lengths are never trained on, nor is a tenth of all others, chosen by their hash.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.files import write_text
from interp.model.load import load
from interp.zoo import training

PAD, CLS = 0, 1
LONGEST = 20
HELD_LENGTHS = (8, 12, 16)
LENGTHS = tuple(n for n in range(2, LONGEST + 1, 2) if n not in HELD_LENGTHS)
KINDS = ("balanced", "one_swap", "one_turned", "random")
TRAINED = ("balanced",) * 4 + ("one_swap",) * 2 + ("one_turned", "random")
TRAINED_LENGTHS = tuple(n for n in LENGTHS for _ in range(n // 2))  # long strings more often: there are more of them
LABELS = ("unbalanced", "balanced")


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Every number of the training run."""

    steps: int = 5000
    decay: int = 4900
    batch: int = 128
    lr_matrix: float = 0.008
    lr_other: float = 2e-3
    d_model: int = 64
    heads: int = 2
    d_mlp: int = 128
    layers: int = 3


def balanced(text: str) -> bool:
    """Whether every bracket is closed after it is opened: no prefix has more ")" than "(", and all of them as many."""
    heights = np.cumsum([1 if c == "(" else -1 for c in text])
    return bool(heights.min(initial=0) >= 0 and heights[-1:].sum() == 0)


def balanced_string(length: int, rng: np.random.Generator) -> str:
    """One of the balanced strings of an even length, each as likely as any other.

    Of a ring of n "(" and n + 1 ")" exactly one start makes a balanced string and a ")" (cycle lemma, Dvoretzky and
    Motzkin 1947): the one after the first lowest height.
    """
    ring = rng.permutation(np.repeat([1, -1], [length // 2, length // 2 + 1]))
    turned = np.roll(ring, -1 - int(np.cumsum(ring).argmin()))
    return "".join("(" if step > 0 else ")" for step in turned[:-1])


def one_swap_away(text: str, rng: np.random.Generator) -> str:
    """A string that is not balanced, made of one that is by exchanging a "(" and a ")"."""
    opened, closed = ([i for i, c in enumerate(text) if c == bracket] for bracket in "()")
    while True:
        i, j = sorted((int(rng.choice(opened)), int(rng.choice(closed))))
        swapped = text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :]
        if not balanced(swapped):
            return swapped


def one_turned(text: str, rng: np.random.Generator) -> str:
    """A string whose count is off by two, made of a balanced one by turning one bracket around."""
    i = int(rng.integers(len(text)))
    return text[:i] + ("(" if text[i] == ")" else ")") + text[i + 1 :]


def held_out(text: str) -> bool:
    """Whether a string is never trained on: three lengths are not, and a tenth of all others, the same in every run."""
    return len(text) in HELD_LENGTHS or zlib.crc32(f"brackets {text}".encode()) % 10 == 0


def example(kind: str, length: int, rng: np.random.Generator) -> str:
    """A string of a kind: "balanced", "one_swap" (away from balanced), "one_turned", or "random" (and not balanced)."""
    if kind == "random":
        while True:
            text = "".join(rng.choice(["(", ")"], length))
            if not balanced(text):
                return text
    text = balanced_string(length, rng)
    changed = {"one_swap": one_swap_away, "one_turned": one_turned}
    return changed[kind](text, rng) if kind in changed else text


def examples(
    count: int, rng: np.random.Generator, kinds: Sequence[str], lengths: Sequence[int] = LENGTHS, held: bool = True
) -> list[str]:
    """Strings, each kind and length as likely as any other, that are held out, or that are not."""
    found: list[str] = []
    while len(found) < count:
        text = example(str(rng.choice(kinds)), int(rng.choice(lengths)), rng)
        if held_out(text) == held:
            found.append(text)
    return found


@cache
def tokenizer() -> Any:
    """A token a bracket, after [CLS]. No [SEP] at the end: its place would tell lengths that are trained on from others."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit

    return training.word_tokenizer(
        ["[PAD]", "[CLS]", "[UNK]", "(", ")"],
        Sequence([WhitespaceSplit(), Split(Regex("."), "isolated")]),
        "[CLS] $A",
        LONGEST + 1,
        pad_token="[PAD]",
        cls_token="[CLS]",
        unk_token="[UNK]",
    )


def build_model(recipe: Recipe) -> Any:
    """The untrained model, seeded."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(recipe.seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer()),
            hidden_size=recipe.d_model,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=recipe.d_mlp,
            max_position_embeddings=LONGEST + 1,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
        )
    )
    # Waves to start from: places near each other look alike, so lengths that are trained on tell something of the others.
    positions = model.bert.embeddings.position_embeddings.weight
    rates = 1e3 ** (-torch.arange(0, recipe.d_model, 2) / recipe.d_model)
    angles = torch.arange(len(positions))[:, None] * rates
    with torch.no_grad():
        positions.copy_(0.03 * torch.cat([angles.sin(), angles.cos()], dim=1))
    return model


def prepare(recipe: Recipe, out: Path) -> None:
    """Write the tokenizer into the folder."""
    tokenizer.__wrapped__().save_pretrained(out)  # a fresh one: padding a batch leaves a mark on the tokenizer


def batch(recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Strings [batch, pos] and whether each is balanced [batch]."""
    rng = np.random.default_rng([recipe.seed, step])
    texts = examples(recipe.batch, rng, TRAINED, TRAINED_LENGTHS, held=False)
    return dict(tokenizer()(texts, padding=True, return_tensors="pt")) | {
        "labels": torch.tensor([int(balanced(text)) for text in texts])
    }


@torch.no_grad()
def right(model: Any, texts: list[str]) -> float:
    """The share of these strings that the model tells right."""
    inputs = tokenizer()(texts, padding=True, return_tensors="pt").to(model.device)
    said = model(**inputs).logits.argmax(-1).tolist()
    return float(np.mean([bool(label) == balanced(text) for label, text in zip(said, texts, strict=True)]))


def measure(recipe: Recipe, model: Any) -> dict[str, float]:
    """The share told right of 500 held-out strings, and of 500 of the held-out lengths: half balanced, half a swap away."""
    rng, kinds = np.random.default_rng(0), ("balanced", "one_swap")
    return {
        "held_out": right(model, examples(500, rng, kinds)),
        "held_out_lengths": right(model, examples(500, rng, kinds, HELD_LENGTHS)),
    }


def check(folder: str | Path, seed: int = 0, device: str = "cpu", count: int = 2000) -> dict[str, Any]:
    """`{held_out, held_out_lengths}`: `{count, balanced, one_swap, one_turned, random}`, the share told right.

    `held_out`: strings of the trained lengths that are not trained on. `count` strings of each kind are drawn.
    """
    model, rng = load(str(folder), device=device).module, np.random.default_rng(seed)
    return {
        name: {"count": count} | {kind: right(model, examples(count, rng, [kind], lengths)) for kind in KINDS}
        for name, lengths in (("held_out", LENGTHS), ("held_out_lengths", HELD_LENGTHS))
    }


def sample(text: str | None, seed: int, out: Path | None) -> dict[str, Any]:
    """A string, drawn from those held out unless it is given, and what it is; written to `out` if that is given."""
    rng = np.random.default_rng(seed)
    text = examples(1, rng, KINDS[:2])[0] if text is None else text
    if not text or set(text) - set("()") or len(text) > LONGEST:
        raise WrongUse(f"{text!r} is no string of 1 to {LONGEST} brackets: give one such as '(()())'.")
    if out is not None:
        write_text(out, text + "\n")
    return {"text": text, "answer": LABELS[balanced(text)], "held_out": held_out(text)}
