"""What a distribution over the vocabulary says, beside the model's own last one, without keeping either.

For the scores z of a lens at a token and z_f of the model, both less their own maximum, one pass over the vocabulary
gives s = Σ e^z, w = Σ e^z z, a = Σ p_f (z_f - z) and b = Σ e^z (z - z_f); then, since p = e^z / s,

    H(p)         = log s - w / s
    KL(p_f || p) = a - log s_f + log s
    KL(p || p_f) = b / s - log s + log s_f
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FLOOR = -1e4  # below the maximum, where e^z is 0 in float64 too: stands for -inf, so that 0 · z is 0
BLOCK = 64  # tokens whose largest score is looked at first
BYTES = {"cpu": 2**27, "cuda": 2**29}  # for the scores of one chunk of tokens


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of n tokens: the k likeliest, entropy, both divergences from the model's last distribution (in nats), and of each
    of m tokens asked about its log-probability and its rank: 1 + how many others score higher, so equals share a rank.
    """

    top: Int[Tensor, "n k"]
    top_log_prob: Float[Tensor, "n k"]
    entropy: Float[Tensor, " n"]
    kl_forward: Float[Tensor, " n"]  # KL(model || lens)
    kl_backward: Float[Tensor, " n"]  # KL(lens || model)
    log_prob: Float[Tensor, "n m"]
    rank: Int[Tensor, "n m"]

    @staticmethod
    def joined(parts: Sequence[Statistics]) -> Statistics:
        """Token after token."""
        return Statistics(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Statistics)))

    def where(self, known: Bool[Tensor, " n"]) -> Statistics:
        """The same, with no divergence (NaN) where there is nothing to compare with."""
        kl = {n: getattr(self, n).masked_fill(~known, torch.nan) for n in ("kl_forward", "kl_backward")}
        return replace(self, **kl)


class Final:
    """The model's own last distribution at some tokens; `scores` is overwritten."""

    def __init__(self, scores: Float[Tensor, "n vocabulary"]) -> None:
        self.top, best = topk(scores, 1)
        self.z = pivoted(scores, best[:, 0])
        self.p = self.z.exp()
        total = self.p.sum(1)
        self.p /= total[:, None]
        self.log_sum = total.log()


def statistics(scores: Float[Tensor, "n vocabulary"], final: Final, asked: Int[Tensor, "n m"], k: int) -> Statistics:
    """All of them; `scores` is overwritten. A token asked about that is below 0 counts as none: NaN, rank 0."""
    top, values = topk(scores, k)
    none, known = asked < 0, asked.clamp(min=0)
    rank = torch.stack([1 + (scores > s).sum(1) for s in scores.gather(1, known).T[..., None]], dim=1)
    best = values[:, 0]
    z = pivoted(scores, best)
    e, product = z.exp(), torch.empty_like(z)
    s, w = e.sum(1), torch.mul(e, z, out=product).sum(1)
    shift, asked_for = s.log(), z.gather(1, known)
    apart = z.sub_(final.z)
    a, b = -torch.mul(final.p, apart, out=product).sum(1), torch.mul(e, apart, out=product).sum(1)
    return Statistics(
        top,
        values - best[:, None] - shift[:, None],
        shift - w / s,
        a - final.log_sum + shift,
        b / s - shift + final.log_sum,
        (asked_for - shift[:, None]).masked_fill(none, torch.nan),
        rank.masked_fill(none, 0),
    )


def pivoted(scores: Float[Tensor, "n vocabulary"], best: Float[Tensor, " n"]) -> Float[Tensor, "n vocabulary"]:
    """scores - max, in place; -inf becomes finite, with the same exponential."""
    return scores.sub_(best[:, None]).clamp_(min=FLOOR)


def topk(scores: Float[Tensor, "n v"], k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """(Places, values) of the k largest of each row, of equal ones the first.

    The k largest lie in the k blocks with the largest maxima, of equal ones the first: one look at all scores, then at few.
    """
    n, v = scores.shape
    if v <= 4 * BLOCK * k:
        values, places = scores.sort(dim=1, descending=True, stable=True)
        return places[:, :k], values[:, :k]
    whole = v - v % BLOCK
    maxima = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(2)
    blocks = maxima.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    places = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    rest = torch.arange(whole, v, device=scores.device).expand(n, -1)
    places = torch.cat([places, rest], dim=1)
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return places.gather(1, order[:, :k]), values[:, :k]


def chunks(count: int, vocabulary: int, like: Tensor) -> Iterator[slice]:
    """Slices of `count` tokens whose scores, five times over, stay within the bytes allowed."""
    size = max(1, BYTES.get(like.device.type, 2**27) // (5 * vocabulary * max(4, like.element_size())))
    return (slice(i, min(i + size, count)) for i in range(0, count, size))
