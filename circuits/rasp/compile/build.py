"""From s-ops to a model, and what its numbers mean."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.attention import head_weights, one_hots, stacked
from circuits.rasp.compile.columns import mark
from circuits.rasp.compile.model import CompiledTransformer
from circuits.rasp.compile.neurons import Unresolved, mlp_weights
from circuits.rasp.compile.plan import Plan, Scale, View
from circuits.rasp.compile.shared import INDICES, TOKENS, share
from circuits.rasp.compile.stream import Held, Stream, Variable, component, head_reads, output_reads, written
from circuits.rasp.compile.values import distinct
from circuits.rasp.errors import RaspError
from circuits.rasp.evaluate import LONGEST
from circuits.rasp.graph import SOp
from circuits.rasp.syntax import Atom
from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Component:
    """A part of the model: the names of the variables it reads, by where they go in (q, k, v; else "in"), and writes."""

    name: str
    reads: dict[str, list[str]]
    writes: list[str]


@dataclass
class Compiled:
    """A model and what its numbers mean.

    `outputs[name][i]` is the value that the i-th logit of a variable stands for, the logits of several variables one after
    another. `variables` say which directions of the stream hold what, `components` who reads and writes them.

    A `variant` (variants.py, trained.py) is another model of the same program: direction i lies along the row i of its `basis`,
    None where that is not known.
    """

    model: CompiledTransformer
    vocabulary: list[Atom]
    length: int
    outputs: dict[str, list[Any]]
    variables: list[Variable]
    components: list[Component]
    variant: str = ""
    basis: Float[Tensor, "direction d_model"] | None = None

    @property
    def causal(self) -> bool:
        """Whether no position looks at a later one."""
        return self.model.causal

    @property
    def labels(self) -> list[str]:
        """What each direction says; where it is used again, what it says from when on. Of a variant: each row of the basis."""
        said: list[list[str]] = [
            [] for _ in range(1 + max((d for v in self.variables for d in v.directions), default=0))
        ]
        said[0] = ["bos"]
        for variable in self.variables:
            for direction in variable.directions:
                said[direction].append(
                    variable.label(direction) + (f" from {variable.ready}" if said[direction] else "")
                )
        return ["; ".join(each) for each in said]

    def named(self, name: str) -> list[Variable]:
        """The variable of a name. Raises `WrongUse` if there is none."""
        known = {each.name: each for each in self.variables}
        if name not in known:
            raise WrongUse(f"the model has no variable {name!r}.{nearest(name, known)}")
        return [known[name]]

    def place(self, variable: str) -> tuple[str, Float[Tensor, "k d_model"]]:
        """The first site that holds a variable, and an orthonormal basis of the subspace that it has there.

        Raises `WrongUse` for a name that is none, and for a variant of which it is not known.
        """
        (found,) = self.named(variable)
        if self.basis is None and self.variant:
            raise WrongUse(f"where a {self.variant} holds its variables is not known: that is for you to find")
        rows = torch.eye(self.model.unembed.in_features) if self.basis is None else self.basis
        return found.ready, torch.linalg.qr(rows[found.directions].T).Q.T

    def ids(self, inputs: list[Any]) -> Int[Tensor, "batch pos"]:
        """Token ids of inputs of one length, the BOS first.

        Raises `RaspError` for tokens outside the vocabulary, for longer inputs and empty ones.
        """
        known = {mark(token): i for i, token in enumerate(self.vocabulary)}
        if not all(map(len, inputs)):
            raise RaspError("an input has at least one token")
        if any(len(tokens) > self.length for tokens in inputs):
            raise RaspError(f"compiled for inputs of at most {self.length} tokens")
        for token in itertools.chain.from_iterable(inputs):
            if mark(token) not in known:
                raise RaspError(f"the token {token!r} is not in the vocabulary it was compiled for: {self.vocabulary}")
        return torch.tensor([[len(known), *(known[mark(token)] for token in tokens)] for tokens in inputs])

    def logits(self, inputs: list[Any]) -> dict[str, Float[Tensor, "batch pos value"]]:
        """For each variable, the logits at the tokens."""
        found = self.model(self.ids(inputs))[:, 1:]
        return dict(zip(self.outputs, found.split(list(map(len, self.outputs.values())), dim=-1), strict=True))

    def apply(self, tokens: str | list[Atom], variable: str | None = None) -> list[Atom]:
        """A variable's value at every position (the first one's if none is named): that with the greatest logit."""
        name = variable or next(iter(self.outputs))
        return [self.outputs[name][i] for i in self.logits([tokens])[name][0].argmax(-1).tolist()]


def compile_sop(node: SOp, vocabulary: list[Atom], length: int, causal: bool = False) -> Compiled:
    """`compile_program` for one s-op."""
    return compile_program({node.name or "out": node}, vocabulary, length, causal)


def compile_program(nodes: Mapping[str, SOp], vocabulary: list[Atom], length: int, causal: bool = False) -> Compiled:
    """A transformer that computes named s-ops on every input of 1 … `length` tokens of the vocabulary.

    A `causal` one's queries select no later position. Raises `RaspError` for programs whose tables would be too large, and
    where float32 could not tell two values apart; the message then has the greatest length for which it can.
    """
    if length > LONGEST:
        raise RaspError(f"inputs have at most {LONGEST:,} tokens, a model for {length:,} is too large")
    try:
        return _compiled(nodes, vocabulary, length, causal)
    except Unresolved as error:
        safe = _greatest(lambda shorter: _resolves(nodes, vocabulary, shorter, causal), length)
        raise RaspError(f"{error.message}: the greatest length that is safe is {safe}", error.span) from None


def _compiled(nodes: Mapping[str, SOp], vocabulary: list[Atom], length: int, causal: bool) -> Compiled:
    plan = Plan(share(list(nodes.values())), vocabulary, length, causal)
    for name, output in zip(nodes, plan.outputs, strict=True):
        if all(value is None for value in output.values):
            raise RaspError(f"{name} has no value on any input of at most {length} of these tokens", nodes[name].at)
    stream = Stream(plan, reuse=True)
    model, outputs = _built(plan, stream)
    if not _pays(stream, model):
        stream = Stream(plan, reuse=False)
        model, outputs = _built(plan, stream)
    named = dict(zip(nodes, outputs, strict=True))
    variables = [_placed(variable, model) for variable in stream.held.values()]
    return Compiled(model, vocabulary, length, named, variables, _components(plan, stream, list(nodes)))


def _pays(stream: Stream, model: CompiledTransformer) -> bool:
    """Whether using k directions again saves weights: a rows per direction are fewer, k neurons (2d + 1 weights) more."""
    k, d = len(stream.erased), stream.width
    a = sum(p.numel() for p in model.parameters() if p.ndim == 2) / d
    return k * (a - 2 * k) > k * (2 * d + 1)


def _placed(variable: Variable, model: CompiledTransformer) -> Variable:
    """A block with one sublayer has no `resid_mid`: what that would be is what it receives, or what it returns."""

    def of(site: str) -> str:
        if not site.endswith("resid_mid"):
            return site
        block = model.blocks[int(site.split(".")[1])]
        return site if block.attn and block.mlp else site.replace("mid", "post" if block.attn else "pre")

    return replace(variable, ready=of(variable.ready), until=variable.until and of(variable.until))


def _resolves(nodes: Mapping[str, SOp], vocabulary: list[Atom], length: int, causal: bool) -> bool:
    try:
        _compiled(nodes, vocabulary, length, causal)
    except Unresolved:
        return False
    return True


def _greatest(safe: Callable[[int], bool], above: int) -> int:
    """The greatest length below `above` that is safe; those below a safe one are, and 1, where nothing is averaged, always is."""
    low = 1
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if safe(middle) else (low, middle)
    return low


def _built(plan: Plan, stream: Stream) -> tuple[CompiledTransformer, list[list[Any]]]:
    embed, positions = _embeddings(plan, stream)
    blocks = [_block(plan, stream, i) for i in range(plan.blocks)]
    unembeds, outputs = zip(*(_unembed(output, stream) for output in plan.outputs), strict=True)
    model = CompiledTransformer(
        embed.float(),
        positions.float(),
        [{n: w.float() for n, w in b.items()} for b in blocks],
        torch.cat(unembeds, dim=1).float(),
        plan.values.causal,
    )
    return model, list(outputs)


def _embeddings(plan: Plan, stream: Stream) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "pos d_model"]]:
    """W_E with the BOS last, W_pos with nothing at the BOS's position."""
    tables = []
    for step, bos in ((TOKENS, -1), (INDICES, 0)):
        rows = len(plan.values.of(step)) + 1
        table = torch.zeros(rows, stream.width, dtype=torch.float64)
        if (step, False) in stream.held:
            table[[i for i in range(rows) if i != bos % rows], stream.of(step)] = 1.0
        tables.append(table)
    tables[0][-1, 0] = 1.0
    return tables[0], tables[1]


