"""`zoo:tones`: the recipe of a Whisper-type model that writes down the digits of telephone tones.

Every digit is two sine waves at once, one of its row and one of its column on the keypad (ITU-T Q.23). Strings of one
to six digits are synthesised as they are needed, with noise; a tenth of all strings, chosen by their hash, is never
trained on.
"""

from __future__ import annotations

import wave
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.files import write_atomic
from interp.model.load import load
from interp.zoo import training

if TYPE_CHECKING:
    from jaxtyping import Float

PAD, START, END = 0, 1, 2
RATE = 16_000  # samples a second
SECONDS = 1  # of every recording
LONGEST = 6  # digits
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)  # Hz
KEYPAD = ("123", "456", "789", " 0 ")


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Every number of the training run."""

    steps: int = 1200
    decay: int = 700
    batch: int = 64
    d_model: int = 96
    heads: int = 4
    d_mlp: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 2


@dataclass(frozen=True)
class Line:
    """How a string is dialled and heard: each range is drawn from evenly."""

    tone: tuple[float, float] = (0.05, 0.09)  # seconds
    gap: tuple[float, float] = (0.03, 0.07)  # seconds between two tones, and before the first
    noise: tuple[float, float] = (0.0, 30.0)  # dB by which the tones are louder than white noise
    level: tuple[float, float] = (0.05, 0.5)  # of the louder of the two waves
    twist: tuple[float, float] = (-4.0, 4.0)  # dB by which the column's wave is louder than the row's
    detuned: tuple[float, float] = (-0.015, 0.015)  # share by which a frequency is off


def frequencies(digit: str) -> tuple[int, int]:
    """(Row's, column's) Hz of a digit."""
    row = next(i for i, keys in enumerate(KEYPAD) if digit in keys)
    return ROWS[row], COLUMNS[KEYPAD[row].index(digit)]


def dial(text: str, rng: np.random.Generator, line: Line = Line()) -> Float[np.ndarray, " samples"]:
    """The sound of a string of digits, from -1 to 1: one second at 16 kHz.

    Raises `WrongUse` for anything but one to six digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST):
        raise WrongUse(f"{text!r} cannot be dialled: give one to {LONGEST} digits, as 4071.")
    sound = np.zeros(SECONDS * RATE)
    level, at = rng.uniform(*line.level), 0.0
    power = []
    for digit in text:
        at += rng.uniform(*line.gap)
        start, length = round(at * RATE), round(rng.uniform(*line.tone) * RATE)
        twist = 10 ** (rng.uniform(*line.twist) / 20)
        heights = np.array([1.0, twist]) / max(1.0, twist)
        hertz = np.array(frequencies(digit)) * (1 + rng.uniform(*line.detuned, 2))
        phases = 2 * np.pi * (np.outer(hertz, np.arange(length) / RATE) + rng.random(2)[:, None])
        sound[start : start + length] = level * heights @ np.sin(phases) / 2
        power.append((level * heights / 2) @ (level * heights / 2) / 2)
        at += length / RATE
    noise = np.sqrt(np.mean(power) / 10 ** (rng.uniform(*line.noise) / 10))
    return np.clip(sound + noise * rng.standard_normal(len(sound)), -1, 1)


def held_out(text: str) -> bool:
    """Whether a string is never trained on: a tenth of all strings is, the same in every run."""
    return zlib.crc32(f"tones {text}".encode()) % 10 == 0


def strings(count: int, rng: np.random.Generator, held: bool) -> list[str]:
    """Strings of one to six digits, each length as likely as any other, that are held out, or that are not."""
    found: list[str] = []
    while len(found) < count:
        text = "".join(map(str, rng.integers(0, 10, rng.integers(1, LONGEST + 1))))
        if held_out(text) == held:
            found.append(text)
    return found


