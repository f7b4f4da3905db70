"""Machines as causal models: each variable by the machine's equations, also where one of them is changed.

What `circuits.rasp.truth.interchange_accuracy` asks of a program it asks of these: does the model do what the equations do when a
variable comes from another input? `descent` is not here: real numbers are equal to more or fewer digits.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import relu

from circuits.machines import connectivity, graphs, permutation, strings, subleq
from circuits.machines.machine import Machine, held
from circuits.machines.programs import signed
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Put = Callable[[str, Any], Any]  # (variable, what the equations say of it) → what it is set to


class Truth(ABC):
    """The equations of one machine. `draw` makes an example of a size, `inputs` what the model takes of it."""

    outputs: tuple[str, ...] = ("answer",)

    def __init__(self, machine: Machine) -> None:
        self.machine, self.options = machine, machine.options

    def values(self, example: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Each variable's value and each output's, a list, with the variables in `given` set to what is given.

        Raises `WrongUse` for a name that the equations do not have.
        """
        found: dict[str, Any] = {}

        def put(name: str, value: Any) -> Any:
            found[name] = (given or {}).get(name, value)
            return found[name]

        outputs = self._compute(example, put)
        unknown = set(given or ()) - set(found)
        if unknown:
            raise WrongUse(f"{self.machine.name}'s equations have no {unknown.pop()!r}; they have {', '.join(found)}")
        return found | outputs

    def pairs(self, count: int, seed: int = 0) -> list[tuple[Any, Any]]:
        """Pairs of random examples of one size each."""
        rng = random.Random(seed)
        sizes = [self.size(rng) for _ in range(count)]
        return [(self.draw(rng, size), self.draw(rng, size)) for size in sizes]

    @abstractmethod
    def size(self, rng: random.Random) -> int:
        """The size of an example."""

    @abstractmethod
    def draw(self, rng: random.Random, size: int) -> Any:
        """A random example."""

    @abstractmethod
    def inputs(self, example: Any) -> Any:
        """The example as the model takes it."""

    @abstractmethod
    def _compute(self, example: Any, put: Put) -> dict[str, list[Any]]:
        """The outputs, by the equations; every variable on the way goes through `put`."""

    @abstractmethod
    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        """The outputs that the model gives."""


class Strings(Truth):
    """An example is a string of 0 and 1; a variable has a value at each position, the CLS first."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        if self.options["layer_norm"]:
            raise WrongUse("with norms a variable is held times a number that depends on all others: take one without")

    def size(self, rng: random.Random) -> int:
        return rng.randint(1, 12)

    def draw(self, rng: random.Random, size: int) -> str:
        return "".join(rng.choices("01", k=size))

    def inputs(self, example: str) -> Int[Tensor, "1 pos"]:
        return strings.ids_of(torch.tensor([[int(bit) for bit in example]]))

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        return {"answer": [int(logits[0, 0].argmax())]}

    def attention(self, marks: Float[Tensor, "pos"]) -> Float[Tensor, "query key"]:
        """The CLS attends by c times the marks of positions, the others to all alike."""
        c = held(self.options["sharpness"]) * (float(torch.tensor(len(marks)).log()) if self.options["log_n"] else 1.0)
        rows = torch.zeros(len(marks), len(marks), dtype=torch.float64)
        rows[0] = c * marks
        return rows.softmax(-1)


class Parity(Strings):
    """[i = k] from k/n and 1/n; the parity of its place."""

    def _compute(self, example: str, put: Put) -> dict[str, list[Any]]:
        token = put("token", self.inputs(example)[0])
        i = torch.arange(len(token), dtype=torch.float64) / len(token)
        k = put("ones/n", (token == 1).double().mean().expand(len(token)))
        step = put("1/n", (token == strings.CLS).double().mean().expand(len(token)))
        here = put("[i=ones]/n", relu(k - i - step) - 2 * relu(k - i) + relu(k - i + step))
        even = 1.0 - 2.0 * (torch.arange(len(token)) % 2).double()
        odd = put("odd", (self.attention(-even) - self.attention(even)) @ here)
        return {"answer": [int(odd[0] > 0)]}


class First(Strings):
    """A mark at position 1 if a one is there."""

    def _compute(self, example: str, put: Put) -> dict[str, list[Any]]:
        token = put("token", self.inputs(example)[0])
        first = put("[i=1]", (torch.arange(len(token)) == 1).double())
        mark = put("mark", relu((token == 1).double() + first - 1))
        said = put("first", self.attention(first) @ (mark - first / 2))
        return {"answer": [int(said[0] > 0)]}


class Permutation(Truth):
    """An example is a permutation and symbols; `goal` is π(j) at symbol j."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        if self.options["causal"] and not self.options["scratch"]:
            raise WrongUse("a causal model without scratch tokens does not put a list in order")

    def size(self, rng: random.Random) -> int:
        return int(self.options["n"])

    def draw(self, rng: random.Random, size: int) -> tuple[list[int], list[int]]:
        return rng.sample(range(size), size), rng.choices(range(self.options["symbols"]), k=size)

    def inputs(self, example: tuple[list[int], list[int]]) -> Int[Tensor, "1 pos"]:
        order, data = example
        return permutation.ids_of(self.machine, torch.tensor([order]), torch.tensor([data]))

    def _compute(self, example: tuple[list[int], list[int]], put: Put) -> dict[str, list[Any]]:
        n = self.options["n"]
        token = put("token", self.inputs(example)[0].tolist())
        goal = put("goal", token[:n])
        return {"answer": put("output", [token[n + goal.index(i)] - n for i in range(n)])}

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        n = self.options["n"]
        where = slice(2 * n, None) if self.options["scratch"] else slice(n)
        return {"answer": logits[0, where].argmax(-1).tolist()}


