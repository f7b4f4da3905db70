"""MLPs: tables as neurons that open for a row, stairs along a number, and neurons that take away what nothing reads any more."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.columns import mark
from circuits.rasp.compile.plan import EPSILON, RESOLVED, Table
from circuits.rasp.compile.stream import Erased, Stream
from circuits.rasp.errors import RaspError

if TYPE_CHECKING:
    from torch import Tensor

Neuron = tuple[dict[int, float], float, dict[int, float]]  # weights in, bias, weights out
Gate = tuple[tuple[int, ...], ...]  # for each one-hot, the directions that open it
Steps = dict[float, int]  # the levels of a number, and the direction that each turns on
APART = 16 * RESOLVED * EPSILON  # of rows that share stairs


class Unresolved(RaspError):
    """Two numbers that float32 cannot tell apart."""


def mlp_weights(tables: list[Table], erased: list[Erased], stream: Stream) -> dict[str, Tensor]:
    """A table's most common value is a bias; neurons change it where the table says otherwise."""
    b_out = torch.zeros(stream.width, dtype=torch.float64)
    neurons: list[Neuron] = []
    for table in tables:
        stairs = _stairs(table, stream)
        common = Counter(steps[0][1] for steps in stairs.values()).most_common(1)[0][0]
        b_out[common] += 1.0
        far = 2 * max(abs(height) for steps in stairs.values() for height, _ in steps) + 1
        for gate, steps in stairs.items():
            neurons += _staircase(gate, common, steps, far, table, stream)
    for each in erased:  # relu(x - low) = x - low
        neurons.append(({each.direction: 1.0}, -each.low, {each.direction: -1.0}))
        b_out[each.direction] -= each.low
    w_in, w_out = stream.zeros(len(neurons)), stream.zeros(len(neurons)).T.contiguous()
    b_in = torch.zeros(len(neurons), dtype=torch.float64)
    for i, (reads, bias, writes) in enumerate(neurons):
        b_in[i] = bias
        for place, weight in reads.items():
            w_in[place, i] = weight
        for place, weight in writes.items():
            w_out[i, place] = weight
    return {"W_in": w_in, "b_in": b_in, "W_out": w_out, "b_out": b_out}


def _stairs(table: Table, stream: Stream) -> dict[Gate, list[tuple[float, int]]]:
    """For every combination of one-hots, values that make no difference taken together: the stairs along the number."""
    values = stream.plan.values
    out = dict(zip(map(mark, values.of(table.step)), stream.of(table.step), strict=True))
    roots = [root for root in table.roots if root is not table.number]
    places = {root: dict(zip(map(mark, values.of(root)), stream.of(root), strict=True)) for root in roots}
    stairs: dict[Gate, Steps] = {}
    for row, value in table.rows:
        known = dict(zip(table.roots, row, strict=True))
        height = values.level(table.number, known[table.number]) if table.number else 0.0
        gate = tuple((places[root][mark(known[root])],) for root in roots)
        stairs.setdefault(gate, {})[height] = out[mark(value)]
    for axis in reversed(range(len(roots))):
        stairs = _merged(stairs, axis)
    return {gate: sorted(steps.items()) for gate, steps in stairs.items()}


def _merged(stairs: dict[Gate, Steps], axis: int) -> dict[Gate, Steps]:
    """Values of one one-hot with the same stairs wherever both occur become one; an axis with one is left out."""
    slices: dict[Any, dict[Gate, Steps]] = {}
    for gate, steps in stairs.items():
        slices.setdefault(gate[axis], {})[gate[:axis] + gate[axis + 1 :]] = steps
    classes: list[tuple[tuple[int, ...], dict[Gate, Steps]]] = []
    for places, part in slices.items():
        for i, (known, others) in enumerate(classes):
            if all(_agree(others[rest], steps) for rest, steps in part.items() if rest in others):
                joint = {rest: others.get(rest, {}) | part.get(rest, {}) for rest in {**others, **part}}
                classes[i] = (known + places, joint)
                break
        else:
            classes.append((places, part))
    alone = len(classes) == 1
    return {
        rest[:axis] + (() if alone else (places,)) + rest[axis:]: steps
        for places, part in classes
        for rest, steps in part.items()
    }


def _agree(a: Steps, b: Steps) -> bool:
    """Whether one staircase has the values of both, and levels far enough apart where it goes up."""
    if any(a[x] != b[x] for x in a.keys() & b.keys()):
        return False
    joint = sorted((a | b).items())
    top = max(1.0, *(abs(x) for x, _ in joint))
    return all(p == q or y - x > APART * top for (x, p), (y, q) in itertools.pairwise(joint))


def _staircase(
    gate: Gate, common: int, steps: list[tuple[float, int]], far: float, table: Table, stream: Stream
) -> Iterator[Neuron]:
    """relu(Σ one-hots - (gates - 1)) fires where the gate is open: there `common` gives way to the first value of the stairs.

    Along the number, a ramp of two neurons, relu((x - start) / width) - relu((x - end) / width), leads to each next value. A gate adds
    `far`: no level is great enough for one that is shut.
    """
    opens = list(itertools.chain(*gate))
    if steps[0][1] != common:
        yield dict.fromkeys(opens, 1.0), 1.0 - len(gate), {steps[0][1]: 1.0, common: -1.0}
    top = max(abs(level) for level, _ in steps)
    for (low, before), (high, after) in itertools.pairwise(steps):
        if before == after:
            continue
        if high - low < RESOLVED * EPSILON * max(top, 1.0):
            raise Unresolved(f"float32 cannot tell {low!r} from {high!r} here", table.step.at)
        assert table.number is not None
        width = (high - low) / 3
        for start, sign in ((low + width, 1.0), (high - width, -1.0)):
            reads = dict.fromkeys(opens, far) | {stream.number(table.number): 1.0}
            yield reads, -start - far * len(gate), {after: sign / width, before: -sign / width}
