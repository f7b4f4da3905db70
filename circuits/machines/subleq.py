"""SUBLEQ, a computer in a looped transformer: three layers, run once for every instruction (after Giannou et al. 2023).

Position 0 is the CPU, position 1 + j the memory word j of n = 2^L; a bit is -1 or 1, "place" holds the bits of j. One loop:

    layer 1   the CPU attends to the word at its counter (logits λ counter · place) and copies its a, b, c
              MLP: next = counter + 1
    layer 2   two heads copy the words at a and at b
              MLP: change = (B - A) - B, bit by bit, and flag = [B - A ≤ 0]
    layer 3   each word attends to the CPU if b is its place, else to all words, and adds the change it finds there
              MLP: counter = c if flag, else next; everything else at the CPU is set back to 0, words are rounded to ±1

The right position's logit is at least 2λ above the others', so what is read is right to 2n e^-2λ. Bit i of B - A, with
S = Σ_{j≤i} 2^j (B_j + 1 - A_j) + 1, is [S ≥ 2^i] - [S ≥ 2^(i+1)] + [S ≥ 3·2^i]; a threshold is two neurons, a ramp
between S = T - ¾ and T - ¼: errors below 2^-(N+3) in every bit make no difference. Words are rounded in every
loop, and a counter is made anew, to the rounding of one addition, so that none add up.

The paper has 13 layers and keeps instructions apart from the memory; here they are words like others (see programs.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from circuits.machines.machine import Machine, Names
from circuits.machines.neurons import Layer, Neurons
from circuits.machines.programs import Integers, halting, result, sample
from circuits.rasp.compile.model import Block, Stack, linear
from interp.errors import Failed, WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MOST = 100_000  # instructions of a sample program
SHARP = 20.0  # λ: e^-2λ is 4e-18


class Words(nn.Module):
    """Ids to bits of the stream: 0 … 2^N - 1 are words, 2^N + p a CPU whose counter is p."""

    table: Tensor

    def __init__(self, word: list[int], counter: list[int], cpu: int, slot: int, d_model: int) -> None:
        super().__init__()
        self.bits, self.kinds = len(word), [cpu, slot]
        table = torch.zeros(2, len(word), d_model)
        table[0, range(len(word)), word] = 1.0
        table[1, range(len(counter)), counter] = 1.0
        self.register_buffer("table", table)

    def forward(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """±1 at each bit of a word or a counter, and which of the two it is."""
        bits = (ids.unsqueeze(-1) >> torch.arange(self.bits, device=ids.device)) & 1
        signs = 2 * bits.to(self.table.dtype) - 1
        cpu = (ids >= 2**self.bits).to(signs).unsqueeze(-1)
        h = (1 - cpu) * (signs @ self.table[0]) + cpu * (signs @ self.table[1])
        return h.index_add(-1, torch.tensor(self.kinds, device=ids.device), torch.cat([cpu, 1 - cpu], -1))


class Subleq(Stack):
    """A stack whose output has a column for each bit of the words, above 0 for 1; at the CPU those of the counter."""

    embed: Words

    def states(self, ids: Int[Tensor, "batch pos"], count: int) -> Iterator[Float[Tensor, "batch pos d_model"]]:
        """The stream after 1, 2, … `count` loops."""
        h = self.stream(ids)
        for _ in range(count):
            h = self.loop(h)
            yield h

    def stream(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What the first layer receives. Raises `WrongUse` in a dtype too coarse for the sums of the words."""
        dtype = self.unembed.weight.dtype
        if torch.finfo(dtype).eps * 2 ** (self.embed.bits + 3) > 1:
            raise WrongUse(
                f"words of {self.embed.bits} bits are added up exactly in float32 or float64, not in {dtype}"
            )
        return super().stream(input_ids)


