"""What a language model of the zoo is worth, measured: `check` prints every number its recipe promises.

Bits per byte, beside the best n-gram models of the same tokens; how it does far into a long text; whether a head
looks back to what followed the same token earlier (induction); and how much of what it writes is made of known words.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp.errors import Failed, WrongUse, check_keys
from interp.zoo import kneser_ney
from interp.zoo.books import encode
from interp.zoo.corpus import Split, novels, topics

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Ids = Int[np.ndarray, " pos"]
    Bits = Float[np.ndarray, " pos"]

WINDOW = 512
POSITIONS = (0, 256, 512, 1024, 2048, 4096)
ORDERS = (3, 4, 5)
TOKENS_AT_ONCE = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(
    folder: str | Path, text: str | Path, seed: int = 0, device: str | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """All measures of the checkpoint in `folder` against the novels in the folder `text` and the help texts.

    Returns `{bits_per_byte: {held_out, default_text, by_position}, kn: {"3", "4", "5"}, kn_default_text: {…},
    induction: {layer, head, score, second_copy_gain}, words_known, distinct_4grams}`: bits per byte of the held-out
    novels and help texts (windows of 512 tokens; `by_position`: the same tokens of the novels at positions up to 4,096), the
    same for Kneser-Ney models, and the measures of `induction`, `words_known` and `distinct_ngrams` (20 samples of 200 tokens).

    Raises `FileNotFoundError` if `text` has no novel in it, and what `load` raises.
    """
    books, help_texts = novels(text), topics()
    model, tokenizer = load(folder, device, dtype)
    sizes = token_bytes(tokenizer)
    held = [encode(tokenizer, split.held_out) for split in books]
    default = [encode(tokenizer, help_texts.held_out)]
    texts = samples(model, tokenizer, 20, 200, seed)
    return {
        "bits_per_byte": {
            "held_out": bits_per_byte(token_bits(model, held, WINDOW, tokenizer.bos_token_id), held, sizes),
            "default_text": bits_per_byte(token_bits(model, default, WINDOW, tokenizer.bos_token_id), default, sizes),
            "by_position": by_position(model, held, sizes, tokenizer.bos_token_id),
        },
        **_kneser_ney(tokenizer, [*books, help_texts], {"kn": held, "kn_default_text": default}, sizes),
        "induction": induction(load(folder, device, dtype, "eager")[0], tokenizer, seed=seed),
        "words_known": words_known(texts, {w for split in [*books, help_texts] for w in words(split.train)}),
        "distinct_4grams": distinct_ngrams(texts, 4),
    }


def plan(
    folder: str | Path, text: str | Path, seed: int = 0, device: str | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """What `check` will read (`rows`: windows of text) and write (nothing), and its minutes: one window timed, times their number.

    The n-gram models come on top: about a minute for twenty megabytes of text.
    """
    model, tokenizer = load(folder, device, dtype)
    held = [encode(tokenizer, split.held_out) for split in [*novels(text), topics()]]
    rows = sum(len(ids) for ids in held) // WINDOW
    window = [np.random.default_rng(seed).integers(3, len(tokenizer), WINDOW)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        token_bits(model, window, WINDOW, tokenizer.bos_token_id)
        seconds.append(time.perf_counter() - start)
    return {"rows": rows, "bytes": 0, "minutes": round(15 * rows * min(seconds) / 60, 2)}  # all positions


def load(
    folder: str | Path, device: str | None = None, dtype: str = "float32", attention: str = "sdpa"
) -> tuple[Any, Any]:
    """The checkpoint in `folder` for evaluation, and its tokenizer.

    Raises `WrongUse` if the folder is no checkpoint, `Failed` if tensors are missing or left over.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    check_keys([dtype], DTYPES, "the list of dtypes")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise WrongUse(f"{folder} is no model folder: it has no {name}. Give one that `interp zoo train` wrote.")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[dtype], attn_implementation=attention, output_loading_info=True
    )
    model, report = loaded
    wrong = {kind: sorted(names) for kind, names in report.items() if kind.endswith("_keys") and names}
    if wrong:
        raise Failed(f"the tensors in {folder} are not those of its config: {wrong}.")
    return model.to(device or "cpu").eval(), AutoTokenizer.from_pretrained(folder)


