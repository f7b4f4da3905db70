"""From a wiring to a live model: where each head's columns are, and how large every site is.

A layout is found, not known: a column of q, k, v or z is matched with the column of a projection that holds the same
numbers. Queries and keys are matched at position 0, where rotary embeddings rotate by nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.model.experts import hidden, scored
from interp.model.solver import is_linear, same_values
from interp.model.state import state_shape
from interp.model.tap import Attention
from interp.model.trace import Call, Trace
from interp.model.wiring import Block, Coefficient, Place, Wiring

if TYPE_CHECKING:
    from jaxtyping import Float

CLOSE = {
    torch.float64: 1e-10,
    torch.float32: 1e-6,
}  # 1 - |cosine| of columns that count as the same; bfloat16 rounds more
ROUGH = 1e-3


@dataclass(frozen=True)
class Heads:
    """Which columns of a tensor's last axis are which head's: columns[head * d_head + e]."""

    columns: Tensor
    count: int

    @cached_property
    def width(self) -> int:
        """How many columns all heads have."""
        return len(self.columns)

    @cached_property
    def start(self) -> int | None:
        """First column if they are consecutive, so that a view will do."""
        first = int(self.columns[0])
        return first if bool((self.columns.diff() == 1).all()) else None

    def split(self, t: Tensor) -> Tensor:
        """[..., columns] to [..., head, d_head]; a view where the layout allows."""
        if self.start is None:
            t = t[..., self.columns.to(t.device)]
        elif self.width < t.shape[-1]:
            t = t.narrow(-1, self.start, self.width)
        return t.view(*t.shape[:-1], self.count, self.width // self.count)

    def join(self, t: Tensor, heads: Tensor) -> Tensor:
        """`t` with the heads' columns replaced."""
        t = t.clone()
        t[..., self.columns.to(t.device)] = heads.flatten(-2)
        return t


@dataclass(frozen=True)
class Norm:
    """How a norm module divides: x - mean if `centred`, by √(mean square + eps)."""

    centred: bool
    eps: float

    def scale(self, x: Tensor) -> Float[Tensor, "... 1"]:
        """s = √(mean((x - μ)²) + eps), μ the mean over the last axis if centred, else 0."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        square = wide.var(-1, correction=0, keepdim=True) if self.centred else wide.square().mean(-1, keepdim=True)
        return (square + self.eps).sqrt()


@dataclass(frozen=True)
class Site:
    """A site of a live model.

    kind "module": a tensor at `place`, perhaps split into heads. kind "tap": `inner` of the attention run by the module
    at `place.path`. kind "sum": the stream after `place`'s write, read at `read`. kind "result": what `place`'s matrix
    makes of each head. kind "scale": the divisor of the norm at `place`. kind "experts": the hidden neurons of the
    experts each token is sent to by the module at `place`. kind "router": scores that the module at `place` itself picks
    experts by: its `product`-th result with one entry an expert. kind "state": what the mixer at `place` holds after each token.
    kind "dictionary": latents or the error of an attached dictionary. kind "part": `index` of another
    site, the `whole`.
    """

    kind: str
    place: Place
    shape: tuple[int | str, ...]
    heads: Heads | None = None
    inner: str = ""
    product: int = -1
    whole: str = ""
    index: tuple[object, ...] = ()
    count: int = 0  # query heads
    groups: int = 1  # query heads that share a key head
    read: Place | None = None
    base: tuple[tuple[Place, Coefficient], ...] = ()  # what the sum starts from and the writes before
    norm: Norm | None = None
    factor: Coefficient = 1.0  # what the module's tensor is multiplied by to be the site's: a write with a multiplier
    offset: str = ""  # and what is added to it

    @cached_property
    def untouched(self) -> bool:
        """Whether the site is its module's tensor as it is, where that keeps batch and positions apart."""
        other = self.heads or self.offset or self.factor != 1.0 or self.place.half is not None
        return not other and (self.read or self.place).straight


@dataclass(frozen=True)
class Binding:
    """Every site of a live model in order of depth, and why others are not there."""

    sites: dict[str, Site] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def match(target: Tensor, source: Tensor) -> Tensor | None:
    """For every column of target [n, a] the column of source [n, b] parallel to it, or None if one has none.

    Of several parallel columns (an attention that looks at one constant token makes many) the nearest is taken.
    """
    tolerance = CLOSE.get(target.dtype, ROUGH)
    t, s = target.double(), source.double()
    cosine = (nn.functional.normalize(t, dim=0).T @ nn.functional.normalize(s, dim=0)).abs()
    parallel = cosine > 1 - tolerance
    column = torch.cdist(t.T, s.T).masked_fill(~parallel, torch.inf).argmin(dim=1)
    return column if bool(parallel.any(dim=1).all()) else None


