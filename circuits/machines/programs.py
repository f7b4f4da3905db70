"""SUBLEQ, the computer with one instruction, in integers: its machine, an assembler, and sample programs.

A memory of n = 2^L words of N bits, and a program counter. The word at the counter is an instruction (a, b, c): its lowest
L bits are a, the next b, the next c; further ones are not looked at. Then

    memory[b] ← memory[b] - memory[a]  (mod 2^N);  counter ← c if that is at most 0, as a signed number, else counter + 1 (mod n)

Programs lie in the memory that they change, so that they can change themselves: that is how they reach the next element
of a list. Every memory is a program, and no instruction is undefined. A program halts where the counter stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp.errors import Failed, WrongUse, nearest


@dataclass
class Integers:
    """The machine in integers: words are 0 … 2^N - 1."""

    memory: list[int]
    bits: int
    counter: int = 0

    def step(self) -> None:
        """One instruction."""
        n = len(self.memory)
        word = self.memory[self.counter]
        a, b, c = word % n, word // n % n, word // n**2 % n
        self.memory[b] = (self.memory[b] - self.memory[a]) % 2**self.bits
        self.counter = c if signed(self.memory[b], self.bits) <= 0 else (self.counter + 1) % n


def halting(program: Program, bits: int, most: int = 100_000) -> tuple[list[int], int]:
    """The memory where a program halts, and after how many instructions. Raises `Failed` if it does not."""
    machine, before = Integers(list(program.memory), bits), (0, program.memory)
    for count in range(most):
        machine.step()
        if before == (machine.counter, machine.memory):
            return machine.memory, count
        before = machine.counter, list(machine.memory)
    raise Failed(f"the program has not halted after {most:,} instructions")


def signed(word: int, bits: int) -> int:
    """The word as a two's complement number."""
    return word - 2**bits if word >= 2 ** (bits - 1) else word


@dataclass(frozen=True)
class Program:
    """A program in memory. `names` are its labels' addresses; `results` the labels that hold what it computes, from one to another."""

    memory: list[int]
    names: dict[str, int]


def assemble(text: str, bits: int, addresses: int, values: dict[str, list[int]]) -> Program:
    """A program from its text: lines `[label:] a b [c]`, without c the next line, and `label: = [number]`.

    A line that says `=` alone holds the values of its label, one word each. An address is a label, `label+number`, or
    `next`. Raises `WrongUse` for a line that is neither, a label that is nowhere, and what the memory cannot hold.
    """
    rows: list[tuple[str, list[str] | int]] = []
    names: dict[str, int] = {}
    for line in filter(None, (line.split(";")[0].strip() for line in text.splitlines())):
        found = re.fullmatch(r"(?:(\w+):)?\s*(?:=\s*(-?\d+)?|([\w+]+)\s+([\w+]+)(?:\s+([\w+]+))?)", line)
        if not found:
            raise WrongUse(f"{line!r} is no line of a program: write `label: a b c` or `label: = number`")
        label, number, *parts = found.groups()
        if label:
            names[label] = len(rows)
        if parts[0]:
            rows.append((line, [part or "next" for part in parts]))
        else:
            rows += [(line, value) for value in ([int(number)] if number else values[label])]
    if len(rows) > addresses:
        raise WrongUse(f"the program has {len(rows)} words, and the memory {addresses}")
    memory = [_word(line, row, at, names, addresses) for at, (line, row) in enumerate(rows)]
    if any(not -(2 ** (bits - 1)) <= word < 2**bits for word in memory):
        raise WrongUse(f"a number of the program does not fit into {bits} bits")
    return Program([word % 2**bits for word in memory] + [0] * (addresses - len(rows)), names)


def _word(line: str, row: list[str] | int, at: int, names: dict[str, int], addresses: int) -> int:
    """A number, or an instruction's word a + n b + n² c."""
    if isinstance(row, int):
        return row
    word = 0
    for part in reversed(row):
        label, _, more = part.partition("+")
        if label != "next" and label not in names:
            raise WrongUse(f"{line!r}: there is no label {label!r}.{nearest(label, names)}")
        word = word * addresses + ((at + 1 if label == "next" else names[label]) + int(more or 0)) % addresses
    return word


