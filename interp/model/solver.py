"""Who writes to the residual stream, solved: least squares of a block's output over what its submodules return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.model.trace import Call, Trace, replace_in
from interp.model.wiring import Block, Core, Place, Sum, moved

EXACT = 1e-9  # relative residual below which a float64 sum counts as solved


class Unsolved(Exception):
    """The stream could not be explained; the text is the report."""


class Undecided(Unsolved):
    """Several explanations are as good."""


# ---------------------------------------------------------------- questions asked of a call


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal values in the same order, whatever the batch and position axes look like (some blocks flatten them)."""
    return a is not None and b is not None and a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _rerun(call: Call, tensor: Tensor) -> Tensor:
    """The module's first output when its first tensor argument is `tensor`."""
    key = call.key_in()
    args = replace_in(call.args, key, tensor) if isinstance(key, int) else call.args
    kwargs = call.kwargs | {key: tensor} if isinstance(key, str) else call.kwargs
    out = call.module(*args, **kwargs)
    return (
        out
        if isinstance(out, Tensor)
        else next(t for t in (out.values() if isinstance(out, dict) else out) if isinstance(t, Tensor))
    )


def is_norm(call: Call) -> bool:
    """Its result does not change when its one tensor argument is doubled, up to the norm's epsilon; it has no matrices."""
    if call.into is None or call.out is None or len(call.inputs) != 1 or call.into.shape != call.out.shape:
        return False
    if any(p.ndim > 1 for p in call.module.parameters()):
        return False
    return bool((_rerun(call, 2 * call.into) - call.out).norm() < 0.01 * call.out.norm())


