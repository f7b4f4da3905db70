"""Transformer programs as they are trained: every choice of a program is a softmax that Gumbel noise is added to.

    choice(l) = softmax((l + g) / τ),  g = -log(-log u)

of the variable that a head or a table reads, of the key that a query's value seeks, and of each value of a table. As τ falls
a choice becomes one, and the model becomes a program (`circuits.programs.program`). Many seeds are trained at once: all that
is learnt lies in one tensor [seed, parameter], and every product has a leading dimension of seeds.

Heads see the probability s_ij that key j is what query i seeks. With the keys in the order that a query prefers them, the
nearest first, the first match is j with probability s_ij Π_{j' before j} (1 - s_ij'), and position 0 where none matches.
A count, which is not whole while it is learnt, is read by a table as the two numbers beside it, the nearer the more.
Source: Friedman, Wettig & Chen 2023, sections 3.1-3.4; tables are MLPs there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits.programs.program import (
    CLOSEST,
    COUNT,
    ONES,
    POSITIONS,
    TOKENS,
    Head,
    Program,
    Step,
    Table,
    Words,
    nearness,
)
from circuits.programs.readout import VOTE
from circuits.programs.tasks import Task

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

READS = 5.0  # by how much one logit begins above the others where a variable is chosen: a seed is nearly decided what reads what
SEEKS = 3.0  # and where a key is
TABLES, VOTES = 0.5, 0.06  # standard deviations of the logits of a table's values, and of votes
LEAST = 1e-6  # what is left of 1 - s at s = 1: a first match stays differentiable


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: layers, heads and tables a layer, and what the task brings."""

    layers: int
    closest: int
    count: int
    tables: int
    count_tables: int
    vocabulary: int
    length: int
    labels: int
    causal: bool
    readable: bool
    words: int = 0
    """variables that sort the tokens into kinds; 0: tokens are told apart"""
    kinds: int = 0

    @property
    def size(self) -> int:
        """Values of a categorical variable."""
        return max(self.kinds if self.words else self.vocabulary, self.length)

    @property
    def heads(self) -> int:
        """Heads of a layer, those that pick the closest first."""
        return self.closest + self.count

    def categorical(self, layer: int) -> list[str]:
        """Names of the categorical variables before a layer."""
        made = [n for i in range(layer) for n in self.names(i, CLOSEST) + self.names(i, "table")]
        return [*([f"word_{i}" for i in range(self.words)] or [TOKENS]), POSITIONS, *made]

    def counts(self, layer: int) -> list[str]:
        """Names of the counts before a layer."""
        return [ONES, *(n for i in range(layer) for n in self.names(i, COUNT))]

    def names(self, layer: int, kind: str) -> list[str]:
        """Names of what a layer makes: `closest_1_0` is head 0 of layer 1."""
        many = {CLOSEST: self.closest, COUNT: self.count, "table": self.tables + self.count_tables}[kind]
        return [f"{kind}_{layer}_{i}" for i in range(many)]

    def choices(self) -> dict[str, tuple[int, ...]]:
        """What is learnt as logits of choices, over the last dimension."""
        found: dict[str, tuple[int, ...]] = {"words": (self.words, self.vocabulary, self.size)}
        for i in range(self.layers):
            cats, counts = len(self.categorical(i)), len(self.counts(i))
            found[f"{i}.read"] = (2 * self.heads + self.closest, cats)
            found[f"{i}.number"] = (self.count, counts)
            found[f"{i}.wanted"] = (self.heads, self.size, self.size)
            found[f"{i}.pair"] = (2 * self.tables, cats + self.closest)
            found[f"{i}.table"] = (self.tables, self.size**2, self.size)
            found[f"{i}.numbers"] = (2 * self.count_tables, counts + self.count)
            found[f"{i}.counted"] = (self.count_tables, (self.length + 1) ** 2, self.size)
        if self.readable:
            found["out.read"] = (1, len(self.categorical(self.layers)))
        return {k: v for k, v in found.items() if math.prod(v)}

    def votes(self) -> dict[str, tuple[int, ...]]:
        """What is learnt beside: the readout."""
        if self.readable:
            return {"out.table": (self.size, self.labels)}
        found = {
            "out.categorical": (len(self.categorical(self.layers)) * self.size, self.labels),
            "out.count": (len(self.counts(self.layers)), self.labels),
            "out.bias": (1, self.labels),
        }
        return {k: v for k, v in found.items() if math.prod(v)}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """All that is learnt."""
        return self.choices() | self.votes()

    def steps(self) -> list[list[tuple[str, int]]]:
        """For each head and table, what it consists of: names of choices, and the row of each."""
        found = []
        for i in range(self.layers):
            for j in range(self.heads):
                value = (f"{i}.read", 2 * self.heads + j) if j < self.closest else (f"{i}.number", j - self.closest)
                found.append([(f"{i}.read", j), (f"{i}.read", self.heads + j), value, (f"{i}.wanted", j)])
            for read, table, many in (("pair", "table", self.tables), ("numbers", "counted", self.count_tables)):
                found += [[(f"{i}.{read}", j), (f"{i}.{read}", many + j), (f"{i}.{table}", j)] for j in range(many)]
        return found