class Parts:
    """The directions of the stream, and the layers in their terms."""

    def __init__(self, bits: int, places: int) -> None:
        names = Names()
        self.bits, self.places, self.names = bits, places, names
        self.cpu, self.slot = names.bit("cpu"), names.bit("slot")
        self.word, self.counter = names.bits("word", bits), names.bits("counter", places)
        names.writer = "pos_embed"
        self.place = names.bits("place", places)
        names.at("blocks.0.attn.0", "blocks.0.resid_mid", "blocks.2.resid_mid")
        self.a, self.b, self.c = (names.bits(name, places) for name in "abc")
        names.at("blocks.0.mlp", "blocks.0.resid_post", "blocks.2.resid_mid")
        self.next = names.bits("next", places)
        names.at("blocks.1.attn.0", "blocks.1.resid_mid", "blocks.2.resid_mid")
        self.at_a = names.bits("memory[a]", bits)
        names.at("blocks.1.attn.1", "blocks.1.resid_mid", "blocks.2.resid_mid")
        self.at_b = names.bits("memory[b]", bits)
        names.at("blocks.1.mlp", "blocks.1.resid_post", "blocks.2.resid_mid")
        self.change, self.flag = names.numbers("change", bits), names.bit("flag")
        self.off = -(2.0 ** (bits + 3))  # switches a neuron off at every word

    def fetch(self) -> Layer:
        """Layer 1: the instruction at the counter, and counter + 1."""
        reads = dict(zip(self.word, [*self.a, *self.b, *self.c], strict=False))
        mlp = Neurons(self.names.width)
        for i, bit in enumerate(self.next):
            reads_sum = {self.counter[j]: 2.0 ** (j - 1) for j in range(i + 1)} | {self.slot: self.off}
            bias = 2.0**i + 0.5  # Σ 2^j (p_j + 1)/2 + 1
            for sign, threshold in ((2.0, 2**i), (-2.0, 2 ** (i + 1))):
                mlp.step(reads_sum, bias, threshold, {bit: sign})
        mlp.add({self.cpu: 1.0}, 0.0, dict.fromkeys(self.next, -1.0))
        return self._lookups([(self.counter, reads)]) | mlp.weights()

    def subtract(self) -> Layer:
        """Layer 2: the words at a and b, what changes at b, and whether the difference is at most 0."""
        heads = [
            (self.a, dict(zip(self.word, self.at_a, strict=True))),
            (self.b, dict(zip(self.word, self.at_b, strict=True))),
        ]
        mlp = Neurons(self.names.width)
        for i, bit in enumerate(self.change):
            writes = {bit: 2.0} | ({self.flag: 1.0} if i == self.bits - 1 else {})
            less = {direction: -weight for direction, weight in writes.items()}
            for put, threshold in ((writes, 2**i), (less, 2 ** (i + 1)), (writes, 3 * 2**i)):
                mlp.step(self._difference(i), 2.0 ** (i + 1), threshold, put)
            mlp.copy(self.at_b[i], {bit: -1.0})
        mlp.add({self.cpu: 1.0}, 0.0, dict.fromkeys(self.change, -1.0))
        whole = self._difference(self.bits - 1)  # flag: the sign, or the difference is 0: [D ≥ 0] - [D ≥ 1]
        mlp.step(whole, 0.0, 0, {self.flag: 1.0})
        mlp.step(whole, 0.0, 1, {self.flag: -1.0})
        return self._lookups(heads) | mlp.weights()

    def store(self) -> Layer:
        """Layer 3: the change goes to the word at b, the counter moves on, the CPU's scratch is set back."""
        width, L = self.names.width, self.places
        head = {"W_Q": self.names.zeros(1, -1, L + 1), "W_K": self.names.zeros(1, -1, L + 1)}
        head |= {"W_V": self.names.zeros(1, -1, self.bits), "W_O": self.names.zeros(1, self.bits, -1)}
        head["W_Q"][0, self.place, range(L)] = 2 * SHARP
        head["W_K"][0, self.b, range(L)] = 1.0
        head["W_Q"][0, self.slot, L] = 2 * SHARP * (L - 1)
        head["W_Q"][0, self.cpu, L] = 2 * SHARP * L
        head["W_K"][0, self.slot, L] = 1.0
        head["W_V"][0, self.change, range(self.bits)] = 1.0
        head["W_O"][0, range(self.bits), self.word] = 1.0
        mlp = Neurons(width)
        for p, then, otherwise in zip(self.counter, self.c, self.next, strict=True):
            for sign in (1.0, -1.0):
                mlp.add({then: sign, p: -sign, self.flag: 4.0}, -4.0, {p: sign})
                mlp.add({otherwise: sign, p: -sign, self.flag: -4.0}, 0.0, {p: sign})
        scratch = [*self.a, *self.b, *self.c, *self.next, *self.at_a, *self.at_b, *self.change, self.flag]
        for direction in scratch:
            mlp.copy(direction, {direction: -1.0})
        for bit in self.word:  # [x ≥ ½] - [-x ≥ ½], in place of x
            mlp.add({bit: 2.0}, -0.5, {bit: 1.0})
            mlp.add({bit: 2.0}, -1.5, {bit: -1.0})
            mlp.add({bit: -2.0}, -0.5, {bit: -1.0})
            mlp.add({bit: -2.0}, -1.5, {bit: 1.0})
            mlp.copy(bit, {bit: -1.0})
        return head | mlp.weights()

    def _difference(self, i: int) -> dict[int, float]:
        """Σ_{j≤i} 2^j (B_j - A_j) in bits of ±1, off at words."""
        found = {self.at_b[j]: 2.0 ** (j - 1) for j in range(i + 1)} | {
            self.at_a[j]: -(2.0 ** (j - 1)) for j in range(i + 1)
        }
        return found | {self.slot: self.off}

    def _lookups(self, heads: list[tuple[list[int], dict[int, int]]]) -> Layer:
        """Heads by which the CPU copies directions from the word at a pointer; words attend to the CPU, where there is nothing."""
        count, L = len(heads), self.places
        width = max(len(copied) for _, copied in heads)
        made = {"W_Q": self.names.zeros(count, -1, L + 1), "W_K": self.names.zeros(count, -1, L + 1)}
        made |= {"W_V": self.names.zeros(count, -1, width), "W_O": self.names.zeros(count, width, -1)}
        for head, (pointer, copied) in enumerate(heads):
            made["W_Q"][head, pointer, range(L)] = SHARP
            made["W_K"][head, self.place, range(L)] = 1.0
            made["W_Q"][head, self.slot, L] = 2 * SHARP
            made["W_K"][head, self.cpu, L] = 1.0
            made["W_V"][head, list(copied), range(len(copied))] = 1.0
            made["W_O"][head, range(len(copied)), list(copied.values())] = 1.0
        return made