def is_linear(call: Call) -> bool:
    """A module with a weight matrix, other than an embedding: what it returns is that matrix at work."""
    weight = getattr(call.module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and call.into is not None


def passes_through(call: Call) -> bool:
    """A norm, or a module that treats every channel alone (dropout, layer scale, activation function)."""
    if call.into is None or call.out is None or len(call.inputs) != 1 or call.into.shape != call.out.shape:
        return False
    if is_norm(call):
        return True
    shifted = call.into.clone()
    shifted[..., 0] += 1.0
    return bool((_rerun(call, shifted) - call.out)[..., 1:].abs().max() == 0)


def mixes_positions(call: Call) -> bool:
    """Moving one position's input changes another position's output."""
    assert call.into is not None and call.out is not None
    shifted = call.into.clone()
    flat = shifted.ndim == 2  # batch and positions in one axis
    (shifted if flat else shifted[:, 0])[0] += 1.0
    change = (_rerun(call, shifted) - call.out).abs()
    return bool((change[1:] if flat else change[0, 1:]).max() > 1e-12)


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


class _Solver:
    def __init__(self, trace: Trace, call: Call) -> None:
        self.call, self.calls, self.cores = call, trace.inside(call), trace.cores(call)
        assert call.into is not None and call.out is not None
        self.x, self.y = call.into, call.out
        self.sites = {"resid_pre": self.place(call, "in"), "resid_post": self.place(call, "out")}
        self.sums: list[Sum] = []
        self.norms: list[tuple[str, str]] = []
        self.found_cores: dict[str, Core] = {}
        self.scales: dict[str, Place] = {}
        self.experts: dict[str, Place] = {}
        self.refused: dict[str, str] = {}

    def place(self, call: Call, side: str) -> Place:
        key = call.key_in() if side == "in" else next(iter(call.outputs))
        return Place(call.path, side, key, call.number)

    def name(self, call: Call) -> str:
        return call.path.removeprefix(self.call.path + ".")

    def children(self, call: Call) -> list[Call]:
        """The calls made directly by a call."""
        below = [c for c in self.calls if call.start < c.start and c.end < call.end]
        return [c for c in below if not any(o.start < c.start and c.end < o.end for o in below)]

    def columns(self, nodes: Sequence[Call]) -> list[Call]:
        """Nodes that can be terms: the stream's shape, not the stream itself, equal ones merged to the outermost."""
        kept: list[Call] = []
        for node in sorted(nodes, key=lambda c: c.start):
            out = node.out
            if out is None or out.numel() != self.y.numel() or out.shape[-1] != self.y.shape[-1] or same(out, self.x):
                continue
            if not any(same(out, k.out) for k in kept):
                kept.append(node)
        return kept

    def fit(self, target: Tensor, terms: Sequence[Tensor]) -> list[float] | None:
        """Coefficients of `target` over `terms` by least squares, or None if they do not explain it exactly.

        A term that adds less than `EXACT` of the target gets the coefficient 0.
        """
        if not terms:
            return None
        a, b = torch.stack([t.flatten() for t in terms], dim=1), target.flatten()
        lengths = a.norm(dim=0).clamp(min=1e-300)
        solution = torch.linalg.lstsq(a / lengths, b, driver="gelsd")
        share = solution.solution
        if (a / lengths @ share - b).norm() > EXACT * b.norm():
            return None
        if int(solution.rank) < a.shape[1]:
            raise Undecided("two submodules return linearly dependent tensors, so who writes is undecided")
        kept = share.abs() > EXACT * b.norm()
        return [round(c, 9) for c in torch.where(kept, share / lengths, 0.0).tolist()]

    def pre_norm(self) -> list[tuple[Call, float]] | None:
        """y - x over the outputs of the direct children, then of their children where these do not suffice."""
        nodes = self.children(self.call)
        while nodes:
            terms = self.columns(nodes)
            try:
                found = self.fit(self.y - self.x, [t.out for t in terms])  # type: ignore[misc]
            except Undecided:
                terms = [t for t in terms if not self.only_names(t)]
                found = self.fit(self.y - self.x, [t.out for t in terms])  # type: ignore[misc]
            if found is not None:
                return [(t, c) for t, c in zip(terms, found, strict=True) if c]
            deeper = [d for n in nodes for d in (self.children(n) or [n])]
            if len(deeper) == len(nodes):
                return None
            nodes = deeper
        return None

    def only_names(self, call: Call) -> bool:
        """It returns what it receives, and no module made that: a mark in the stream, not a write."""
        return same(call.into, call.out) and self.producer(call.into, call.start) is None

    def post_norm(self) -> list[tuple[Call, list[tuple[Call, float]]]]:
        """The chain y = norm(base + Σ writes), base = norm(...), ..., base = x, last link first: (norm, writes)."""
        leaves = [c for c in self.calls if not self.children(c)]
        chain, target = [], self.y
        while not same(target, self.x):
            norm = next((c for c in leaves if same(c.out, target) and is_norm(c)), None)
            if norm is None:
                raise Unsolved("no sum of submodule outputs gives the block's output, and no norm returns it")
            assert norm.into is not None
            terms = self.columns([c for c in leaves if c.end < norm.start])
            found = self.fit(norm.into, [self.x, *(t.out for t in terms)])  # type: ignore[list-item]
            if found is None:
                raise Unsolved(f"the input of {self.name(norm)} is no sum of submodule outputs")
            writes = [(t, c) for t, c in zip(terms, found[1:], strict=True) if c]
            base = next((t for t, c in writes if is_norm(t)), None) if not found[0] else None
            target = self.x if base is None else base.out  # type: ignore[assignment]
            outermost = [(self.producer(t.out, norm.start) or t, c) for t, c in writes if t is not base]
            chain.append((norm, outermost))
        return chain

    # ------------------------------------------------------------ sublayers

    def producer(self, tensor: Tensor | None, before: int) -> Call | None:
        """The outermost call that returned this very tensor before the given moment."""
        equal = [c for c in self.calls if c.end < before and same(c.out, tensor)]
        return min(equal, key=lambda c: c.start, default=None)

    def maker(self, node: Call) -> Call:
        """The call whose result `node` receives: as it is, times a factor per channel, or in another order."""
        assert node.into is not None
        made = self.producer(node.into, node.start)
        earlier = [c for c in reversed(self.calls) if c.end < node.start]
        for alike in (scaled_by_channel, reordered):
            made = made or next((c for c in earlier if alike(c.out, node.into)), None)
        if made is None:
            raise Unsolved(f"nothing in the block returns what {self.name(node)} receives")
        return self.producer(made.out, node.start) or made

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
        change = source.module.register_forward_hook(lambda m, a, o: 2 * o)
        look = target.module.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
        self.call.module(*self.call.args, **self.call.kwargs)
        change.remove()
        look.remove()
        return not same(seen[0], target.into)

    def core_in(self, call: Call) -> tuple[Call, Any] | None:
        return next(((c, a) for c, a in self.cores if call.start <= c.start and c.end <= call.end), None)

    def core_before(self, call: Call) -> tuple[Call, Any] | None:
        """The attention whose z a call receives, heads side by side."""
        return next(((c, a) for c, a in self.cores if c.start < call.start and same_values(a.z, call.into)), None)

    def sublayer(self, write: Call) -> tuple[str, Call, Call]:
        """(role, the call whose output is `out`, the call whose input is `in`) of the sublayer that makes a write."""
        node = write
        while passes_through(node) and not self.core_in(node):
            node = self.maker(node)
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
            entry, attention = (entry if self.core_in(entry) else core[0]), core[1]
            crossed = attention.k.shape[-2] != attention.q.shape[-2]
            return ("cross_attn" if crossed else "attn"), node, entry
        return ("mixer" if mixes_positions(entry) else "mlp"), node, entry

    def add_sublayer(self, write: Call) -> str:
        """Name the sites of the sublayer that makes this write; returns the name of the write."""
        role, out, entry = self.sublayer(write)
        taken = sum(1 for s in self.sites if s.split(".")[0].rstrip("0123456789") == role and s.endswith(".write"))
        role = role if not taken else f"{role}{taken + 1}"
        self.sites |= {
            f"{role}.in": self.place(entry, "in"),
            f"{role}.out": self.place(out, "out"),
            f"{role}.write": self.place(write, "out"),
        }
        norm = next((c for c in self.calls if c.end < entry.start and same(c.out, entry.into) and is_norm(c)), None)
        if norm is not None:
            self.scales[f"{role}.norm.scale"] = self.place(norm, "out")
        core = self.core_in(entry) or self.core_before(out)
        if core is not None:
            self.found_cores[role] = Core(core[0].path, core[1].product, core[0].number)
        elif role.startswith("mlp") and not self.add_experts(role, out, entry):
            self.add_mlp(role, out, entry)
        return f"{role}.write"

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

        handles = [
            matrix.module.register_forward_hook(double),
            reader.module.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone())),
        ]
        try:
            self.call.module(*self.call.args, **self.call.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        assert reader.into is not None
        return bool((seen[0] - 2 * reader.into).norm() < 1e-9 * reader.into.norm())

    # ------------------------------------------------------------ the whole block

    def find_mid(self, writes: list[tuple[Call, float]], names: list[str]) -> None:
        """resid_mid = resid_pre + all writes but the last, if something in the block returns or reads that tensor."""
        if len(writes) < 2:
            self.refused["resid_mid"] = "a block has one sublayer, so the stream has no middle"
            return
        mid = self.x + sum((c * w.out.view_as(self.x) for w, c in writes[:-1] if w.out is not None), self.x * 0)

        def is_mid(t: Tensor | None) -> bool:
            if t is None or t.numel() != mid.numel():
                return False
            return bool((t.flatten() - mid.flatten()).norm() <= EXACT * mid.norm())

        out = next((self.place(c, "out") for c in self.calls if is_mid(c.out) and not passes_through(c)), None)
        read = next((self.place(c, "in") for c in self.calls if is_mid(c.into)), None)
        if out is None and read is None:
            self.refused["resid_mid"] = "the sublayers work in parallel: nothing reads the stream between them"
            return
        self.sites["resid_mid"] = out or read  # type: ignore[assignment]
        pairs = [(n, c) for n, (_, c) in zip(names, writes, strict=True)]
        self.sums = [
            Sum("resid_mid", "resid_pre", tuple(pairs[:-1])),
            Sum("resid_post", "resid_mid", tuple(pairs[-1:])),
        ]

    def solve(self) -> Block:
        """The block's wiring, as a block that adds to the stream or as one that normalises after adding."""
        writes = self.pre_norm()
        if writes is not None:
            writes = sorted(writes, key=lambda w: w[0].end)
            names = [self.add_sublayer(w) for w, _ in writes]
            self.sums = [Sum("resid_post", "resid_pre", tuple((n, c) for n, (_, c) in zip(names, writes, strict=True)))]
            self.find_mid(writes, names)
        else:
            self.solve_post_norm()
        found = (self.found_cores, self.scales, self.experts, self.refused)
        return Block(self.call.path, self.call.number, self.sites, tuple(self.sums), tuple(self.norms), *found)

    def solve_post_norm(self) -> None:
        """Sums at the inputs of the norms, each link's sublayers named in order."""
        links = self.post_norm()[::-1]
        base = "resid_pre"
        for number, (norm, writes) in enumerate(links):
            names = [self.add_sublayer(w) for w, _ in writes]
            role, last = names[-1].split(".")[0], number == len(links) - 1
            site = "resid_post" if last else "resid_mid" if number == len(links) - 2 else f"{role}.normed"
            self.sites[f"{role}.sum"] = self.place(norm, "in")
            self.scales[f"{role}.norm.scale"] = self.place(norm, "out")
            if not last:
                self.sites[site] = self.place(norm, "out")
            self.sums.append(Sum(f"{role}.sum", base, tuple((n, c) for n, (_, c) in zip(names, writes, strict=True))))
            self.norms.append((site, f"{role}.sum"))
            base = site


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
    for other in reversed(solved[-8:]) if call.number == 0 else ():
        first = trace.of(other.path)[other.call]
        if other.sums and _shape(trace, first) == _shape(trace, call):
            block = moved(other, call.path)
            if _holds(trace, block):
                return block
    solver = _Solver(trace, call)
    try:
        return solver.solve()
    except Unsolved as report:
        return Block(call.path, call.number, solver.sites).ends(f"the wiring could not be solved: {report}")
