"""Whether a compiled model computes its program: every input through the interpreter and through the weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from circuits.rasp.batch import evaluate_batch
from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.values import mark
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import SOp

EXHAUSTIVE = 2_000_000  # inputs that are all run
BATCH = 4_096


@dataclass
class Verdict:
    """`inputs` run, on `undefined` of them the program has no value; `wrong` positions; the least margin of a right logit."""

    inputs: int = 0
    undefined: int = 0
    wrong: int = 0
    worst_margin: float = float("inf")
    failing_input: Any = None
    exhaustive_to: int = 0


def verify(node: SOp, compiled: Compiled) -> Verdict:
    """Compare on all inputs of 1 … length tokens.

    Raises `RaspError` if there are more than `EXHAUSTIVE`.
    """
    total = sum(len(compiled.vocabulary) ** n for n in range(1, compiled.length + 1))
    if total > EXHAUSTIVE:
        raise RaspError(f"{total:,} inputs are more than the {EXHAUSTIVE:,} that are run exhaustively")
    verdict = Verdict(exhaustive_to=compiled.length)
    for batch in _batches(compiled):
        _compare(node, compiled, batch, verdict)
    return verdict


def _batches(compiled: Compiled) -> Iterator[list[tuple[Any, ...]]]:
    for n in range(1, compiled.length + 1):
        inputs = itertools.product(compiled.vocabulary, repeat=n)
        while batch := list(itertools.islice(inputs, BATCH)):
            yield batch


def _compare(node: SOp, compiled: Compiled, batch: list[tuple[Any, ...]], verdict: Verdict) -> None:
    found = evaluate_batch(node, batch)
    known = {mark(v): i for i, v in enumerate(compiled.values)}
    place = torch.tensor([known.get(mark(v), -1) for v in found.values])  # -1: a value that no logit stands for
    defined = torch.from_numpy(~found.undefined)
    verdict.inputs += len(batch)
    verdict.undefined += int((~defined).sum())
    right = place[torch.from_numpy(found.at)][defined]
    if not len(right):
        return
    logits = compiled.model(compiled.ids(batch)[defined])
    chosen = logits.gather(-1, right.clamp(min=0)[..., None])[..., 0]
    others = logits.scatter(-1, right.clamp(min=0)[..., None], float("-inf")).amax(-1)
    margin = torch.where(right < 0, -torch.inf, chosen - others)
    bad = ~(margin > 0)
    verdict.wrong += int(bad.sum())
    verdict.worst_margin = min(verdict.worst_margin, float(margin.min()))
    if verdict.failing_input is None and bad.any():
        first = int(bad.any(-1).nonzero()[0])
        verdict.failing_input = list(batch[int(defined.nonzero()[first])])
