"""The residual stream of one block explained, link by link: from what the block returns back to what it received.

A link is target = scale · base + Σ coefficient · write + constant, or target = norm(base). Sums are found by least squares
over what modules return, the block's children first, then theirs. Coefficients are numbers, else a value per channel that
is a parameter or a module's own response, else, with several streams, values per position that a module returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from interp.model.trace import EXACT, Call, Trace, near, rerun, same
from interp.model.wiring import Coefficient, Place, vector

CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)  # by torch's own convention
LINKS = 12  # in one block
ENOUGH = 20_000  # equations for a least squares fit


class Unsolved(Exception):
    """The stream could not be explained; the text is the report."""


class Undecided(Unsolved):
    """Several explanations are as good."""


@dataclass(eq=False)
class Link:
    """target = scale · base + Σ coefficient · write + constant, or target = norm(base). A `Place`: a value per position."""

    target: Tensor
    base: Tensor
    norm: Call | None = None
    writes: list[tuple[Call, Coefficient | Place]] = field(default_factory=list)
    scale: Coefficient | Place = 1.0
    constant: str = ""
    since: float = -1.0  # when the base was there


# ---------------------------------------------------------------- questions asked of a call


def changed(call: Call, tensor: Tensor) -> Tensor | None:
    """How its result changes when it receives a tensor instead; None where it does not run again on that."""
    try:
        assert call.out is not None
        return rerun(call, tensor) - call.out
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # a cache is full, shapes go together
        return None


def is_norm(call: Call) -> bool:
    """Its result does not change when its one tensor argument is doubled, up to the norm's epsilon; it has no matrices."""
    if call.into is None or call.out is None or len(call.inputs) != 1 or call.into.shape != call.out.shape:
        return False
    if any(p.ndim > 1 for p in call.module.parameters()):
        return False
    change = changed(call, 2 * call.into)
    return change is not None and bool(change.norm() < 0.01 * call.out.norm())


def adds(call: Call) -> bool:
    """It returns the sum of what it receives."""
    given = [t for t in call.inputs.values() if call.out is not None and t.shape == call.out.shape]
    return len(given) > 1 and near(sum(given[1:], given[0]), call.out)  # type: ignore[arg-type]


def after_sum(call: Call) -> bool:
    """A norm, or what treats every value alone: what may stand between a sum and what a block returns."""
    return len(call.inputs) == 1 and (is_norm(call) or (alone(call) and not same(call.into, call.out)))


def alone(call: Call) -> bool:
    """Every value of its result depends on the value at its place alone (dropout, layer scale, activation function)."""
    if call.into is None or call.out is None or call.into.shape != call.out.shape or call.into.numel() < 2:
        return False
    first = (0,) * call.into.ndim
    moved = call.into.clone()
    moved[first] += 1.0
    change = changed(call, moved)
    if change is None:
        return False
    change[first] = 0.0
    return not bool(change.any())


def channel_axis(call: Call) -> int | None:
    """The axis of the tensors of a matrix or a norm along which channels stand; None for other modules."""
    if isinstance(call.module, CHANNELS_FIRST):
        return 1
    weights = [p for p in call.module.parameters(recurse=False) if p.ndim in (1, 2)]
    if not weights or call.into is None or call.into.ndim < 2:
        return None
    if weights[0].ndim == 2:
        return -1
    if not is_norm(call):
        return None
    moved = call.into.clone()
    moved[(0,) * moved.ndim] += 1.0
    assert call.out is not None
    change = changed(call, moved)
    if change is None:
        return None
    change = change[0]
    spread = [axis for axis in range(change.ndim) if change.select(axis, -1).abs().max() > 0 and change.shape[axis] > 1]
    return 1 if change.ndim > 1 and spread == [0] else -1


def stream_axis(call: Call, calls: Sequence[Call]) -> int:
    """The axis of channels in what a block receives and returns, as the first module with weights that meets it has it."""
    for c in calls:
        axis = channel_axis(c)
        for t in (c.into, c.out) if axis is not None else ():
            for end in (call.into, call.out):
                if t is None or end is None or t.numel() != end.numel() or end.ndim < 3:
                    continue
                if same(t, end) and t.shape == end.shape:
                    return axis  # type: ignore[return-value]
                if axis == -1 and same(t, end.movedim(1, -1)):
                    return 1
                if axis == 1 and same(t, end.movedim(-1, 1)):
                    return -1
    return -1


