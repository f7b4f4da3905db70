"""Transformer programs as they are trained: every choice of a program is a softmax that Gumbel noise is added to.

    choice(l) = softmax((l + g) / τ),  g = -log(-log u)

of the variable that a head or a table reads, of the key that a query's value seeks, and of a table's values. As τ falls a
choice becomes one, and the model becomes a program (`circuits.programs.program`). Many seeds are trained at once: all that is
learnt lies in one tensor [seed, parameter], and every product has a leading dimension of seeds.

Heads see the probability s_ij that key j is what query i seeks. With the keys in the order that a query prefers them, the
nearest first, the first match is j with probability s_ij Π_{j' before j} (1 - s_ij'), and position 0 where none matches.
Tables are MLPs, evaluated at every pair of values. Source: Friedman, Wettig & Chen 2023, sections 3.1-3.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

HIDDEN = 32  # neurons of a table's MLP
SPREAD = 3  # how much larger a table's last weights begin: its values differ from pair to pair, so that heads have something to find
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
    counts_vote: bool = True

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
            found[f"{i}.numbers"] = (2 * self.count_tables, counts + self.count)
        if self.readable:
            found["out.read"] = (1, len(self.categorical(self.layers)))
        return {k: v for k, v in found.items() if math.prod(v)}

    def weights(self) -> dict[str, tuple[int, ...]]:
        """What is learnt beside: the MLPs of tables and the readout."""
        found: dict[str, tuple[int, ...]] = {}
        for i in range(self.layers):
            for kind, many, width in (("table", self.tables, 2 * self.size), ("count", self.count_tables, 2)):
                found[f"{i}.{kind}.W1"] = (many, width, HIDDEN)
                found[f"{i}.{kind}.b1"] = (many, 1, HIDDEN)
                found[f"{i}.{kind}.W2"] = (many, HIDDEN, self.size)
                found[f"{i}.{kind}.b2"] = (many, 1, self.size)
        found["out.table" if self.readable else "out.categorical"] = (
            (self.size, self.labels) if self.readable else (len(self.categorical(self.layers)) * self.size, self.labels)
        )
        if not self.readable:
            found["out.count"] = (len(self.counts(self.layers)) * self.counts_vote, self.labels)
            found["out.bias"] = (1, self.labels)
        return {k: v for k, v in found.items() if math.prod(v)}

    def noise(self) -> dict[str, tuple[int, ...]]:
        """What Gumbel noise is added to: the choices, and the values of tables."""
        found = self.choices()
        for i in range(self.layers):
            found[f"{i}.table"] = (self.tables, self.size**2, self.size)
            found[f"{i}.count"] = (self.count_tables, (self.length + 1) ** 2, self.size)
        return {k: v for k, v in found.items() if math.prod(v)}


def total(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers there are."""
    return sum(math.prod(shape) for shape in shapes.values())


