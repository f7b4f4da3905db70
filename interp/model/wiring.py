"""Who writes to the residual stream, solved: least squares of a block's output over what its submodules return.

Nothing here knows an architecture. A wiring says, per block, at which module each site is found and which sums and
norms make the stream; `interp.model.proof` checks it on inputs the solver has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from interp.model.trace import Call, Key, Trace, replace_in

EXACT = 1e-9  # relative residual below which a float64 sum counts as solved


@dataclass(frozen=True)
class Place:
    """A tensor at a module: its argument or result `key`. `path` is relative to the block, or to the model."""

    path: str
    side: str  # "in" | "out"
    key: Key = None
    call: int = 0
    half: int | None = None  # 0 or 1: that half of the last axis (fused gate and up projections)

    def under(self, root: str) -> Place:
        """The same place with a path from the model's root."""
        return replace(self, path=".".join(p for p in (root, self.path) if p))


@dataclass(frozen=True)
class Sum:
    """site = base + Σ coefficient · write."""

    site: str
    base: str
    writes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Core:
    """The module that runs an attention's softmax; `product` numbers its query-key product (-1: fused)."""

    path: str
    product: int


@dataclass(frozen=True)
class Block:
    """The wiring of one block: sites by name, the sums and norms that make the stream, and what is refused and why."""

    sites: dict[str, Place] = field(default_factory=dict)
    sums: tuple[Sum, ...] = ()
    norms: tuple[tuple[str, str], ...] = ()  # (site, sum): site = norm(sum)
    cores: dict[str, Core] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stack:
    """A chain of blocks: `prefix` in site names, dotted path of the list, one wiring a block."""

    prefix: str
    path: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Wiring:
    """A model's stacks and the sites outside them."""

    stacks: tuple[Stack, ...]
    sites: dict[str, Place]

    @property
    def post_norm(self) -> bool:
        """Blocks normalise after adding."""
        return any(block.norms for stack in self.stacks for block in stack.blocks)


class Unsolved(Exception):
    """The stream could not be explained; the text is the report."""


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
    """Its result does not change when its one tensor argument is doubled, up to the norm's epsilon."""
    if call.into is None or call.out is None or len(call.inputs) != 1 or call.into.shape != call.out.shape:
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
    moved = call.into.clone()
    moved[..., 0] += 1.0
    return bool((_rerun(call, moved) - call.out)[..., 1:].abs().max() == 0)


def mixes_positions(call: Call) -> bool:
    """Moving one position's input changes another position's output."""
    assert call.into is not None and call.out is not None
    moved = call.into.clone()
    flat = moved.ndim == 2  # batch and positions in one axis
    (moved if flat else moved[:, 0])[0] += 1.0
    change = (_rerun(call, moved) - call.out).abs()
    return bool((change[1:] if flat else change[0, 1:]).max() > 1e-12)


# ---------------------------------------------------------------- the stream of one block