def distinct_heads(t: Tensor) -> Tensor:
    """t [batch, head, pos, d_head] without repeats of the same key or value head for a group of query heads."""
    keep = [0] + [h for h in range(1, t.shape[1]) if not torch.equal(t[:, h], t[:, h - 1])]
    return t[:, keep]


def grid(t: Tensor, length: int) -> int:
    """How many axes the positions of a tensor take: 2 where its rows and columns make up the length [batch, row, column, d]."""
    return 2 if t.ndim == 4 and t.shape[1] * t.shape[2] == length and length not in t.shape[1:3] else 1


def rows(t: Tensor, batch: int, at_zero: bool = False) -> Tensor:
    """A call's tensor [batch, pos, ...] (or [batch * pos, ...], or [batch, head, pos, d]) as [rows, columns]."""
    t = t.reshape(batch, -1, t.shape[-1]) if t.ndim == 2 else t
    return t[:, 0].flatten(1) if at_zero else t.flatten(0, 1).flatten(1)


class _Attention:
    """Finds where the tensors of one attention come from among the calls of its block."""

    def __init__(self, calls: list[Call], core: Call, seen: Attention) -> None:
        self.calls = [c for c in calls if core.start < c.start and c.end < core.end]
        self.seen = seen
        self.batch = seen.q.shape[0]  # type: ignore[union-attr]

    def source(self, target: Tensor, at_zero: bool, calls: list[Call], side: str) -> tuple[Call, Heads] | None:
        """The call whose output (or input) holds `target` [batch, head, pos, d_head], and in which columns."""
        flat = target.transpose(1, 2)
        wanted = rows(flat, self.batch, at_zero)
        for call in calls:
            t = call.out if side == "out" else call.into
            t = t if t is None else t.flatten(1, grid(t, flat.shape[1]))
            if t is None or t.shape[0] not in (self.batch, self.batch * flat.shape[1]) or t.ndim > 4:
                continue
            have = rows(t, self.batch, at_zero)
            columns = match(wanted, have) if have.shape[0] == wanted.shape[0] else None
            if columns is not None:
                return call, Heads(columns, target.shape[1])
        return None

    def raw(self, target: Tensor) -> tuple[Call, Heads] | None:
        """The projection a query or key comes from: before rotary, and before a norm of queries and keys.

        Else the first module of any kind that returns it.
        """
        linear = [c for c in self.calls if is_linear(c)]
        return self.either(target, linear) or self.behind_norm(target, linear) or self.either(target, self.calls)

    def either(self, target: Tensor, calls: list[Call]) -> tuple[Call, Heads] | None:
        """The source everywhere, or only at position 0."""
        return self.source(target, False, calls, "out") or self.source(target, True, calls, "out")

    def behind_norm(self, target: Tensor, linear: list[Call]) -> tuple[Call, Heads] | None:
        """The projection whose output a norm of queries or keys receives."""
        for call in (c for c in self.calls if c not in linear and c.into is not None and c.out is not None):
            for heads_first in (True, False):
                out, into = (self.as_heads(t, target, heads_first) for t in (call.out, call.into))
                if out is not None and into is not None and self.matches_at_zero(target, out):
                    return self.source(into, False, linear, "out")
        return None

    def matches_at_zero(self, target: Tensor, out: Tensor) -> bool:
        wanted, have = (rows(t.transpose(1, 2), self.batch, at_zero=True) for t in (target, out))
        return match(wanted, have) is not None

    def as_heads(self, t: Tensor | None, like: Tensor, heads_first: bool) -> Tensor | None:
        """A normalised query or key, [batch, head, pos, d_head] or [batch, pos, head, d_head], as the former."""
        batch, heads, length, width = like.shape
        if t is None or t.numel() != like.numel():
            return None
        if heads_first:
            return t if t.shape == like.shape else None
        return t.reshape(batch, length, heads, width).transpose(1, 2)


def _equal_heads(t: Tensor | None, heads: Heads, target: Tensor) -> bool:
    """The columns of a call's tensor are the target [batch, head, pos, d_head], and not only parallel to it."""
    assert t is not None
    batch, _, length, _ = target.shape
    made = rows(t.flatten(1, grid(t, length)), batch)[:, heads.columns]
    wanted = rows(target.transpose(1, 2), batch)
    return bool((made - wanted).norm() <= 10 * CLOSE.get(target.dtype, ROUGH) ** 0.5 * wanted.norm())