class Subleq(Truth):
    """An example is a memory and a counter; one instruction in integers. Bits of `change` are those of the new word less the old."""

    outputs = ("memory", "counter after")

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        if self.options["loops"] != 1:
            raise WrongUse("a variable is there in every loop: take the machine with loops=1")

    def size(self, rng: random.Random) -> int:
        return int(self.options["addresses"])

    def draw(self, rng: random.Random, size: int) -> tuple[list[int], int]:
        return [rng.randrange(2 ** self.options["bits"]) for _ in range(size)], rng.randrange(size)

    def inputs(self, example: tuple[list[int], int]) -> Int[Tensor, "1 pos"]:
        return subleq.ids_of([example[0]], [example[1]], self.options["bits"])

    def _compute(self, example: tuple[list[int], int], put: Put) -> dict[str, list[Any]]:
        bits, n = self.options["bits"], self.options["addresses"]
        memory, counter = list(put("word", example[0])), put("counter", example[1])
        a, b, c = (put(name, memory[counter] // n**i % n) for i, name in enumerate("abc"))
        later = put("next", (counter + 1) % n)
        at_a, at_b = put("memory[a]", memory[a]), put("memory[b]", memory[b])
        difference = (at_b - at_a) % 2**bits
        change = put("change", [(difference >> i & 1) - (at_b >> i & 1) for i in range(bits)])
        flag = put("flag", int(signed(difference, bits) <= 0))
        new = [(memory[b] >> i & 1) + change[i] for i in range(bits)]  # rounded to a bit, whatever is added
        memory[b] = sum(1 << i for i, bit in enumerate(new) if bit >= 1)
        return {"memory": memory, "counter after": [c if flag else later]}

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        ((counter, memory),) = subleq.numbers(logits, subleq.places_of(self.machine))
        return {"memory": memory, "counter after": [counter]}


class Graphs(Truth):
    """An example is a matrix of lengths and a source; the variables are those of the first loop, at every node."""

    outputs = ("distances", "parents")

    def size(self, rng: random.Random) -> int:
        return rng.randint(2, self.options["nodes"])

    def draw(self, rng: random.Random, size: int) -> tuple[Int[Tensor, "node node"], int]:
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        return graphs.random_graph(size, 7, rng.choice((0.2, 0.5)), generator), rng.randrange(size)

    def inputs(self, example: tuple[Int[Tensor, "node node"], int]) -> dict[str, Tensor]:
        return graphs.inputs_of([example[0]], [example[1]])

    def _compute(self, example: tuple[Int[Tensor, "node node"], int], put: Put) -> dict[str, list[Any]]:
        lengths = self.inputs(example)["graph"][0].double()
        size = len(lengths)
        index = torch.arange(size, dtype=torch.float64)
        distance = put("distance", torch.where(index == example[1], 0.0, graphs.FAR))
        parent, visited = put("parent", index), torch.zeros(size, dtype=torch.float64)
        for _ in range(self.options["loops"]):
            order = self.options["nodes"] * distance + index + 2 * self.options["nodes"] * graphs.FAR * visited
            least = int(order.argmin())
            u, at_u = put("u", index[least].expand(size)), put("distance[u]", distance[least].expand(size))
            hot = put("hot", (index == u).double())
            edge = put("edge", hot @ lengths)
            gain = relu(distance - at_u - edge)
            distance, better = distance - gain, put("better", (gain >= 1).double())
            visited = put("visited", torch.maximum(visited, hot))
            parent = torch.where(better > 0, u, parent)

            def put(name: str, value: Any) -> Any:  # later loops are as they are
                return value

        return {"distances": distance.round().tolist(), "parents": parent.round().tolist()}

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        distance, parent = logits[0].round().double().unbind(-1)
        return {"distances": distance.tolist(), "parents": parent.tolist()}


class Connectivity(Truth):
    """An example is a graph; the variables are the powers of A, times what the heads divide them by."""

    def size(self, rng: random.Random) -> int:
        return int(self.options["nodes"])

    def draw(self, rng: random.Random, size: int) -> Int[Tensor, "node node"]:
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        return connectivity.random_graphs(1, size, rng.choice((0.1, 0.2)), generator)[0]

    def inputs(self, example: Int[Tensor, "node node"]) -> Float[Tensor, "1 node node"]:
        return torch.maximum(example.float(), torch.eye(len(example))).unsqueeze(0)

    def _compute(self, example: Int[Tensor, "node node"], put: Put) -> dict[str, list[Any]]:
        powers = {1: put("A^1", self.inputs(example)[0].double())}
        for layer in range(self.options["layers"]):
            x = powers[max(powers)]
            square = x @ x.T / len(x)
            powers |= {2 * 3**layer + p: put(f"A^{2 * 3**layer + p}", square @ known) for p, known in powers.items()}
        return {"answer": (powers[max(powers)] > 0).flatten().tolist()}

    def read(self, logits: Float[Tensor, "1 pos out"]) -> dict[str, list[Any]]:
        return {"answer": (logits[0] > 0).flatten().tolist()}


KINDS: dict[str, type[Truth]] = {
    "parity": Parity,
    "first": First,
    "subleq": Subleq,
    "graphs": Graphs,
    "permutation": Permutation,
    "connectivity": Connectivity,
}


def truth(machine: Machine) -> Truth:
    """The equations of a machine. Raises `WrongUse` where there are none, or none that are exact."""
    if machine.name not in KINDS:
        raise WrongUse(f"{machine.name} has no causal model here; there are those of {', '.join(KINDS)}")
    return KINDS[machine.name](machine)