class _Solver:
    def __init__(self, trace: Trace, path: str) -> None:
        self.path, self.calls = path, trace.inside(path)
        self.block = trace.of(path)[0]
        self.cores = [(p, a) for p, a in trace.attentions if p == path or p.startswith(path + ".")]
        assert self.block.into is not None and self.block.out is not None
        self.x, self.y = self.block.into, self.block.out
        self.sites = {
            "resid_pre": Place("", "in", self.block.key_in()),
            "resid_post": Place("", "out", next(iter(self.block.outputs))),
        }
        self.sums: list[Sum] = []
        self.norms: list[tuple[str, str]] = []
        self.found_cores: dict[str, Core] = {}
        self.refused: dict[str, str] = {}

    def relative(self, call: Call) -> str:
        return call.path[len(self.path) + 1 :]

    def place(self, call: Call, side: str) -> Place:
        key = call.key_in() if side == "in" else next(iter(call.outputs))
        return Place(self.relative(call), side, key)

    def children(self, path: str) -> list[Call]:
        """The nearest called modules below `path`."""
        below = [c for c in self.calls if c.path.startswith(path + ".")]
        return [c for c in below if not any(c.path.startswith(o.path + ".") for o in below if o is not c)]

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
        """Coefficients of `target` over `terms` by least squares, or None if they do not explain it exactly."""
        if not terms:
            return None
        a, b = torch.stack([t.flatten() for t in terms], dim=1), target.flatten()
        solution = torch.linalg.lstsq(a, b, driver="gelsd")
        if (a @ solution.solution - b).norm() > EXACT * b.norm():
            return None
        if int(solution.rank) < a.shape[1]:
            raise Unsolved("two submodules return linearly dependent tensors, so who writes is undecided")
        return [round(c, 9) for c in solution.solution.tolist()]

    def pre_norm(self) -> list[tuple[Call, float]] | None:
        """y - x over the outputs of the direct children, then of their children where these do not suffice."""
        nodes = self.children(self.path)
        while nodes:
            terms = self.columns(nodes)
            found = self.fit(self.y - self.x, [t.out for t in terms])  # type: ignore[misc]
            if found is not None:
                return [(t, c) for t, c in zip(terms, found, strict=True) if abs(c) > EXACT]
            deeper = [d for n in nodes for d in (self.children(n.path) or [n])]
            if len(deeper) == len(nodes):
                return None
            nodes = deeper
        return None

    def post_norm(self) -> list[tuple[Call, list[tuple[Call, float]]]]:
        """The chain y = norm(base + Σ writes), base = norm(...), ..., base = x, last link first: (norm, writes)."""
        leaves = [c for c in self.calls if not self.children(c.path)]
        chain, target = [], self.y
        while not same(target, self.x):
            norm = next((c for c in leaves if same(c.out, target) and is_norm(c)), None)
            if norm is None:
                raise Unsolved("no sum of submodule outputs gives the block's output, and no norm returns it")
            assert norm.into is not None
            terms = self.columns([c for c in leaves if c.end < norm.start])
            found = self.fit(norm.into, [self.x, *(t.out for t in terms)])  # type: ignore[list-item]
            if found is None:
                raise Unsolved(f"the input of {self.relative(norm)} is no sum of submodule outputs")
            writes = [(t, c) for t, c in zip(terms, found[1:], strict=True) if abs(c) > EXACT]
            base = next((t for t, c in writes if is_norm(t)), None) if abs(found[0]) < EXACT else None
            target = self.x if base is None else base.out  # type: ignore[assignment]
            outermost = [(self.producer(t.out, norm.start) or t, c) for t, c in writes if t is not base]
            chain.append((norm, outermost))
        return chain

    # ------------------------------------------------------------ sublayers

    def producer(self, tensor: Tensor | None, before: int) -> Call | None:
        """The outermost call that returned this very tensor before the given moment."""
        equal = [c for c in self.calls if c.end < before and same(c.out, tensor)]
        return min(equal, key=lambda c: c.start, default=None)

    def core_in(self, call: Call) -> str | None:
        return next((p for p, _ in self.cores if p == call.path or p.startswith(call.path + ".")), None)

    def sublayer(self, write: Call) -> tuple[str, Call, Call]:
        """(role, the call whose output is `out`, the call whose input is `in`) of the sublayer that makes a write."""
        node = write
        while passes_through(node) and not self.core_in(node):
            made = self.producer(node.into, node.start)
            if made is None:
                raise Unsolved(f"nothing in the block returns what {self.relative(node)} receives")
            node = made
        entry = node
        while not self.children(entry.path) and not self.core_in(entry):  # a bare matrix: what feeds it belongs to it
            before = self.producer(entry.into, entry.start)
            while before is not None and passes_through(before) and not is_norm(before):
                before = self.producer(before.into, before.start)
            if before is None or is_norm(before):
                break
            entry = before
        core = self.core_in(entry)
        if core is not None:
            attention = next(a for p, a in self.cores if p == core)
            assert attention.q is not None and attention.k is not None
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
        core = self.core_in(entry)
        if core is not None:
            attention = next(a for p, a in self.cores if p == core)
            self.found_cores[role] = Core(core[len(self.path) + 1 :], attention.product)
        elif role.startswith("mlp"):
            self.add_mlp(role, out, entry)
        return f"{role}.write"

    def add_mlp(self, role: str, out: Call, entry: Call) -> None:
        """post: what the last matrix reads; pre, or gate and up: what the first matrices return."""
        inside = [c for c in self.calls if entry.start <= c.start and c.end <= out.end and is_linear(c)]
        down = next((c for c in inside if same(c.out, out.out)), None)
        if down is None or down.into is None:
            self.refused[f"{role}.post"] = "no matrix inside returns what the sublayer returns"
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
        linear = [self.doubles(c, half, down, entry) for c, half in parts]
        if len(parts) != 2 or sum(linear) != 1:
            self.refused[f"{role}.pre"] = (
                f"{len(parts)} first projections, {sum(linear)} of which enter linearly: no GLU"
            )
            return
        up, gate = places[linear.index(True)], places[linear.index(False)]
        self.sites |= {f"{role}.up": up, f"{role}.gate": gate, f"{role}.pre": gate}

    def doubles(self, matrix: Call, half: int | None, down: Call, entry: Call) -> bool:
        """Doubling what `matrix` returns (or a half of it) doubles what `down` receives: it enters linearly, as `up`."""
        seen: list[Tensor] = []

        def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            factor = torch.ones(out.shape[-1] if half is None else 2, dtype=out.dtype)
            factor[slice(None) if half is None else half] = 2
            return out * factor.repeat_interleave(out.shape[-1] // len(factor))

        handles = [
            matrix.module.register_forward_hook(double),
            down.module.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone())),
        ]
        try:
            entry.module(*entry.args, **entry.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        assert down.into is not None
        return bool((seen[0] - 2 * down.into).norm() < 1e-9 * down.into.norm())

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
        writes = self.pre_norm()
        if writes is not None:
            writes = sorted(writes, key=lambda w: w[0].end)
            names = [self.add_sublayer(w) for w, _ in writes]
            self.sums = [Sum("resid_post", "resid_pre", tuple((n, c) for n, (_, c) in zip(names, writes, strict=True)))]
            self.find_mid(writes, names)
        else:
            self.solve_post_norm()
        return Block(self.sites, tuple(self.sums), tuple(self.norms), self.found_cores, self.refused)

    def solve_post_norm(self) -> None:
        links = self.post_norm()[::-1]
        base = "resid_pre"
        for number, (norm, writes) in enumerate(links):
            names = [self.add_sublayer(w) for w, _ in writes]
            role, last = names[-1].split(".")[0], number == len(links) - 1
            site = "resid_post" if last else "resid_mid" if number == len(links) - 2 else f"{role}.normed"
            self.sites[f"{role}.sum"] = self.place(norm, "in")
            if not last:
                self.sites[site] = self.place(norm, "out")
            self.sums.append(Sum(f"{role}.sum", base, tuple((n, c) for n, (_, c) in zip(names, writes, strict=True))))
            self.norms.append((site, f"{role}.sum"))
            base = site


# ---------------------------------------------------------------- the whole model


def stream_lists(model: nn.Module, trace: Trace) -> list[str]:
    """Paths of the outermost lists of modules that hand the stream on: same shape in and out, one feeding the next."""
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or any(path.startswith(f + ".") for f in found):
            continue
        calls = [trace.of(f"{path}.{i}") for i in range(len(module))]
        if not calls or not all(len(c) == 1 for c in calls):
            continue
        ends = [(c[0].into, c[0].out) for c in calls]
        if any(a is None or b is None or a.ndim < 3 or a.shape != b.shape for a, b in ends):
            continue
        if all(torch.equal(b, a) for (_, b), (a, _) in pairwise(ends)):  # type: ignore[arg-type]
            found.append(path)
    return found


def prefixes(paths: Sequence[str]) -> list[str]:
    """Site prefixes: none for a single stack, else the first part of the path that tells the stacks apart."""
    if len(paths) < 2:
        return [""] * len(paths)
    parts = [p.split(".") for p in paths]
    depth = next(i for i in range(max(map(len, parts))) if len({tuple(p[: i + 1]) for p in parts}) == len(parts))
    words = [p[min(depth, len(p) - 1)] for p in parts]
    known = ("encoder", "decoder", "vision", "audio", "text")
    return [next((k for k in known if w.startswith(k)), w) + "." for w in words]


def _outside(model: nn.Module, trace: Trace, stacks: Sequence[Stack]) -> dict[str, Place]:
    """embed, pos_embed, final_norm and logits."""
    sites: dict[str, Place] = {}
    tables = [
        c
        for c in trace.calls
        if isinstance(c.module, nn.Embedding) and not any(c.path.startswith(s.path + ".") for s in stacks)
    ]
    get = getattr(model, "get_input_embeddings", lambda: None)
    try:
        token_table = get()
    except (AttributeError, NotImplementedError):
        token_table = None
    tokens = [c for c in tables if token_table is not None and c.module.weight is token_table.weight]
    for number, call in enumerate(tokens):
        prefix = stacks[number].prefix if len(tokens) == len(stacks) else ""
        again = sum(c.path == call.path for c in tokens[:number])
        sites[f"{prefix}embed"] = Place(call.path, "out", next(iter(call.outputs)), again)
    for call in tables:
        ids = next(iter(call.inputs.values()))
        if call not in tokens and bool((ids.flatten()[: ids.shape[-1]].diff() == 1).all()):
            sites["pos_embed"] = Place(call.path, "out", next(iter(call.outputs)))
    for stack in stacks:
        last = trace.of(f"{stack.path}.{len(stack.blocks) - 1}")[0].out
        for call in trace.calls:
            inside = any(call.path.startswith(s.path + ".") for s in stacks)
            if not inside and call.into is not None and torch.equal(call.into, last) and is_norm(call):  # type: ignore[arg-type]
                sites[f"{stack.prefix}final_norm"] = Place(call.path, "out", next(iter(call.outputs)))
                break
    root = trace.of("")[0].outputs
    if "logits" in root:
        sites["logits"] = Place("", "out", "logits")
    return sites


def solve(model: nn.Module, trace: Trace) -> Wiring:
    """The wiring of a model from one trace of it (float64, random weights). A block that cannot be explained keeps its ends."""
    paths = stream_lists(model, trace)
    stacks = []
    for prefix, path in zip(prefixes(paths), paths, strict=True):
        count = len(model.get_submodule(path))  # type: ignore[arg-type]
        stacks.append(Stack(prefix, path, tuple(solve_block(trace, f"{path}.{i}") for i in range(count))))
    return Wiring(tuple(stacks), _outside(model, trace, stacks))


def solve_block(trace: Trace, path: str) -> Block:
    """The wiring of one block; if unsolved, its two ends and the report."""
    solver = _Solver(trace, path)
    try:
        return solver.solve()
    except Unsolved as report:
        ends = {k: v for k, v in solver.sites.items() if k in ("resid_pre", "resid_post")}
        return Block(ends, refused={"*": f"the wiring could not be solved: {report}"})