def _attention_sites(
    calls: list[Call], core: Call, product: int, seen: Attention, axis: int | None = 0
) -> Iterator[tuple[str, Site]]:
    """The sites inside an attention; `axis` is that of the batch in what its module is given."""
    assert seen.q is not None and seen.k is not None and seen.v is not None and seen.z is not None
    q, k, v, z = seen.q, distinct_heads(seen.k), distinct_heads(seen.v), seen.z
    z = z if z.shape[1] == q.shape[1] else z.transpose(1, 2)
    find, place = _Attention(calls, core, seen), Place(core.path, "out", None, core.number, batch=axis)
    heads, groups, width = q.shape[1], q.shape[1] // k.shape[1], q.shape[-1]

    def tap(name: str, shape: tuple[int | str, ...], groups: int = 1) -> Site:
        return Site("tap", place, ("batch", *shape), inner=name, product=product, count=heads, groups=groups)

    def at(call: Call, heads: Heads, side: str) -> Site:
        key = call.key_in() if side == "in" else next(iter(call.outputs))
        t = (call.inputs if side == "in" else call.outputs)[key]
        where = Place(call.path, side, key, call.number, grid=grid(t, q.shape[2]))
        return Site("module", where, ("batch", "pos", heads.count, len(heads.columns) // heads.count), heads)

    for name, target in (("q_raw", q), ("k_raw", k)):
        found = find.raw(target)
        if found:
            yield name, at(*found, "out")
    yield "q", tap("q", ("pos", heads, width))
    yield "k", tap("k", ("pos", k.shape[1], width), groups)
    value = find.source(v, False, [c for c in find.calls if is_linear(c)], "out")
    if value and not _equal_heads(value[0].out, value[1], v):
        value = None  # it is scaled on its way
    yield "v", at(*value, "out") if value else tap("v", ("pos", v.shape[1], v.shape[-1]), q.shape[1] // v.shape[1])
    yield "scores", tap("scores", (heads, "query", "key"))
    yield "pattern", tap("pattern", (heads, "query", "key"))
    if seen.sink is not None:
        yield "sink", tap("sink", ("pos", heads))
    mixed = find.source(z, False, [c for c in calls if is_linear(c)], "in")
    if mixed and mixed[0].into.shape[-1] != len(mixed[1].columns):  # type: ignore[union-attr]
        mixed = None  # something else stands beside the heads
    yield "z", at(*mixed, "in") if mixed else tap("z", ("pos", heads, z.shape[-1]))
    if mixed and mixed[0].out is not None:
        shape = ("batch", "pos", heads, mixed[0].out.shape[-1])
        yield "result", Site("result", at(*mixed, "in").place, shape, mixed[1])


def _module_site(place: Place, trace: Trace) -> Site | None:
    calls = trace.of(place.path)
    if len(calls) <= place.call:
        return None
    tensor = place.rows((calls[place.call].inputs if place.side == "in" else calls[place.call].outputs)[place.key])
    tail = [*tensor.shape][1 if tensor.ndim == 2 else 2 :] if tensor.ndim >= 2 else []
    if place.half is not None:
        tail[-1] //= 2
    return Site("module", place, ("batch", "pos", *tail))


def _router_site(place: Place, trace: Trace) -> Site | None:
    site, call = _module_site(place, trace), trace.of(place.path)[place.call]
    number = scored(call, call.outputs[place.key]) if site is not None else None
    return site if site is None or number is None else replace(site, kind="router", product=number)


def _scale_site(place: Place, trace: Trace) -> Site | None:
    """The divisor of a norm: the rule (centred or not, which eps) that makes its output affine in x / s, per channel."""
    call = trace.of(place.path)[place.call]
    assert call.into is not None and call.out is not None
    x, y = (place.rows(t).flatten(0, -2).double() for t in (call.into, call.out))
    known = {v for m in call.module.modules() for n, v in vars(m).items() if "eps" in n and isinstance(v, float)}
    errors: dict[Norm, float] = {}
    for norm in (Norm(centred, eps) for centred in (False, True) for eps in sorted({*known, 0.0})):
        unit = (x - x.mean(-1, keepdim=True) if norm.centred else x) / norm.scale(x)
        slope = _slope(unit, y)
        bias = (y - unit * slope).mean(0) if norm.centred else 0.0
        errors[norm] = float((unit * slope + bias - y).norm() / y.norm())
    best = min(errors, key=lambda norm: errors[norm])
    tolerance = 1e-5 if call.into.dtype in (torch.float32, torch.float64) else 2e-2
    return Site("scale", place, ("batch", "pos", 1), norm=best) if errors[best] <= tolerance else None


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Least squares slope of y over x per column, with an intercept."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).sum(0) / (x * x).sum(0).clamp(min=1e-30)


def _experts_site(place: Place, trace: Trace) -> Site | None:
    call = trace.of(place.path)[place.call]
    post = hidden(call.module, call.args, call.kwargs)
    return None if post is None else Site("experts", place, ("batch", "pos", *post.shape[1:]))


def _reordered(calls: list[Call], core: Call, seen: Attention, alone: bool) -> str:
    """Why the tensors of an attention are not [batch, head, query, key] by position, or nothing."""
    q, k, v, pattern, z = seen.q, seen.k, seen.v, seen.pattern, seen.z
    assert q is not None and k is not None and v is not None and pattern is not None and z is not None
    if pattern.shape[2:] != (q.shape[2], k.shape[2]):
        return f"its softmax is over {tuple(pattern.shape[2:])}, not over {(q.shape[2], k.shape[2])} queries and keys"
    if not _weighs(pattern, v, z):
        return "what leaves it is not pattern · v"
    given = (t.numel() // size for t in core.inputs.values() if t.ndim > 1 for size in t.shape)
    if alone and q.shape[0] * q.shape[2] not in given:  # whichever axis has the channels
        return f"its softmax has {q.shape[2]} queries in a row, which are not the positions it is given"
    inside = [c for c in calls if core.start < c.start and c.end < core.end and is_linear(c)]
    if any(same_values(z, c.into) for c in inside) and not any(_in_order(z, c.into) for c in inside):
        return "its queries are not in the order of the positions"
    return ""


def _weighs(pattern: Tensor, v: Tensor, z: Tensor) -> bool:
    """z = pattern · v up to rounding, key heads repeated for the queries of a group."""
    if pattern.shape[1] % v.shape[1] or v.shape[2] != pattern.shape[3] or v.shape[0] != pattern.shape[0]:
        return False
    made = pattern.double() @ v.double().repeat_interleave(pattern.shape[1] // v.shape[1], dim=1)
    z = (z if z.shape[1] == made.shape[1] else z.transpose(1, 2)).double()
    tolerance = 1e-4 if v.dtype in (torch.float32, torch.float64) else 3e-2
    return made.shape == z.shape and bool((made - z).norm() <= tolerance * z.norm())


def _in_order(z: Tensor, into: Tensor | None) -> bool:
    """A matrix receives z [batch, head, pos, d_head], the heads of each position in some order of columns."""
    if into is None or into.numel() != z.numel():
        return False
    batch, _, length, _ = z.shape
    a = z.transpose(1, 2).flatten(2).sort(-1).values
    ways = (into.reshape(batch, length, -1), into.reshape(length, batch, -1).transpose(0, 1))
    return any(torch.equal(a, b.sort(-1).values) for b in ways)


def _block_sites(block: Block, trace: Trace) -> Iterator[tuple[str, Site | str]]:
    made = [
        (_module_site, block.sites),
        (_scale_site, block.scales),
        (_experts_site, block.experts),
    ]
    for make, places in made:
        for name, place in places.items():
            site = _router_site(place, trace) if name.endswith(".router") else make(place, trace)
            if site is not None:
                yield name, site
    calls = trace.inside(trace.span(block.path, block.call, block.until))
    for role, core in block.cores.items():
        at, seen = next(
            ((c, a) for c, a in trace.attentions if (c.path, c.number) == (core.path, core.call)), (None, None)
        )
        if at is not None and seen is not None and seen.q is not None and seen.z is not None and seen.q.ndim == 4:
            alone = sum((c.path, c.number) == (core.path, core.call) for c, _ in trace.attentions) == 1
            why = _reordered(calls, at, seen, alone)
            axis = block.sites[f"{role}.in"].batch if f"{role}.in" in block.sites else 0
            for name, site in _attention_sites(calls, at, core.product, seen, axis):
                yield f"{role}.{name}", why or site


def _state_sites(block: Block, trace: Trace) -> Iterator[tuple[str, Site | str]]:
    """The state of every mixer of a block, or why it has none."""
    config = getattr(trace.of("")[0].module, "config", None)
    for name, place in block.sites.items():
        if name.startswith("mixer") and name.endswith(".in"):
            found = state_shape(trace.of(place.path)[place.call], place.key, config)
            site = found if isinstance(found, str) else Site("state", place, ("batch", "pos", *found))
            yield name.removesuffix("in") + "state", site


def _with_mid(sites: dict[str, Site], block: Block) -> None:
    """resid_mid is read where a norm reads it; an edit has to reach the stream, so it goes through the write before."""
    mid, made = block.sites.get("resid_mid"), next((s for s in block.sums if s.site == "resid_mid"), None)
    if mid is None or mid.side == "out" or made is None or "resid_mid" not in sites:
        return
    terms = [(block.sites[made.base], made.scale), *((block.sites[w], c) for w, c in made.writes)]
    shape, offset = sites["resid_mid"].shape, made.constant
    sites["resid_mid"] = Site("sum", terms[-1][0], shape, read=mid, base=tuple(terms), offset=offset)


def _with_factors(sites: dict[str, Site], block: Block) -> None:
    """A write holds its multiplier and the constant that is added with it."""
    for total in block.sums:
        for number, (write, factor) in enumerate(total.writes, 1):
            offset = total.constant if number == len(total.writes) else ""
            if write in sites and factor not in block.sites:
                sites[write] = replace(sites[write], factor=factor, offset=offset)


ORDER = ["resid_pre", "attn", "cross_attn", "mixer", "resid_mid", "mlp", "resid_post"]
DEPTH = ["norm.scale", "in", "q_raw", "k_raw", "q", "k", "v", "scores", "pattern", "sink", "z", "result", "state"]
DEPTH += ["router", "gate", "up", "pre", "post", "experts.post", "out", "write", "sum"]


def _depth(name: str) -> tuple[int, str, int]:
    """Where a site of a block stands: by its sublayer, and within it."""
    role, _, rest = name.partition(".")
    first = next((i for i, start in enumerate(ORDER) if role.startswith(start)), len(ORDER))
    return first, role, DEPTH.index(rest) if rest in DEPTH else len(DEPTH)


def bind(wiring: Wiring, trace: Trace) -> Binding:
    """All sites of the model that `trace` ran, by canonical name, in order of depth."""
    binding = Binding()
    outside = {name: _module_site(place, trace) for name, place in wiring.sites.items()}
    outside |= {name: _scale_site(place, trace) for name, place in wiring.scales.items()}
    for name in [n for n in outside if n.endswith("embed")]:
        if outside[name] is not None:
            binding.sites[name] = outside[name]  # type: ignore[assignment]
    for stack in wiring.stacks:
        for number, block in enumerate(stack.blocks):
            prefix = f"{stack.prefix}blocks.{number}."
            found = dict(_block_sites(block, trace))
            found |= _state_sites(block, trace)
            sites = {n: site for n, site in found.items() if isinstance(site, Site)}
            binding.refused.update({prefix + n: why for n, why in found.items() if isinstance(why, str)})
            _with_factors(sites, block)
            _with_mid(sites, block)
            several = any(c in block.sites for s in block.sums for _, c in s.writes)
            if several and "resid_mid" in sites:
                del sites["resid_mid"]
                binding.refused[prefix + "resid_mid"] = "no single write could carry an edit to all streams"
            known = sorted(sites, key=_depth)
            binding.sites.update({prefix + n: sites[n] for n in known})
            binding.refused.update({prefix + n: why for n, why in block.refused.items()})
    last = sorted((n for n in outside if n not in binding.sites), key=lambda n: n == "logits")
    binding.sites.update({n: outside[n] for n in last if outside[n] is not None})  # type: ignore[misc]
    return binding


def output_matrix(module: nn.Module, width: int, like: Tensor) -> Tensor:
    """W [width, d_model] with module(z) = z W + b: a plain linear layer's own; else found by feeding it the identity."""
    from transformers.pytorch_utils import Conv1D

    plain = type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module)
    if plain and module.weight.dtype == like.dtype:
        return module.weight if isinstance(module, Conv1D) else module.weight.T  # type: ignore[return-value]
    rows = module.forward(torch.eye(width + 1, width, dtype=like.dtype, device=like.device))  # the last row is zeros
    return rows[:-1] - rows[-1:]


def as_mapping(sites: Mapping[str, Site]) -> dict[str, tuple[int | str, ...]]:
    """Shapes by name."""
    return {name: site.shape for name, site in sites.items()}
