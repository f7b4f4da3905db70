"""What distributions over a vocabulary say beside the model's own last one, with no layers × tokens × vocabulary in memory.

For the scores z = cap(multiplier · (h W + b)) of a state and z_f of the last one, both less their own maximum m, and
s = Σ e^z, w = Σ e^z z, a = Σ p_f (z_f - z), b = Σ e^z (z - z_f), all sums over the vocabulary and p = e^z / s:

    log p        = z - log s                    KL(p_f || p) = a - log s_f + log s
    H(p)         = log s - w / s                KL(p || p_f) = b / s - log s + log s_f

Differences of scores less their maxima are small where the distributions are close, so the divergences keep their digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.kernels.largest import on_cpu as largest
from interp.kernels.registry import Op

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FLOOR = -3e38  # stands for -inf below the maximum, so that 0 · z is 0
NEVER = 1e9  # no difference of scores is so large: a divergence above it has p > 0 where the other is 0
BYTES = 2**28  # of the scores of one product
FLAT = 6  # states whose product a CPU makes up to three times faster with the weights on the left
FEW = 2**13  # scores that torch goes over faster than it is called
CACHED = 2**20  # scores that stay in cache while they are gone over

SCHEMA = (
    "lens_statistics(Tensor states, Tensor final, Tensor? weight, Tensor? bias, float multiplier, float cap, Tensor asked, int k)"
    " -> (Tensor best, Tensor top, Tensor top_log_prob, Tensor entropy, Tensor kl_forward, Tensor kl_backward, "
    "Tensor log_prob, Tensor rank)"
)


class Found(NamedTuple):
    """Of s states at each of n tokens. Numbers are in float32 at least, divergences and entropy in nats.

    A token asked about that is below 0 counts as none: NaN, rank 0. A state whose scores hold NaN or +inf, or are all -inf,
    has no distribution: its numbers are NaN, its ranks 0, its top the first k.
    """

    best: Int[Tensor, " n"]  # the likeliest token of the final state
    top: Int[Tensor, "s n k"]  # of equal scores the lowest first
    top_log_prob: Float[Tensor, "s n k"]
    entropy: Float[Tensor, "s n"]
    kl_forward: Float[Tensor, "s n"]  # KL(final || state)
    kl_backward: Float[Tensor, "s n"]  # KL(state || final)
    log_prob: Float[Tensor, "s n 1+m"]  # of `best` and of the m tokens asked about
    rank: Int[Tensor, "s n 1+m"]  # 1 + how many others score higher: equals share a rank

    def where(self, known: Bool[Tensor, " n"]) -> Found:
        """The same, but of a token that is not known there is no `best` (-1), and nothing is said of it or against it."""
        first = torch.zeros_like(self.rank, dtype=torch.bool)
        first[..., 0] = ~known
        return self._replace(
            best=self.best.masked_fill(~known, -1),
            kl_forward=self.kl_forward.masked_fill(~known, torch.nan),
            kl_backward=self.kl_backward.masked_fill(~known, torch.nan),
            log_prob=self.log_prob.masked_fill(first, torch.nan),
            rank=self.rank.masked_fill(first, 0),
        )


def fake(
    states: Tensor, final: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float,
    asked: Tensor, k: int,
) -> Found:  # fmt: skip
    """Results with nothing in them."""
    (s, n, width), m = states.shape, 1 + asked.shape[1]
    k = min(k, width if weight is None else weight.shape[0])
    number: dict[str, Any] = {"dtype": torch.promote_types(states.dtype, torch.float32), "device": states.device}
    place: dict[str, Any] = {"dtype": torch.int64, "device": states.device}
    return Found(
        torch.empty(n, **place),
        torch.empty(s, n, k, **place),
        torch.empty(s, n, k, **number),
        torch.empty(s, n, **number),
        torch.empty(s, n, **number),
        torch.empty(s, n, **number),
        torch.empty(s, n, m, **number),
        torch.empty(s, n, m, **place),
    )


def scored(
    h: Float[Tensor, "n d"],
    weight: Float[Tensor, "vocabulary d"] | None,
    bias: Float[Tensor, " vocabulary"] | None,
    multiplier: float,
    cap: float,
    room: Float[Tensor, "n+ vocabulary"] | None = None,
) -> Float[Tensor, "n vocabulary"]:
    """z = cap(multiplier · (h Wᵀ + b)) in the model's own dtype, or h itself without weights; in `room` if there is one."""
    if weight is None:
        return h
    if room is not None and 1 < len(h) <= FLAT and h.dtype == torch.float32:
        z = room[: len(h)].copy_(torch.mm(weight, h.T).T)
    else:
        z = torch.mm(h, weight.T, out=None if room is None else room[: len(h)])
    z = z if bias is None else z.add_(bias)
    z = z if multiplier == 1.0 else z.mul_(multiplier)
    return z.div_(cap).tanh_().mul_(cap) if cap else z