@cache
def extractor() -> Any:
    """Whisper's own log-mel features: 80 bands, a frame each 20 ms, 50 frames."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80, sampling_rate=RATE, hop_length=320, chunk_length=SECONDS, n_fft=400)


@cache
def tokenizer() -> Any:
    """A token a digit."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return training.word_tokenizer(
        ["<pad>", "<s>", "</s>", "<unk>", *map(str, range(10))],
        Split(Regex(r"\d"), "isolated"),
        "$A </s>",
        LONGEST + 2,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def build_model(recipe: Recipe) -> Any:
    """The untrained model, seeded."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(recipe.seed)
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer()),
            num_mel_bins=extractor().feature_size,
            max_source_positions=extractor().nb_max_frames // 2,
            max_target_positions=16,
            d_model=recipe.d_model,
            encoder_layers=recipe.encoder_layers,
            decoder_layers=recipe.decoder_layers,
            encoder_attention_heads=recipe.heads,
            decoder_attention_heads=recipe.heads,
            encoder_ffn_dim=recipe.d_mlp,
            decoder_ffn_dim=recipe.d_mlp,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            decoder_start_token_id=START,
            begin_suppress_tokens=None,
        )
    )


def prepare(recipe: Recipe, out: Path) -> None:
    """Write the tokenizer and the feature extractor into the folder."""
    tokenizer.__wrapped__().save_pretrained(out)  # a fresh one: padding a batch leaves a mark on the tokenizer
    extractor().save_pretrained(out)


def heard(sounds: Sequence[Float[np.ndarray, " samples"]]) -> Float[Tensor, "batch mel frame"]:
    """What the model is given for these sounds."""
    return extractor()(list(sounds), sampling_rate=RATE, return_tensors="pt")["input_features"]


def batch(recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Sounds for the encoder, and their digits [batch, pos] for the decoder."""
    rng = np.random.default_rng([recipe.seed, step])
    texts = strings(recipe.batch, rng, held=False)
    labels = tokenizer()(texts, padding=True, return_tensors="pt")["input_ids"]
    return {
        "input_features": heard([dial(text, rng) for text in texts]),
        "labels": labels.masked_fill(labels == PAD, -100),
    }


@torch.no_grad()
def answers(model: Any, sounds: Sequence[Float[np.ndarray, " samples"]]) -> list[str]:
    """What the model writes for each sound, greedily."""
    ids = model.generate(input_features=heard(sounds).to(model.device), max_new_tokens=LONGEST + 2, do_sample=False)
    return tokenizer().batch_decode(ids, skip_special_tokens=True)


def exact(model: Any, texts: Sequence[str], rng: np.random.Generator, line: Line = Line()) -> float:
    """The share of these strings that the model writes down without a mistake, once dialled."""
    said = [
        a for i in range(0, len(texts), 100) for a in answers(model, [dial(t, rng, line) for t in texts[i : i + 100]])
    ]
    return float(np.mean([a == text for a, text in zip(said, texts, strict=True)]))


def measure(recipe: Recipe, model: Any) -> dict[str, float]:
    """The share of 200 held-out strings written down exactly."""
    rng = np.random.default_rng(0)
    return {"held_out": exact(model, strings(200, rng, held=True), rng)}


NOISES = (-10, -5, 0, 10, 20, 30)  # dB


def check(folder: str | Path, seed: int = 0, device: str = "cpu", count: int = 1000) -> dict[str, Any]:
    """`{count, held_out, by_length, by_noise}`: the share of held-out strings written down without a mistake.

    `by_length` by number of digits (no single digit is held out), `by_noise` at so many dB between the tones and the
    noise (the training stops at 0). `held_out` is of `count` strings, each of the others of a tenth as many, at most.
    """
    model, rng = load(str(folder), device=device).module, np.random.default_rng(seed)
    lengths: dict[int, list[str]] = {n: [] for n in range(1, LONGEST + 1)}
    for text in strings(count, rng, held=True):
        lengths[len(text)].append(text)
    few = count // 10
    return {
        "count": count,
        "held_out": exact(model, strings(count, rng, held=True), rng),
        "by_length": {str(n): exact(model, texts[:few], rng) for n, texts in lengths.items() if texts},
        "by_noise": {str(dB): exact(model, strings(few, rng, True), rng, Line(noise=(dB, dB))) for dB in NOISES},
    }


def sample(text: str | None, seed: int, out: Path | None) -> dict[str, Any]:
    """Dial a string, drawn from those held out unless it is given, into the WAV file `out` (16 bits, one channel)."""
    if out is None:
        raise WrongUse("where shall the sound go? interp zoo sample tones --text 4071 --out t.wav")
    rng = np.random.default_rng(seed)
    text = strings(1, rng, held=True)[0] if text is None else text
    sound = np.rint(dial(text, rng) * 32767).astype("<i2")

    def write(path: Path) -> None:
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(sound.tobytes())

    write_atomic(out, write)
    return {"path": str(out), "answer": text, "held_out": held_out(text)}
