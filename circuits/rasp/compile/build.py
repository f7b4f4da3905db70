"""From a plan to weights: every value a direction of the stream, every selector a bilinear form, every table hidden neurons."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.model import CompiledTransformer
from circuits.rasp.compile.plan import EPSILON, RESOLVED, Head, Plan, Scale, Table, View, level
from circuits.rasp.compile.shared import INDICES, TOKENS, share
from circuits.rasp.compile.values import distinct, mark
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import Aggregate, SOp
from circuits.rasp.syntax import Atom

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

SHARP = 100.0  # a selected key's score over another's; the BOS stands between: e^-50 is nothing in float32


@dataclass
class Compiled:
    """A model and what its numbers mean: `values[i]` is the i-th logit's value, `labels[d]` what direction d says."""

    model: CompiledTransformer
    vocabulary: list[Atom]
    length: int
    values: list[Any]
    labels: list[str]

    def ids(self, inputs: list[Any]) -> Int[Tensor, "batch pos"]:
        """Token ids of inputs of one length. Raises `RaspError` for tokens outside the vocabulary and for longer inputs."""
        known = {mark(token): i for i, token in enumerate(self.vocabulary)}
        if any(len(tokens) > self.length for tokens in inputs):
            raise RaspError(f"compiled for inputs of at most {self.length} tokens")
        for token in itertools.chain.from_iterable(inputs):
            if mark(token) not in known:
                raise RaspError(f"the token {token!r} is not in the vocabulary it was compiled for: {self.vocabulary}")
        return torch.tensor([[known[mark(token)] for token in tokens] for tokens in inputs])

    def apply(self, tokens: str | list[Atom]) -> list[Atom]:
        """The output at every position: the value with the greatest logit."""
        logits = self.model(self.ids([tokens]))[0]
        return [self.values[i] for i in logits.argmax(-1).tolist()]


def compile_sop(node: SOp, vocabulary: list[Atom], length: int) -> Compiled:
    """A transformer that computes `node` on every input of 1 … `length` tokens of the vocabulary.

    Raises `RaspError` for programs whose tables would be too large, and where float32 could not tell two values apart.
    """
    plan = Plan(share(node), vocabulary, length)
    stream = _Stream(plan)
    blocks = [_block(plan, stream, i) for i in range(plan.blocks)]
    unembed, outputs = _unembed(plan.output, stream)
    embed, positions = stream.embeddings()
    model = CompiledTransformer(
        embed.float(), positions.float(), [{n: w.float() for n, w in b.items()} for b in blocks], unembed.float()
    )
    return Compiled(model, vocabulary, length, outputs, stream.labels)


def _unembed(output: View | Scale, stream: _Stream) -> tuple[Float[Tensor, "d_model out"], list[Any]]:
    """A logit for each value: its direction; or, read off a number x with levels x_i, (2 x x_i - x_i²)/gap²: the nearest wins."""
    if isinstance(output, View):
        outputs = distinct(v for v in output.values if v is not None)
        unembed = stream.zeros(len(outputs))
        unembed[stream.of[output.root]] = _one_hots(output.values, outputs)
        return unembed, outputs
    levels = torch.tensor(output.levels, dtype=torch.float64)
    unembed = stream.zeros(len(levels))
    unembed[stream.numbers[output.root]] = 2 * levels / output.gap() ** 2
    unembed[stream.of[TOKENS]] = -((levels / output.gap()) ** 2)
    return unembed, output.values


@dataclass
class _Stream:
    """Directions of the stream: a slice for every one-hot and number; and what the BOS position holds so far."""

    plan: Plan
    of: dict[SOp, slice] = field(default_factory=dict)
    numbers: dict[SOp, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=lambda: ["bos"])

    def __post_init__(self) -> None:
        values = self.plan.values
        made: list[SOp] = [TOKENS, INDICES, *(table.step for table in self.plan.tables)]
        for head in self.plan.heads:
            written: list[SOp] = [head.width] if head.width else [write for write, _ in head.writes]
            for step in written:
                if values.is_number(step):
                    self.numbers[step] = len(self.labels)
                    self.labels.append(f"{_name(step)} (number)")
                else:
                    made.append(step)
        for step in made:
            self.of[step] = slice(len(self.labels), len(self.labels) + len(values.of(step)))
            self.labels += [f"{_name(step)}={value!r}" for value in values.of(step)]
        self.width = len(self.labels)
        self.bos = torch.zeros(self.width, dtype=torch.float64)
        self.bos[0] = 1.0

    def embeddings(self) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "pos d_model"]]:
        """W_E with the BOS last, W_pos with nothing at the BOS's position."""
        tokens, length = len(self.plan.values.of(TOKENS)), self.plan.values.length
        embed = torch.zeros(tokens + 1, self.width, dtype=torch.float64)
        embed[:tokens, self.of[TOKENS]] = torch.eye(tokens, dtype=torch.float64)
        embed[tokens, 0] = 1.0
        positions = torch.zeros(length + 1, self.width, dtype=torch.float64)
        positions[1:, self.of[INDICES]] = torch.eye(length, dtype=torch.float64)
        return embed, positions

    def zeros(self, columns: int) -> Float[Tensor, "d_model columns"]:
        return torch.zeros(self.width, columns, dtype=torch.float64)

    def pin(self, weight: Float[Tensor, "d_model columns"], wanted: Float[Tensor, "columns"]) -> None:
        """Set the BOS's row so that the BOS position, whatever it holds, reads `wanted`."""
        weight[0] = 0.0
        weight[0] = wanted - self.bos @ weight