def token_bytes(tokenizer: Any) -> Int[np.ndarray, " vocabulary"]:
    """UTF-8 bytes of text behind each token: a piece of a byte-level BPE has one character for each [vocabulary]."""
    return np.array([len(piece) for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])


@torch.no_grad()
def token_bits(model: Any, documents: Sequence[Ids], length: int, bos: int) -> list[Bits]:
    """-log2 p(token | <s> and what comes before it in its window), in bits, for every token of every document.

    A document (int [pos]) is cut into windows of `length` tokens side by side, so that each token counts once and is
    seen with 0 to length - 1 tokens of context; the last window is as short as it must be.
    """
    results = []
    with tqdm(total=sum(map(len, documents)), desc=f"windows of {length}", unit="token", unit_scale=True) as bar:
        for ids in documents:
            parts = [np.empty(0)]
            for labels in _windows(torch.from_numpy(ids.astype(np.int64)), length):
                parts.append(_bits(model, labels, bos).flatten().cpu().numpy())
                bar.update(labels.numel())
            results.append(np.concatenate(parts))
    return results


def bits_per_byte(bits: Sequence[Bits], documents: Sequence[Ids], sizes: Int[np.ndarray, " vocabulary"]) -> float:
    """Σ bits / Σ UTF-8 bytes over all tokens of all documents; `sizes` from `token_bytes`."""
    return float(sum(b.sum() for b in bits) / sum(sizes[ids].sum() for ids in documents))


def by_position(
    model: Any,
    documents: Sequence[Ids],
    sizes: Int[np.ndarray, " vocabulary"],
    bos: int,
    edges: Sequence[int] = POSITIONS,
) -> dict[str, float]:
    """Bits per byte of tokens at positions a ≤ i < b of a window (a, b next in `edges`), the same tokens for every range.

    These are the tokens with at least `edges[-1]` others before them: so the ranges differ in context, not in text. Shorter
    documents do not count; without a long one the result is empty.
    """
    long = [ids for ids in documents if len(ids) > edges[-1]]
    size = sum(sizes[ids[edges[-1] :]].sum() for ids in long)
    ranges = list(pairwise(edges)) if long else []
    result = {}
    for a, b in tqdm(ranges, desc="positions", unit="range"):
        result[f"{a}-{b}"] = float(sum(bits_at(model, ids, a, b, edges[-1], bos).sum() for ids in long) / size)
    return result