def build(bits: int = 16, addresses: int = 32, loops: int = 1) -> Machine:
    """The computer: words of N = `bits`, n = `addresses` of them, `loops` instructions a run.

    Raises `WrongUse` if an instruction (3 L bits) does not fit into a word, or float32 could not add words up exactly.
    """
    places = addresses.bit_length() - 1
    if addresses < 2 or addresses != 2**places:
        raise WrongUse(f"{addresses} addresses are asked for: give a power of 2, at least 2")
    if not 3 * places <= bits <= 20:
        raise WrongUse(f"words of {bits} bits are asked for: give at least 3·{places} for three addresses, at most 20")
    if loops < 1:
        raise WrongUse(f"{loops} loops are asked for: give at least 1")
    parts = Parts(bits, places)
    names = parts.names
    blocks = [Block(layer, False) for layer in (parts.fetch(), parts.subtract(), parts.store())]
    table = names.zeros(addresses + 1, -1)
    table[1:, parts.place] = 2.0 * ((torch.arange(addresses).unsqueeze(1) >> torch.arange(places)) & 1).double() - 1.0
    unembed = names.zeros(-1, bits)
    unembed[parts.word, range(bits)] = 1.0
    unembed[parts.counter, range(places)] = 1.0
    embed = Words(parts.word, parts.counter, parts.cpu, parts.slot, names.width)
    positions = nn.Embedding.from_pretrained(table, freeze=True)
    model = Subleq(embed, positions, blocks, linear(unembed), causal=False, loops=loops)
    memory = [(3 * j + 1) % 2**bits for j in range(addresses)]
    example = {"input_ids": ids_of([memory], [0], bits)}
    return Machine("subleq", {"bits": bits, "addresses": addresses, "loops": loops}, model, names.variables, example)


