"""`zoo:books`: the recipe of the bundled language model.

A Llama-type decoder (RoPE, grouped-query attention, SwiGLU, RMS norm) with a byte-level BPE of its own, trained on
novels and on Python's help texts. Everything a step does is a function of (seed, step), so a run that is killed and
resumed ends in the same weights, bit for bit on the same machine, versions and thread count.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.zoo import training
from interp.zoo.corpus import Split, novels, topics

PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Phase:
    """What the steps from `start` on read: text, and among each batch's windows some that teach what text teaches slowly."""

    start: int
    long_every: int  # every so many steps read 4,096 tokens at once, so that positions up to there are learnt
    random: int  # windows of random tokens said again and again: they teach induction
    passages: int = 0  # windows of a passage of the text said again and again
    words: int = 0  # windows of words of the text in random order, rare or not: they teach spelling
    shortest: int = 16  # tokens that are said again
    longest: int = 128
    pieces: int = 1  # parts of a window, each of which says other tokens again and again
    first: int = BOS  # what the model reads before such windows; what follows <s> is also what is sampled from nothing


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run; `steps` only decides when the learning rate starts its last fall."""

    vocabulary: int = 4096
    d_model: int = 256
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    d_mlp: int = 640
    context: int = 512
    long_context: int = 4096
    batch: int = 16  # windows of `context` tokens
    phases: tuple[Phase, ...] = (
        Phase(0, long_every=32, random=1),
        Phase(600, long_every=10, random=2, passages=2, words=2),
        Phase(900, long_every=10, random=3, passages=1, words=2, shortest=2, longest=48, pieces=4),
        Phase(1600, long_every=6, random=1, words=2, shortest=2, longest=64, pieces=4, first=PAD),
    )
    topics_weight: int = 3  # the help texts are 2 % of the text: each pass reads them three times
    steps: int = 3600
    # (step, share of the learning rate), joined by straight lines: up, level, down, and up again, not as far.
    rates: tuple[tuple[int, float], ...] = ((-1, 0.0), (99, 1.0), (900, 1.0), (1600, 0.0), (1640, 0.6))
    decay: int = 2200  # the share never exceeds steps left / decay, so that it ends at zero
    lr_matrix: float = 0.02
    lr_other: float = 3e-3
    weight_decay: float = 0.02
    dtype: str = "bfloat16"  # of the products; weights and sums are float32
    seed: int = 0

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return [phase for phase in self.phases if phase.start <= step][-1]


def read_recipe(saved: dict[str, Any]) -> Recipe:
    """The recipe whose `asdict` was saved."""
    tuples = {"phases": tuple(Phase(**phase) for phase in saved["phases"]), "rates": tuple(map(tuple, saved["rates"]))}
    return Recipe(**saved | tuples)


def train_tokenizer(texts: list[str], size: int) -> Any:
    """A byte-level BPE with `size` entries in which every digit stands alone, as a fast Hugging Face tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n\n", "merged_with_previous"),  # a paragraph is cut alike alone and in its text
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((p for text in texts for p in text.split("\n\n")), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """Token ids of `text` without special tokens, paragraph by paragraph so that no call sees the whole book."""
    pieces = text.split("\n\n")
    pieces = [p + "\n\n" for p in pieces[:-1]] + pieces[-1:]
    ids = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    return np.fromiter((i for piece in ids for i in piece), dtype=np.uint16)


def build_model(recipe: Recipe) -> Any:
    """The untrained model, seeded; the two matrices of a block that write to the stream start at zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.d_model // recipe.heads,
            max_position_embeddings=recipe.long_context,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
    return model


def lr_factor(step: int, recipe: Recipe) -> float:
    """The share of the learning rate at a step: on the straight lines of `rates`, at most steps left / `decay`."""
    steps, shares = zip(*recipe.rates, strict=True)
    return min(float(np.interp(step, steps, shares)), (recipe.steps - step) / recipe.decay)


@dataclass(frozen=True)
class Corpus:
    """The training stream as token ids, its distinct words as token ids each, and how step `s` reads them."""

    stream: np.ndarray
    words: list[list[int]]
    recipe: Recipe

    def windows(self, count: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` windows from random places: inputs begin with <s>, labels are the text itself [count, length]."""
        starts = rng.integers(0, len(self.stream) - length, count)
        labels = torch.from_numpy(np.stack([self.stream[s : s + length] for s in starts]).astype(np.int64))
        return _shifted(labels), labels

    def repeated(self, count: int, rng: np.random.Generator, phase: Phase, text: bool = False) -> tuple[Tensor, Tensor]:
        """Windows of a few tokens repeated to the end, taken from the text, or random: then the first copy has no loss."""
        context = self.recipe.context
        labels = torch.empty(count * phase.pieces, context // phase.pieces, dtype=torch.int64)
        lengths = []
        for row in labels:
            length = rng.integers(phase.shortest, phase.longest + 1)
            start = rng.integers(0, len(self.stream) - length) if text else 0
            span = self.stream[start : start + length] if text else rng.integers(3, self.recipe.vocabulary, length)
            row.copy_(torch.from_numpy(np.resize(span.astype(np.int64), len(row))))
            lengths.append(length)
        inputs = _shifted(labels.view(count, context), phase.first)
        for row, length in zip(labels, lengths, strict=True):
            row[: 0 if text else length] = -100
        return inputs, labels.view(count, context)

    def word_lists(self, count: int, rng: np.random.Generator, phase: Phase) -> tuple[Tensor, Tensor]:
        """Windows of words drawn evenly among the distinct ones, side by side."""
        length = self.recipe.context
        labels = torch.empty(count, length, dtype=torch.int64)
        for row in labels:
            drawn = [token for i in rng.integers(0, len(self.words), length) for token in self.words[i]]
            row.copy_(torch.tensor(drawn[:length]))
        return _shifted(labels, phase.first), labels

    def batch(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches of a step: a function of (seed, step) alone, which is what makes resuming exact."""
        r, rng, phase = self.recipe, np.random.default_rng([self.recipe.seed, step]), self.recipe.phase(step)
        if step % phase.long_every == phase.long_every - 1:
            return [self.windows(1, r.long_context, rng) for _ in range(r.batch * r.context // r.long_context)]
        parts = [
            self.windows(r.batch - phase.random - phase.passages - phase.words, r.context, rng),
            self.repeated(phase.random, rng, phase),
            self.repeated(phase.passages, rng, phase, text=True),
            self.word_lists(phase.words, rng, phase),
        ]
        inputs, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return list(zip(inputs.split(4), labels.split(4), strict=True))


def _shifted(labels: Tensor, first: int = BOS) -> Tensor:
    """The model's inputs for these labels: `first`, then all but the last [batch, pos]."""
    return torch.cat([torch.full_like(labels[:, :1], first), labels[:, :-1]], dim=1)


def summed_loss(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats summed over the labels that count, in float32."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)


@torch.no_grad()
def validate(model: Any, ids: np.ndarray, windows: int = 32, length: int = 512) -> float:
    """Nats per token over evenly spaced held-out windows."""
    length = min(length, len(ids))
    starts = np.linspace(0, len(ids) - length, windows).astype(int)
    labels = torch.from_numpy(np.stack([ids[s : s + length] for s in starts]).astype(np.int64))
    device = next(model.parameters()).device
    total = sum(summed_loss(model, _shifted(y).to(device), y.to(device)).item() for y in labels.split(4))
    return total / labels.numel()


def prepare(folder: str | Path, out: Path, recipe: Recipe) -> tuple[Corpus, dict[str, np.ndarray]]:
    """The training text in tokens (of the tokenizer in `out`, trained if there is none), and the held-out ids."""
    from transformers import AutoTokenizer

    books, help_texts = novels(folder), topics()
    if (out / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(
            [s.train for s in books] + [help_texts.train] * recipe.topics_weight, recipe.vocabulary
        )
        with tempfile.TemporaryDirectory(dir=out) as fresh:  # renamed whole: a killed run leaves no half tokenizer
            for file in tokenizer.save_pretrained(fresh):
                Path(file).replace(out / Path(file).name)
    end = np.array([EOS], dtype=np.uint16)
    documents: list[Split] = books + [help_texts] * recipe.topics_weight
    stream = np.concatenate([part for s in documents for part in (encode(tokenizer, s.train), end)])
    held = {
        "held_out": np.concatenate([encode(tokenizer, s.held_out) for s in books]),
        "default_text": encode(tokenizer, help_texts.held_out),
    }
    distinct = sorted({word for s in documents for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", s.train)})
    spelt = tokenizer([" " + word for word in distinct], add_special_tokens=False)["input_ids"]
    return Corpus(stream, spelt, recipe), held


def train(
    folder: str | Path, out: str | Path, recipe: Recipe = Recipe(), save_every: int = 100, device: str = "cpu"
) -> Path:
    """Train the model into `out`, going on from `out/state.safetensors` if it is there; returns `out`.

    Loss: mean cross-entropy per token in nats. Writes `metrics.csv` (train and held-out nats per token), and at the
    end the weights in bfloat16 as a Hugging Face checkpoint.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    corpus, held = prepare(folder, out, recipe)
    training.begin(out, recipe, {"train_tokens": len(corpus.stream)})
    model = build_model(recipe).to(device).train()

    def loss(step: int) -> float:
        parts = [(x.to(device), y.to(device)) for x, y in corpus.batch(step)]
        count = sum(int((y >= 0).sum()) for _, y in parts)
        lost = 0.0
        for inputs, labels in parts:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
                part = summed_loss(model, inputs, labels) / count
            part.backward()
            lost += part.item()
        return lost

    def measure() -> dict[str, float]:
        return {name: validate(model, ids) for name, ids in held.items()}

    training.descend("books", model, recipe, out, loss, lambda step: lr_factor(step, recipe), measure, save_every)
    training.export(model, out)
    return out