class Stream:
    """One block's calls and its stream: x goes in, y comes out, both with channels on the last axis."""

    def __init__(self, trace: Trace, call: Call) -> None:
        assert call.into is not None and call.out is not None
        self.trace, self.call, self.calls = trace, call, trace.inside(call)
        self.leaves = [c for c in self.calls if not self.children(c)]
        self.axes = {id(c): channel_axis(c) for c in self.leaves}
        self.axis = stream_axis(call, self.leaves)
        self.shape = call.into.shape
        self.x, self.y = call.into.movedim(self.axis, -1), call.out.movedim(self.axis, -1)
        self.width, self.positions = self.x.shape[-1], self.x.shape[1:-1].numel()
        self.report = "no sum of submodule outputs gives the block's output, and no norm returns it"

    # ------------------------------------------------------------ calls and what they return

    def children(self, call: Call) -> list[Call]:
        """The calls made directly by a call."""
        below = [c for c in self.calls if call.start < c.start and c.end < call.end]
        return [c for c in below if not any(o.start < c.start and c.end < o.end for o in below)]

    def axis_of(self, call: Call, t: Tensor) -> int:
        """The axis of channels in a tensor that a call received or returned."""
        known = self.axes.get(id(call))
        if known is not None:
            return known
        if t.shape == self.shape:
            return self.axis
        return 1 if t.ndim > 2 and t.shape[-1] != self.width and t.shape[1] == self.width else -1

    def out(self, call: Call) -> Tensor | None:
        """What a call returned, channels last."""
        return None if call.out is None or call.out.ndim < 2 else call.out.movedim(self.axis_of(call, call.out), -1)

    def into(self, call: Call) -> Tensor | None:
        """What a call received, channels last."""
        return None if call.into is None or call.into.ndim < 2 else call.into.movedim(self.axis_of(call, call.into), -1)

    def producer(self, tensor: Tensor | None, before: float) -> Call | None:
        """The outermost call that returned this very tensor before the given moment."""
        equal = [c for c in self.calls if c.end < before and same(self.out(c), tensor)]
        return min(equal, key=lambda c: c.start, default=None)

    def levels(self, after: float, before: float) -> Iterator[list[Call]]:
        """The calls between two moments, outermost first; then their children where they made calls, and so on."""
        nodes = self.children(self.call)
        while nodes:
            while any(_across(n, after, before) for n in nodes):
                nodes = [d for n in nodes for d in (self.children(n) if _across(n, after, before) else [n])]
            nodes = [n for n in nodes if after <= n.start and n.end < before]
            yield nodes
            deeper = [d for n in nodes for d in (self.children(n) or [n])]
            if deeper == nodes:
                return
            nodes = deeper

    def columns(self, nodes: Sequence[Call], known: Sequence[Tensor]) -> list[Call]:
        """Nodes that can be terms: the stream's shape, none of the known tensors, no module that only adds what it is given;
        equal ones merged to the outermost.
        """
        kept: list[Call] = []
        for node in sorted(nodes, key=lambda c: c.start):
            out = self.out(node)
            if out is None or out.numel() != self.y.numel() or out.shape[-1] != self.width or adds(node):
                continue
            if not any(same(out, t) for t in (*known, *(self.out(k) for k in kept))):
                kept.append(node)
        return kept

    def only_names(self, call: Call) -> bool:
        """It returns what it receives, and no module made that: a mark in the stream, not a write."""
        return same(call.into, call.out) and self.producer(self.into(call), call.start) is None

    # ------------------------------------------------------------ from the end to the beginning

    def links(self) -> list[Link]:
        """The links from x to y, first link first. Raises `Unsolved`."""
        found = self.explain(self.y, self.call.end, LINKS)
        if found is None:
            raise Unsolved(self.report)
        return found

    def explain(self, target: Tensor, before: float, depth: int) -> list[Link] | None:
        """The links from x to a tensor that was there at a moment; None where there are none."""
        if same(target, self.x):
            return []
        for link in self.ways(target, before) if depth else ():
            first = self.explain(link.base, link.since, depth - 1)
            if first is not None:
                return [*first, link]
        return None

    def ways(self, target: Tensor, before: float) -> Iterator[Link]:
        """Links that end in a tensor, the plainest first; from a stream of zeros, which anything explains, last."""
        moving, every = bool(self.x.any()), ("plain", "scaled", "vectors", "mixed")
        if moving:
            yield from self.between(target, self.x, -1, before, every[:1])
        for call in self.leaves:
            if call.end <= before and same(self.out(call), target) and after_sum(call):
                yield Link(target, self.into(call), norm=call, since=call.start)  # type: ignore[arg-type]
        for reader in reversed(self.calls):  # a sum of which nothing but its reader tells
            base = self.into(reader) if reader.start < before else None
            if self.may_be_base(base, target) and self.producer(base, reader.start) is None:
                yield from self.between(target, base, reader.start, before, every)  # type: ignore[arg-type]
        if moving:
            yield from self.between(target, self.x, -1, before, every[1:])
        for norm in reversed(self.leaves):
            base = self.out(norm) if norm.end < before else None
            if self.may_be_base(base, target) and after_sum(norm):
                yield from self.between(target, base, norm.end, before, every)  # type: ignore[arg-type]
        yield from self.joints(target, before)
        if not moving:
            yield from self.between(target, self.x, -1, before, every[:1])

    def may_be_base(self, base: Tensor | None, target: Tensor) -> bool:
        """A tensor of the stream's size that is neither the target nor x."""
        return base is not None and base.numel() == target.numel() and not same(base, target) and not same(base, self.x)

    # ------------------------------------------------------------ sums

    def between(
        self, target: Tensor, base: Tensor, after: float, before: float, kinds: Sequence[str]
    ) -> Iterator[Link]:
        """Sums that lead from one tensor to another by what calls between two moments returned."""
        for kind in kinds:
            if kind == "mixed":
                yield from self.mixed(target, base, after, before)
                continue
            for nodes in self.levels(after, before):
                terms = self.columns(nodes, (base, target))
                try:
                    link = getattr(self, kind)(target, base, terms)
                except Undecided as undecided:
                    self.report = str(undecided)
                    terms = [t for t in terms if not self.only_names(t)]
                    try:
                        link = getattr(self, kind)(target, base, terms)
                    except Undecided:
                        link = None
                if link is not None and link.writes:
                    link.since = after
                    yield link
                    break

    def fit(self, target: Tensor, terms: Sequence[Tensor]) -> list[float] | None:
        """Coefficients of `target` over `terms` by least squares, or None if they do not explain it exactly.

        A term that adds less than `EXACT` of the target gets the coefficient 0.
        """
        if not terms or target.numel() < 2 * len(terms):
            return None
        a, b = torch.stack([t.flatten() for t in terms], dim=1), target.flatten()
        lengths = a.norm(dim=0).clamp(min=1e-300)
        some = slice(None, None, 1 + len(b) // ENOUGH)  # the others are checked
        solution = torch.linalg.lstsq((a / lengths)[some], b[some], driver="gelsd")
        share = solution.solution
        if (a / lengths @ share - b).norm() > EXACT * b.norm():
            return None
        if int(solution.rank) < a.shape[1]:
            raise Undecided("two submodules return linearly dependent tensors, so who writes is undecided")
        kept = share.abs() > EXACT * b.norm()
        found = torch.where(kept, share / lengths, 0.0).tolist()
        return [round(c, 6) if abs(c - round(c, 6)) < EXACT else c for c in found]

    def plain(self, target: Tensor, base: Tensor, terms: Sequence[Call]) -> Link | None:
        """target = base + Σ c · write."""
        found = self.fit(target.flatten() - base.flatten(), [self.out(t) for t in terms])  # type: ignore[misc]
        writes = [(t, c) for t, c in zip(terms, found or (), strict=False) if c]
        return Link(target, base, writes=writes) if found else None  # type: ignore[arg-type]

    def scaled(self, target: Tensor, base: Tensor, terms: Sequence[Call]) -> Link | None:
        """target = s · base + Σ c · write."""
        found = self.fit(target, [base, *(self.out(t) for t in terms)])  # type: ignore[list-item]
        if not found or not found[0]:
            return None
        return Link(target, base, writes=[(t, c) for t, c in zip(terms, found[1:], strict=True) if c], scale=found[0])

    def vectors(self, target: Tensor, base: Tensor, terms: Sequence[Call]) -> Link | None:
        """target = a ∘ base + Σ b ∘ write + c, each of a, b, c a parameter with a value per channel, or absent."""
        names = {n: p for n, p in self.parameters() if p.numel() == self.width}
        tensors: list[Tensor] = [t.reshape(-1, self.width) for t in (base, *map(self.out, terms))]  # type: ignore[union-attr]
        ones = torch.ones_like(tensors[0])
        every: list[tuple[int, str]] = [(i, "") for i in range(len(tensors))]
        every += [(i, n) for i in range(len(tensors) + 1) for n in names]
        values = [[*tensors, ones][i] * names[n].flatten() if n else tensors[i] for i, n in every]
        found = self.fit(target.reshape(-1, self.width), values) if names else None
        used = sorted(((i, n or c) for (i, n), c in zip(every, found or (), strict=False) if c), key=lambda u: u[0])
        named = all(c == 1.0 for (_, n), c in zip(every, found or (), strict=False) if c and n)
        if not found or not named or len({i for i, _ in used}) < len(used) or not used or used[0][0] != 0:
            return None
        writes = [(terms[i - 1], c) for i, c in used if 0 < i < len(tensors)]
        constant = next((str(n) for i, n in used if i == len(tensors)), "")
        return Link(target, base, writes=writes, scale=used[0][1], constant=constant)  # type: ignore[arg-type]

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters that no module without children owns, by path: the block's algebra between its modules."""
        for owner in (self.call, *(c for c in self.calls if self.children(c) and c.number == 0)):
            for name, p in owner.module.named_parameters(recurse=False):
                yield f"{owner.path}.{name}", p

    def mixed(self, target: Tensor, base: Tensor, after: float, before: float) -> Iterator[Link]:
        """target[n] = Σ_m mix[m, n] base[m] + spread[n] write, for streams m and n; mix may be absent. The block's modules
        return mix [batch, pos, stream, stream] and spread [batch, pos, stream] for every position.
        """
        if target.ndim != 4 or base.shape != target.shape:
            return
        between = [c for c in self.calls if c.end < before]
        made = [(Place(c.path, "out", k, c.number), t) for c in between for k, t in c.outputs.items()]
        spreads = [(p, t) for p, t in made if t.shape == target.shape[:3]]
        mixes = [(p, t) for p, t in made if t.shape == (*target.shape[:3], target.shape[2])]
        writes = [c for c in between if c.start > after and c.out is not None and c.out.shape == target[:, :, 0].shape]
        kept: list[tuple[Coefficient | Place, Tensor]] = [(1.0, base)]
        kept += [(p, torch.einsum("bpmn,bpmd->bpnd", t, base)) for p, t in mixes]
        for scale, start in kept if spreads else ():
            for spread, weight in spreads:
                for write in writes:
                    if near(start + weight.unsqueeze(-1) * write.out.unsqueeze(2), target):  # type: ignore[union-attr]
                        yield Link(target, base, writes=[(write, spread)], scale=scale, since=after)
                        return

    def joints(self, target: Tensor, before: float) -> Iterator[Link]:
        """A module of several tensors that adds them, each times a value per channel: target = Σ a ∘ tensor + c."""
        for call in (c for c in self.leaves if c.end <= before and same(self.out(c), target)):
            given = [t for t in call.inputs.values() if t.shape == call.out.shape]  # type: ignore[union-attr]
            if len(given) < 2 or list(call.inputs) != list(range(len(given))):
                continue
            names = [f"{call.path}:{place}/{len(given)}" for place in ("", *range(len(given)))]
            try:
                constant, *weights = (vector(self.trace.root, name, target) for name in names)
            except (RuntimeError, TypeError):
                continue
            if not near(sum((w * t for w, t in zip(weights, given, strict=True)), constant), call.out):  # type: ignore[arg-type]
                continue
            factor = [1.0 if bool((w == 1).all()) else n for w, n in zip(weights, names[1:], strict=True)]
            offset = names[0] if bool(constant.any()) else ""
            for place, base in enumerate(given):
                makers = [(self.producer(t, call.start), factor[i]) for i, t in enumerate(given) if i != place]
                if all(maker is not None for maker, _ in makers):
                    yield Link(target, base, None, makers, factor[place], offset, since=call.start)  # type: ignore[arg-type]


def _across(call: Call, after: float, before: float) -> bool:
    """It runs at one of two moments."""
    return call.start < after <= call.end or call.start < before <= call.end
