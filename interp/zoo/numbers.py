"""`zoo:numbers`: the recipe of an encoder–decoder that turns number words into digits, and digits into words.

A T5-type model of the numbers 0 to 999,999. What is asked stands before the number: "digits: forty two" is 42 and
"words: 42" is forty two. Five-digit numbers are never trained on, nor are 5 % of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.files import write_text
from interp.model.load import load
from interp.zoo import training

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

PAD, END, UNKNOWN = 0, 1, 2
LARGEST = 999_999
HELD_LENGTH = 5  # digits of the numbers that are never trained on
HELD_SHARE = 0.05  # of the others
ASKED = ("digits", "words")
# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Every number of the training run."""

    steps: int = 1600
    decay: int = 1200
    dtype: str = "bfloat16"
    d_model: int = 96
    heads: int = 4
    d_mlp: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 3


def words(n: int) -> str:
    """A number from 0 to 999,999 in words: 42007 is "forty two thousand seven"."""
    if n >= 1000:
        return " ".join([words(n // 1000), "thousand", *([words(n % 1000)] if n % 1000 else [])])
    if n >= 100:
        return " ".join([ONES[n // 100], "hundred", *([words(n % 100)] if n % 100 else [])])
    if n >= 20:
        return " ".join([TENS[n // 10 - 2], *([ONES[n % 10]] if n % 10 else [])])
    return ONES[n]


def pairs(numbers: Sequence[int], asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """(What is asked, what is to be answered) for each number: "digits: forty two" and "42", or the other way about."""
    sources = [words(n) if a == "digits" else str(n) for n, a in zip(numbers, asked, strict=True)]
    answers = [str(n) if a == "digits" else words(n) for n, a in zip(numbers, asked, strict=True)]
    return [f"{a}: {source}" for a, source in zip(asked, sources, strict=True)], answers


@cache
def held_out() -> Bool[np.ndarray, "numbers"]:
    """Which numbers are not trained on for a reason other than their length: the same 5 % in every run."""
    numbers = np.flatnonzero(lengths() != HELD_LENGTH)
    chosen = np.random.default_rng(0).permutation(numbers)[: round(HELD_SHARE * len(numbers))]
    return np.isin(np.arange(LARGEST + 1), chosen)


@cache
def lengths() -> Int[np.ndarray, "numbers"]:
    """Digits of each number from 0 to 999,999."""
    return np.searchsorted(10 ** np.arange(1, 7), np.arange(LARGEST + 1), side="right") + 1


@cache
def tokenizer() -> Any:
    """A word is a token with the space before it, as is each digit without one; hyphens, commas and "and" say nothing."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    spoken = [f" {a}:" for a in ASKED] + [f" {word}" for word in [*ONES, *TENS, "hundred", "thousand"]]
    rules = [(r",(?=\d)", ""), (r"[\s,-]+", " "), (r" and(?= )", ""), (r"^ ?", " "), (r" (?=\d|$)", "")]
    return training.word_tokenizer(
        ["<pad>", "</s>", "<unk>", *map(str, range(10)), *spoken],
        pre_tokenizers.Split(Regex(r" [^ \d]+|\d"), "isolated"),
        "$A </s>",
        64,
        normalizers.Sequence([normalizers.Lowercase(), *(normalizers.Replace(Regex(old), new) for old, new in rules)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def build_model(recipe: Recipe) -> Any:
    """The untrained model, seeded."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(recipe.seed)
    start: Any = {"decoder_start_token_id": PAD}  # a field of every config that the list of T5's own leaves out
    return T5ForConditionalGeneration(
        T5Config(
            **start,
            vocab_size=len(tokenizer()),
            d_model=recipe.d_model,
            d_kv=recipe.d_model // recipe.heads,
            d_ff=recipe.d_mlp,
            num_layers=recipe.encoder_layers,
            num_decoder_layers=recipe.decoder_layers,
            num_heads=recipe.heads,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            pad_token_id=PAD,
            eos_token_id=END,
        )
    )


def prepare(recipe: Recipe, out: Path) -> None:
    """Write the tokenizer into the folder."""
    tokenizer.__wrapped__().save_pretrained(out)  # a fresh one: padding a batch leaves a mark on the tokenizer


@cache
def trained_on() -> tuple[Int[np.ndarray, " numbers"], ...]:
    """The numbers of each length that are trained on."""
    free = ~held_out()
    return tuple(np.flatnonzero(free & (lengths() == n)) for n in range(1, 7) if n != HELD_LENGTH)


def drawn(recipe: training.Recipe, step: int) -> tuple[list[str], list[str]]:
    """The questions and answers of a step: half of the numbers are drawn evenly, half so that all lengths are as likely."""
    rng = np.random.default_rng([recipe.seed, step])
    groups = trained_on()
    half = recipe.batch // 2
    evenly = rng.choice(np.concatenate(groups), half)
    by_length = [rng.choice(groups[i]) for i in rng.integers(0, len(groups), recipe.batch - half)]
    numbers = [*evenly.tolist(), *map(int, by_length)]
    return pairs(numbers, rng.choice(ASKED, recipe.batch).tolist())


def batch(recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Questions for the encoder and answers for the decoder [batch, pos]."""
    questions, answers = drawn(recipe, step)
    inputs = tokenizer()(questions, padding=True, return_tensors="pt")
    labels = tokenizer()(answers, padding=True, return_tensors="pt")["input_ids"]
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": _hidden(labels)}


def _hidden(labels: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    return labels.masked_fill(labels == PAD, -100)


@torch.no_grad()
def answers(model: Any, questions: Sequence[str], at_once: int = 500) -> list[str]:
    """What the model says to each question, greedily; an encoder–decoder or a decoder that goes on from it."""
    found: list[str] = []
    for start in range(0, len(questions), at_once):
        asked = tokenizer()(questions[start : start + at_once], padding=True, padding_side="left", return_tensors="pt")
        said = model.generate(**asked.to(model.device), max_new_tokens=16, do_sample=False)
        if not model.config.is_encoder_decoder:
            said = said[:, asked["input_ids"].shape[1] :]
        found += tokenizer().batch_decode(said, skip_special_tokens=True)
    return found


def exact(model: Any, numbers: Sequence[int], asked: str) -> float:
    """The share of these numbers that the model writes without a mistake."""
    questions, wanted = pairs(numbers, [asked] * len(numbers))
    return float(np.mean([said == want for said, want in zip(answers(model, questions), wanted, strict=True)]))


def sets(count: int, seed: int) -> dict[str, list[int]]:
    """Up to `count` numbers, drawn with the seed, of each kind that is not trained on, and of those that are."""
    rng = np.random.default_rng(seed)
    kinds = {
        "held_out": np.flatnonzero(held_out()),
        "held_out_length": np.flatnonzero(lengths() == HELD_LENGTH),
        "trained_on": np.concatenate(trained_on()),
    }
    return {name: rng.permutation(numbers)[:count].tolist() for name, numbers in kinds.items()}


def measure(recipe: Recipe, model: Any) -> dict[str, float]:
    """The share of 200 numbers written exactly, of those held out and of the held-out length, both ways."""
    drawn = sets(200, 0)
    return {
        f"{kind}_{asked}": exact(model, drawn[kind], asked)
        for kind in ("held_out", "held_out_length")
        for asked in ASKED
    }


def check(folder: str | Path, seed: int = 0, device: str = "cpu", count: int = 2000) -> dict[str, Any]:
    """`{held_out, held_out_length, trained_on}`: `{count, digits, words}`, the share of numbers written without a mistake.

    `digits`: from words to digits, `words`: from digits to words, greedily; of each kind `count` numbers are drawn.
    """
    model, found = load(str(folder), device=device).module, {}
    for kind, numbers in sets(count, seed).items():
        found[kind] = {"count": len(numbers)} | {asked: exact(model, numbers, asked) for asked in ASKED}
    return found


def sample(text: str | None, seed: int, out: Path | None) -> dict[str, Any]:
    """A question about a number, drawn from those held out unless it is given, and the answer; the question goes to `out`."""
    rng = np.random.default_rng(seed)
    number = str(rng.choice(np.flatnonzero(held_out()))) if text is None else text.replace(",", "")
    if not (number.isascii() and number.isdigit() and int(number) <= LARGEST):
        raise WrongUse(f"{text!r} is no number from 0 to {LARGEST}: give its digits, as 42007.")
    questions, answers = pairs([int(number)], [str(rng.choice(ASKED))])
    if out is not None:
        write_text(out, questions[0] + "\n")
    held = held_out()[int(number)] or lengths()[int(number)] == HELD_LENGTH
    return {"text": questions[0], "answer": answers[0], "held_out": bool(held)}
