"""Where latents fire: their strongest and their ordinary contexts, what fires with them, and what they write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.reports.watch import BINS, OCTAVE, Contexts, Watch, bin_of, edge, row_of
from interp.sites import of_model
from interp.texts import token_texts

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

    from interp.dictionaries import Dictionary
    from interp.model import Model, Together

STREAM = ("resid_pre", "resid_mid", "resid_post", "write")  # sites whose vectors live in the residual stream
STRATA = 5  # parts of the range from 0 to a latent's maximum that contexts are drawn from
LISTED = 10  # tokens, partners and neighbours told of a latent
COMMON = 3  # tokens on which two latents that are said to fire together must have done so
ROWS = 256  # latents whose products with the whole dictionary or vocabulary exist at one time

Texts = Callable[[Sequence[int]], list[str]]


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
class Stratum:
    """Firings between two strengths, `low` ≤ f < `high` (the highest holds the maximum), and some drawn among them."""

    low: float
    high: float
    firings: int
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class TokenShare:
    """A token on which a latent fires."""

    token: str
    share: float  # of the sum of the latent's activations
    firings: int
    occurrences: int  # of the token in the text


@dataclass(frozen=True)
class Partner:
    """Another latent that fires on the same tokens."""

    index: int
    together: int  # tokens on which both fired
    correlation: float  # φ of the two, fired or not


@dataclass(frozen=True)
class Latent:
    """What was seen of one latent."""

    index: int
    firings: int
    density: float  # share of tokens on which it fired
    maximum: float
    mean: float  # over the tokens on which it fired
    edges: tuple[float, ...]  # of the histogram's bins, four to a doubling
    histogram: tuple[int, ...]  # firings in each
    top: tuple[Context, ...]
    strata: tuple[Stratum, ...]  # from the strongest to the weakest
    tokens: tuple[TokenShare, ...]
    partners: tuple[Partner, ...]
    neighbours: tuple[tuple[int, float], ...]  # latents whose decoder rows are nearest, with the cosine
    promoted: tuple[tuple[str, float], ...]  # tokens and logits per unit of activation; empty where it does not apply
    suppressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LatentExamples:
    """What was seen of some latents over `tokens` tokens."""

    latents: tuple[Latent, ...]
    tokens: int

    def to_frame(self) -> pd.DataFrame:
        """One row a context: latent, density, kind ("top" or "drawn"), document, position, activation, token, text."""
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
            for kind, contexts in (("top", latent.top), ("drawn", [c for s in latent.strata for c in s.contexts]))
            for c in contexts
        ]
        names = ["latent", "density", "kind", "document", "position", "activation", "token", "text"]
        return pd.DataFrame(rows, columns=names)


def draw_live(live: Bool[Tensor, " m"], count: int = 10, seed: int = 0) -> list[int]:
    """`count` latents drawn by `seed` among the live ones (all of them, if they are fewer), in order."""
    found = live.nonzero().flatten()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return sorted(found[order[:count].to(found.device)].tolist())


def latent_examples(
    dictionary: Dictionary,
    model: Model | Together,
    groups: Iterable[Sequence[Sequence[int]]],
    latents: Sequence[int],
    *,
    top: int = 8,
    each: int = 2,
    window: int = 16,
    seed: int = 0,
) -> LatentExamples:
    """Run `model` over windows of token ids, in one pass, and keep where `latents` fire.

    `groups`: batches of windows, each window a list of ids, as `interp.store.recording.batches` makes them; a
    beginning-of-sequence token is not counted. A context is a token and up to `window` tokens on either side in its
    window of text. Top contexts are the strongest. The range up to a latent's maximum is cut into fifths, at the nearest
    edges of the histogram, and `each` contexts are drawn by `seed` among all firings in each. No two contexts of a latent
    share a token. Memory: that of `Watch`. Raises `WrongUse` for a latent that does not exist.
    """
    seen = Watch(dictionary, model, latents, top=top, sample=each and each + 3, window=window, seed=seed)
    for group in groups:
        seen.add(group)
    return LatentExamples(tuple(told(seen, each)), seen.tokens)


def told(seen: Watch, each: int) -> Iterator[Latent]:
    """What was seen of each latent, one at a time; `each` contexts of each stratum."""
    texts, D = token_texts(seen.model.tokenizer), seen.dictionary
    unembed = _unembedding(D, seen.model)
    for start in range(0, len(seen.latents), ROWS):
        some = seen.latents[start : start + ROWS]
        effects, near = _effects(D, unembed, texts, some), neighbours(D, some)
        for slot in range(start, start + len(some)):
            yield _latent(seen, slot, texts, each, near[slot - start], effects[slot - start])


def _latent(
    seen: Watch, slot: int, texts: Texts, each: int, near: tuple[tuple[int, float], ...], effects: Effects
) -> Latent:
    index, counts = seen.latents[slot], seen.histogram[slot]
    firings, bins = int(seen.fired[index]), np.flatnonzero(counts)
    low, high = (int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 0)
    top = seen.top.of(slot, slot + 1)
    return Latent(
        index=index,
        firings=firings,
        density=firings / seen.tokens if seen.tokens else 0.0,
        maximum=float(seen.maximum[slot]),
        mean=float(seen.total[slot]) / firings if firings else 0.0,
        edges=tuple(edge(b) for b in range(low, high + 1)),
        histogram=tuple(counts[low:high].tolist()),
        top=_shown(top, texts),
        strata=_strata(seen, slot, texts, each, top),
        tokens=_tokens(seen, slot, texts),
        partners=_partners(seen, slot),
        neighbours=near,
        promoted=effects[0],
        suppressed=effects[1],
    )


def _shown(contexts: Contexts, texts: Texts) -> tuple[Context, ...]:
    made, middle = [], contexts.ids.shape[1] // 2
    for row in range(len(contexts.value)):
        inside = contexts.ids[row] >= 0
        tokens, activations = texts(contexts.ids[row][inside].tolist()), contexts.activations[row][inside].tolist()
        place = int(contexts.document[row]), int(contexts.position[row])
        made.append(Context(*place, tuple(tokens), tuple(activations), int(inside[:middle].sum())))
    return tuple(made)


def _strata(seen: Watch, slot: int, texts: Texts, each: int, top: Contexts) -> tuple[Stratum, ...]:
    """Fifths of the range from 0 to the maximum, cut at bins' edges; empty ones are left out."""
    maximum = float(seen.maximum[slot])
    if maximum == 0:
        return ()
    last = int(bin_of(np.array([maximum]))[0])
    ideal = OCTAVE * np.log2(maximum * np.arange(1, STRATA) / STRATA) + BINS // 2
    cuts = np.clip(np.round(ideal), 0, last).astype(int).tolist()
    taken, made = list(zip(top.document, top.position, strict=True)), []
    for low, high in reversed(list(pairwise([0, *cuts, BINS]))):
        firings = int(seen.histogram[slot, low:high].sum())
        if not firings:
            continue
        found = seen.sample.of(slot * BINS + low, slot * BINS + high)
        chosen = _distinct(found[np.argsort(found.draw, kind="stable")], 2 * seen.window, each, taken)
        ends = edge(low) if low else 0.0, maximum if high == BINS else edge(high)
        made.append(Stratum(*ends, firings, _shown(chosen[np.argsort(-chosen.value, kind="stable")], texts)))
    return tuple(made)