@torch.no_grad()
def bits_at(model: Any, ids: Ids, a: int, b: int, first: int, bos: int) -> Bits:
    """Bits of ids[first:], each at one of the positions a … b - 1 of a window of b tokens: windows begin b - a apart."""
    tokens, starts = torch.from_numpy(ids.astype(np.int64)), list(range(first - a, len(ids) - a, b - a))
    whole = [tokens[s : s + b] for s in starts if s + b <= len(ids)]
    batches = list(torch.stack(whole).split(max(1, TOKENS_AT_ONCE // b))) if whole else []
    batches += [tokens[s:][None] for s in starts[len(whole) :]]
    return np.concatenate([_bits(model, batch, bos)[:, a:].flatten().cpu().numpy() for batch in batches])


@torch.no_grad()
def induction(model: Any, tokenizer: Any, span: int = 64, seeds: int = 20, seed: int = 0) -> dict[str, Any]:
    """The head that best finds what followed a token earlier, on <s> and `span` different random tokens said twice.

    Returns `layer` and `head`, the head's `score` (see `induction_scores`, mean over `seeds` draws), and
    `second_copy_gain`: bits per token of the first copy minus those of the second.
    The model must be loaded with eager attention, for its patterns (Olsson et al. 2022, section "Induction heads").
    """
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    draws = [np.random.default_rng([seed, i]).choice(ordinary, span, replace=False) for i in range(seeds)]
    labels = torch.from_numpy(np.tile(np.stack(draws), 2))
    inputs = _inputs(labels, tokenizer.bos_token_id).to(model.device)
    patterns = model(input_ids=inputs, output_attentions=True).attentions
    scores = torch.stack([induction_scores(pattern, span) for pattern in patterns])
    bits = _bits(model, labels, tokenizer.bos_token_id)
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return {
        "layer": layer,
        "head": head,
        "score": float(scores[layer, head]),
        "second_copy_gain": float(bits[:, :span].mean() - bits[:, span:].mean()),
    }


def induction_scores(pattern: Float[Tensor, "batch head query key"], span: int) -> Float[Tensor, " head"]:
    """Mean attention from each token of the second copy to the token after its first occurrence, per head [head].

    With <s> at position 0 and the copies at 1 … span and span + 1 … 2 span: mean over q of pattern[q, q - span + 1].
    """
    queries = torch.arange(span + 1, 2 * span + 1, device=pattern.device)
    return pattern[:, :, queries, queries - span + 1].float().mean(dim=(0, 2))


@torch.no_grad()
def samples(model: Any, tokenizer: Any, count: int, length: int, seed: int = 0) -> list[str]:
    """`count` texts of `length` tokens drawn at temperature 1 after <s> alone; special tokens are not drawn."""
    generator = torch.Generator(model.device).manual_seed(seed)
    ids = torch.full((count, 1), tokenizer.bos_token_id, device=model.device)
    cache = None
    for _ in tqdm(range(length), desc="samples", unit="token"):
        output = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        logits[:, tokenizer.all_special_ids] = -torch.inf
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
    return tokenizer.batch_decode(ids[:, 1:])


def words(text: str) -> list[str]:
    """Runs of letters in lower case, apostrophes inside them included: hyphens, dashes, underscores separate words."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("’", "'"))


def whole_words(text: str) -> list[str]:
    """The words of `text` without the last one if the text ends in it: it may have been cut off."""
    found = words(text)
    return found[:-1] if re.search(r"[^\W\d_]['’\ufffd]*$", text) else found


def words_known(texts: Iterable[str], known: set[str]) -> float:
    """The share of the whole words of `texts` that are in `known`, repetitions counted."""
    found = [word for text in texts for word in whole_words(text)]
    return sum(word in known for word in found) / max(len(found), 1)


def distinct_ngrams(texts: Iterable[str], n: int) -> float:
    """Different word n-grams over all word n-grams; none reaches over the end of a text."""
    split = [whole_words(text) for text in texts]
    grams = [tuple(row[i : i + n]) for row in split for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def _kneser_ney(
    tokenizer: Any, train: Sequence[Split], held: dict[str, Sequence[Ids]], sizes: Int[np.ndarray, " vocabulary"]
) -> dict[str, dict[str, float]]:
    """Bits per byte of Kneser-Ney models of the orders 3, 4, 5, trained on every document once."""
    end = np.array([tokenizer.eos_token_id])
    stream = np.concatenate([part for split in train for part in (encode(tokenizer, split.train), end)])
    result: dict[str, dict[str, float]] = {name: {} for name in held}
    for n in tqdm(ORDERS, desc="Kneser-Ney", unit="order"):
        fitted = kneser_ney.fit(stream, n, len(tokenizer))
        for name, documents in held.items():
            result[name][str(n)] = bits_per_byte([kneser_ney.bits(fitted, d) for d in documents], documents, sizes)
    return result


def _windows(ids: Tensor, length: int) -> list[Tensor]:
    """Batches [batch, length] of windows side by side, and the rest [1, pos]."""
    whole = len(ids) // length * length
    batches = ids[:whole].view(-1, length).split(max(1, TOKENS_AT_ONCE // length)) if whole else ()
    return [*batches, *([ids[whole:][None]] if whole < len(ids) else [])]


def _inputs(labels: Int[Tensor, "batch pos"], bos: int) -> Int[Tensor, "batch pos"]:
    return torch.cat([torch.full_like(labels[:, :1], bos), labels], dim=1)


def _bits(model: Any, labels: Int[Tensor, "batch pos"], bos: int) -> Float[Tensor, "batch pos"]:
    labels = labels.to(model.device)
    logits = model(input_ids=_inputs(labels, bos)[:, :-1], use_cache=False).logits.float()
    nats = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return nats.view_as(labels) / np.log(2)
