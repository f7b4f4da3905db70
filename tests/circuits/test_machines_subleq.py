"""The looped computer against integers, every word after every loop; its programs against what they compute."""

from __future__ import annotations

import math
import random

import pytest
import torch

from circuits.machines import build
from circuits.machines.programs import assemble, halting, result, sample, signed
from circuits.machines.subleq import Subleq, compared, ids_of, numbers, run
from interp.errors import WrongUse


@pytest.fixture(scope="module")
def computer():
    return build("subleq")


def halted(name: str, arguments: list[int]) -> tuple[object, int]:
    """What a program computes in integers, and after how many instructions it halts."""
    program = sample(name, arguments, 16, 32)
    memory, count = halting(program, 16)
    return result(name, program, memory, 16), count


def test_programs_in_integers():
    for n in range(8):
        assert halted("factorial", [n])[0] == math.factorial(n)
    assert all(halted("multiply", [x, y])[0] == x * y for x in (0, 1, 9) for y in (-7, 0, 12))
    assert halted("reverse", [3, 1, -4, 1, 5])[0] == [5, 1, -4, 1, 3]
    for key in (3, -4, 5, 9):
        items = [3, 1, -4, 1, 5]
        assert halted("search", [key, *items])[0] == (items.index(key) if key in items else -1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("factorial", [7]),
        ("reverse", [3, 1, -4, 1, 5, -9, 2]),
        ("search", [5, 3, 1, -4, 1, 5]),
        ("multiply", [12, -11]),
    ],
)
def test_a_program_runs_as_in_integers(computer, name, arguments):
    expected, count = halted(name, arguments)
    assert run(computer, [name, *map(str, arguments)]) == {"result": expected, "instructions": count}
    program = sample(name, arguments, 16, 32)
    found = compared(computer, [program.memory], [0], count + 5)
    assert found["wrong"] == 0


def test_thousands_of_instructions(computer):
    """1000 × 30 = 30000 takes 3,001 instructions; words and counter are right after each, and no error adds up."""
    program = sample("multiply", [1000, 30], 16, 32)
    found = compared(computer, [program.memory], [0], 3001)
    assert found["steps"] == 3001
    assert found["wrong"] == 0
    assert found["drift"] < 1e-6  # words are rounded in every loop: what is left is one loop's rounding
    assert found["left"] < 1e-6


@pytest.mark.parametrize(("bits", "addresses"), [(3, 2), (6, 4), (10, 8), (16, 32), (20, 64)])
def test_random_memories(bits, addresses):
    """Any memory is a program, that may write over itself: words as instructions, counters anywhere, sums that wrap."""
    draw = random.Random(bits)
    computer = build("subleq", bits=bits, addresses=addresses)
    memories = [[draw.randrange(2**bits) for _ in range(addresses)] for _ in range(25)]
    counters = [draw.randrange(addresses) for _ in memories]
    assert compared(computer, memories, counters, 60)["wrong"] == 0


def test_every_difference_of_two_words():
    """B - A, its wrapping and its flag, for all pairs of 6-bit words in float32."""
    computer = build("subleq", bits=6, addresses=4)
    pairs = [(a, b) for a in range(64) for b in range(64)]
    word = 1 + 4 * 2 + 16 * 3  # a = 1, b = 2, c = 3
    memories = [[word, a, b, 0] for a, b in pairs]
    model = computer.model
    assert isinstance(model, Subleq)
    (h,) = model.states(ids_of(memories, [0] * len(pairs), 6), 1)
    for (counter, memory), (a, b) in zip(numbers(model.logits(h), 2), pairs, strict=True):
        assert memory[2] == (b - a) % 64
        assert counter == (3 if signed(memory[2], 6) <= 0 else 1)


def test_small_errors_are_gone_after_a_loop(computer):
    """Every bit of memory and counter off by up to 2^-20, below 2^-(N+3): words are the same to the last bit, counters to one rounding."""
    model, bits = computer.model, computer.directions("word") + computer.directions("counter")
    assert isinstance(model, Subleq)
    draw = torch.Generator().manual_seed(0)
    memories = torch.randint(2**16, (20, 32), generator=draw).tolist()
    h = model.stream(ids_of(memories, list(range(20)), 16))
    noise = (2 * torch.rand(h[..., bits].shape, generator=draw) - 1) * 2**-20
    noisy = h.index_add(-1, torch.tensor(bits), noise * (h[..., bits] != 0))
    assert not torch.equal(noisy, h)
    errors = []
    for _ in range(30):
        noisy, h = model.loop(noisy), model.loop(h)
        torch.testing.assert_close(noisy[:, 1:], h[:, 1:], rtol=0, atol=0)
        errors.append((noisy[:, 0] - h[:, 0]).abs().max().item())
    assert errors[0] <= 2**-19  # c as the word had it, and float32's rounding
    assert max(errors[1:]) <= 2**-22  # p + (c - p): one rounding of a number of up to 2, never two of them


def test_forward_runs_its_loops(computer):
    program = sample("factorial", [3], 16, 32)
    ids = ids_of([program.memory], [0], 16)
    five = build("subleq", loops=5)
    *_, last = computer.model.states(ids, 5)
    torch.testing.assert_close(five.model(ids), computer.model.logits(last), rtol=0, atol=0)


def test_what_makes_no_computer():
    for options, message in (
        ({"addresses": 12}, "power of 2"),
        ({"bits": 14}, "at least 3·5"),
        ({"bits": 21}, "at most 20"),
        ({"loops": 0}, "at least 1"),
    ):
        with pytest.raises(WrongUse, match=message):
            build("subleq", **options)


def test_a_coarse_dtype_is_refused():
    computer = build("subleq")
    computer.model.bfloat16()
    with pytest.raises(WrongUse, match=r"not in torch\.bfloat16"):
        computer.model(computer.example["input_ids"])


def test_programs_that_are_none(computer):
    for arguments, message in (
        (["multiplay", "1"], "Did you mean 'multiply'"),
        (["multiply", "1"], "takes x y"),
        (["factorial", "x"], "whole numbers"),
        (["reverse", *map(str, range(20))], "words, and the memory 32"),
        (["factorial", "70000"], "does not fit into 16 bits"),
    ):
        with pytest.raises(WrongUse, match=message):
            run(computer, arguments)
    with pytest.raises(WrongUse, match="there is no label 'ned'"):
        assemble("a ned\na: = 1", 16, 32, {})
    with pytest.raises(WrongUse, match="no line of a program"):
        assemble("a b c d", 16, 32, {})