def _block(plan: Plan, stream: Stream, index: int) -> dict[str, Tensor]:
    heads = [head_weights(head, stream) for head in plan.heads if head.time == 2 * index]
    stream.bos = stream.bos + sum((stream.bos @ head["W_V"]) @ head["W_O"] for head in heads)
    time = 2 * index + 1
    tables = [table for table in plan.tables if table.time == time]
    mlp = mlp_weights(tables, [each for each in stream.erased if each.time == time], stream)
    hidden = torch.relu(stream.bos @ mlp["W_in"] + mlp["b_in"])
    stream.bos = stream.bos + hidden @ mlp["W_out"] + mlp["b_out"]
    return stacked(heads, stream.width) | mlp


def _unembed(output: View | Scale, stream: Stream) -> tuple[Float[Tensor, "d_model out"], list[Any]]:
    """A logit for each value: its direction; or, read off a number x with levels x_i, (2 x x_i - x_i²)/gap²: the nearest wins."""
    if isinstance(output, View):
        outputs = distinct(v for v in output.values if v is not None)
        unembed = stream.zeros(len(outputs))
        unembed[stream.of(output.root)] = one_hots(output.values, outputs)
        return unembed, outputs
    levels = torch.tensor(output.levels, dtype=torch.float64)
    unembed = stream.zeros(len(levels))
    unembed[stream.number(output.root)] = 2 * levels / output.gap() ** 2
    unembed[stream.of(TOKENS)] = -((levels / output.gap()) ** 2)
    return unembed, output.values