def _distinct(contexts: Contexts, near: int, count: int, taken: list[tuple[int, int]]) -> Contexts:
    """The first `count` that lie more than `near` tokens from each other and from those taken, which they join."""
    chosen: list[int] = []
    for i, (document, position) in enumerate(zip(contexts.document, contexts.position, strict=True)):
        if len(chosen) < count and all(document != d or abs(position - p) > near for d, p in taken):
            chosen.append(i)
            taken.append((document, position))
    return contexts[np.array(chosen, dtype=np.int64)]


def _tokens(seen: Watch, slot: int, texts: Texts) -> tuple[TokenShare, ...]:
    (tokens, mass), (_, on) = row_of(seen.mass, slot), row_of(seen.on, slot)
    best = np.lexsort((tokens, -mass))[:LISTED]
    shown, share = texts(tokens[best].tolist()), (mass[best] / seen.total[slot]).tolist()
    counts = on[best].astype(int).tolist(), seen.occurrences[tokens[best]].tolist()
    return tuple(map(TokenShare, shown, share, *counts))


def _partners(seen: Watch, slot: int) -> tuple[Partner, ...]:
    """φ = (N n_ij − n_i n_j) / √(n_i n_j (N − n_i) (N − n_j)), of the latents that it is largest for."""
    index, both = row_of(seen.together, slot)
    N, i = float(seen.tokens), seen.latents[slot]
    other = (index != i) & (both >= COMMON)
    index, both = index[other], both[other]
    n_i, n_j = float(seen.fired[i]), seen.fired[index].astype(float)
    spread = np.sqrt(n_i * n_j * (N - n_i) * (N - n_j))
    phi = (N * both - n_i * n_j) / np.where(spread > 0, spread, np.inf)
    best = [b for b in np.lexsort((index, -phi))[:LISTED] if phi[b] > 0]
    return tuple(Partner(int(index[b]), int(both[b]), float(phi[b])) for b in best)


