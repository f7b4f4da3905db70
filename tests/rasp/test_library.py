"""The library and the example programs against Python, over every short input."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from circuits.rasp import Matrix, Sequence, cost, evaluate, run


def strings(letters: str, longest: int) -> Iterator[str]:
    for n in range(1, longest + 1):
        yield from map("".join, itertools.product(letters, repeat=n))


def values(node: Any, tokens: Any) -> list[Any]:
    found = evaluate(node, tokens)
    assert isinstance(found, Sequence)
    return list(found.values)


def same(text: str, function: Callable[[str], list[Any]], letters: str = "abc", longest: int = 4) -> None:
    node = run(f"x={text};").value("x")
    for word in strings(letters, longest):
        expected = function(word)
        assert values(node, word) == expected, word
        assert [type(v) for v in values(node, word)] == [type(v) for v in expected], word


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("length", lambda w: [len(w)] * len(w)),
        ("selector_width(select(tokens,tokens,==))", lambda w: [w.count(c) for c in w]),
        ("selector_width(select(tokens,tokens,<))", lambda w: [sum(d < c for d in w) for c in w]),
        ("selector_width(full_s and not full_s)", lambda w: [0] * len(w)),
        ("has_focus(select(indices,indices,<))", lambda w: [i > 0 for i in range(len(w))]),
        ('count(tokens,"a")', lambda w: [w.count("a")] * len(w)),
        ('contains(tokens,"b")', lambda w: ["b" in w] * len(w)),
        ('max(tokens,"b")', lambda w: [max(c, "b") for c in w]),
        ("min(indices,2)", lambda w: [min(i, 2) for i in range(len(w))]),
        (
            "max(length-1,indices*2.0)",
            lambda w: [float(max(len(w) - 1, 2 * i)) if 2 * i >= len(w) - 1 else len(w) - 1 for i in range(len(w))],
        ),
        ("load_from_location(tokens,0)", lambda w: [w[0]] * len(w)),
        ("load_from_location(indices,length-1)", lambda w: [len(w) - 1] * len(w)),
        ('shift(tokens,1,"_")', lambda w: list("_" + w[:-1])),
        ('shift(tokens,-2,"_")', lambda w: list((w[2:] + "__")[: len(w)] if len(w) > 1 else "_")),
        ('mark_last_instance(tokens,"a")', lambda w: [i == w.rfind("a") for i in range(len(w))]),
        ('mark_first_instance(tokens,"a")', lambda w: [i == w.find("a") for i in range(len(w))]),
        ('aggregate(select_from_last(tokens,"a"),indices,-1)', lambda w: [w.rfind("a")] * len(w)),
        ('aggregate(select_from_first(tokens,"a"),indices,-1)', lambda w: [w.find("a")] * len(w)),
        ("sort(tokens,tokens)", sorted),
        ("sort(indices,tokens)", lambda w: sorted(range(len(w)), key=lambda i: w[i])),
        ("aggregate(select_next_identical(tokens),indices,-1)", lambda w: [w.find(c, i + 1) for i, c in enumerate(w)]),
    ],
)
def test_library(text, function):
    same(text, function)


def test_average():
    node = run("x=average(indices);").value("x")
    assert values(node, "a") == [0]
    assert values(node, "abcd") == [1.5] * 4


def by_frequency(word: str) -> list[str]:
    kinds = sorted(dict.fromkeys(word), key=lambda c: -word.count(c))
    return ["§", *kinds, *["§"] * (len(word) - len(kinds))]


def kinds_as_frequent(word: str) -> list[int]:
    counts = Counter(word)
    return [sum(counts[d] == counts[c] for d in counts) for c in word]


@pytest.mark.parametrize(
    ("name", "function", "begin", "layers", "heads"),
    [
        ("reverse", lambda w: list(w[::-1]), "", 2, {1: 1, 2: 1}),
        ("hist_nobos", lambda w: [w.count(c) for c in w], "", 1, {1: 2}),
        ("hist_bos", lambda w: [0, *(w.count(c) for c in w)], "§", 1, {1: 1}),
        ("hist2_nobos", kinds_as_frequent, "", 2, {1: 3, 2: 2}),
        ("hist2_bos", lambda w: [0, *kinds_as_frequent(w)], "§", 2, {1: 2, 2: 1}),
        ("sort_bos", lambda w: ["§", *sorted(w)], "§", 2, {1: 1, 2: 1}),
        ("sort_by_most_freq", by_frequency, "§", 3, {1: 2, 2: 1, 3: 1}),
    ],
)
def test_paper_examples(name, function, begin, layers, heads):
    node = run('load "paper_examples";').value(name)
    assert (cost(node).layers, cost(node).heads_per_layer) == (layers, heads)
    for word in strings("abc", 4):
        assert values(node, begin + word) == function(word), word


def ptf(word: str, pairs: list[str]) -> list[str]:
    """A stack says it: F once a prefix cannot be completed, T where it is balanced, P otherwise."""
    closer, stack, out, broken = {p[0]: p[1] for p in pairs}, [], [], False
    for c in word:
        if c in closer:
            stack.append(closer[c])
        else:
            broken = broken or not stack or stack.pop() != c
        out.append("F" if broken else "P" if stack else "T")
    return out


@pytest.mark.parametrize(
    ("name", "pairs", "longest", "layers", "heads"),
    [
        ("dyck1_ptf", ["()"], 7, 2, {1: 1, 2: 1}),
        ("dyck2_ptf", ["()", "{}"], 5, 4, {1: 1, 2: 2, 3: 1, 4: 1}),
        ("dyck3_ptf", ["()", "{}", "[]"], 3, 4, {1: 1, 2: 2, 3: 1, 4: 1}),
        ('dyckk_ptf(["<>","()"])', ["<>", "()"], 4, 4, {1: 1, 2: 2, 3: 1, 4: 1}),
    ],
)
def test_dyck(name, pairs, longest, layers, heads):
    node = run(f'load "paper_examples";\nx={name};').value("x")
    assert (cost(node).layers, cost(node).heads_per_layer) == (layers, heads)
    for word in strings("".join(pairs), longest):
        assert values(node, word) == ptf(word, pairs), word


def test_long_addition():
    state = run('load "long_addition";')
    node, digits = state.value("long_addition"), state.value("longsum")
    assert (cost(node).layers, cost(node).heads_per_layer) == (5, {1: 2, 2: 1, 3: 1, 4: 1, 5: 1})
    for a, b in [*itertools.product((0, 1, 9, 10, 99, 505), repeat=2), (999, 1), (1, 99999), (123456, 789)]:
        text = f"{a}+{b}"
        assert "".join(values(node, text)) == str(a + b).rjust(len(text), "_"), text
        assert "".join(map(str, values(digits, text))) == str(a + b).rjust(len(text), "0"), text


def test_induction_by_nested_selectors():
    """Composite selectors over different keys and queries, read by a mean and with a string default."""
    state = run("s = (select(tokens,tokens,==) or select(indices,indices,<)) and not select(indices,indices,==);")
    assert evaluate(state.value("s"), "aba") == Matrix(
        (bytes([0, 0, 1]), bytes([1, 0, 0]), bytes([1, 1, 0])), tuple("aba")
    )
