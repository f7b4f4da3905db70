"""What attention does, without its pattern: of every query four numbers, of every key how much it gets.

    p = softmax(scale · q kᵀ + bias)       statistics_i = (−Σ_j p_ij log p_ij,  p_i,sink,  Σ_j p_ij |i − j|,  keys that i may look at)
    received_j = Σ_i p_ij

Causal: keys up to the query's own place. `bias` is added to scores, or says where attention may go. Key heads may be fewer than
query heads, each for a group of these. A query that may look nowhere attends to nothing: zeros. `sink` is a key for each row of
the batch, the first if none is given.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.kernels.registry import Op

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

WHOLE = 1 << 26  # scores that the reference makes at a time
SCORES, QUERIES = 1 << 18, 64  # that stay in the cache, where that is so many queries


def reference(
    q: Float[Tensor, "batch head query d"],
    k: Float[Tensor, "batch kv_head key d"],
    bias: Shaped[Tensor, "#batch #head #query #key"] | None,
    sink: Int[Tensor, " batch"] | None,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "batch head query 4"], Float[Tensor, "batch head key"]]:
    """By the pattern, in float32 at least, of as many queries at a time as make 2^26 scores."""
    wide, (n, t) = torch.promote_types(q.dtype, torch.float32), (q.shape[2], k.shape[2])
    keys = k.to(wide).repeat_interleave(q.shape[1] // max(1, k.shape[1]), 1).mT
    found, received = q.new_empty(*q.shape[:3], 4, dtype=wide), q.new_zeros(*q.shape[:2], t, dtype=wide)
    bias = None if bias is None else bias.expand(*q.shape[:3], t)
    for at in range(0, n, step := max(1, WHOLE // max(1, q.shape[0] * q.shape[1] * t))):
        some = slice(at, at + step)
        scores = q[:, :, some].to(wide) @ keys * scale
        if bias is not None:
            scores = scores + additive(bias[:, :, some], wide)
        if causal:
            i, j = (torch.arange(size, device=q.device) for size in (n, t))
            scores = scores.masked_fill(j > i[some, None], -torch.inf)
        hidden = scores == -torch.inf
        p = scores.softmax(-1).masked_fill(hidden.all(-1, keepdim=True), 0)
        found[:, :, some] = of_pattern(p, sink, ~hidden, at)
        received += p.sum(-2)
    return found, received


def additive(bias: Shaped[Tensor, "*shape"], wide: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask as what is added to scores: of truth values, -inf where attention may not go."""
    if bias.dtype != torch.bool:
        return bias.to(wide)
    return torch.zeros(bias.shape, dtype=wide, device=bias.device).masked_fill_(~bias, -torch.inf)


def of_pattern(
    p: Float[Tensor, "batch head query key"],
    sink: Int[Tensor, " batch"] | None = None,
    seen: Bool[Tensor, "batch head query key"] | None = None,
    start: int = 0,
) -> Float[Tensor, "batch head query 4"]:
    """The statistics of a pattern that is there, of queries from `start` on; keys that may be looked at: those `seen`, else
    those that get weight.
    """
    i, j = (torch.arange(size, device=p.device) for size in p.shape[2:])
    i = i + start
    at = torch.zeros(len(p), dtype=torch.int64, device=p.device) if sink is None else sink
    first = p.gather(-1, at.view(-1, 1, 1, 1).expand(*p.shape[:3], 1)).squeeze(-1)
    keys = (p > 0 if seen is None else seen).sum(-1).to(p.dtype)
    return torch.stack([-torch.special.xlogy(p, p).sum(-1), first, (p * (i[:, None] - j).abs()).sum(-1), keys], -1)


