"""Many inputs at once give what each gives alone."""

from __future__ import annotations

import itertools

import pytest

from circuits.rasp import RaspError, evaluate, run
from circuits.rasp.batch import evaluate_batch

PROGRAMS = [
    "x = sort(tokens,tokens);",
    "x = selector_width(select(tokens,tokens,==) or select(indices,indices,<));",
    'x = aggregate(select(tokens,"a",==),indices/3,0.1);',
    'x = aggregate(select(tokens,"a",==),tokens,"-");',  # undefined where two are chosen
    "set example [1]\nx = aggregate(select(indices,indices-1,==),tokens_asis);",  # undefined: strings and a 0
    "x = -indices%3;",
    'set example "abc"\nx = {"a":1,"b":2.5,"c":0}[tokens]*0.1 + aggregate(select(indices,indices,<=),indices*0.1);',
    'x = tokens=="a" if "b" in tokens else False;',
    'load "paper_examples"; x = dyck1_ptf;',
    'load "paper_examples"; x = hist2_nobos;',
    'x = max(indices,tokens=="a");',
    'x = aggregate(select(indices,indices,<),1 if indices>1 else tokens=="a");',
    "x = tokens[-1];",
]


@pytest.mark.parametrize("text", PROGRAMS)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_batch_is_each_alone(text, length):
    inputs = list(itertools.product("abc", repeat=length))
    node = run(text).value("x")
    found = evaluate_batch(node, inputs)
    for tokens, codes, undefined in zip(inputs, found.at, found.undefined, strict=True):
        try:
            alone = evaluate(node, tokens)
        except RaspError:
            assert undefined, tokens
            continue
        assert not undefined, tokens
        mine = tuple(found.values[code] for code in codes)
        assert repr(mine) == repr(alone.values), tokens


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_causal_value_is_that_of_what_came_before(text):
    """Position i of an input has the value it has where the input ends with it, alone and in a batch."""
    inputs = list(itertools.product("ab", repeat=4))
    node = run(text).value("x")
    found = evaluate_batch(node, inputs, causal=True)
    for tokens, codes, undefined in zip(inputs, found.at, found.undefined, strict=True):
        try:
            whole = evaluate(node, tokens, causal=True).values
        except RaspError:
            assert undefined
            continue
        assert not undefined
        assert [repr(found.values[code]) for code in codes] == list(map(repr, whole))
        prefixes = [evaluate(node, tokens[: i + 1], causal=True).values[-1] for i in range(4)]
        assert list(map(repr, whole)) == list(map(repr, prefixes))


def test_division_by_zero_is_undefined_where_it_happens():
    node = run('set example "b"\nx = 1/(1-aggregate(full_s,indicator(tokens=="a")));').value("x")
    assert evaluate_batch(node, ["aa", "ab"]).undefined.tolist() == [True, False]


def test_refusals():
    node = run("x = indices*10^15; x = aggregate(full_s,x);").value("x")
    with pytest.raises(RaspError, match="exactly"):
        evaluate_batch(node, ["ab"])
    with pytest.raises(RaspError, match="one length"):
        evaluate_batch(node, ["ab", "a"])