def _mlp_component(plan: Plan, stream: Stream, block: int) -> Component | None:
    time = 2 * block + 1
    tables = [table for table in plan.tables if table.time == time]
    reads = [stream.held[(root, root is table.number)].name for table in tables for root in table.roots]
    erased = [each.variable for each in stream.erased if each.time == time]
    parts = {part: list(dict.fromkeys(names)) for part, names in (("in", reads), ("erased", erased)) if names}
    writes = [stream.held[(table.step, False)].name for table in tables]
    return Component(f"blocks.{block}.mlp", parts, writes) if parts else None


def _components(plan: Plan, stream: Stream, names: list[str]) -> list[Component]:
    def called(held: list[Held]) -> list[str]:
        return list(dict.fromkeys(stream.held[each].name for each in held))

    inputs = [(name, (step, False)) for name, step in (("embed", TOKENS), ("pos_embed", INDICES))]
    found = [Component(name, {}, called([held])) for name, held in inputs if held in stream.held]
    for block in range(plan.blocks):
        for head in (head for head in plan.heads if head.time == 2 * block):
            reads = {part: called(held) for part, held in head_reads(head).items() if held}
            found.append(Component(component(head, plan), reads, called(written(head, plan))))
        mlp = _mlp_component(plan, stream, block)
        found += [mlp] if mlp else []
    outputs = [held for output in plan.outputs for held in output_reads(output)]
    return [*found, Component("logits", {"in": called(outputs)}, names)]
