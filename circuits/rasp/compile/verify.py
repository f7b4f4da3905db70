"""Whether a compiled model computes its program: inputs through the interpreter and through the weights."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from circuits.rasp.batch import evaluate_batch
from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.columns import mark
from circuits.rasp.graph import SOp

EXHAUSTIVE = 2_000_000  # inputs of a length that are all run
DRAWN = 100_000  # inputs that are drawn of the lengths above
CELLS = 2**20  # (query, key) pairs of a batch

Input = tuple[Any, ...]


@dataclass
class Verdict:
    """`inputs` run, on `undefined` of them the program has no value; `wrong` positions, of those with a value (`positions`, for
    each s-op); the least margin of a right logit.

    All inputs of up to `exhaustive_to` tokens were run, of longer ones some.
    """

    inputs: int = 0
    undefined: int = 0
    wrong: int = 0
    worst_margin: float = float("inf")
    failing_input: list[Any] | None = None
    exhaustive_to: int = 0
    positions: int = 0


def verify(nodes: SOp | Mapping[str, SOp], compiled: Compiled, progress: bool = False) -> Verdict:
    """Compare the model's outputs with the s-ops, on every input of a length that has at most `EXHAUSTIVE`.

    Of the other lengths, on `DRAWN` together (`drawn`). With several s-ops an input counts once, positions for each.
    """
    if isinstance(nodes, SOp):
        nodes = {next(iter(compiled.outputs)): nodes}
    size = len(compiled.vocabulary)
    lengths = range(1, compiled.length + 1)
    verdict = Verdict(exhaustive_to=max((n for n in lengths if size**n <= EXHAUSTIVE), default=0))
    longer = compiled.length - verdict.exhaustive_to
    total = sum(size**n for n in lengths[: verdict.exhaustive_to]) + (DRAWN if longer else 0)
    with tqdm(total=total, desc="inputs", disable=not progress) as bar:
        for n in lengths:
            whole = n <= verdict.exhaustive_to
            inputs = itertools.product(compiled.vocabulary, repeat=n)
            for batch in _batches(inputs if whole else drawn(compiled.vocabulary, n, DRAWN // longer), n):
                _compare(nodes, compiled, batch, verdict)
                bar.update(len(batch))
    return verdict


def drawn(vocabulary: list[Any], length: int, count: int, seed: int = 0) -> Iterator[Input]:
    """`count` inputs of a length: all that repeat one token; a quarter with all tokens different, where there are enough;
    a half with one token k times, k = 0 … length in turn, among a second or among all others; the rest of a few tokens each.
    """
    rng = random.Random(seed + length)
    yield from itertools.islice(((token,) * length for token in vocabulary), count)
    for i in range(count - len(vocabulary)):
        token, k = rng.choice(vocabulary), i // 4 % (length + 1)
        others = [other for other in vocabulary if other is not token] or vocabulary
        if i % 4 == 0 and length <= len(vocabulary):
            yield tuple(rng.sample(vocabulary, length))
        elif i % 4 in (1, 2):
            rest = rng.choices([rng.choice(others)] if i % 4 == 1 else others, k=length - k)
            yield tuple(rng.sample([token] * k + rest, length))
        else:
            few = rng.sample(vocabulary, rng.randint(1, len(vocabulary)))
            yield tuple(rng.choices(few, k=length))


def _batches(inputs: Iterable[Input], length: int) -> Iterator[list[Input]]:
    inputs = iter(inputs)
    while batch := list(itertools.islice(inputs, max(CELLS // (length + 1) ** 2, 64))):
        yield batch


def _compare(nodes: Mapping[str, SOp], compiled: Compiled, batch: list[Input], verdict: Verdict) -> None:
    found = compiled.logits(batch)
    verdict.inputs += len(batch)
    undefined = torch.zeros(len(batch), dtype=torch.bool)
    for name, node in nodes.items():
        known = evaluate_batch(node, batch, compiled.causal)
        places = {mark(v): i for i, v in enumerate(compiled.outputs[name])}
        place = torch.tensor([places.get(mark(v), -1) for v in known.values])  # -1: a value that no logit stands for
        margin = _margins(found[name], place[torch.from_numpy(known.at)])
        margin[known.undefined] = torch.inf
        undefined |= torch.from_numpy(known.undefined)
        bad = ~(margin > 0)
        verdict.wrong += int(bad.sum())
        verdict.positions += int((~known.undefined).sum()) * bad.shape[1]
        verdict.worst_margin = min(verdict.worst_margin, float(margin.min()))
        if verdict.failing_input is None and bad.any():
            verdict.failing_input = list(batch[int(bad.any(-1).nonzero()[0])])
    verdict.undefined += int(undefined.sum())


def _margins(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """How far the right logit is above the greatest other one; -∞ where there is no right one, ∞ where there is no other."""
    chosen = right.clamp(min=0)[..., None]
    others = logits.scatter(-1, chosen, -torch.inf).amax(-1)
    return torch.where(right < 0, -torch.inf, logits.gather(-1, chosen)[..., 0] - others)
