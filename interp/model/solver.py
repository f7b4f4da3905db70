"""One block's wiring: its stream as `interp.model.stream` explains it, with a name for every sublayer that writes to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.model.stream import Link, Stream, Unsolved, alone, changed, is_norm
from interp.model.trace import EXACT, Call, Trace, first_in, near, replace_in, same, tensors_in
from interp.model.wiring import Block, Coefficient, Core, Place, Sum, moved, vector

# ---------------------------------------------------------------- questions asked of a call


def is_linear(call: Call) -> bool:
    """A module with a weight matrix, other than an embedding: what it returns is that matrix at work."""
    weight = getattr(call.module, "weight", None)
    weight = weight() if callable(weight) and not isinstance(weight, Tensor) else weight  # of a packed matrix
    return isinstance(weight, Tensor) and weight.ndim == 2 and call.into is not None


def passes_through(call: Call) -> bool:
    """A norm, or a module that treats every value alone."""
    return len(call.inputs) == 1 and (is_norm(call) or alone(call))


def mixes_positions(call: Call, axis: int = -1) -> bool:
    """Moving one position's input changes another position's output; with one position there is nothing to mix."""
    assert call.into is not None and call.out is not None
    shifted = call.into.clone()
    shifted.movedim(axis, -1)[(0,) * (shifted.ndim - 1)] += 1.0
    change = changed(call, shifted)
    if change is None:
        return True  # it keeps something
    change = change.movedim(axis, -1).abs()
    others = (change if change.ndim == 2 else change[0]).flatten(0, -2)[1:]  # some flatten batch and positions
    return bool((others > 1e-12).any())


def scaled_by_channel(a: Tensor | None, b: Tensor) -> bool:
    """b = a · λ with one λ per channel of the last axis."""
    if a is None or a.shape != b.shape:
        return False
    x, y = a.flatten(0, -2), b.flatten(0, -2)
    factor = (x * y).sum(0) / (x * x).sum(0)
    return bool((x * factor - y).norm() <= EXACT * y.norm())


def reordered(a: Tensor | None, b: Tensor) -> bool:
    """b holds the values of a in another order of positions (windows of a picture put together again)."""
    return a is not None and a.shape[-1] == b.shape[-1] and same_values(a, b)


def same_values(a: Tensor | None, b: Tensor | None) -> bool:
    """The same numbers in any order."""
    if a is None or b is None or a.numel() != b.numel():
        return False
    return bool(torch.equal(a.flatten().sort().values, b.flatten().sort().values))


# ---------------------------------------------------------------- the stream of one block


class _Solver(Stream):
    def __init__(self, trace: Trace, call: Call) -> None:
        super().__init__(trace, call)
        self.cores = trace.cores(call)
        self.several = False  # streams, beside one another on an axis of their own
        self.sites = self.ends()
        self.sums: list[Sum] = []
        self.norms: list[tuple[str, str, str]] = []
        self.found_cores: dict[str, Core] = {}
        self.scales: dict[str, Place] = {}
        self.experts: dict[str, Place] = {}
        self.refused: dict[str, str] = {}

    def place(self, call: Call, side: str) -> Place:
        """Where a call's first tensor is found, and how it lies there."""
        key = call.key_in() if side == "in" else next(iter(call.outputs))
        t = (call.inputs if side == "in" else call.outputs)[key]
        axis = self.axis if call is self.call else self.axis_of(call, t)
        apart = t.movedim(axis, -1).shape[1:-1]
        grid = len(apart) if len(apart) > 1 and apart.numel() == self.positions and not self.several else 1
        packed = self.x.ndim == 2 and t.ndim == 2
        batch = None if packed else int(t.ndim == 3 and self.trace.batch == t.shape[1] != t.shape[0] and axis == -1)
        return Place(call.path, side, key, call.number, None, axis, grid, batch)

    def ends(self) -> dict[str, Place]:
        """Where the block's stream comes in and goes out; of a group of calls, where its first call's input was made."""
        if not self.call.until:
            return {"resid_pre": self.place(self.call, "in"), "resid_post": self.place(self.call, "out")}
        first, last = self.calls[0], [c for c in self.calls if c.path == self.call.until][-1]
        made = [c for c in self.trace.calls if c.end < first.start and same(self.out(c), self.x)]
        pre = self.place(min(made, key=lambda c: c.start), "out") if made else self.place(first, "in")
        return {"resid_pre": pre, "resid_post": self.place(last, "out")}

    def name(self, call: Call) -> str:
        return call.path.removeprefix(self.call.path + ".")

    # ------------------------------------------------------------ sublayers

    def maker(self, node: Call) -> Call | None:
        """The call whose result `node` receives: as it is, times a factor per channel, or in another order."""
        into = self.into(node)
        made = self.producer(into, node.start)
        earlier = [c for c in reversed(self.calls) if c.end < node.start]
        for alike in (scaled_by_channel, reordered):
            made = made or next((c for c in earlier if alike(self.out(c), into)), None)  # type: ignore[arg-type]
        return None if made is None else self.producer(self.out(made), node.start) or made

    def behind(self, node: Call) -> Call:
        """The last call before `node` whose result reaches it, where it receives no module's result as it is."""
        earlier = [c for c in reversed(self.calls) if c.end < node.start and not same(c.into, c.out)]
        made = next((c for c in earlier if self.reaches(c, node)), None)
        if made is None:
            raise Unsolved(f"nothing in the block returns what {self.name(node)} receives")
        return self.producer(self.out(made), node.start) or made

    def feeds(self, call: Call) -> Call | None:
        """The call of this sublayer that returned what a call receives; None where a norm or another attention returned it."""
        returned = [c for c in self.calls if c.end < call.start and same(c.out, call.into)]
        if any(is_norm(c) or self.core_in(c) for c in returned):
            return None
        return min(returned, key=lambda c: c.start, default=None)

    def widened(self, matrix: Call) -> Call:
        """Where no module returned what a matrix receives: the first matrix of the block that it depends on, or itself."""
        if self.core_before(matrix) or any(same(c.out, matrix.into) for c in self.calls):
            return matrix
        earlier = [c for c in self.calls if c.end < matrix.start and is_linear(c)]
        written = max(
            (p for p in (self.ended(s) for s in self.sites if s.endswith(".write")) if p < matrix.start), default=-1
        )
        return next((c for c in earlier if c.start > written and self.reaches(c, matrix)), matrix)

    def ended(self, site: str) -> int:
        """When the call at a site ended."""
        place = self.sites[site]
        return next(c.end for c in self.calls if (c.path, c.number) == (place.path, place.call))

    def reaches(self, source: Call, target: Call) -> bool:
        """Doubling what `source` returns changes what `target` receives."""
        seen: list[Tensor] = []

        def double(module: nn.Module, args: Any, out: Any) -> Any:
            key, t = next(tensors_in(out))
            return replace_in(out, key, 2 * t)

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(first_in(args, kwargs).clone())

        handles = [
            source.module.register_forward_hook(self.only(source, double)),
            target.module.register_forward_pre_hook(self.only(target, look), with_kwargs=True),
        ]
        self.again(handles)
        return not same(seen[0], target.into)

    def only(self, call: Call, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, at one call among those of its module in the block."""
        mine = [c for c in (self.trace.calls if self.call.until else self.calls) if c.path == call.path]
        turn, count = mine.index(call), iter(range(10**9))
        return lambda *given: hook(*given) if next(count) == turn else None

    def again(self, handles: Sequence[Any]) -> None:
        """Run the block again with hooks in place, and take them away."""
        try:
            self.call.module(*self.call.args, **self.call.kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def core_in(self, call: Call) -> tuple[Call, Any] | None:
        return next(((c, a) for c, a in self.cores if call.start <= c.start and c.end <= call.end), None)

    def core_before(self, call: Call) -> tuple[Call, Any] | None:
        """The attention whose z a call receives, heads side by side, alone or beside something else."""
        earlier = [(c, a) for c, a in self.cores if c.start < call.start]
        found = next(((c, a) for c, a in earlier if same_values(a.z, call.into)), None)
        if found is None and not any(same(c.out, call.into) and is_norm(c) for c in self.calls):
            found = next(((c, a) for c, a in earlier if same(c.out, call.into)), None)
        return found

    def mixes(self, call: Call) -> bool:
        """It moves values between positions."""
        assert call.into is not None
        return mixes_positions(call, self.axis_of(call, call.into))

    def sublayer(self, write: Call) -> tuple[str, Call, Call]:
        """(role, the call whose output is `out`, the call whose input is `in`) of the sublayer that makes a write."""
        node = write
        while passes_through(node) and not self.core_in(node) and not same(self.into(node), self.x):
            made = self.maker(node)
            around = next((c for c, _ in self.cores if c.start < node.start and node.end < c.end), None)
            if made is None and around is not None:  # the rest of an attention after its last module
                return self.role(around), node, around
            node = made or self.behind(node)
        entry = node
        while not self.children(entry) and not self.core_in(entry):  # a bare matrix: what feeds it belongs to it
            before = self.feeds(entry)
            while before is not None and passes_through(before):
                before = self.feeds(before)
            if before is None:
                entry = self.widened(entry)
                break
            entry = before
        core = self.core_in(entry) or self.core_before(entry)
        if core is not None:
            entry = entry if self.core_in(entry) else core[0]
        return self.role(entry), node, entry

    def role(self, entry: Call) -> str:
        """What kind of sublayer begins with a call."""
        core = self.core_in(entry)
        if core is None:
            return "mixer" if self.mixes(entry) else "mlp"
        return "cross_attn" if core[1].k.shape[-2] != core[1].q.shape[-2] else "attn"

    def add_sublayer(self, write: Call) -> str:
        """Name the sites of the sublayer that makes this write; returns the name of the write."""
        role, out, entry = self.sublayer(write)
        role = self.numbered(role)
        self.sites |= {
            f"{role}.in": replace(self.place(entry, "in"), also=self.readers_beside(entry, out)),
            f"{role}.out": self.place(out, "out"),
            f"{role}.write": self.place(write, "out"),
        }
        before = (c for c in self.calls if c.end < entry.start and same(self.out(c), self.into(entry)))
        norm = next((c for c in before if is_norm(c)), None)
        if norm is not None:
            self.scales[f"{role}.norm.scale"] = self.place(norm, "out")
        core = self.core_in(entry) or self.core_before(out)
        if core is not None:
            self.found_cores[role] = Core(core[0].path, core[1].product, core[0].number)
        elif role.startswith("mlp") and not self.add_experts(role, out, entry):
            self.add_mlp(role, out, entry)
        return f"{role}.write"

    def readers_beside(self, entry: Call, out: Call) -> tuple[Place, ...]:
        """Where no module holds the sublayer: what else, up to its end, receives the input of its first matrix."""
        between = (c for c in self.calls if entry.end < c.start and c.end < out.start)
        inner = [c for c in between if same(c.into, entry.into)]
        return tuple(self.place(c, "in") for c in inner if not any(o.start < c.start and c.end < o.end for o in inner))

    def numbered(self, role: str) -> str:
        """A name for one more sublayer of a kind."""
        taken = sum(1 for s in self.sites if s.split(".")[0].rstrip("0123456789") == role and s.endswith(".in"))
        return role if not taken else f"{role}{taken + 1}"

    def add_readers(self) -> None:
        """Name attentions that write nothing to the stream themselves: another sublayer reads what they return."""
        for call, attention in self.cores:
            if any((core.path, core.call) == (call.path, call.number) for core in self.found_cores.values()):
                continue
            role = self.numbered(self.role(call))
            after = (c for c in self.calls if c.end > call.start and is_linear(c) and same_values(attention.z, c.into))
            self.sites |= {f"{role}.in": self.place(call, "in"), f"{role}.out": self.place(next(after, call), "out")}
            self.found_cores[role] = Core(call.path, attention.product, call.number)

    def add_experts(self, role: str, out: Call, entry: Call) -> bool:
        """router: the scores each token gives the experts; experts.post: the hidden neurons of those it is sent to."""
        inside = [c for c in self.calls if entry.start <= c.start and c.end <= out.end]
        experts = next((c for c in inside if expert_count(c)), None)
        if experts is None:
            return False
        count, chosen = expert_count(experts), routed(experts)
        router = next(
            (
                replace(self.place(c, "out"), key=key)
                for c in inside
                if c.end < experts.start
                for key, t in c.outputs.items()
                if t.shape[-1] == count and ranks(t.reshape(-1, count), chosen)
            ),
            None,
        )
        if router is not None:
            self.sites[f"{role}.router"] = router
        self.experts[f"{role}.experts.post"] = self.place(experts, "out")
        return True

    def add_mlp(self, role: str, out: Call, entry: Call) -> None:
        """post: what the last matrix reads; pre, or gate and up: what the first matrices return."""
        inside: list[Call] = []
        for call in self.calls:  # a wrapper around a matrix stands for it
            if entry.start <= call.start and call.end <= out.end and is_linear(call):
                inside += [] if any(same(call.out, c.out) for c in inside) else [call]
        down = next((c for c in inside if same(c.out, out.out)), None)
        if down is None or down.into is None:
            self.add_marked_mlp(role, out, entry)
            return
        self.sites[f"{role}.post"] = self.place(down, "in")
        width = down.into.shape[-1]
        first = [c for c in inside if c is not down and c.out is not None and c.out.numel() % down.into.numel() == 0]
        parts = [(c, None) for c in first if c.out.shape[-1] == width]  # type: ignore[union-attr]
        parts = parts or [(c, half) for c in first if c.out.shape[-1] == 2 * width for half in (0, 1)]  # type: ignore[union-attr, misc]
        places = [replace(self.place(c, "out"), half=half) for c, half in parts]
        if len(parts) == 1:
            self.sites[f"{role}.pre"] = places[0]
            return
        linear = [self.doubles(c, half, down) for c, half in parts]
        if len(parts) != 2 or sum(linear) != 1:
            self.refused[f"{role}.pre"] = (
                f"{len(parts)} first projections, {sum(linear)} of which enter linearly: no GLU"
            )
            return
        up, gate = places[linear.index(True)], places[linear.index(False)]
        self.sites |= {f"{role}.up": up, f"{role}.gate": gate, f"{role}.pre": gate}

    def add_marked_mlp(self, role: str, out: Call, entry: Call) -> None:
        """The same where bare matrices work, from modules that hand on what they receive and so mark it.

        post is the last mark that the result is affine in, pre the first that it is not, up an affine one before that.
        """
        inside = [c for c in self.calls if entry.start < c.start and c.end < entry.end]
        marks = [c for c in inside if same(c.into, c.out) and not same(c.out, out.out) and not same(c.out, entry.into)]
        affine = [self.is_affine(mark, out, entry) for mark in marks]
        if True not in affine or False not in affine:
            self.refused[f"{role}.post"] = "no matrix inside returns what the sublayer returns"
            return
        last, first = len(affine) - 1 - affine[::-1].index(True), affine.index(False)
        self.sites |= {f"{role}.post": self.place(marks[last], "out"), f"{role}.pre": self.place(marks[first], "out")}
        if affine.count(True) == 2:
            self.sites |= {f"{role}.gate": self.sites[f"{role}.pre"]}
            self.sites |= {f"{role}.up": self.place(marks[affine.index(True)], "out")}

    def is_affine(self, mark: Call, out: Call, entry: Call) -> bool:
        """f(2 x) - f(x) = f(x) - f(0) ≠ 0, where f makes the sublayer's result of what `mark` hands on."""
        made: list[Tensor] = []
        look = out.module.register_forward_hook(lambda m, a, o: made.append(o if isinstance(o, Tensor) else o[0]))
        for factor in (0.0, 1.0, 2.0):
            change = mark.module.register_forward_hook(lambda m, a, o, factor=factor: o * factor)
            entry.module(*entry.args, **entry.kwargs)
            change.remove()
        look.remove()
        low, high = made[1] - made[0], made[2] - made[1]
        return bool(low.norm() > 0) and bool((high - low).norm() < 1e-9 * low.norm())

    def doubles(self, matrix: Call, half: int | None, down: Call) -> bool:
        """Doubling what `matrix` returns (or a half of it) doubles what `down` receives: it enters linearly, as `up`.

        Where a norm stands before `down`, it is the norm's input that doubles.
        """
        seen: list[Tensor] = []
        before = self.producer(down.into, down.start)
        reader = before if before is not None and is_norm(before) else down

        def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            factor = torch.ones(out.shape[-1] if half is None else 2, dtype=out.dtype)
            factor[slice(None) if half is None else half] = 2
            return out * factor.repeat_interleave(out.shape[-1] // len(factor))

        self.again(
            [
                matrix.module.register_forward_hook(self.only(matrix, double)),
                reader.module.register_forward_pre_hook(self.only(reader, lambda m, a: seen.append(a[0].clone()))),
            ]
        )
        assert reader.into is not None
        return bool((seen[0] - 2 * reader.into).norm() < 1e-9 * reader.into.norm())

    # ------------------------------------------------------------ the whole block

    def solve(self) -> Block:
        """The block's wiring: its links from first to last, each with a name for the tensor it ends in."""
        links = self.links()
        if not links:
            raise Unsolved("the block returns what it receives")
        if any(isinstance(c, Place) for link in links for c in (link.scale, *(c for _, c in link.writes))):
            self.several = True
            self.sites = self.ends()
        site, role, last = "resid_pre", "", max(i for i, link in enumerate(links) if link.norm is None)
        for number, link in enumerate(links):
            following = links[number + 1] if number + 1 < len(links) else None
            before = "resid_mid" if number == last - 1 else ""  # the last sublayer reads this link's end
            if link.norm is not None:
                site = self.add_norm(link, site, role, "resid_post" if following is None else before)
            else:
                site, role = self.add_sum(link, site, following, before)
                if number == last:
                    self.find_mid(link)
        self.add_readers()
        found = (self.found_cores, self.scales, self.experts, self.refused)
        sums, norms = tuple(self.sums), tuple(self.norms)
        return Block(self.call.path, self.call.number, self.call.until, self.sites, sums, norms, *found)

    def add_norm(self, link: Link, total: str, role: str, site: str) -> str:
        """Name what a norm returns; `resid_start` where the block begins with it. Returns the name."""
        assert link.norm is not None
        role = role or "resid_start"
        site = "resid_start" if total == "resid_pre" and site != "resid_post" else site or f"{role}.normed"
        scale = f"{total if total.endswith('.normed') else role}.norm.scale"
        if site != "resid_post":
            self.sites[site] = self.place(link.norm, "out")
        self.scales[scale] = self.place(link.norm, "out")
        self.norms.append((site, total, scale))
        return site

    def add_sum(self, link: Link, base: str, following: Link | None, site: str) -> tuple[str, str]:
        """Name the sublayers that write in a link and the tensor it ends in; returns its name and the last one's role."""
        link.writes.sort(key=lambda w: w[0].end)
        names = [self.add_sublayer(w) for w, _ in link.writes]
        role = names[-1].split(".")[0]
        if following is None:
            site = "resid_post"
        elif following.norm is not None:
            site = f"{role}.sum"
            self.sites[site] = self.place(following.norm, "in")
        else:
            site = site or f"{role}.resid"
            self.sites[site] = self.stands(link.target) or self.sites[base]
        factors = [self.named(c, f"{role}.spread") for _, c in link.writes]
        writes = tuple(zip(names, factors, strict=True))
        self.sums.append(Sum(site, base, writes, self.named(link.scale, f"{role}.mix"), link.constant))
        return site, role

    def named(self, coefficient: Coefficient | Place, site: str) -> Coefficient:
        """A coefficient of a sum; one that has a value for every position becomes a site."""
        if not isinstance(coefficient, Place):
            return coefficient
        self.sites[site] = coefficient
        return site

    def stands(self, tensor: Tensor) -> Place | None:
        """Where a tensor of the stream is returned, or else read."""

        def it(t: Tensor | None) -> bool:
            return t is not None and t.numel() == tensor.numel() and near(t, tensor)

        out = next((self.place(c, "out") for c in self.calls if it(self.out(c)) and not passes_through(c)), None)
        return out or next((self.place(c, "in") for c in self.calls if it(self.into(c))), None)

    def find_mid(self, link: Link) -> None:
        """resid_mid in the last sum: all its writes but the last, if something in the block returns or reads that tensor."""
        if "resid_mid" in self.sites:
            return
        if len(link.writes) < 2:
            self.refused["resid_mid"] = "a block has one sublayer, so the stream has no middle"
            return
        total = self.sums[-1]
        parts = [(link.scale, link.base), *((c, self.out(w)) for w, c in link.writes[:-1])]
        place = self.stands(sum(self.times(c, t).reshape(-1, self.width) for c, t in parts))  # type: ignore[arg-type, misc]
        if place is None:
            self.refused["resid_mid"] = "the sublayers work in parallel: nothing reads the stream between them"
            return
        self.sites["resid_mid"] = place
        self.sums[-1:] = [
            Sum("resid_mid", total.base, total.writes[:-1], total.scale),
            Sum(total.site, "resid_mid", total.writes[-1:], 1.0, total.constant),
        ]

    def times(self, coefficient: Any, t: Tensor) -> Tensor:
        """coefficient · t, for a number or a value per channel."""
        return t * (vector(self.trace.root, coefficient, t) if isinstance(coefficient, str) else coefficient)


def routed(call: Call) -> Tensor:
    """The experts each token is sent to, as the experts' module receives them [token, top_k]."""
    return next(t for t in call.inputs.values() if t.dtype == torch.int64 and t.ndim == 2)


def expert_count(call: Call) -> int:
    """How many experts a call chooses among; 0 if it is no such call: three-axis weights, and integers that say who goes where."""
    weights = [p for _, p in call.module.named_parameters(recurse=False) if p.ndim == 3]
    told = any(t.dtype == torch.int64 and t.ndim == 2 for t in call.inputs.values())
    return weights[0].shape[0] if len(weights) > 1 and told and call.out is not None else 0


def ranks(scores: Tensor, chosen: Tensor) -> bool:
    """The chosen experts are those with the highest scores."""
    if scores.shape[0] != chosen.shape[0]:
        return False
    best = scores.topk(chosen.shape[1], dim=-1).indices
    return bool((best.sort(-1).values == chosen.sort(-1).values).all())


def _shape(trace: Trace, call: Call) -> list[tuple[str, type, int]]:
    """What a block is made of: its modules by name, and how often each is called."""
    return [(c.path[len(call.path) :], type(c.module), c.number) for c in trace.inside(call)]


def _holds(trace: Trace, block: Block) -> bool:
    from interp.model.proof import block_errors

    return all(error <= 100 * EXACT for _, error in block_errors(trace, block))


def solve_block(trace: Trace, call: Call, solved: Sequence[Block] = ()) -> Block:
    """The wiring of one block; that of a block like it, if it holds here too; if unsolved, its ends and the report."""
    for other in reversed(solved[-8:]) if call.number == 0 and not call.until else ():
        first = trace.of(other.path)[other.call]
        if other.sums and _shape(trace, first) == _shape(trace, call):
            block = moved(other, call.path)
            if _holds(trace, block):
                return block
    solver = _Solver(trace, call)
    try:
        return solver.solve()
    except (Unsolved, RuntimeError, LookupError, TypeError) as report:  # or a module that does not run again as it ran
        return Block(call.path, call.number, call.until, solver.ends()).ends(
            f"the wiring could not be solved: {report}"
        )
