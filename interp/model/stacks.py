"""Where the stacks of a model are and what stands around them, found in one trace of it.

Nothing here knows an architecture. `interp.model.solver` explains one block, `interp.model.proof` checks the whole on
inputs the solver has not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from interp.model.solver import solve_block
from interp.model.stream import alone, changed, is_norm
from interp.model.trace import Call, Trace, replace_in, same, tensors_in
from interp.model.wiring import Block, Place, Stack, Wiring


def _streams(call: Call) -> bool:
    """It receives and returns a tensor of one shape."""
    a, b = call.into, call.out
    return a is not None and b is not None and a.ndim >= 2 and a.shape == b.shape


def _chained(calls: Sequence[Call]) -> bool:
    """Each hands its output on to the next, unchanged."""
    return all(_streams(c) for c in calls) and all(torch.equal(a.out, b.into) for a, b in pairwise(calls))  # type: ignore[arg-type]


def chains(model: nn.Module, trace: Trace) -> list[list[Call]]:
    """The chains of calls that hand a stream on: the members of a list of modules, or one module again and again.

    The outermost, unless all its members hold a chain of one class of modules themselves: then those inside.
    """
    groups: dict[str, list[Call]] = {}
    for call in trace.calls:
        parent, _, last = call.path.rpartition(".")
        listed = last.isdigit() and isinstance(model.get_submodule(parent), (nn.ModuleList, nn.Sequential))
        groups.setdefault(f"{parent}.*" if listed else call.path, []).append(call)
    every = [run for name, calls in groups.items() if name for run in _runs(calls, name.endswith("*"))]
    every = [chain for chain in every if carries(trace, chain[0])]
    found: list[list[Call]] = []
    for chain in every:
        within = [_inside(chain[0], c) for kept in found for c in kept]
        if not any(within) and not _nested(chain, every):
            found.append(chain)
    return found + [group for group in _groups(model, trace) if not any(_inside(c, group[0]) for f in found for c in f)]


def carries(trace: Trace, call: Call) -> bool:
    """What a call returns depends on what it receives beside what its matrices make of that: it hands a stream on.

    Run again on another input, with every result of a matrix as it was: norms and what treats every value alone still work.
    """
    made: dict[nn.Module, list[Tensor]] = {}
    for c in trace.inside(call):
        weights = next(c.module.parameters(), None) is not None and c.end == c.start + 1
        if weights and c.out is not None and not (is_norm(c) or alone(c)):
            made.setdefault(c.module, []).append(c.out)

    def again(module: nn.Module, args: Any, out: Any) -> Any:
        key = next(tensors_in(out))[0]
        return replace_in(out, key, made[module].pop(0).clone())  # blocks may add to it in place

    handles = [module.register_forward_hook(again) for module in made]
    assert call.into is not None
    other = call.into + torch.linspace(1, 2, call.into.numel()).view_as(call.into).sin()
    try:
        change = changed(call, other)
        return change is None or bool(change.any())
    finally:
        for handle in handles:
            handle.remove()


def _groups(model: nn.Module, trace: Trace) -> list[list[Call]]:
    """Chains of blocks that no module holds: the calls of the members of one number in lists of modules side by side.

    [attention.0, norm.0, mlp.0], [attention.1, norm.1, mlp.1], ...: each begins with what the one before returned.
    """
    lists = {n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1}
    rows: dict[str, dict[int, list[Call]]] = {}
    until = -1
    for call in trace.calls:
        parts = call.path.split(".")
        at = next((i for i in range(1, len(parts)) if ".".join(parts[:i]) in lists), None)
        if at is not None and parts[at].isdigit() and call.start > until:
            rows.setdefault(".".join(parts[: at - 1]), {}).setdefault(int(parts[at]), []).append(call)
            until = call.end
    found = []
    for row in rows.values():
        ends = [(calls[0], calls[-1]) for calls in row.values() if len(calls) > 1 and calls[0].into is not None]
        spans = [trace.span(first.path, first.number, last.path) for first, last in ends]
        apart = all(a.end - 1 < b.start + 1 for a, b in pairwise(spans))
        if len(row) == len(spans) > 1 and apart and _chained(spans):
            found.append(spans)
    return found


def repeated(model: nn.Module, run: Trace) -> dict[str, int]:
    """Lists of modules of which at least two of one class were called: {path: how many}."""
    called = {c.path: type(c.module) for c in run.calls}
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            kinds = Counter(called[p] for n, _ in module.named_children() if (p := f"{path}.{n}".strip(".")) in called)
            many = [n for kind, n in kinds.items() if n > 1 and not kind.__module__.startswith("torch.nn.")]
            if many:
                found[path] = max(many)
    return found


def _runs(calls: list[Call], listed: bool) -> list[list[Call]]:
    """The calls as one chain, or as several if the members of a list run through again and again; none if they are no chain."""
    paths = list(dict.fromkeys(c.path for c in calls))
    turns = [calls[i : i + len(paths)] for i in range(0, len(calls), len(paths))]
    again = len(paths) > 1 and all([c.path for c in turn] == paths for turn in turns)
    leaves = all(c.end == c.start + 1 for c in calls)  # a row of matrices and norms is no stack
    if leaves or not (len(calls) > 1 or listed):
        return []
    return [calls] if _chained(calls) else turns if again and all(map(_chained, turns)) else []


def _inside(call: Call, other: Call) -> bool:
    return other.start < call.start < other.end


def _nested(chain: list[Call], every: list[list[Call]]) -> bool:
    """Every member of a chain holds a chain of modules of one class, and begins with it."""
    inner = [c for c in every if len(c) > 1 and len({type(call.module) for call in c}) == 1]
    return len(chain) > 1 and all(
        any(_inside(c[0], call) and same(c[0].into, call.into) for c in inner) for call in chain
    )


WORDS = {"encoder": "encoder", "decoder": "decoder", "vision": "vision", "visual": "vision", "audio": "audio"}
WORDS |= {"text": "text", "language": "text"}


def prefixes(paths: Sequence[str]) -> list[str]:
    """Site prefixes: none for a single stack, else the parts of the path that tell the stacks apart; `passes.{n}.` more where
    the same modules run several times.
    """
    named = _told_apart({path: path.split(".") for path in paths})
    turns = [list(paths[:i]).count(path) for i, path in enumerate(paths)]
    again = [f"passes.{n}." if list(paths).count(path) > 1 else "" for path, n in zip(paths, turns, strict=True)]
    return [named[path] + more for path, more in zip(paths, again, strict=True)]


def _told_apart(parts: dict[str, list[str]]) -> dict[str, str]:
    """For every path the first word at which paths part, and further ones for those that go on together."""
    if len(parts) < 2:
        return dict.fromkeys(parts, "")
    depth = next(
        i for i in range(max(map(len, parts.values()))) if len({tuple(p[: i + 1]) for p in parts.values()}) > 1
    )
    groups: dict[str, dict[str, list[str]]] = {}
    for path, words in parts.items():
        groups.setdefault(words[depth] if depth < len(words) else "", {})[path] = words
    named: dict[str, str] = {}
    for word, group in groups.items():
        known = next((to for start, to in WORDS.items() if word.startswith(start)), word)
        first = f"stages.{known}." if known.isdigit() else f"{known}." if known else ""
        named |= {path: first + rest for path, rest in _told_apart(group).items()}
    return named


def solve(model: nn.Module, trace: Trace) -> Wiring:
    """The wiring of a model from one trace of it (float64, random weights). A block that cannot be explained keeps its ends."""
    found = chains(model, trace)
    names = prefixes([chain[0].path for chain in found])
    stacks = []
    for prefix, chain in zip(names, found, strict=True):
        solved: dict[int, Block] = {}
        for number, call in sorted(enumerate(chain), key=lambda c: not bool(c[1].into.any())):  # type: ignore[union-attr]
            solved[number] = solve_block(
                trace, call, list(solved.values())
            )  # a stream of zeros tells least, so it comes last
        stacks.append(Stack(prefix, tuple(solved[number] for number in range(len(chain)))))
    return Wiring(tuple(stacks), *_outside(model, trace, list(zip(names, found, strict=True))))


def _outside(
    model: nn.Module, trace: Trace, stacks: Sequence[tuple[str, list[Call]]]
) -> tuple[dict[str, Place], dict[str, Place]]:
    """embed, pos_embed, final_norm and logits; and the final norms, for their divisors."""
    sites: dict[str, Place] = {}
    scales: dict[str, Place] = {}
    inner = [c for _, chain in stacks for c in chain]
    outer = [c for c in trace.calls if not any(b.start <= c.start and c.end <= b.end for b in inner)]
    tables = [c for c in outer if isinstance(c.module, nn.Embedding)]
    tokens = _token_embeddings(model, tables)
    for number, call in enumerate(tokens):
        sites[f"{stacks[number][0] if len(tokens) == len(stacks) else ''}embed"] = _returned(call)
    for call in (c for c in tables if any(t.ndim for t in c.inputs.values())):
        ids = next(iter(call.inputs.values()))
        if call not in tokens and bool((ids.flatten()[: ids.shape[-1]].diff() == 1).all()):
            sites["pos_embed"] = _returned(call)
    for prefix, chain in stacks:
        last = chain[-1].out
        reads = (c for c in outer if c.into is not None and torch.equal(c.into, last) and is_norm(c))  # type: ignore[arg-type]
        norm = next(reads, None)
        if norm is not None:
            place = replace(_returned(norm), batch=None if last.ndim == 2 else 0)  # type: ignore[union-attr]
            sites[f"{prefix}final_norm"] = scales[f"{prefix}final_norm.scale"] = place
    returned = trace.of("")[0].outputs
    if "logits" in returned:
        sites["logits"] = Place("", "out", "logits")
    elif None in returned and stacks and returned[None].shape[:-1] == stacks[-1][1][-1].out.shape[:-1]:  # type: ignore[union-attr]
        sites["logits"] = Place("", "out")  # the model returns one tensor, a row for every position
    return sites, scales


def _returned(call: Call) -> Place:
    return Place(call.path, "out", next(iter(call.outputs)), call.number)


def _token_embeddings(model: nn.Module, tables: Sequence[Call]) -> list[Call]:
    """Calls of the tables that the model itself calls its input embeddings."""
    try:
        table = getattr(model, "get_input_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):
        table = None
    weight = getattr(table, "weight", None)
    return [c for c in tables if weight is not None and c.module.weight is weight]
