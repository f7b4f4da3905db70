"""`lens_statistics` on a GPU: one pass over vocabulary tiles, the final state's tile held beside each state's.

A program has a block of tokens and a share of the vocabulary. For each tile it makes z_f, then z of state after state, and
takes what they say into running sums; when a maximum m grows by -δ, sums over what came before are moved to it:

    s ← s e^δ + Σ e^u           w ← (w + s δ) e^δ + Σ e^u u           with u = z - m, u_f = z_f - m_f
    a ← a - δ σ + Σ e^u_f (u_f - u)        b ← (b + s δ) e^δ + Σ e^u (u - u_f)        σ ← σ + Σ e^u_f

Shares are joined by the same rule. z_f of a tile is made once for all states: L + 1 products of a tile, and one pass before
for m_f. Above `WIDE` the products of a stretch of the vocabulary are left to `torch.mm`, and the pass reads scores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from interp.kernels.lens_statistics import NEVER, Found, cleared, scored, slices
from interp.kernels.registry import interpreted

WIDE = 1024  # width of a state above which two products in registers lose to one in memory (performance notes; not measured)
SIZES = {  # tokens of a program, tile of the vocabulary, of a state's width at a time, warps: as few registers spill
    "products": (64, 128, 64, 8),
    "float32 products": (32, 64, 32, 4),
    "scores": (32, 128, 64, 8),
}
PROGRAMS = 512  # at least, if the vocabulary can be shared by so many
STRETCH = 8192  # of the vocabulary whose scores exist at a time, of wide states
BYTES = 2**29  # of such scores
FAR = tl.constexpr(-3e38)  # stands for -inf below the maximum, so that 0 · u is 0
NOBODY = tl.constexpr(2**30)  # a place after all of the vocabulary
GONE = tl.constexpr(2**31 - 1)  # a place after that


@triton.jit
def _scores(
    h, W, bias, rows, columns, n, vocabulary, multiplier, cap,
    D: tl.constexpr, INNER: tl.constexpr, GIVEN: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """z [rows, columns] in float32; -inf beyond the vocabulary. GIVEN: h holds scores, `D` apart."""
    there = (rows < n)[:, None] & (columns < vocabulary)[None, :]
    if GIVEN:
        z = tl.load(h + rows.to(tl.int64)[:, None] * D + columns[None, :], mask=there, other=0.0).to(tl.float32)
    else:
        z = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
        for start in range(0, D, INNER):
            at = start + tl.arange(0, INNER)
            a = tl.load(
                h + rows.to(tl.int64)[:, None] * D + at[None, :],
                mask=(rows < n)[:, None] & (at < D)[None, :],
                other=0.0,
            )
            b = tl.load(
                W + columns.to(tl.int64)[None, :] * D + at[:, None],
                mask=(columns < vocabulary)[None, :] & (at < D)[:, None],
                other=0.0,
            )
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            z = tl.dot(a, b, z, input_precision="ieee")
        if BIAS:
            z += tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
        z *= multiplier
        if CAP:
            z = cap * (2 / (1 + tl.exp(-2 * z / cap)) - 1)
    return tl.where((columns < vocabulary)[None, :], z, float("-inf"))


@triton.jit
def _peaks(
    final, W, bias, n, vocabulary, offset, tiles, multiplier, cap, m_out, s_out, place_out,
    D: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, INNER: tl.constexpr, GIVEN: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Of the final state and a share of the vocabulary: m_f, Σ e^(z_f - m_f), the first place of m_f."""
    rows, share = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1)
    m = tl.full((TOKENS,), float("-inf"), tl.float32)
    s, place = tl.zeros((TOKENS,), tl.float32), tl.full((TOKENS,), NOBODY, tl.int32)
    tile = 0
    while tile < tiles:
        columns = (share * tiles + tile) * TILE + tl.arange(0, TILE)
        z = _scores(final, W, bias, rows, columns, n, vocabulary, multiplier, cap, D, INNER, GIVEN, BIAS, CAP, UPCAST)
        top = tl.max(z, 1)
        place = tl.where(top > m, offset + tl.min(tl.where(z == top[:, None], columns[None, :], NOBODY), 1), place)
        new = tl.maximum(m, top)
        pivot = tl.where(new == float("-inf"), 0.0, new)
        s = s * tl.where(m == float("-inf"), 0.0, tl.exp(m - pivot)) + tl.sum(tl.exp(z - pivot[:, None]), 1)
        m = new
        tile += 1
    at = share.to(tl.int64) * n + rows
    tl.store(m_out + at, m, mask=rows < n)
    tl.store(s_out + at, s, mask=rows < n)
    tl.store(place_out + at, place, mask=rows < n)


