"""The semantics, case by case, with values that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.rasp import Interpreter, Matrix, RaspError, Sequence, cost, evaluate, parse, run
from circuits.rasp.display import Display
from circuits.rasp.errors import Budget
from circuits.rasp.evaluate import LONGEST, Run
from circuits.rasp.interpreter import Shown


def out(text: str) -> Any:
    """What the last statement of the program shows."""
    shown = run(text).shown[-1]
    assert isinstance(shown, Shown)
    return shown.value


def on(text: str, tokens: Any = "hello") -> list[Any]:
    """The values of the program's last expression on an input."""
    value = evaluate(out(text), tokens)
    return list(value.values) if isinstance(value, Sequence) else [list(row) for row in value.rows]


def typed(text: str, tokens: Any = "hello") -> str:
    value = evaluate(out(text), tokens)
    assert isinstance(value, Sequence)
    return value.type


PREVIOUS = "select(indices,indices-1,==)"
BEFORE = "select(indices,indices,<)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("2^3^2", 64),
        ("-2^2", 4),
        ("7*3%4", 1),
        ("2%3*2", 2),
        ("8/4", 2.0),
        ("not 1==2", False),
        ("True or True and False", False),
        ("1 if True else 2 if False else 3", 3),
        ("1<2<3", True),
        ("3>2>1", False),
        ("0 and 1/0", None),  # both sides are evaluated
        ("5 if True else 1/0", 5),
        ('"ab"+"c"', "abc"),
        ('"ab"*2', "abab"),
        ('"abc"[-1]', "c"),
        ("[1,[2,3]][1][0]", 2),
        ('{"a":1,2:5}[2]', 5),
        ("2 in [1,2]", True),
        ("[1,2]+[3]", [1, 2, 3]),
        ("round(2.5)", 2),
        ("round(3.5)", 4),
        ("len([1,2])", 2),
        ("range(1,8,3)", [1, 4, 7]),
        ("zip([1,2],[3,4])", [[1, 3], [2, 4]]),
        ("[x*y for x,y in [[1,2],[3,4]]]", [2, 12]),
        ("{x:x^2 for x in range(3)}", {0: 0, 1: 1, 2: 4}),
        ('[k for k in {"a":1,"b":2}]', ["a", "b"]),
    ],
)
def test_atoms_and_containers(text, value):
    if value is None:
        with pytest.raises(RaspError):
            out(text + ";")
    else:
        assert out(text + ";") == value
        assert type(out(text + ";")) is type(value)


@pytest.mark.parametrize(
    ("text", "values", "kind"),
    [
        ("indices", [0, 1, 2, 3, 4], "int"),
        ("tokens", list("hello"), "string"),
        ("indices/2", [0.0, 0.5, 1.0, 1.5, 2.0], "float"),
        ("round(indices/2)", [0, 0, 1, 2, 2], "int"),
        ('tokens=="l"', [False, False, True, True, False], "bool"),
        ("tokens==1", [False] * 5, "bool"),
        ("not indices", [True, False, False, False, False], "bool"),
        ("indicator(indices>2)", [0, 0, 0, 1, 1], "int"),
        ("1 if indices>2 else 0.5", [0.5, 0.5, 0.5, 1, 1], "float"),
        ('tokens in ["h","e"]', [True, True, False, False, False], "bool"),
        ('"l" in tokens', [True] * 5, "bool"),
        ('"z" in tokens', [False] * 5, "bool"),
        ("[5,6,7,8,9][indices]", [5, 6, 7, 8, 9], "int"),
        ('"vwxyz"[indices]', list("vwxyz"), "string"),
        ('{0:"a",1:"b",2:"c",3:"d",4:"e"}[indices]', list("abcde"), "string"),
        ("tokens[1]", ["e"] * 5, "string"),
        ("tokens[-2]", ["l"] * 5, "string"),
        ("tokens[9]", [0] * 5, "int"),  # nothing is there, and 0 is the default
        ("-indices", [0, -1, -2, -3, -4], "int"),
        ("indices or 5", [True] * 5, "bool"),  # of atoms one of them, of s-ops a bool
        ('tokens and ""', [False] * 5, "bool"),
        ("True if indices<2 else indices", [True, True, 2, 3, 4], "int"),  # bools among ints count as ints
        ("True if indices<2 else indices/2", [True, True, 1.0, 1.5, 2.0], "float"),
        ("aggregate(full_s,True if indices<4 else 6)", [2.0] * 5, "float"),
        (f"aggregate({PREVIOUS},indices==0)", [0, True, False, False, False], "int"),
        ('("<%d>"+tokens)%indices', ["<0>h", "<1>e", "<2>l", "<3>l", "<4>o"], "string"),
        ("2^indices%3", [1, 2, 1, 2, 1], "int"),
    ],
)
def test_s_ops(text, values, kind):
    assert on(text + ";") == values
    assert [type(v) for v in on(text + ";")] == [type(v) for v in values]
    assert typed(text + ";") == kind