def _name(step: SOp) -> str:
    return "tokens" if step is TOKENS else "indices" if step is INDICES else step.name or "step"


def _one_hots(values: list[Any], known: list[Any]) -> Float[Tensor, "value known"]:
    """A row for each value: 1 at its place among the known, 0 everywhere for one that never occurs."""
    at = {mark(v): i for i, v in enumerate(known)}
    rows = torch.zeros(len(values), len(known), dtype=torch.float64)
    for i, value in enumerate(values):
        if mark(value) in at:
            rows[i, at[mark(value)]] = 1.0
    return rows


def _block(plan: Plan, stream: _Stream, index: int) -> dict[str, Tensor]:
    heads = [_head(head, stream) for head in plan.heads if head.time == 2 * index]
    weights = _stacked(heads, stream.width)
    for head in heads:
        stream.bos = stream.bos + (stream.bos @ head["W_V"]) @ head["W_O"]
    mlp = _mlp([table for table in plan.tables if table.time == 2 * index + 1], stream)
    hidden = torch.relu(stream.bos @ mlp["W_in"] + mlp["b_in"])
    stream.bos = stream.bos + hidden @ mlp["W_out"] + mlp["b_out"]
    return weights | mlp


def _stacked(heads: list[dict[str, Tensor]], width: int) -> dict[str, Tensor]:
    """Heads of one block side by side, padded to the widest."""
    qk = max((head["W_Q"].shape[1] for head in heads), default=0)
    vo = max((head["W_V"].shape[1] for head in heads), default=0)
    sizes = {"W_Q": (width, qk), "W_K": (width, qk), "W_V": (width, vo), "W_O": (vo, width)}
    out = {name: torch.zeros(len(heads), *size, dtype=torch.float64) for name, size in sizes.items()}
    for i, head in enumerate(heads):
        for name, weight in head.items():
            out[name][i, : weight.shape[0], : weight.shape[1]] = weight
    return out


def _head(head: Head, stream: _Stream) -> dict[str, Tensor]:
    """score(q, k) = SHARP · matches that hold; the BOS, half a match below all of them, is attended where no key has all.

    For a width the BOS counts as one more selected key: it is attended by 1/(w + 1).
    """
    queries, keys = [], []
    for match in head.matches:
        holds = torch.tensor(match.holds, dtype=torch.float64)
        rows, which = torch.unique(holds, dim=0, return_inverse=True)  # queries that select alike are one
        query, key = stream.zeros(len(rows)), stream.zeros(len(rows))
        query[stream.of[match.query.root]] = torch.nn.functional.one_hot(which, len(rows)).double() * SHARP
        key[stream.of[match.key.root]] = rows.T
        queries.append(query)
        keys.append(key)
    needed = len(head.matches) - (0.0 if head.width else 0.5)
    floor = stream.zeros(1)
    floor[stream.of[TOKENS]] = SHARP * needed
    w_q, w_k = torch.cat([*queries, floor], dim=1), torch.cat([*keys, stream.zeros(1)], dim=1)
    at_bos = torch.zeros(w_q.shape[1], dtype=torch.float64)
    at_bos[-1] = 1.0
    stream.pin(w_q, SHARP * (len(head.matches) + 1) * at_bos)
    stream.pin(w_k, at_bos)
    w_v, w_o = _values(head, stream)
    return {"W_Q": w_q, "W_K": w_k, "W_V": w_v, "W_O": w_o}


def _values(head: Head, stream: _Stream) -> tuple[Tensor, Tensor]:
    """What is read at keys and where it is written; the BOS gives the default, for a width its own presence."""
    if head.width:
        w_v, w_o = stream.zeros(1), torch.zeros(1, stream.width, dtype=torch.float64)
        stream.pin(w_v, torch.ones(1, dtype=torch.float64))
        w_o[0, stream.numbers[head.width]] = 1.0
        return w_v, w_o
    parts = [_written(step, value, stream) for step, value in head.writes]
    return torch.cat([v for v, _ in parts], dim=1), torch.cat([o for _, o in parts])