@triton.jit
def _worst(held, places):
    """Of each list the least value, and of equal ones the last place."""
    low = tl.min(held, 1)
    return low, tl.max(tl.where(held == low[:, None], places, -1), 1)


@triton.jit
def _after(z, places, value, place):
    """Of each row the largest of what comes after (value, place): less, or equal and later; of equal ones the first."""
    left = (z < value[:, None]) | ((z == value[:, None]) & (places[None, :] > place[:, None]))
    top = tl.max(tl.where(left, z, float("-inf")), 1)
    return top, tl.min(tl.where(left & (z == top[:, None]), places[None, :], GONE), 1)


@triton.jit
def _pass(
    states, final, W, bias, n, vocabulary, offset, tiles, multiplier, cap, m_f_in, wanted, z_wanted,
    m_at, s_at, w_at, a_at, b_at, sigma_at, rank_at, value_at, place_at, S,
    D: tl.constexpr, M: tl.constexpr, K: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, INNER: tl.constexpr,
    GIVEN: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The running sums, ranks and lists of the largest (K places, a power of 2) of S states and a share of the vocabulary."""
    rows, share = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1)
    real, slots = rows < n, tl.arange(0, K)
    m_f, sigma = tl.load(m_f_in + rows, mask=real, other=0.0), tl.zeros((TOKENS,), tl.float32)
    tile = 0
    while tile < tiles:
        columns = (share * tiles + tile) * TILE + tl.arange(0, TILE)
        z_f = _scores(final, W, bias, rows, columns, n, vocabulary, multiplier, cap, D, INNER, GIVEN, BIAS, CAP, UPCAST)
        u_f = z_f - m_f[:, None]
        u_f = tl.where(u_f < FAR, FAR, u_f)  # tl.maximum would lose a NaN
        e_f = tl.exp(u_f)
        i = 0
        while i < S:
            h = states + i * n.to(tl.int64) * D
            z = _scores(h, W, bias, rows, columns, n, vocabulary, multiplier, cap, D, INNER, GIVEN, BIAS, CAP, UPCAST)
            at = (share.to(tl.int64) * S + i) * n + rows
            m, s = tl.load(m_at + at, mask=real, other=0.0), tl.load(s_at + at, mask=real, other=0.0)
            w, a = tl.load(w_at + at, mask=real, other=0.0), tl.load(a_at + at, mask=real, other=0.0)
            b = tl.load(b_at + at, mask=real, other=0.0)
            new = tl.maximum(m, tl.max(z, 1))
            pivot = tl.where(new == float("-inf"), 0.0, new)
            first = m == float("-inf")
            moved = tl.where(first, 0.0, m - pivot)
            shrunk = tl.where(first, 0.0, tl.exp(moved))
            u = z - pivot[:, None]
            u = tl.where(u < FAR, FAR, u)
            e, apart = tl.exp(u), u - u_f
            tl.store(m_at + at, new, mask=real)
            tl.store(w_at + at, (w + s * moved) * shrunk + tl.sum(e * u, 1), mask=real)
            tl.store(b_at + at, (b + s * moved) * shrunk + tl.sum(e * apart, 1), mask=real)
            tl.store(a_at + at, a - moved * sigma - tl.sum(e_f * apart, 1), mask=real)
            tl.store(s_at + at, s * shrunk + tl.sum(e, 1), mask=real)
            for j in tl.static_range(M):
                own = tl.load(wanted + rows * M + j, mask=real, other=-1)
                z_own = tl.load(z_wanted + (i * n + rows) * M + j, mask=real, other=0.0)
                higher = (z > z_own[:, None]) & ((columns + offset)[None, :] != own[:, None])
                count = tl.load(rank_at + at * M + j, mask=real, other=0)
                tl.store(rank_at + at * M + j, count + tl.sum(higher.to(tl.int32), 1), mask=real)

            spot = at[:, None] * K + slots[None, :]
            held = tl.load(value_at + spot, mask=real[:, None], other=float("inf"))
            spots = tl.load(place_at + spot, mask=real[:, None], other=0)
            places = tl.where(columns < vocabulary, columns + offset, GONE)
            top, top_place = _after(
                z, places, tl.full((TOKENS,), float("inf"), tl.float32), tl.full((TOKENS,), -1, tl.int32)
            )
            low, low_place = _worst(held, spots)
            better = (top > low) | ((top == low) & (top_place < low_place))
            while tl.max(better.to(tl.int32), 0) > 0:
                slot = (held == low[:, None]) & (spots == low_place[:, None]) & better[:, None]
                held = tl.where(slot, top[:, None], held)
                spots = tl.where(slot, top_place[:, None], spots)
                top, top_place = _after(z, places, top, top_place)
                low, low_place = _worst(held, spots)
                better = (top > low) | ((top == low) & (top_place < low_place))
            tl.store(value_at + spot, held, mask=real[:, None])
            tl.store(place_at + spot, spots, mask=real[:, None])
            i += 1
        sigma += tl.sum(e_f, 1)
        tile += 1
    tl.store(sigma_at + share.to(tl.int64) * n + rows, sigma, mask=real)


# ---------------------------------------------------------------- launched


def lens_statistics(
    states: Tensor, final: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float,
    asked: Tensor, k: int,
) -> Found:  # fmt: skip
    """See `interp.kernels.lens_statistics`; float64 is left to the reference."""
    from interp.kernels.lens_statistics import fake, reference

    if states.dtype == torch.float64 or not states.numel():
        return reference(states, final, weight, bias, multiplier, cap, asked, k)
    (s, n, d), k = states.shape, fake(states, final, weight, bias, multiplier, cap, asked, k).top.shape[-1]
    wide = weight is not None and d > WIDE
    tokens = BYTES // (4 * (s + 1) * (STRETCH if wide else PROGRAMS))
    parts = [
        _some(
            states[:, part].contiguous(), final[part].contiguous(), weight, bias, multiplier, cap, asked[part], k, wide
        )
        for part in slices(n, max(64, tokens))
    ]
    best, *others = zip(*parts, strict=True)
    return Found(torch.cat(best), *(torch.cat(t, dim=1) for t in others))


def _some(
    states: Tensor, final: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float,
    asked: Tensor, k: int, wide: bool,
) -> Found:  # fmt: skip
    """Of as many tokens as memory allows at a time."""
    width = states.shape[-1] if weight is None else weight.shape[0]
    peaks, sums = [], []
    stretches = list(slices(width, STRETCH if wide else width))
    for stretch in stretches:
        peaks.append(_launch_peaks(final, weight, bias, multiplier, cap, stretch, wide))
    m_f, s_f, best = _joined_peaks([torch.cat(t) for t in zip(*peaks, strict=True)])
    bad_final = ~(m_f + s_f.log()).isfinite()
    best = best.masked_fill(bad_final, 0)
    wanted = torch.cat([best[:, None], asked], dim=1)
    z_wanted = _wanted(states, weight, bias, multiplier, cap, wanted)
    for stretch in stretches:
        sums.append(_launch_pass(states, final, weight, bias, multiplier, cap, stretch, wide, m_f, wanted, z_wanted, k))
    return _finished([torch.cat(t) for t in zip(*sums, strict=True)], s_f, best, wanted, z_wanted, bad_final, k)


def _wanted(
    states: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float, wanted: Tensor
) -> Tensor:
    """The scores of the tokens asked about, [s, n, m] in float32."""
    there = wanted.clamp(min=0)
    if weight is None:
        return states.gather(2, there.expand(len(states), -1, -1)).float().contiguous()
    z = torch.einsum("snd,nmd->snm", states.float(), weight[there].float())
    z = multiplier * (z if bias is None else z + bias[there].float())
    return (cap * torch.tanh(z / cap) if cap else z).contiguous()


def _source(
    h: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float, stretch: slice, wide: bool
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """(h or its scores, W, bias, settings of `_scores`) of a stretch of the vocabulary."""
    if wide:
        assert weight is not None
        part = None if bias is None else bias[stretch]
        scores = scored(h.flatten(0, -2), weight[stretch], part, multiplier, cap).unflatten(0, h.shape[:-1])
        return _source(scores, None, None, 1.0, 0.0, slice(0, scores.shape[-1]), False)
    kind = "scores" if weight is None else "float32 products" if h.dtype == torch.float32 else "products"
    settings = _sizes(kind) | {"D": h.shape[-1], "BIAS": bias is not None, "CAP": cap != 0, "UPCAST": interpreted()}
    W = h if weight is None else weight.contiguous()
    return h, W, h if bias is None else bias.contiguous(), settings


def _sizes(kind: str) -> dict[str, Any]:
    tokens, tile, inner, warps = SIZES[kind]
    return {"TOKENS": tokens, "TILE": tile, "INNER": inner, "GIVEN": kind == "scores", "num_warps": warps}


def _shares(n: int, count: int, settings: dict[str, Any]) -> tuple[tuple[int, int], int]:
    """(Grid, tiles of a program) for n tokens and `count` of the vocabulary."""
    blocks, tiles = triton.cdiv(n, settings["TOKENS"]), triton.cdiv(count, settings["TILE"])
    each = triton.cdiv(tiles, min(tiles, max(1, PROGRAMS // blocks)))
    return (blocks, triton.cdiv(tiles, each)), each


def _launch_peaks(
    final: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float, stretch: slice, wide: bool
) -> tuple[Tensor, ...]:
    h, W, b, settings = _source(final, weight, bias, multiplier, cap, stretch, wide)
    n, count = len(final), stretch.stop - stretch.start
    grid, tiles = _shares(n, count, settings)
    m, s = (torch.empty(grid[1], n, device=h.device) for _ in range(2))
    place = torch.empty(grid[1], n, dtype=torch.int32, device=h.device)
    _peaks[grid](h, W, b, n, count, stretch.start, tiles, multiplier, cap, m, s, place, **settings)
    return m, s, place


def _launch_pass(
    states: Tensor, final: Tensor, weight: Tensor | None, bias: Tensor | None, multiplier: float, cap: float,
    stretch: slice, wide: bool, m_f: Tensor, wanted: Tensor, z_wanted: Tensor, k: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    h, W, b, settings = _source(states, weight, bias, multiplier, cap, stretch, wide)
    h_f = _source(final, weight, bias, multiplier, cap, stretch, wide)[0]
    (s, n), m, count = states.shape[:2], wanted.shape[1], stretch.stop - stretch.start
    grid, tiles = _shares(n, count, settings)
    shape, device, room = (grid[1], s, n), states.device, triton.next_power_of_2(k)
    top = torch.full(shape, -torch.inf, device=device)
    sums = [torch.zeros(shape, device=device) for _ in range(4)]
    sigma, rank = torch.zeros(grid[1], n, device=device), torch.zeros(*shape, m, dtype=torch.int32, device=device)
    slots = torch.arange(room, device=device)
    value = torch.where(slots < k, -torch.inf, torch.inf).expand(*shape, room).contiguous()
    place = (NOBODY.value + slots).int().expand(*shape, room).contiguous()
    _pass[grid](
        h, h_f, W, b, n, count, stretch.start, tiles, multiplier, cap, m_f, wanted.int(), z_wanted,
        top, *sums, sigma, rank, value, place, s, M=m, K=room, **settings,
    )  # fmt: skip
    return top, *sums, sigma, rank, value[..., :k], place[..., :k]


# ---------------------------------------------------------------- shares joined


def _joined_peaks(peaks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(m_f, s_f, place) of all shares [share, n]; of equal maxima the first."""
    m, s, place = peaks
    top = m.amax(0)
    place = torch.where(m == top, place, NOBODY.value).amin(0)
    return top, (s * torch.where(m == -torch.inf, 0.0, (m - top).exp())).sum(0), place.long()


def _finished(
    sums: list[Tensor], s_f: Tensor, best: Tensor, wanted: Tensor, z_wanted: Tensor, bad_final: Tensor, k: int
) -> Found:
    """The results of all shares [share, s, n]."""
    m, s, w, a, b, sigma, rank, value, place = sums
    top = m.amax(0)
    moved = torch.where(m == -torch.inf, 0.0, m - top)
    shrunk = torch.where(m == -torch.inf, 0.0, moved.exp())
    w, b = (((x + s * moved) * shrunk).sum(0) for x in (w, b))
    a, s = (a - moved * sigma[:, None]).sum(0), (s * shrunk).sum(0)
    log_s, log_f = s.log(), s_f.log()
    value, place = (t.movedim(0, 2).flatten(2) for t in (value, place))
    place, order = place.sort(dim=-1)
    value, order = value.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    a, b = a / s_f, b / s
    found = Found(
        best,
        place.gather(-1, order)[..., :k].long(),
        value[..., :k] - (top + log_s)[..., None],
        log_s - w / s,
        torch.where(a > NEVER, torch.inf, a - log_f + log_s),
        torch.where(b > NEVER, torch.inf, b - log_s + log_f),
        z_wanted - top[..., None] - log_s[..., None],
        1 + rank.sum(0),
    )
    return cleared(found, wanted.expand(len(top), -1, -1), ~(top + log_s).isfinite(), bad_final)


# ---------------------------------------------------------------- what is compiled where there is no GPU

_SUMS = dict.fromkeys(("m_f_in", "z_wanted", "m_at", "s_at", "w_at", "a_at", "b_at", "sigma_at", "value_at"), "*fp32")
_PLACES = dict.fromkeys(("wanted", "rank_at", "place_at"), "*i32")
COMPILED = {}
for _name, _kind, _dtype, _d in (
    ("bf16, d 768", "products", "bf16", 768),
    ("fp32, d 768", "float32 products", "fp32", 768),
    ("bf16 scores", "scores", "bf16", STRETCH),
):
    _head = dict.fromkeys(("n", "vocabulary", "offset", "tiles"), "i32") | {"multiplier": "fp32", "cap": "fp32"}
    _head |= dict.fromkeys(("final", "W", "bias"), f"*{_dtype}") | {
        "D": _d,
        "BIAS": False,
        "CAP": False,
        "UPCAST": False,
    }
    _head |= _sizes(_kind)
    _outs = {"m_out": "*fp32", "s_out": "*fp32", "place_out": "*i32"}
    COMPILED[f"lens_statistics peaks, {_name}"] = (_peaks, _head | _outs)
    COMPILED[f"lens_statistics, {_name}"] = (
        _pass,
        _head | {"states": f"*{_dtype}", "S": "i32", "M": 2, "K": 8} | _SUMS | _PLACES,
    )