def test_a_selector_is_key_op_query():
    assert on("select(indices,indices,<);", "abc") == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert on("select(indices,1,<);", "abc") == [[1, 0, 0]] * 3
    assert on("select(1,indices,<);", "abc") == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert on("select(indices,indices,!=);", "ab") == [[0, 1], [1, 0]]
    assert on('select(tokens,"a",==) and not select(indices,indices,==);', "aba") == [[0, 0, 1], [1, 0, 1], [1, 0, 0]]
    assert on('select(tokens,"a",==) or select(indices,indices,==);', "aba") == [[1, 0, 1], [1, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("text", "values", "kind"),
    [
        (f"aggregate({PREVIOUS},indices)", [0, 0, 1, 2, 3], "int"),  # none: 0; one: its value, still an int
        (f"aggregate({PREVIOUS},indices,0.5)", [0.5, 0, 1, 2, 3], "float"),
        (f'aggregate({PREVIOUS},tokens,"-")', list("-hell"), "string"),
        (f'aggregate({PREVIOUS},tokens=="h",False)', [False, True, False, False, False], "bool"),
        (f"aggregate({BEFORE},indices,-1)", [-1, 0, 0.5, 1.0, 1.5], "float"),  # two or more: the mean, a float
        ("aggregate(full_s,7)", [7.0] * 5, "float"),
        (f"aggregate({PREVIOUS},7,1)", [1, 7, 7, 7, 7], "int"),
    ],
)
def test_aggregate_takes_the_default_one_value_or_the_mean(text, values, kind):
    assert on(text + ";") == values
    assert [type(v) for v in on(text + ";")] == [type(v) for v in values]
    assert typed(text + ";") == kind


@pytest.mark.parametrize(
    "text",
    [
        f"aggregate({PREVIOUS},tokens);",  # strings, and 0 where nothing is selected
        "aggregate(full_s,tokens);",  # no mean of strings
        "aggregate(full_s,tokens==tokens);",  # nor of bools
        '1 if indices>0 else "a";',
        "aggregate(tokens,tokens);",
        "aggregate(full_s,full_s);",
        "aggregate(full_s,tokens,indices);",
        "aggregate(full_s,[1]);",
        "select(tokens,indices,<);",
        "full_s and 1;",
        "full_s and tokens;",
        "full_s+1;",
        "1 if full_s else 0;",
        "full_s in [1];",
        "indicator(True);",
        "1/indices if indices>0 else 0;",  # both sides are evaluated everywhere
        "tokens in tokens;",
        'tokens in {"h":1};',
        '"h" in {"h":1};',
        '"h" in "hello";',
        "tokens in [[1]];",
        "tokens[indices];",
        "[1,2][indices];",
        "tokens_int;",
        "foo;",
        "1/0;",
        '"a"+1;',
        '-"a";',
        'round("a");',
        '"%99999999d"%3;',
        '"%s %s"%3;',
        '"%s"%[1];',
        "indices and [];",
        "(-8)^0.5;",
        "[1,2][2];",
        "[1,2][-3];",
        '[1,2]["a"];',
        "{1:2}[3];",
        "{[1]:2};",
        "3[0];",
        "3(1);",
        "range(1.5);",
        "range();",
        "range(1,2,3,4);",
        "range(1,5,0);",
        "zip([1],[1,2]);",
        "zip(1);",
        'len("abc");',
        "len({1:2});",
        "[x for x in 5];",
        '[x for x in "abc"];',
        "[a for a,b in [1,2]];",
        "[a for a,b in [[1,2,3]]];",
        "a,b=3;",
        "a,b=1,2,3;",
        "indices=3;",
        "length=4;",
        "True=2;",
        "out=3;",
        "def max(a) { return a; }",
        "for sort in [1] { a=1; }",
        'indices("");',
        "indices(3);",
        'indices("a","b");',
        "def f(a) { return a; }\nf();",
        "def f() { return f(); }\nf();",
        'load "no such file";',
        "draw(3);",
        "set example 3",
        "set example []",
    ],
)
def test_errors(text):
    with pytest.raises(RaspError) as caught:
        run(text)
    assert caught.value.span is not None


def test_an_error_names_the_nearest_name_and_the_calls_it_came_through():
    with pytest.raises(RaspError) as caught:
        run("def f(seq) {\n return seq + tokenz;\n}\nf(1);", "p.rasp")
    text = str(caught.value)
    assert text.startswith("p.rasp:2:15: the name 'tokenz' is not defined. Did you mean 'tokens'")
    assert "called from p.rasp:4:1" in text
    with pytest.raises(RaspError, match="without a space"):
        run("aggregate (full_s,1);")


def test_closures_see_later_values_and_bodies_are_local():
    program = "k=1; y=5; def f(a) { y=a; return a+k; } k=10; z=f(1);"
    assert run(program).value("z") == 11
    assert run(program).value("y") == 5


def test_loops_leak_and_comprehensions_do_not():
    state = run("s=0; for i in range(4) { s=s+i; } l=[j for j in range(3)];")
    assert (state.value("s"), state.value("i")) == (6, 3)
    with pytest.raises(RaspError):
        state.value("j")


def test_functions_are_values_and_may_recurse():
    assert run("def f(a) { return a*2; } l=[f]; g=l[0]; x=g(4);").value("x") == 8
    assert run("def add(a) { def g(b) { return a+b; } return g; } x=add(2)(3);").value("x") == 5
    assert run("def fact(n) { return 1 if n==0 else n*fact(n-1); } x=fact(20);").value("x") == 2432902008176640000
    assert run("def two(a) { return a,a+1; } x,y=two(1); z=two(1);").value("z") == [1, 2]


def test_a_call_of_an_s_op_is_tried_on_its_own_input():
    assert run('x = tokens_int("123");').value("x") == Sequence((1, 2, 3), "int")
    assert run('x = (10/(indices-4))("abc");').value("x").values == (-2.5, -10 / 3, -5.0)
    assert isinstance(run('x = full_s("ab");').value("x"), Matrix)


def test_every_s_op_is_tried_on_the_example():
    with pytest.raises(RaspError, match="tried on 'hello'"):
        run("tokens=tokens_int;")
    assert on("set example [1,2]\ntokens=tokens_int;\ntokens+1;", [3, 4]) == [4, 5]
    with pytest.raises(RaspError, match="is no int"):
        evaluate(run("set example [1]\nx=tokens_int+1;").value("x"), "a")


def test_what_tokens_are():
    assert on("tokens;", [1, 2]) == ["1", "2"]
    assert on("tokens_asis;", [1, 2.5]) == [1, 2.5]
    assert on("set example [1]\ntokens_float;", ["1", "2.5"]) == [1.0, 2.5]
    assert on("tokens_bool;", [0, 1, 2]) == [False, True, True]
    with pytest.raises(RaspError, match="different types"):
        evaluate(out("tokens_asis;"), [1, "a"])
    for wrong in ("", [], 3, [[1]], [None]):
        with pytest.raises(RaspError):
            evaluate(out("indices;"), wrong)  # type: ignore[arg-type]


def test_a_failing_statement_leaves_names_as_they_were():
    state = Interpreter()
    state.run(parse("x=1;"))
    with pytest.raises(RaspError):
        state.run(parse("x=nope;"))
    assert state.value("x") == 1


@pytest.mark.parametrize(
    ("text", "layers", "heads"),
    [
        ("indices+1;", 0, {}),
        ("length;", 1, {1: 1}),
        ("selector_width(select(tokens,tokens,==));", 1, {1: 2}),
        ("tokens[0];", 1, {1: 1}),
        ("tokens[-1];", 2, {1: 1, 2: 1}),
        ("aggregate(full_s,indices)+aggregate(full_s,indices*2);", 1, {1: 1}),  # one selector, one head
        ("aggregate(full_s,aggregate(full_s,indices));", 2, {1: 1, 2: 1}),  # the same selector in two layers
        ("aggregate(select(1,1,==),1)+aggregate(select(1,1,==),1);", 1, {1: 2}),  # made twice: two heads
        ("s=full_s and not select(length,indices,==); aggregate(s,1);", 2, {1: 1, 2: 1}),
        ("select(length,indices,<);", 2, {1: 1, 2: 1}),
    ],
)
def test_layers_and_heads(text, layers, heads):
    needs = cost(out(text))
    assert (needs.layers, needs.heads_per_layer) == (layers, heads)


def test_load_takes_public_names_only_and_goes_on_after_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib.rasp").write_text('a = 1;\n_b = 2;\n3;\nc = nope;\nload "inner";\nd = a+e;\n')
    (tmp_path / "inner.rasp").write_text("e = 10;\ntokens = tokens+tokens;")
    state = run('load "lib";')
    assert (state.value("a"), state.value("d")) == (1, 11)
    assert [str(p).splitlines()[0].split(": ", 1)[1] for p in state.problems] == ["the name 'nope' is not defined."]
    assert evaluate(state.value("tokens"), "ab") == Sequence(("aa", "bb"), "string")
    for hidden in ("_b", "out", "c"):
        with pytest.raises(RaspError):
            state.value(hidden)


def test_load_finds_files_beside_the_loading_one_and_refuses_circles(tmp_path):
    (tmp_path / "a.rasp").write_text('x = 1;\nload "b";')
    (tmp_path / "b.rasp").write_text('y = 2;\nload "a";')
    state = Interpreter()
    state.run_file(tmp_path / "a.rasp")
    assert (state.value("x"), state.value("y")) == (1, 2)
    (problem,) = state.problems
    assert "loads itself" in str(problem)
    with pytest.raises(RaspError, match="Did you mean 'paper_examples'"):
        run('load "paper_example";')


# ---- hostile programs end

HOSTILE = {
    "endless recursion": "def f(n) { return f(n+1); }\nf(0);",
    "mutual recursion": "def f(n) { return g(n)+1; }\ndef g(n) { return [x for x in [f(n)]]; }\nf(0);",
    "a huge range": "range(10^12);",
    "a huge range from far": "range(10^300, 10^300+5);",
    "nested loops": "for i in range(90000) { for j in range(90000) { x=1; } }",
    "nested comprehensions": "[[[1 for k in range(1000)] for j in range(1000)] for i in range(1000)];",
    "a huge power": "9^9^9^9^9^9;",
    "growing integers": "x=3; for i in range(50) { x=x*x; }",
    "growing floats": "x=10.5; for i in range(50) { x=x*x; }",
    "growing strings": 'x="ab"; for i in range(50) { x=x+x; }',
    "a repeated string": '"ab"*10^9;',
    "growing lists": "x=[1]; for i in range(50) { x=x+x; }",
    "growing s-ops": "x=tokens; for i in range(50) { x=x+x; }",
    "comparing twins": "a=[1]; b=[1]; for i in range(60) { a=[a,a]; b=[b,b]; } a==b;",
    "comparing deep lists": "a=[1]; b=[1]; for i in range(50000) { a=[a]; b=[b]; } a==b;",
    "searching long lists": "l=range(90000); for i in range(90000) { x = -1 in l; }",
    "searching a long list everywhere": "l=range(90000); for i in range(9000) { x = indices-1 in l; }",
    "many s-ops": "for i in range(100000) { x=indices+i; }",
    "an exponent out of range": "10.5^1000;",
    "a nan": '(tokens_float)(["nan"]);',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_end_with_an_error(name):
    with pytest.raises(RaspError) as caught:
        run(HOSTILE[name])
    assert len(str(caught.value)) < 2_000


def test_long_inputs_are_refused_and_wide_ones_run_out_of_work():
    with pytest.raises(RaspError, match="longer than"):
        evaluate(out("indices+1;"), "a" * (LONGEST + 1))
    node = out("x=full_s; for i in range(9) { x = x and select(indices,i,>=); } x;")
    with pytest.raises(RaspError, match="too much work"):
        Run("a" * LONGEST, Budget(1_000_000)).result(node)


def test_a_long_chain_of_steps_needs_no_recursion():
    assert on("x=indices; for i in range(3000) { x=x+1; } x;", "ab") == [3000, 3001]


WORDS = [
    *(
        "f",
        "g",
        "a",
        "tokens",
        "indices",
        "length",
        "full_s",
        "tokens_int",
        "sort",
        "0",
        "1",
        "2.5",
        '"x"',
        "True",
        "[1,2]",
    ),
    *(
        "range(3)",
        "{1:2}",
        "aggregate(full_s,indices)",
        "selector_width(full_s)",
        'tokens("ab")',
        "f(a)",
        "a[0]",
        "[f]",
    ),
]


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """Expressions that parse and mostly make no sense."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(WORDS))
    a, b, c = (draw(expressions(depth - 1)) for _ in range(3))
    op = draw(st.sampled_from(["+", "-", "*", "/", "%", "^", "==", "<", "and", "or", "in", "call", "index", "select"]))
    forms = {"call": f"({a})({b})", "index": f"({a})[{b}]", "select": f"aggregate(select({a},{b},<),{c})"}
    return forms.get(op, f"({a}) {op} ({b}) if ({c}) else not -({a})")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(expressions(), min_size=1, max_size=4))
def test_any_program_runs_or_ends_with_an_error_that_has_a_place(parts):
    state, display, errors = Interpreter(), [], []
    for part in parts:
        try:
            state.run(parse(f"a = {part}; def f(x) {{ return {part}; }} a;"))
        except RaspError as error:
            errors.append(error)
        display += Display(state).flush()
    assert all(isinstance(text, str) for text in display)
    assert all(error.span is not None for error in errors)
