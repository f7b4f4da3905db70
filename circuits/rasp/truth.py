"""What is true of a compiled model: its circuit, and what every variable holds, also where one of them is changed.

Test beds for tools that find circuits, features and causal variables: the answer is known here (tracr, Lindner et al. 2023;
InterpBench, Gupta et al. 2024).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.circuit import Circuit
from circuits.rasp.compile.columns import mark
from circuits.rasp.compile.plan import Head, Plan, Scale, Table, View
from circuits.rasp.compile.shared import INDICES, TOKENS, share
from circuits.rasp.compile.stream import Held, Stream, component, written
from circuits.rasp.errors import RaspError
from circuits.rasp.graph import SOp
from circuits.rasp.syntax import Atom
from interp.errors import WrongUse, nearest
from interp.model import Model, Patch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Values = list[Atom]


class Causal(Protocol):
    """A causal model of what a model computes: a program's (`Truth`), or a machine's equations (circuits.machines.truth)."""

    @property
    def outputs(self) -> Sequence[str]:
        """What comes out."""

    def inputs(self, example: Any) -> Any:
        """An example as the model takes it."""

    def values(self, example: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Each variable's value and each output's, with some set to what is given."""

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        """The outputs that a model's logits stand for, by name."""


class Truth:
    """The program of a compiled model as a causal model: each variable a function of those its component reads.

    `variables` are those of the compiled model in order, `outputs` the program's.
    """

    def __init__(self, nodes: Mapping[str, SOp], compiled: Compiled) -> None:
        self.compiled = compiled
        self.plan = Plan(share(list(nodes.values())), compiled.vocabulary, compiled.length, compiled.causal)
        stream = Stream(self.plan, reuse=False)
        self.names = {held: variable.name for held, variable in stream.held.items()}
        self.variables, self.outputs = list(self.names.values()), list(nodes)
        if self.variables != [variable.name for variable in compiled.variables]:
            raise WrongUse("the model was compiled from another program")

    def values(self, tokens: str | list[Atom], given: Mapping[str, Values] | None = None) -> dict[str, Values]:
        """Each variable's value at every position, and each output's, with the variables in `given` set to what is given.

        Raises `WrongUse` for a name that is no variable, `RaspError` where the program has no value.
        """
        found = self._found(tokens, given or {})
        outputs = dict(zip(self.outputs, (self._read(output, found) for output in self.plan.outputs), strict=True))
        return {self.names[held]: values for held, values in found.items()} | outputs

    def inputs(self, tokens: str | list[Atom]) -> Int[Tensor, "1 pos"]:
        """Token ids, the BOS first."""
        return self.compiled.ids([tokens])

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, Values]:
        """Of each output the value with the greatest logit, at every token."""
        parts = logits[0, 1:].split([len(values) for values in self.compiled.outputs.values()], -1)
        named = zip(self.compiled.outputs.items(), parts, strict=True)
        return {name: [values[i] for i in part.argmax(-1).tolist()] for (name, values), part in named}

    def selections(self, tokens: str | list[Atom]) -> dict[str, tuple[Bool[np.ndarray, "query key"], bool]]:
        """Of each head, "blocks.0.attn.1": which keys a query selects, and whether it counts them (its BOS is one key more).

        Raises `RaspError` where the program has no value.
        """
        found = self._found(tokens, {})
        heads = {component(head, self.plan): head for head in self.plan.heads}
        return {name: (self._selected(head, found), bool(head.width)) for name, head in heads.items()}

    def _found(self, tokens: str | list[Atom], given: Mapping[str, Values]) -> dict[Held, Values]:
        for name in given:
            if name not in self.variables:
                raise WrongUse(f"the model has no variable {name!r}.{nearest(name, self.variables)}")
        inputs: dict[Held, Values] = {(TOKENS, False): list(tokens), (INDICES, False): list(range(len(tokens)))}
        found: dict[Held, Values] = {}

        def put(held: Held, values: Values) -> None:
            found[held] = given.get(self.names[held], values)

        for held in (held for held in inputs if held in self.names):
            put(held, inputs[held])
        parts: list[Head | Table] = [*self.plan.heads, *self.plan.tables]
        for part in sorted(parts, key=lambda each: each.time):
            if isinstance(part, Table):
                put((part.step, False), _looked_up(part, found))
            else:
                for held, values in zip(written(part, self.plan), self._attended(part, found), strict=True):
                    put(held, values)
        return found

    def _attended(self, head: Head, found: dict[Held, Values]) -> Iterator[Values]:
        rows = self._selected(head, found)
        if head.width:
            yield rows.sum(1).tolist()
        for step, value in head.writes:
            column = self._read(value, found) if isinstance(value, View) else found[(value, True)]
            yield [_mean([column[k] for k in np.flatnonzero(row)], step.default) for row in rows]

    def _selected(self, head: Head, found: dict[Held, Values]) -> Bool[np.ndarray, "query key"]:
        length = len(next(iter(found.values())))
        rows = np.tri(length, dtype=bool) if self.compiled.causal else np.ones((length, length), dtype=bool)
        for match in head.matches:
            query, key = (self._places(side.root, found) for side in (match.query, match.key))
            rows &= match.holds[np.ix_(query, key)]
        return rows

    def _places(self, root: SOp, found: dict[Held, Values]) -> list[int]:
        known = {mark(value): i for i, value in enumerate(self.plan.values.of(root))}
        return [known[mark(value)] for value in found[(root, False)]]

    def _read(self, read: View | Scale, found: dict[Held, Values]) -> Values:
        """A view's or an output's value at every position."""
        if isinstance(read, View):
            values = [read.values[place] for place in self._places(read.root, found)]
        else:
            numbers = [self.plan.values.level(read.root, value) for value in found[(read.root, True)]]
            values = [read.values[int(np.abs(np.array(read.levels) - x).argmin())] for x in numbers]
        if any(value is None for value in values):
            raise RaspError("the program has no value here")
        return values