@torch.no_grad()
def neighbours(
    dictionary: Dictionary, latents: Sequence[int], count: int = LISTED
) -> list[tuple[tuple[int, float], ...]]:
    """For each latent, the `count` others whose decoder rows lie nearest: (number, ⟨d_i, d_j⟩ / ‖d_i‖‖d_j‖)."""
    directions = normalize(dictionary.W_dec.detach().float())
    made = []
    for some in torch.as_tensor(list(latents), device=directions.device).split(ROWS):
        cosines = directions[some] @ directions.T
        cosines[torch.arange(len(some)), some] = -torch.inf
        values, indices = cosines.topk(min(count, len(directions) - 1))
        made += [tuple(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
    return made


Effects = tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]


def logit_effects(
    dictionary: Dictionary, model: Model | Together, latents: Sequence[int], count: int = LISTED
) -> list[Effects]:
    """The tokens that each latent raises and lowers most by the direct path: W_U (γ ⊙ d_i), less its mean over tokens.

    In logits per unit of activation, with the final norm's gain γ and without its division. Of a dictionary that writes
    several sites, d_i is the sum of what it adds to them (`.write`), else what it writes to the last. Empty where it
    does not apply: the model has no output embedding, or the dictionary does not write to the residual stream.
    """
    unembed, texts = _unembedding(dictionary, model), token_texts(model.tokenizer)
    starts = range(0, len(latents), ROWS)
    return [e for s in starts for e in _effects(dictionary, unembed, texts, latents[s : s + ROWS], count)]


@torch.no_grad()
def _effects(
    dictionary: Dictionary, unembed: Tensor | None, texts: Texts, latents: Sequence[int], count: int = LISTED
) -> list[Effects]:
    if unembed is None:
        return [((), ())] * len(latents)
    logits = _written(dictionary, latents).to(unembed) @ unembed.T
    logits -= logits.mean(1, keepdim=True)
    made = []
    for row in logits:
        sides = (torch.topk(row, min(count, len(row)), largest=largest) for largest in (True, False))
        raised, lowered = (tuple(zip(texts(s.indices.tolist()), s.values.tolist(), strict=True)) for s in sides)
        made.append((raised, lowered))
    return made


def _written(dictionary: Dictionary, latents: Sequence[int]) -> Float[Tensor, "latents d_model"]:
    """What latents have put into the stream after the last site they write."""
    c = dictionary.config
    parts = dictionary.W_dec[list(latents)].detach().split(c.widths_out or (c.d_out,), dim=1)
    if len({p.shape[1] for p in parts}) == 1 and all(s.endswith(".write") for s in c.writes):
        return torch.stack(parts).sum(0)
    return parts[-1]


@torch.no_grad()
def _unembedding(dictionary: Dictionary, model: Model | Together) -> Float[Tensor, "vocabulary d_model"] | None:
    """W_U diag(γ) in float32, if the dictionary writes to the stream of a model with an output embedding."""
    from interp.model import Together

    site, owner = of_model(dictionary.config.writes[-1])
    if isinstance(model, Together):
        model = model.models[str(owner)]
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    if head is None or site.rsplit(".", 1)[-1] not in STREAM:
        return None
    weight = head.weight.float()
    width = (dictionary.config.widths_out or (dictionary.config.d_out,))[-1]
    return weight * _gain(model, weight) if weight.shape[1] == width else None


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