# ---------------------------------------------------------------- as the formulas read


def reference(
    states: Float[Tensor, "s n d"],
    final: Float[Tensor, "n d"],
    weight: Float[Tensor, "vocabulary d"] | None,
    bias: Float[Tensor, " vocabulary"] | None,
    multiplier: float,
    cap: float,
    asked: Int[Tensor, "n m"],
    k: int,
) -> Found:
    """All scores at once, and a sort."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    z, z_f = (
        scored(h.flatten(0, -2), weight, bias, multiplier, cap).to(dtype).unflatten(0, h.shape[:-1])
        for h in (states, final)
    )
    places = z.sort(dim=-1, descending=True, stable=True).indices
    best, k = z_f.sort(dim=-1, descending=True, stable=True).indices[:, 0], min(k, z.shape[-1])
    log_p, log_q = z.log_softmax(-1), z_f.log_softmax(-1)
    bad, bad_final = ~log_p.sum(-1).lt(torch.inf), ~log_q.sum(-1).lt(torch.inf)
    best = best.masked_fill(bad_final, 0)
    wanted = torch.cat([best[:, None], asked], dim=1).expand(len(z), -1, -1)
    there = wanted.clamp(min=0)
    higher = [(z > z.gather(-1, t[..., None])).sum(-1) for t in there.unbind(-1)]
    found = Found(
        best,
        places[..., :k],
        log_p.gather(-1, places[..., :k]),
        -_expected(log_p, log_p),
        _expected(log_q, log_q - log_p),
        _expected(log_p, log_p - log_q),
        log_p.gather(-1, there),
        1 + torch.stack(higher, dim=-1),
    )
    return cleared(found, wanted, bad, bad_final)


def _expected(log_p: Tensor, x: Tensor) -> Tensor:
    """Σ p x, where 0 · x is 0."""
    return _weighed(log_p.exp(), x)


def _weighed(p: Tensor, x: Tensor) -> Tensor:
    return torch.where(p > 0, p * x, 0.0).sum(-1)


def cleared(found: Found, wanted: Int[Tensor, "s n m"], bad: Tensor, bad_final: Tensor) -> Found:
    """With NaN and rank 0 for what is not there: tokens below 0, states (`bad` [s, n], [n]) without a distribution."""
    none = (wanted < 0) | bad[..., None]
    first = torch.arange(found.top.shape[-1], device=bad.device).expand_as(found.top)
    return Found(
        found.best,
        torch.where(bad[..., None], first, found.top),
        found.top_log_prob.masked_fill(bad[..., None], torch.nan),
        found.entropy.masked_fill(bad, torch.nan),
        found.kl_forward.masked_fill(bad | bad_final, torch.nan),
        found.kl_backward.masked_fill(bad | bad_final, torch.nan),
        found.log_prob.masked_fill(none, torch.nan),
        found.rank.masked_fill(none, 0),
    )


# ---------------------------------------------------------------- a few rows at a time


def at_once(
    states: Float[Tensor, "s n d"],
    final: Float[Tensor, "n d"],
    weight: Float[Tensor, "vocabulary d"] | None,
    bias: Float[Tensor, " vocabulary"] | None,
    multiplier: float,
    cap: float,
    asked: Int[Tensor, "n m"],
    k: int,
) -> Found:
    """`reference` in fewer calls of torch, which are what few scores cost: the last state is one more row of the others."""
    h = torch.cat([states, final[None]])
    z = (
        scored(h.flatten(0, 1), weight, bias, multiplier, cap)
        .to(torch.promote_types(states.dtype, torch.float32))
        .unflatten(0, h.shape[:2])
    )
    places, log_p = z.sort(dim=-1, descending=True, stable=True).indices, z.log_softmax(-1)
    z, p, bad = z[:-1], log_p.exp(), ~log_p.sum(-1).lt(torch.inf)
    log_p, log_q, p, q, bad, bad_final = log_p[:-1], log_p[-1], p[:-1], p[-1], bad[:-1], bad[-1]
    best, top = places[-1, :, 0].masked_fill(bad_final, 0), places[:-1, :, :k].contiguous()
    wanted = torch.cat([best[:, None], asked], dim=1).expand(len(z), -1, -1)
    there, apart = wanted.clamp(min=0), log_p - log_q
    found = Found(
        best,
        top,
        log_p.gather(-1, top),
        -_weighed(p, log_p),
        -_weighed(q, apart),
        _weighed(p, apart),
        log_p.gather(-1, there),
        1 + (z[..., None, :] > z.gather(-1, there)[..., None]).sum(-1),
    )
    if bad_final.any() or bad.any() or (asked < 0).any():
        return cleared(found, wanted, bad, bad_final)
    return found


def cpu(
    states: Float[Tensor, "s n d"],
    final: Float[Tensor, "n d"],
    weight: Float[Tensor, "vocabulary d"] | None,
    bias: Float[Tensor, " vocabulary"] | None,
    multiplier: float,
    cap: float,
    asked: Int[Tensor, "n m"],
    k: int,
) -> Found:
    """One product for all states of some tokens (`BYTES`), then a few of its rows at a time (`CACHED`)."""
    if states.shape[0] * states.shape[1] * (states.shape[2] if weight is None else weight.shape[0]) <= FEW:
        return at_once(states, final, weight, bias, multiplier, cap, asked, k)
    found = fake(states, final, weight, bias, multiplier, cap, asked, k)
    (s, n, d), dtype = states.shape, found.entropy.dtype
    width = d if weight is None else weight.shape[0]
    bad, bad_final = torch.empty(s, n, dtype=torch.bool), torch.empty(n, dtype=torch.bool)
    tokens = min(n, max(1, BYTES // (4 * width * (s + 1))))
    room = None if weight is None else states.new_empty((s + 1) * tokens, width)
    for part in slices(n, tokens):
        h = torch.cat([states[:, part], final[None, part]]).flatten(0, 1)
        z = scored(h, weight, bias, multiplier, cap, room).unflatten(0, (s + 1, -1))
        for rows in slices(z.shape[1], CACHED // width):
            at = slice(part.start + rows.start, part.start + rows.stop)
            own = Final.of(z[-1, rows].to(dtype, copy=True))
            found.best[at], bad_final[at] = own.best, ~own.log_sum.isfinite()
            wanted = torch.cat([own.best[:, None], asked[at]], dim=1)
            for i in range(s):
                told = _row_statistics(z[i, rows].to(dtype, copy=weight is None), own, wanted, found.top.shape[-1])
                bad[i, at] = ~told[0].isfinite()
                for whole, piece in zip(found[1:], told[1:], strict=True):
                    whole[i, at] = piece
    wanted = torch.cat([found.best[:, None], asked], dim=1).expand(s, -1, -1)
    return cleared(found, wanted, bad, bad_final)


class Final(NamedTuple):
    """The last distribution at some rows, ready to be compared with."""

    best: Int[Tensor, " n"]
    z: Float[Tensor, "n vocabulary"]
    p: Float[Tensor, "n vocabulary"]
    log_sum: Float[Tensor, " n"]

    @classmethod
    def of(cls, scores: Float[Tensor, "n vocabulary"]) -> Final:
        """Of its scores, which are overwritten."""
        values, places = largest(scores, None, 1)
        z = _pivoted(scores, values[:, 0])
        p = z.exp()
        total = p.sum(1)
        p /= total[:, None]
        return cls(places[:, 0].masked_fill(~total.isfinite(), 0), z, p, total.log())


def _row_statistics(
    scores: Float[Tensor, "n vocabulary"], final: Final, wanted: Int[Tensor, "n m"], k: int
) -> tuple[Tensor, ...]:
    """(log s, then the fields of `Found` but the first); `scores` is overwritten."""
    values, places = largest(scores, None, k)
    best, asked_for = values[:, :1], scores.gather(1, wanted.clamp(min=0))
    product = torch.empty_like(scores)
    higher = [torch.gt(scores, own[:, None], out=product).sum(1) for own in asked_for.T]
    z = _pivoted(scores, best[:, 0])
    e = z.exp()
    s, w = e.sum(1), torch.mul(e, z, out=product).sum(1)
    log_s = s.log()
    apart = z.sub_(final.z)
    a, b = -torch.mul(final.p, apart, out=product).sum(1), torch.mul(e, apart, out=product).sum(1) / s
    return (
        log_s,
        places,
        values - best - log_s[:, None],
        log_s - w / s,
        torch.where(a > NEVER, torch.inf, a - final.log_sum + log_s),
        torch.where(b > NEVER, torch.inf, b - log_s + final.log_sum),
        asked_for - best - log_s[:, None],
        1 + torch.stack(higher, dim=1).long(),
    )


def _pivoted(scores: Float[Tensor, "n vocabulary"], best: Float[Tensor, " n"]) -> Float[Tensor, "n vocabulary"]:
    """scores - max, in place; -inf becomes finite, with the same exponential."""
    return scores.sub_(best[:, None]).clamp_(min=FLOOR)


def slices(count: int, size: int) -> Iterator[slice]:
    """Of `count` things, at most `size` at a time, and at least one."""
    size = max(1, size)
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


lens_statistics = Op(
    SCHEMA,
    reference,
    fake=fake,
    cpu=cpu,
    triton="interp.kernels.lens_statistics_triton:lens_statistics",
)