def ids_of(memories: list[list[int]], counters: list[int], bits: int) -> Int[Tensor, "batch pos"]:
    """Memories, with the CPU and its counter before them."""
    return torch.tensor([[2**bits + counter, *memory] for memory, counter in zip(memories, counters, strict=True)])


def numbers(logits: Float[Tensor, "batch pos bit"], places: int) -> list[tuple[int, list[int]]]:
    """The counter and the memory that the bits of the output say."""
    found = ((logits > 0).long() << torch.arange(logits.shape[-1], device=logits.device)).sum(-1).tolist()
    return [(row[0] % 2**places, row[1:]) for row in found]


def places_of(machine: Machine) -> int:
    """L, the bits of an address."""
    return int(machine.options["addresses"]).bit_length() - 1


@torch.no_grad()
def compared(machine: Machine, memories: list[list[int]], counters: list[int], steps: int) -> dict[str, Any]:
    """Runs the transformer and the integer machine side by side.

    `wrong` counts words and counters that differ, summed over all loops; `drift` is the greatest distance of a word's or a
    counter's bit from ±1, `left` the greatest value left in the scratch, after any loop.
    """
    bits, model = machine.options["bits"], machine.model
    assert isinstance(model, Subleq)
    integers = [Integers(list(memory), bits, counter) for memory, counter in zip(memories, counters, strict=True)]
    kept = machine.directions("word") + machine.directions("counter")
    scratch = [d for v in machine.variables if v.until for d in v.directions]
    wrong, drift, left = 0, 0.0, 0.0
    for h in model.states(ids_of(memories, counters, bits), steps):
        for (counter, memory), truth in zip(numbers(model.logits(h), places_of(machine)), integers, strict=True):
            truth.step()
            if memory != truth.memory or counter != truth.counter:
                wrong += sum(a != b for a, b in zip(memory, truth.memory, strict=True)) + (counter != truth.counter)
        size = h[..., kept].abs()
        drift = max(drift, torch.minimum((size - 1).abs(), size).max().item())
        left = max(left, h[..., scratch].abs().max().item())
    return {"steps": steps * len(memories), "wrong": wrong, "drift": drift, "left": left}


@torch.no_grad()
def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """PROGRAM NUMBERS…: multiply x y, factorial n, reverse a list, search key a list. Raises `Failed` if it does not halt."""
    name, *given = arguments
    try:
        values = [int(value) for value in given]
    except ValueError as error:
        raise WrongUse(f"{' '.join(given)!r} should be whole numbers") from error
    bits, model = machine.options["bits"], machine.model
    assert isinstance(model, Subleq)
    program = sample(name, values, bits, machine.options["addresses"])
    before = (0, program.memory)
    for count, h in enumerate(model.states(ids_of([program.memory], [0], bits), MOST)):
        (after,) = numbers(model.logits(h), places_of(machine))
        if after == before:
            return {"result": result(name, program, after[1], bits), "instructions": count}
        before = after
    raise Failed(f"the program has not halted after {MOST:,} instructions")


SAMPLES = ("multiply 1500 20", "factorial 7", "reverse 3 1 -4 1 5", "search 4 3 1 4 1 5")  # for 32 words of 16 bits


def check(machine: Machine, steps: int = 200) -> list[dict[str, Any]]:
    """Sample programs to their end and random memories, word by word against the integer machine after every loop."""
    bits, addresses = machine.options["bits"], machine.options["addresses"]
    rows = []
    for text in SAMPLES if (bits, addresses) == (16, 32) else ():
        name, *values = text.split()
        program = sample(name, [int(v) for v in values], bits, addresses)
        _, count = halting(program, bits)
        rows.append({"program": text} | compared(machine, [program.memory], [0], count))
    draw = random.Random(0)
    memories = [[draw.randrange(2**bits) for _ in range(addresses)] for _ in range(64)]
    counters = [draw.randrange(addresses) for _ in memories]
    rows.append({"program": "64 random memories"} | compared(machine, memories, counters, steps))
    return rows