def cpu(
    q: Tensor, k: Tensor, bias: Tensor | None, sink: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Of some queries of a group of heads, or of all heads of some rows, at a time, each with the keys that it may look at."""
    (batch, heads, n, d), (kv, t) = q.shape, k.shape[1:3]
    group, wide = heads // max(1, kv), torch.promote_types(q.dtype, torch.float32)
    found, received = q.new_empty(batch, heads, n, 4, dtype=wide), q.new_zeros(batch, heads, t, dtype=wide)
    scores = max(1, group * t * min(n, QUERIES))  # of a key head
    many = max(1, min(kv, SCORES // scores))  # key heads at a time
    rows = max(1, SCORES // (scores * kv)) if many == kv else 1
    place, step = torch.arange(max(n, t), dtype=wide), max(1, SCORES // max(1, many * group * t))
    bias = None if bias is None else bias.expand(batch, heads, n, t)
    for b, h in itertools.product(range(0, batch, rows), range(0, kv, many)):
        r, own = slice(b, b + rows), slice(h * group, (h + many) * group)
        keys, at = k[r, h : h + many].flatten(0, 1).to(wide).mT, None if sink is None else sink[r]
        for begin in range(0, n, step):
            some = slice(begin, min(n, begin + step))
            seen = slice(0, min(t, some.stop) if causal else t)
            queries = q[r, own, some].reshape(len(keys), -1, d).to(wide)
            s = torch.baddbmm(place[:1], queries, keys[..., seen], beta=0, alpha=scale)
            s = s.view(-1, own.stop - own.start, some.stop - begin, seen.stop)
            if bias is not None:
                s += additive(bias[r, own, some, seen], wide)
            if causal:
                late = slice(begin, seen.stop)
                s[..., late].masked_fill_(place[late] > place[some, None], -torch.inf)
            found[r, own, some], got = _block(s, place[some], place[seen], at, causal)
            received[r, own, seen].add_(got)
    return found, received


def _block(
    s: Float[Tensor, "row head query key"],
    i: Float[Tensor, " query"],
    j: Float[Tensor, " key"],
    sink: Int[Tensor, " row"] | None,
    causal: bool,
) -> tuple[Float[Tensor, "row head query 4"], Float[Tensor, "row head key"]]:
    """With u = s - max s: H = -log max p - Σ p u. Softmax alone is faster than what an exponential leaves to be done."""
    keys = torch.ne(s, -torch.inf, out=torch.empty_like(s)).sum(-1)
    p, u = s.softmax(-1), s.sub_(s.amax(-1, keepdim=True)).clamp_(min=-1e4)  # where u is -inf, p is 0
    entropy = -p.amax(-1).log() - torch.mul(p, u, out=u).sum(-1)
    far = i - p @ j if causal else (p * (i[:, None] - j).abs()).sum(-1)
    if not keys.all():
        none = keys == 0
        p.masked_fill_(none.unsqueeze(-1), 0)
        entropy, far = (x.masked_fill_(none, 0) for x in (entropy, far))
    return torch.stack([entropy, _at(p, sink), far, keys], -1), p.sum(-2)


def _at(p: Float[Tensor, "row head query key"], sink: Int[Tensor, " row"] | None) -> Float[Tensor, "row head query"]:
    """Of the key of each row; 0 where it comes later than all that are here."""
    if sink is None:
        return p[..., 0]
    there = sink.view(-1, 1, 1, 1)
    first = p.gather(-1, there.clamp(max=p.shape[-1] - 1).expand(*p.shape[:-1], 1))
    return first.masked_fill(there >= p.shape[-1], 0).squeeze(-1)


def _fake(
    q: Tensor, k: Tensor, bias: Tensor | None, sink: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    shape = (*q.shape[:2], k.shape[2])
    return q.new_empty(*q.shape[:3], 4, dtype=wide), q.new_empty(shape, dtype=wide)


attention_statistics = Op(
    "attention_statistics(Tensor q, Tensor k, Tensor? bias, Tensor? sink, bool causal, float scale) -> (Tensor, Tensor)",
    reference,
    fake=_fake,
    cpu=cpu,
)