MULTIPLY = """
      zero x halt         ; x ≤ 0: nothing to add
      y minus             ; minus = -y
more: minus product       ; product += y
      one x halt          ; x -= 1, until it is 0
      zero zero more
halt: zero zero halt
x:       =
y:       =
minus:   = 0
product: = 0
one:     = 1
zero:    = 0
"""

FACTORIAL = """
      zero k halt
next_k: minus minus
      f minus             ; minus = -f
      t t                 ; t = 0
      i i
      j j
      k j                 ; j = -k
      j i                 ; i = k
add:  minus t             ; t += f, k times
      one i added
      zero zero add
added: f f
      j j
      t j                 ; j = -t
      j f                 ; f = t
      one k halt
      zero zero next_k
halt: zero zero halt
k:     =
f:     = 1
minus: = 0
t:     = 0
i:     = 0
j:     = 0
one:   = 1
zero:  = 0
"""

REVERSE = """
loop: t t
read: list+{last} t       ; t = -list[…]; this instruction's a goes down by one each time
store: t out              ; out[…] += list[…]; this one's b goes up
      one read
      minus_n store
      one count halt
      zero zero loop
halt: zero zero halt
t:       = 0
one:     = 1
minus_n: = -{addresses}   ; subtracted from a word, it adds 1 to its b
zero:    = 0
count:   =
list:    =
out:     =
"""

SEARCH = """
loop: d d
read: list d              ; d = -list[…]; this instruction's a goes up by one each time
      minus_key d low     ; d = key - list[…]
      zero zero on        ; above 0: not here
low:  e e
      d e found           ; e = -d, at most 0 only where d is 0
on:   minus_one read
      minus_one index
      one count missing
      zero zero loop
missing: index index
      one index
found: zero zero found
d:         = 0
e:         = 0
index:     = 0
one:       = 1
minus_one: = -1
zero:      = 0
minus_key: =
count:     =
list:      =
"""


def sample(name: str, arguments: list[int], bits: int, addresses: int) -> Program:
    """A sample program with its arguments in place: multiply x y, factorial n, reverse a list, search key a list.

    Raises `WrongUse` for another name, for arguments it does not take, and for what the memory cannot hold.
    """
    least = {"multiply": 2, "factorial": 1, "reverse": 1, "search": 2}
    if name not in least:
        raise WrongUse(f"there is no sample program {name!r}.{nearest(name, least)} There are: {', '.join(least)}.")
    if len(arguments) < least[name] or (name in ("multiply", "factorial") and len(arguments) > least[name]):
        raise WrongUse(
            f"{name} takes {dict(multiply='x y', factorial='n', reverse='a list', search='key and a list')[name]}"
        )
    if name == "multiply":
        return assemble(MULTIPLY, bits, addresses, {"x": arguments[:1], "y": arguments[1:]})
    if name == "factorial":
        return assemble(FACTORIAL, bits, addresses, {"k": arguments})
    if name == "reverse":
        text = REVERSE.format(last=len(arguments) - 1, addresses=addresses)
        values = {"count": [len(arguments)], "list": arguments, "out": [0] * len(arguments)}
        return assemble(text, bits, addresses, values)
    key, *items = arguments
    return assemble(SEARCH, bits, addresses, {"minus_key": [-key], "count": [len(items)], "list": items})


def result(name: str, program: Program, memory: list[int], bits: int) -> int | list[int]:
    """What a sample program has computed: the product, n!, the list reversed, the first place of the key or -1."""
    at = program.names[dict(multiply="product", factorial="f", reverse="out", search="index")[name]]
    if name == "reverse":
        count = at - program.names["list"]
        return [signed(word, bits) for word in memory[at : at + count]]
    return signed(memory[at], bits)
