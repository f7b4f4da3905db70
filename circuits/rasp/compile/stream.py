"""The residual stream: which directions hold which value, from when to when, and what they hold at the BOS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.names import spelled
from circuits.rasp.compile.plan import Head, Plan, Scale, View
from circuits.rasp.compile.shared import INDICES, TOKENS
from circuits.rasp.compile.values import ALL
from circuits.rasp.graph import SOp

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Held = tuple[SOp, bool]  # a step as a one-hot, or (True) as one number


@dataclass
class Variable:
    """A named value in the stream: one direction for each of its `values`, or one (`number`) for all of them.

    A number x stands for value i where x = levels[i]. `writer` is a component, `ready` the first site that holds the
    value, and `until` the last, if its directions are used again.
    """

    name: str
    number: bool
    values: list[Any]
    directions: list[int]
    writer: str
    ready: str
    until: str | None = None
    levels: list[float] = field(default_factory=list)

    def label(self, direction: int) -> str:
        """What this direction says."""
        return (
            f"{self.name} (number)" if self.number else f"{self.name}={self.values[self.directions.index(direction)]!r}"
        )


@dataclass(frozen=True)
class Erased:
    """A direction whose content, a part of a variable and at least `low` at every token, an MLP takes away."""

    direction: int
    variable: str
    low: float
    time: int


class Stream:
    """Directions for everything a plan writes; with `reuse`, those that nothing reads any more are erased and used again."""

    def __init__(self, plan: Plan, reuse: bool) -> None:
        self.plan, self.erased = plan, list[Erased]()
        self.held: dict[Held, Variable] = {}
        self._names: set[str] = set()
        self._free: list[tuple[int, Held, list[int]]] = []  # since when, whose, directions
        self.width = 1  # direction 0 is the BOS's own
        last = _last_reads(plan)
        for time, held, writer in sorted(_births(plan), key=lambda birth: birth[0]):
            if held not in last:
                continue  # positions, where no step reads them
            self._place(held, time, writer, reuse)
            if reuse and last[held] < ALL:
                self._free.append((max(last[held] + 1 - last[held] % 2, 1), held, list(self.held[held].directions)))
        self.bos = torch.zeros(self.width, dtype=torch.float64)
        self.bos[0] = 1.0

    def of(self, step: SOp) -> list[int]:
        """The directions of a step's one-hot."""
        return self.held[(step, False)].directions

    def number(self, step: SOp) -> int:
        """The direction of a step's number."""
        return self.held[(step, True)].directions[0]

    def zeros(self, columns: int) -> Float[Tensor, "d_model columns"]:
        return torch.zeros(self.width, columns, dtype=torch.float64)

    def pin(self, weight: Float[Tensor, "d_model columns"], wanted: Float[Tensor, "columns"]) -> None:
        """Set the BOS's row so that the BOS position, whatever it holds, reads `wanted`."""
        weight[0] = 0.0
        weight[0] = wanted - self.bos @ weight

    def _place(self, held: Held, time: int, writer: str, reuse: bool) -> None:
        step, number = held
        values = self.plan.values.of(step)
        size = 1 if number else len(values)
        directions = self._used_again(size, time) if reuse else []
        directions += range(self.width, self.width + size - len(directions))
        self.width = max(self.width, directions[-1] + 1) if directions else self.width
        levels = [self.plan.values.level(step, value) for value in values] if number else []
        self.held[held] = Variable(
            self._name(step), number, values, directions, writer, site(time, writer), levels=levels
        )

    def _used_again(self, size: int, time: int) -> list[int]:
        """Free directions, erased by the last MLP that runs before they are written or beside what writes them."""
        eraser = time - 1 + time % 2
        found: list[int] = []
        for since, held, directions in self._free:
            while directions and since <= eraser and len(found) < size:
                direction = directions.pop()
                variable = self.held[held]
                self.erased.append(Erased(direction, variable.name, min([0.0, *variable.levels]), eraser))
                variable.until = variable.until or f"blocks.{eraser // 2}.resid_mid"
                found.append(direction)
        return found

    def _name(self, step: SOp) -> str:
        plain = step.name if step.name and step not in (TOKENS, INDICES) else spelled(step)
        name, count = f"{plain} (one-hot)" if (step, True) in self.held else plain, 1
        while name in self._names:  # a variable can be bound twice
            count += 1
            name = f"{plain} ({count})"
        self._names.add(name)
        return name


def site(time: int, writer: str) -> str:
    """The first site that holds what is written at this time."""
    if time < 0:
        return "blocks.0.resid_pre"
    return f"blocks.{time // 2}.resid_{'post' if time % 2 else 'mid'}"


def component(head: Head, plan: Plan) -> str:
    """A head's name: the block's number and its own."""
    beside = [other for other in plan.heads if other.time == head.time]
    return f"blocks.{head.time // 2}.attn.{beside.index(head)}"


def written(head: Head, plan: Plan) -> list[Held]:
    """What a head writes."""
    steps: list[SOp] = [head.width] if head.width else [step for step, _ in head.writes]
    return [(step, plan.values.is_number(step)) for step in steps]


def _births(plan: Plan) -> Iterator[tuple[int, Held, str]]:
    yield -1, (TOKENS, False), "embed"
    yield -1, (INDICES, False), "pos_embed"
    for head in plan.heads:
        yield from ((head.time, held, component(head, plan)) for held in written(head, plan))
    yield from ((table.time, (table.step, False), f"blocks.{table.time // 2}.mlp") for table in plan.tables)


def head_reads(head: Head) -> dict[str, list[Held]]:
    """What a head reads for its queries, keys and values; the tokens say at every position that it is no BOS."""
    values = [(v.root, False) if isinstance(v, View) else (v, True) for _, v in head.writes]
    return {
        "q": _distinct([*((match.query.root, False) for match in head.matches), (TOKENS, False)]),
        "k": _distinct((match.key.root, False) for match in head.matches),
        "v": _distinct(values),
    }


def output_reads(output: View | Scale) -> list[Held]:
    """What an output is read from."""
    return [(output.root, False)] if isinstance(output, View) else [(output.root, True), (TOKENS, False)]


def _distinct(held: Any) -> list[Held]:
    return list(dict.fromkeys(held))


def _last_reads(plan: Plan) -> dict[Held, int]:
    last: dict[Held, int] = {(TOKENS, False): ALL}
    reads = [(head.time, held) for head in plan.heads for part in head_reads(head).values() for held in part]
    reads += [(table.time, (root, root is table.number)) for table in plan.tables for root in table.roots]
    reads += [(ALL, held) for output in plan.outputs for held in output_reads(output)]
    for time, held in reads:
        last[held] = max(last.get(held, -1), time)
    return last