def _looked_up(table: Table, found: dict[Held, Values]) -> Values:
    rows = {tuple(map(mark, row)): value for row, value in table.rows}
    columns = [found[(root, root is table.number)] for root in table.roots]
    keys = [tuple(map(mark, row)) for row in zip(*columns, strict=True)]
    if any(key not in rows for key in keys):
        raise RaspError("the program has no value here")
    return [rows[key] for key in keys]


def _mean(values: Values, default: Atom) -> Atom:
    if len(values) < 2:
        return values[0] if values else default
    if len({mark(value) for value in values}) > 1 and not all(type(value) in (int, float) for value in values):
        raise RaspError("a mean of values that are no numbers")
    return sum(values) / len(values) if type(values[0]) in (int, float) else values[0]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Alignment:
    """Where a model is said to hold a variable: a site, and an orthonormal basis of the subspace [k, d_model] there."""

    site: str
    basis: Float[Tensor, "k d_model"]


def interchange_accuracy(
    truth: Causal, model: Model, variable: str, alignment: Alignment, pairs: Iterable[tuple[Any, Any]]
) -> dict[str, float]:
    """How often a model does what its program does when a variable takes its value from another input.

    For (base, source) of one length: x ← x + (x_source - x) Bᵀ B at the site, and the model's outputs against those of the
    program run on base with the variable's values on source (Geiger et al. 2021). "positions": share of right outputs;
    "inputs": share of pairs right everywhere; "changed": share of positions where the program's output is another than
    without the change, without which the number says little. Pairs on which the program has no value are left out.
    """
    right, whole, changed, total, count = 0, 0, 0, 0, 0
    for base, source in pairs:
        try:
            plain = truth.values(base)
            wanted = truth.values(base, {variable: truth.values(source)[variable]})
        except RaspError:
            continue
        inputs = truth.inputs(base)
        x, other = (model.record(each, [alignment.site])[alignment.site] for each in (inputs, truth.inputs(source)))
        b = alignment.basis.to(x)
        with model.edit(Patch(alignment.site, x + (other - x) @ b.T @ b)):
            found = truth.read(model(inputs))
        good = []
        for name in truth.outputs:
            good += [mark(a) == mark(b) for a, b in zip(found[name], wanted[name], strict=True)]
            changed += sum(mark(a) != mark(b) for a, b in zip(plain[name], wanted[name], strict=True))
        right, total, whole, count = right + sum(good), total + len(good), whole + all(good), count + 1
    if not count:
        raise WrongUse("the program has a value on none of the pairs: give pairs of one length on which it has")
    return {"positions": right / total, "inputs": whole / count, "changed": changed / total}


def true_alignment(circuit: Circuit, variable: str) -> Alignment:
    """Where a model of which all is known holds a variable."""
    return Alignment(*circuit.place(variable))


def random_pairs(compiled: Compiled, count: int, seed: int = 0) -> list[tuple[list[Atom], list[Atom]]]:
    """Pairs of random inputs of one length each, of at least two tokens where the model takes two."""
    rng = random.Random(seed)
    lengths = [rng.randint(min(2, compiled.length), compiled.length) for _ in range(count)]
    return [tuple(rng.choices(compiled.vocabulary, k=n) for _ in range(2)) for n in lengths]  # type: ignore[misc]