def total(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers there are."""
    return sum(math.prod(shape) for shape in shapes.values())


def split(row: Float[Tensor, "seed numbers"], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views of a tensor by name, each [seed, *shape]."""
    parts = row.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.view(len(row), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def initial(shape: Shape, rng: np.random.Generator, seeds: int) -> Float[Tensor, "seed parameters"]:
    """Random parameters, normal numbers to which one random decision of every choice is added.

    A variable that is read: any. A key: a third of the heads begin to seek the query's own value, a third one key for all values,
    a third the value next to it.
    """
    made = torch.from_numpy(rng.standard_normal((seeds, total(shape.parameters())), dtype=np.float32))
    d = shape.size
    same, beside = np.eye(d, dtype=np.float32), [np.eye(d, k=k, dtype=np.float32) for k in (-1, 1)]
    one = [np.tile(same[key], (d, 1)) for key in range(min(d, shape.vocabulary))]
    for name, part in split(made, shape.parameters()).items():
        kind, rows = name.split(".")[-1], part.shape[:2]
        if kind in ("read", "number", "pair", "numbers"):
            part += READS * torch.eye(part.shape[-1])[rng.integers(part.shape[-1], size=rows)]
        elif kind == "wanted":
            which = rng.integers(3, size=rows)
            key, side = rng.integers(len(one), size=rows), rng.integers(2, size=rows)
            place = np.where(which == 0, 0, np.where(which == 1, 1 + side, 3 + key))
            part += SEEKS * torch.from_numpy(np.stack([same, *beside, *one]))[place]
        elif name in shape.votes():
            part *= VOTES
        elif kind in ("table", "counted"):
            part *= TABLES
    return made


def redrawn(
    shape: Shape, parents: Float[Tensor, "parent parameters"], rng: np.random.Generator, count: int
) -> Float[Tensor, "seed parameters"]:
    """The parents, and `count` copies of random ones with one step, or two, or only a choice of them, drawn anew."""
    new, anew = initial(shape, rng, count), torch.zeros(count, parents.shape[1], dtype=torch.bool)
    parts, steps = split(anew, shape.parameters()), shape.steps()
    for copy in range(count):
        for step in rng.integers(len(steps), size=rng.integers(1, 3)):
            rows = steps[step]
            for name, row in rows if rng.random() < 0.5 else [rows[rng.integers(len(rows))]]:
                parts[name][copy, row] = True
    old = parents[rng.integers(len(parents), size=count)]
    return torch.cat([parents, torch.where(anew, new.to(old.dtype), old)])


def gumbel(uniform: Float[Tensor, "seed noise"]) -> Float[Tensor, "seed noise"]:
    """-log(-log u)."""
    return -torch.log(-torch.log(uniform))


class Relaxed:
    """The forward pass of many seeds: `temperature` None makes every choice the likeliest one, without noise."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        self.shape = shape
        n = shape.length
        self.eye = torch.eye(shape.size, dtype=dtype)
        place = torch.from_numpy(nearness(n))
        # before[i, j', j]: query i prefers key j' to j
        self.before = (place[:, :, None] < place[:, None, :]).to(dtype)
        self.whole = torch.arange(n + 1, dtype=dtype)
        self.visible = torch.ones(n, n).tril().to(dtype) if shape.causal else torch.ones(n, n, dtype=dtype)

    def __call__(
        self,
        parameters: Float[Tensor, "seed parameters"],
        tokens: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        temperature: float | None = None,
        noise: Float[Tensor, "seed noise"] | None = None,
    ) -> Float[Tensor, "seed batch pos label"]:
        """The logits of labels."""
        shape, seeds, (batch, n) = self.shape, len(parameters), tokens.shape
        p = split(parameters, shape.parameters())
        g = split(noise, shape.choices()) if noise is not None else None

        def choice(name: str) -> Tensor:
            logits = p[name]
            if temperature is None:
                return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
            return ((logits if g is None else logits + g[name]) / temperature).softmax(-1)

        places = self.eye[:n].expand(batch, n, -1).reshape(1, 1, -1).expand(seeds, -1, -1)
        told = choice("words")[:, :, tokens] if shape.words else self.eye[tokens].expand(seeds, 1, -1, -1, -1)
        inputs = torch.cat([told.flatten(2), places], 1)
        stream = [inputs]  # each [seed, variable, batch pos value]
        numbers = [torch.ones(seeds, 1, batch * n, dtype=parameters.dtype)]  # each [seed, variable, batch pos]
        hard = temperature is None
        seen = self.visible * real[:, None, :].to(parameters.dtype)  # [batch, query, key]
        for i in range(shape.layers):
            picked, counted = self._heads(i, choice, stream, numbers, seen, hard)
            stream.append(picked)
            numbers.append(counted)
            stream.append(self._tables(i, choice, stream, numbers, hard))
        x = torch.cat(stream, 1).view(seeds, -1, batch * n, shape.size)
        if shape.readable:
            gate = choice("out.read")
            read = (gate @ x.flatten(2)).view(seeds, batch * n, shape.size)
            return (read @ p["out.table"]).view(seeds, batch, n, -1)
        wide = x.transpose(1, 2).flatten(2)
        logits = p["out.bias"] + wide @ p["out.categorical"]
        logits = logits + torch.cat(numbers, 1).transpose(1, 2) @ p["out.count"]
        return logits.view(seeds, batch, n, -1)

    def _heads(self, i, choice, stream, numbers, seen, hard):  # type: ignore[no-untyped-def]
        """What the heads of a layer make: values of the closest match, and counts."""
        shape = self.shape
        seeds, a, h, d = len(stream[0]), shape.closest, shape.heads, shape.size
        batch, n = seen.shape[:2]
        read = choice(f"{i}.read") @ torch.cat(stream, 1)
        read = read.view(seeds, -1, batch, n, d)
        query, key, value = read[:, :h], read[:, h : 2 * h], read[:, 2 * h :]
        sought = query.reshape(seeds * h, -1, d) @ choice(f"{i}.wanted").view(seeds * h, d, d)
        match = sought.view(seeds * h * batch, n, d) @ key.reshape(-1, n, d).transpose(1, 2)
        match = match.view(seeds, h, batch, n, n) * seen
        picked = self._closest(match[:, :a], value, hard).reshape(seeds, a, -1)
        if not shape.count:
            return picked, numbers[0][:, :0]
        number = choice(f"{i}.number") @ torch.cat(numbers, 1)
        counted = match[:, a:] @ number.view(seeds, -1, batch, n, 1)
        return picked, counted.reshape(seeds, shape.count, -1)

    def _closest(self, match, value, hard):  # type: ignore[no-untyped-def]
        """The value at the first match in each query's order of preference, at position 0 without any."""
        missed = torch.log1p(-(1 - LEAST) * match.clamp(max=1))
        first = match * torch.einsum("shbij,ijk->shbik", missed, self.before).exp()
        first = first.round() if hard else first
        return first @ value + (1 - first.sum(-1, keepdim=True)) * value[..., :1, :]

    def _tables(self, i, choice, stream, numbers, hard):  # type: ignore[no-untyped-def]
        """What the tables of a layer make: of two categorical variables each, then of two counts each."""
        made = [stream[0][:, :0]]
        if self.shape.tables:
            read = choice(f"{i}.pair") @ torch.cat(stream, 1)
            read = read.unflatten(-1, (-1, self.shape.size))
            made.append(_looked_up(choice(f"{i}.table"), *read.split(self.shape.tables, 1)))
        if self.shape.count_tables:
            read = choice(f"{i}.numbers") @ torch.cat(numbers, 1)
            read = (read.round() if hard else read).clamp(max=self.shape.length)
            near = (1 - (read[..., None] - self.whole).abs()).clamp(min=0)
            made.append(_looked_up(choice(f"{i}.counted"), *near.split(self.shape.count_tables, 1)))
        return torch.cat(made, 1)

    @torch.no_grad()
    def program(self, parameters: Float[Tensor, "seed parameters"], seed: int, task: Task) -> Program:
        """The program of one seed: the likeliest of every choice, and the readout in hundredths."""
        shape = self.shape
        p = {k: v[seed] for k, v in split(parameters, shape.parameters()).items()}
        steps: list[Step] = []
        if shape.words:
            kinds = p["words"].argmax(-1).tolist()
            steps += [Words(name, tuple(row)) for name, row in zip(shape.categorical(0), kinds, strict=False)]
        for i in range(shape.layers):
            steps += self._read_heads(i, p)
            steps += self._read_tables(i, p)
        votes, bias = self._read_votes(p)
        sizes = (shape.length, shape.size, shape.causal)
        return Program(task.name, task.vocabulary, task.labels, *sizes, tuple(steps), votes, bias)

    def _read_heads(self, i: int, p: dict[str, Tensor]) -> list[Head]:
        shape, names, counts = self.shape, self.shape.categorical(i), self.shape.counts(i)
        read, wanted = p[f"{i}.read"].argmax(-1).tolist(), p[f"{i}.wanted"].argmax(-1).tolist()
        number = p[f"{i}.number"].argmax(-1).tolist() if shape.count else []
        values = [names[v] for v in read[2 * shape.heads :]] + [counts[v] for v in number]
        kinds = [CLOSEST] * shape.closest + [COUNT] * shape.count
        return [
            Head(name, kinds[j], names[read[j]], names[read[shape.heads + j]], values[j], tuple(wanted[j]))
            for j, name in enumerate(shape.names(i, CLOSEST) + shape.names(i, COUNT))
        ]

    def _read_tables(self, i: int, p: dict[str, Tensor]) -> list[Table]:
        shape = self.shape
        cats = shape.categorical(i) + shape.names(i, CLOSEST)
        counts = shape.counts(i) + shape.names(i, COUNT)
        found = []
        for read, table, names, side in (
            ("pair", "table", cats, shape.size),
            ("numbers", "counted", counts, shape.length + 1),
        ):
            if f"{i}.{table}" in p:
                values = p[f"{i}.{table}"].argmax(-1).unflatten(-1, (side, side)).tolist()
                pairs = p[f"{i}.{read}"].argmax(-1).view(2, -1).T.tolist()
                found += [(names[a], names[b], rows) for (a, b), rows in zip(pairs, values, strict=True)]
        return [
            Table(name, first, second, tuple(map(tuple, values)))
            for name, (first, second, values) in zip(shape.names(i, "table"), found, strict=True)
        ]

    def _read_votes(self, p: dict[str, Tensor]) -> tuple[dict[str, tuple[tuple[int, ...], ...]], tuple[int, ...]]:
        shape, names, counts = (
            self.shape,
            self.shape.categorical(self.shape.layers),
            self.shape.counts(self.shape.layers),
        )
        if shape.readable:
            best = p["out.table"].argmax(-1)
            rows = torch.nn.functional.one_hot(best, shape.labels).tolist()
            return {names[int(p["out.read"].argmax())]: tuple(map(tuple, rows))}, (0,) * shape.labels
        wide = (p["out.categorical"] * VOTE).round().long().view(len(names), shape.size, shape.labels).tolist()
        votes = {name: tuple(map(tuple, rows)) for name, rows in zip(names, wide, strict=True)}
        high = (p["out.count"] * VOTE).round().long().tolist()
        votes |= {name: (tuple(row),) for name, row in zip(counts, high, strict=True)}
        return votes, tuple((p["out.bias"][0] * VOTE).round().long().tolist())


def _looked_up(table, first, second):  # type: ignore[no-untyped-def]
    """Σ_ab first_a second_b table_ab, of [seed, table, position, value] as [seed, table, position value]."""
    return ((first[..., :, None] * second[..., None, :]).flatten(-2) @ table).flatten(-2)
