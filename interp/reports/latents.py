"""Where latents fire: their strongest and their ordinary contexts, and what they write to the logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.store.recording import padded
from interp.texts import token_texts

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

    from interp.dictionaries import Dictionary
    from interp.model import Model

STREAM = ("resid_pre", "resid_mid", "resid_post", "write")  # sites whose vectors live in the residual stream
BINS = 24


@dataclass(frozen=True)
class Context:
    """A stretch of one text around a token on which a latent fired."""

    document: int  # which window of text, counted from 0
    position: int  # of that token in its window
    tokens: tuple[str, ...]
    activations: tuple[float, ...]  # of the latent, one a token
    peak: int  # which of `tokens` it is

    @property
    def activation(self) -> float:
        """Of the token the context is about."""
        return self.activations[self.peak]


@dataclass(frozen=True)
class Latent:
    """What was seen of one latent."""

    index: int
    firings: int
    density: float  # share of tokens on which it fired
    maximum: float
    histogram: tuple[int, ...]  # firings by activation, in equal bins from 0 to `maximum`
    top: tuple[Context, ...]
    random: tuple[Context, ...]
    promoted: tuple[tuple[str, float], ...]  # tokens and logits per unit of activation; empty where it does not apply
    suppressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LatentExamples:
    """What was seen of some latents over `tokens` tokens."""

    latents: tuple[Latent, ...]
    tokens: int

    def to_frame(self) -> pd.DataFrame:
        """One row a context: latent, density, kind ("top" or "random"), document, position, activation, token, text."""
        import pandas as pd

        rows = [
            [
                latent.index,
                latent.density,
                kind,
                c.document,
                c.position,
                c.activation,
                c.tokens[c.peak],
                "".join(c.tokens),
            ]
            for latent in self.latents
            for kind in ("top", "random")
            for c in getattr(latent, kind)
        ]
        names = ["latent", "density", "kind", "document", "position", "activation", "token", "text"]
        return pd.DataFrame(rows, columns=names)


def draw_live(live: Bool[Tensor, " m"], count: int = 10, seed: int = 0) -> list[int]:
    """`count` latents drawn by `seed` among the live ones (all of them, if they are fewer), in order."""
    found = live.nonzero().flatten()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return sorted(found[order[:count].to(found.device)].tolist())


@torch.no_grad()
def latent_examples(
    dictionary: Dictionary,
    model: Model,
    groups: Iterable[Sequence[Sequence[int]]],
    latents: Sequence[int],
    *,
    top: int = 8,
    random: int = 4,
    window: int = 16,
    seed: int = 0,
) -> LatentExamples:
    """Run `model` over windows of token ids and keep where `latents` fire.

    `groups`: batches of windows, each window a list of ids, as `interp.store.recording.batches` makes them; a
    beginning-of-sequence token is not counted. A context is a token and up to `window` tokens on either side in its
    window of text. Top contexts are the strongest, random ones are drawn by `seed` among all firings, and no two
    contexts of a latent share a token. Memory: the ids, and the firings of `latents`. Raises `WrongUse` for a latent
    that does not exist.
    """
    if any(not 0 <= i < dictionary.config.latents for i in latents):
        raise WrongUse(f"latents {list(latents)}: this dictionary has latents 0 to {dictionary.config.latents - 1}.")
    seen = _Seen(dictionary, model, latents)
    for group in groups:
        seen.add(group)
    found, texts = seen.firings(), token_texts(model.tokenizer)
    effects = logit_effects(dictionary, model, latents)
    made = []
    for slot, latent in enumerate(latents):
        firings = found.of(slot)
        near, strong = 2 * window, np.argsort(-firings.value, kind="stable")
        best = _distinct(strong, firings, near, top, [])
        drawn = np.random.default_rng([seed, latent]).permutation(len(strong))
        others = _distinct(drawn, firings, near, random, best)
        contexts = [[_context(seen.windows, firings, i, window, texts) for i in part] for part in (best, others)]
        made.append(_latent(latent, firings, seen.tokens, contexts, effects[slot]))
    return LatentExamples(tuple(made), seen.tokens)


@dataclass(frozen=True)
class Firings:
    """Where latents fired, and how strongly, in the order of the text; `slot` numbers the latents looked at."""

    slot: np.ndarray
    document: np.ndarray
    position: np.ndarray
    value: np.ndarray

    def of(self, slot: int) -> Firings:
        """Those of one latent."""
        mine = self.slot == slot
        return Firings(self.slot[mine], self.document[mine], self.position[mine], self.value[mine])


class _Seen:
    """Gathers the windows read and the firings of the latents looked at."""

    def __init__(self, dictionary: Dictionary, model: Model, latents: Sequence[int]) -> None:
        self.dictionary, self.model = dictionary, model
        self.slots = torch.full((dictionary.config.latents,), -1, device=dictionary.b_dec.device)
        self.slots[list(latents)] = torch.arange(len(latents), device=dictionary.b_dec.device)
        self.windows: list[np.ndarray] = []
        self.tokens = 0
        self.parts: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, t) for t in (int, int, int, np.float32))]

    def add(self, group: Sequence[Sequence[int]]) -> None:
        """Run the model over some windows."""
        tokens, keep = padded(self.model, group)
        reads = self.dictionary.config.reads
        cache = self.model.record(tokens, reads)
        x = torch.cat([cache[site][keep].flatten(1) for site in reads], dim=-1)
        code = self.dictionary.active(x.to(self.slots.device))
        slots = self.slots[code.indices]
        row, which = ((slots >= 0) & (code.values > 0)).nonzero(as_tuple=True)
        place = keep.nonzero().to(row.device)[row]
        part = slots[row, which], place[:, 0] + len(self.windows), place[:, 1], code.values[row, which].float()
        self.parts.append(tuple(t.cpu().numpy() for t in part))
        self.windows += [np.asarray(ids, dtype=np.int32) for ids in group]
        self.tokens += len(x)

    def firings(self) -> Firings:
        """All of them."""
        return Firings(*(np.concatenate(column) for column in zip(*self.parts, strict=True)))


def _distinct(order: np.ndarray, firings: Firings, near: int, count: int, taken: Sequence[int]) -> list[int]:
    """The first `count` firings in `order` that lie more than `near` tokens from each other and from those taken."""
    chosen: list[int] = []
    places = [(firings.document[i], firings.position[i]) for i in taken]
    for i in order.tolist():
        if len(chosen) == count:
            break
        document, position = firings.document[i], firings.position[i]
        if all(document != d or abs(position - p) > near for d, p in places):
            chosen.append(i)
            places.append((document, position))
    return chosen


def _context(windows: list[np.ndarray], firings: Firings, i: int, window: int, texts: Any) -> Context:
    document, position = int(firings.document[i]), int(firings.position[i])
    start = max(0, position - window)
    ids = windows[document][start : position + window + 1]
    activations = np.zeros(len(ids))
    first, last = np.searchsorted(firings.document, [document, document + 1])
    at, value = firings.position[first:last] - start, firings.value[first:last]
    inside = (at >= 0) & (at < len(ids))
    activations[at[inside]] = value[inside]
    return Context(document, position, tuple(texts(ids.tolist())), tuple(activations.tolist()), position - start)


def _latent(index: int, firings: Firings, tokens: int, contexts: list[list[Context]], effects: Effects) -> Latent:
    values = firings.value
    maximum = float(values.max(initial=0.0))
    histogram = np.histogram(values, bins=BINS, range=(0, maximum or 1.0))[0]
    return Latent(
        index=index,
        firings=len(values),
        density=len(values) / tokens if tokens else 0.0,
        maximum=maximum,
        histogram=tuple(histogram.tolist()),
        top=tuple(contexts[0]),
        random=tuple(contexts[1]),
        promoted=effects[0],
        suppressed=effects[1],
    )


Effects = tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]


def logit_effects(dictionary: Dictionary, model: Model, latents: Sequence[int], count: int = 8) -> list[Effects]:
    """The tokens that each latent raises and lowers most by the direct path: W_U (γ ⊙ d_i), less its mean over tokens.

    In logits per unit of activation, with the final norm's gain γ and without its division. Empty where it does not
    apply: the model has no output embedding, or the dictionary does not write to the residual stream.
    """
    unembed = _unembedding(dictionary, model)
    if unembed is None:
        return [((), ())] * len(latents)
    texts = token_texts(model.tokenizer)
    directions = dictionary.W_dec[list(latents)].detach().to(unembed)
    logits = directions @ unembed.T
    logits -= logits.mean(1, keepdim=True)
    made = []
    for row in logits:
        sides = (torch.topk(row, min(count, len(row)), largest=largest) for largest in (True, False))
        raised, lowered = (tuple(zip(texts(s.indices.tolist()), s.values.tolist(), strict=True)) for s in sides)
        made.append((raised, lowered))
    return made


@torch.no_grad()
def _unembedding(dictionary: Dictionary, model: Model) -> Float[Tensor, "vocabulary d_model"] | None:
    """W_U diag(γ) in float32, if the dictionary writes to the stream of a model with an output embedding."""
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    site = dictionary.config.writes[0]
    if head is None or len(dictionary.config.writes) > 1 or site.rsplit(".", 1)[-1] not in STREAM:
        return None
    weight = head.weight.float()
    return weight * _gain(model, weight) if weight.shape[1] == dictionary.config.d_out else None


def _gain(model: Model, like: Tensor) -> Float[Tensor, " d_model"]:
    """The gain γ of the norm before the head, read off its answers to s = (1, −1, 1, …), which it leaves as it is.

    s has mean 0 and mean square 1, so a root-mean-square or layer norm returns ±γ ⊙ s + β for ±s.
    """
    site = model.binding.sites.get("final_norm")
    if site is None or like.shape[1] % 2:
        return torch.ones_like(like[0])
    norm = model.module.get_submodule(site.place.path)
    s = torch.ones(1, like.shape[1], device=like.device, dtype=model.dtype)
    s[:, 1::2] = -1
    return ((norm(s) - norm(-s)) * s / 2)[0].float()