def _written(step: Aggregate, value: View | Aggregate, stream: _Stream) -> tuple[Tensor, Tensor]:
    if step in stream.numbers:
        w_v, default = stream.zeros(1), torch.tensor([float(step.default)], dtype=torch.float64)
        if isinstance(value, View):
            w_v[stream.of[value.root], 0] = torch.tensor([float(v or 0) for v in value.values], dtype=torch.float64)
        else:
            w_v[stream.numbers[value], 0] = 1.0
        place = slice(stream.numbers[step], stream.numbers[step] + 1)
    else:
        assert isinstance(value, View)
        known = stream.plan.values.of(step)
        w_v, default = stream.zeros(len(known)), _one_hots([step.default], known)[0]
        w_v[stream.of[value.root]] = _one_hots(value.values, known)
        place = stream.of[step]
    stream.pin(w_v, default)
    w_o = torch.zeros(w_v.shape[1], stream.width, dtype=torch.float64)
    w_o[:, place] = torch.eye(w_v.shape[1], dtype=torch.float64)
    return w_v, w_o


# ---- MLPs

Neuron = tuple[dict[int, float], float, dict[int, float]]  # weights in, bias, weights out


def _mlp(tables: list[Table], stream: _Stream) -> dict[str, Tensor]:
    """A table's most common value is a bias; neurons change it where the table says otherwise."""
    b_out = torch.zeros(stream.width, dtype=torch.float64)
    neurons: list[Neuron] = []
    for table in tables:
        stairs = _stairs(table, stream)
        common = Counter(steps[0][1] for steps in stairs.values()).most_common(1)[0][0]
        b_out[common] = 1.0
        for gate, steps in stairs.items():
            neurons += _staircase(gate, common, steps, table, stream)
    w_in, w_out = stream.zeros(len(neurons)), stream.zeros(len(neurons)).T.contiguous()
    b_in = torch.zeros(len(neurons), dtype=torch.float64)
    for i, (reads, bias, writes) in enumerate(neurons):
        b_in[i] = bias
        for place, weight in reads.items():
            w_in[place, i] = weight
        for place, weight in writes.items():
            w_out[i, place] = weight
    return {"W_in": w_in, "b_in": b_in, "W_out": w_out, "b_out": b_out}


Gate = tuple[int, ...]  # directions of the one-hots that open it


def _stairs(table: Table, stream: _Stream) -> dict[Gate, list[tuple[float, int]]]:
    """For every combination of one-hots: the levels of the number, in order, and the direction that each turns on."""
    values = stream.plan.values
    out = {mark(v): stream.of[table.step].start + i for i, v in enumerate(values.of(table.step))}
    places = {root: {mark(v): i for i, v in enumerate(values.of(root))} for root in table.roots}
    stairs: dict[Gate, list[tuple[float, int]]] = {}
    for row, value in table.rows:
        known = dict(zip(table.roots, row, strict=True))
        height = level(table.number, known.pop(table.number)) if table.number else 0.0
        gate = tuple(stream.of[root].start + places[root][mark(v)] for root, v in known.items())
        stairs.setdefault(gate, []).append((height, out[mark(value)]))
    return {gate: sorted(steps) for gate, steps in stairs.items()}


def _staircase(
    gate: Gate, common: int, steps: list[tuple[float, int]], table: Table, stream: _Stream
) -> Iterator[Neuron]:
    """relu(Σ one-hots - (gates - 1)) fires where the gate is open: there `common` gives way to the first value of the stairs.

    Along the number, a ramp of two neurons, relu((x - start) / width) - relu((x - end) / width), leads to each next value.
    """
    opens, shut = dict.fromkeys(gate, 1.0), max(len(gate) - 1.0, 0.0)
    if steps[0][1] != common:
        yield opens, -shut if gate else 1.0, {steps[0][1]: 1.0, common: -1.0}
    top = max(abs(level) for level, _ in steps)
    for (low, before), (high, after) in itertools.pairwise(steps):
        if before == after:
            continue
        if high - low < RESOLVED * EPSILON * max(top, 1.0):
            raise RaspError(
                f"float32 cannot tell {low!r} from {high!r} here: compile for shorter inputs", table.step.at
            )
        assert table.number is not None
        width, far = (high - low) / 3, 2 * _farthest(table) + 1  # far: no level opens a gate that is shut
        for start, sign in ((low + width, 1.0), (high - width, -1.0)):
            reads = dict.fromkeys(gate, far) | {stream.numbers[table.number]: 1.0}
            yield reads, -start - far * len(gate), {after: sign / width, before: -sign / width}


def _farthest(table: Table) -> float:
    """The greatest level that the table's number has in any row."""
    assert table.number is not None
    place = table.roots.index(table.number)
    return max(abs(level(table.number, row[place])) for row, _ in table.rows)