def split(row: Float[Tensor, "seed numbers"], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views of a tensor by name, each [seed, *shape]."""
    parts = row.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.view(len(row), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def initial(shape: Shape, uniform: Float[Tensor, "seed parameters"]) -> Float[Tensor, "seed parameters"]:
    """Random parameters from uniform numbers in (0, 1): logits normal, weights uniform within 1/√inputs."""
    made = uniform.clone()
    parts = split(made, shape.choices() | shape.weights())
    for name, part in parts.items():
        if name in shape.choices():
            part.copy_(torch.erfinv(2 * part - 1) * math.sqrt(2))
        else:
            fan = HIDDEN if name.endswith(("W2", "b2")) else 2 * shape.size if "table." in name else 2
            bound = 0.1 if name.startswith("out") else 1 / math.sqrt(fan)
            part.copy_((2 * part - 1) * bound * (SPREAD if name.endswith("W2") else 1))
    return made


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
        p = split(parameters, shape.choices() | shape.weights())
        g = split(noise, shape.noise()) if noise is not None else None

        def choice(name: str, logits: Tensor, entry: Tensor | None = None) -> Tensor:
            if temperature is None:
                return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
            if g is not None:
                logits = logits + (g[name] if entry is None else g[name].take_along_dim(entry[..., None], 2))
            return (logits / temperature).softmax(-1)

        places = self.eye[:n].expand(batch, n, -1).reshape(1, 1, -1).expand(seeds, -1, -1)
        if shape.words:
            told = choice("words", p["words"])[:, :, tokens].flatten(2)
        else:
            told = self.eye[tokens].view(1, 1, -1).expand(seeds, -1, -1)
        inputs = torch.cat([told, places], 1)
        stream = [inputs]  # each [seed, variable, batch pos value]
        numbers = [torch.ones(seeds, 1, batch * n, dtype=parameters.dtype)]  # each [seed, variable, batch pos]
        hard = temperature is None
        seen = self.visible * real[:, None, :].to(parameters.dtype)  # [batch, query, key]
        for i in range(shape.layers):
            picked, counted = self._heads(i, p, choice, stream, numbers, seen, hard)
            stream.append(picked)
            numbers.append(counted)
            stream.append(self._tables(i, p, choice, stream, numbers, batch * n, hard))
        x = torch.cat(stream, 1).view(seeds, -1, batch * n, shape.size)
        if shape.readable:
            gate = choice("out.read", p["out.read"])
            read = (gate @ x.flatten(2)).view(seeds, batch * n, shape.size)
            return (read @ p["out.table"]).view(seeds, batch, n, -1)
        wide = x.transpose(1, 2).flatten(2)
        logits = p["out.bias"] + wide @ p["out.categorical"]
        if shape.counts_vote:
            logits = logits + torch.cat(numbers, 1).transpose(1, 2) @ p["out.count"]
        return logits.view(seeds, batch, n, -1)

    def _heads(self, i, p, choice, stream, numbers, seen, hard):  # type: ignore[no-untyped-def]
        """What the heads of a layer make: values of the closest match, and counts."""
        shape = self.shape
        seeds, a, h, d = len(stream[0]), shape.closest, shape.heads, shape.size
        batch, n = seen.shape[:2]
        read = choice(f"{i}.read", p[f"{i}.read"]) @ torch.cat(stream, 1)
        read = read.view(seeds, -1, batch, n, d)
        query, key, value = read[:, :h], read[:, h : 2 * h], read[:, 2 * h :]
        sought = query.reshape(seeds * h, -1, d) @ choice(f"{i}.wanted", p[f"{i}.wanted"]).view(seeds * h, d, d)
        match = sought.view(seeds * h * batch, n, d) @ key.reshape(-1, n, d).transpose(1, 2)
        match = match.view(seeds, h, batch, n, n) * seen
        picked = self._closest(match[:, :a], value, hard).reshape(seeds, a, -1)
        if not shape.count:
            return picked, numbers[0][:, :0]
        number = choice(f"{i}.number", p[f"{i}.number"]) @ torch.cat(numbers, 1)
        counted = match[:, a:] @ number.view(seeds, -1, batch, n, 1)
        return picked, counted.reshape(seeds, shape.count, -1)

    def _closest(self, match, value, hard):  # type: ignore[no-untyped-def]
        """The value at the first match in each query's order of preference, at position 0 without any."""
        missed = torch.log1p(-(1 - LEAST) * match.clamp(max=1))
        first = match * torch.einsum("shbij,ijk->shbik", missed, self.before).exp()
        first = first.round() if hard else first
        return first @ value + (1 - first.sum(-1, keepdim=True)) * value[..., :1, :]

    def _tables(self, i, p, choice, stream, numbers, many, hard):  # type: ignore[no-untyped-def]
        """What the tables of a layer make: of two categorical variables each, then of two counts each."""
        shape = self.shape
        seeds, d = len(stream[0]), shape.size
        made = [stream[0][:, :0]]
        if shape.tables:
            read = (choice(f"{i}.pair", p[f"{i}.pair"]) @ torch.cat(stream, 1)).view(seeds, -1, many, d)
            table = choice(f"{i}.table", self.table(i, p)).flatten(0, 1)
            first, second = (r.reshape(-1, many, d) for r in read.split(shape.tables, 1))
            pairs = (first[..., :, None] * second[..., None, :]).flatten(2)
            made.append((pairs @ table).view(seeds, shape.tables, -1))
        if shape.count_tables:
            read = choice(f"{i}.numbers", p[f"{i}.numbers"]) @ torch.cat(numbers, 1)
            read = (read.round() if hard else read).clamp(max=shape.length)
            first, second = read.split(shape.count_tables, 1)
            logits = self.count_table(i, p, torch.stack((first, second), -1))
            # counts are not yet whole: the noise is that of the nearest entry
            entry = first.round().long() * (shape.length + 1) + second.round().long()
            made.append(choice(f"{i}.count", logits, entry).flatten(2))
        return torch.cat(made, 1)

    def table(self, i: int, p: dict[str, Tensor]) -> Float[Tensor, "seed table pair value"]:
        """log softmax(W2 relu(W1 [a, b] + b1) + b2) at every pair (a, b) of values, a first."""
        first, second = p[f"{i}.table.W1"].split(self.shape.size, -2)
        hidden = first[..., :, None, :] + second[..., None, :, :] + p[f"{i}.table.b1"][..., None, :]
        logits = hidden.relu().flatten(-3, -2) @ p[f"{i}.table.W2"] + p[f"{i}.table.b2"]
        return logits.log_softmax(-1)

    def count_table(
        self, i: int, p: dict[str, Tensor], pairs: Float[Tensor, "seed table any two"]
    ) -> Float[Tensor, "seed table any value"]:
        """The same of pairs of counts, in lengths: so that a step of training moves a table of large counts no faster."""
        hidden = (pairs / self.shape.length @ p[f"{i}.count.W1"] + p[f"{i}.count.b1"]).relu()
        return (hidden @ p[f"{i}.count.W2"] + p[f"{i}.count.b2"]).log_softmax(-1)

    @torch.no_grad()
    def program(self, parameters: Float[Tensor, "seed parameters"], seed: int, task: Task) -> Program:
        """The program of one seed: the likeliest of every choice, and the readout in hundredths."""
        shape = self.shape
        p = {k: v[seed] for k, v in split(parameters, shape.choices() | shape.weights()).items()}
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
        if shape.tables:
            read, values = p[f"{i}.pair"].argmax(-1).tolist(), self.table(i, p).argmax(-1)
            square = values.view(shape.tables, shape.size, shape.size).tolist()
            found += [(cats[read[j]], cats[read[shape.tables + j]], square[j]) for j in range(shape.tables)]
        if shape.count_tables:
            read = p[f"{i}.numbers"].argmax(-1).tolist()
            side = torch.arange(shape.length + 1, dtype=self.before.dtype)
            grid = torch.cartesian_prod(side, side).expand(shape.count_tables, -1, -1)
            square = self.count_table(i, p, grid).argmax(-1).view(-1, len(side), len(side)).tolist()
            found += [(counts[read[j]], counts[read[shape.count_tables + j]], square[j]) for j in range(len(square))]
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
        if shape.counts_vote:
            high = (p["out.count"] * VOTE).round().long().tolist()
            votes |= {name: (tuple(row),) for name, row in zip(counts, high, strict=True)}
        return votes, tuple((p["out.bias"][0] * VOTE).round().long().tolist())
