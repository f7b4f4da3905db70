"""The grammar: precedence against a second parser, where errors stand and what they say, and noise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.rasp import RaspError, parse, traps
from circuits.rasp.parser import LONGEST, Incomplete
from circuits.rasp.syntax import (
    Aggregate,
    Assign,
    Binary,
    Builtin,
    Call,
    Comprehension,
    Define,
    Evaluate,
    Expression,
    Index,
    Literal,
    Loop,
    Name,
    Select,
    Ternary,
    Unary,
    walk,
)

OPERATORS = ("^", "*", "/", "%", "+", "-", "==", "<=", ">=", "<", ">", "and", "or")
LEVELS = [["^"], ["*", "/"], ["%"], ["+", "-"], ["==", "<=", ">=", "<", ">"], ["and", "or"]]  # tightest first


def expression(text: str) -> Expression:
    (statement,) = parse(text + ";").statements
    assert isinstance(statement, Evaluate)
    return statement.expression


def bracketed(node: Expression) -> str:
    """The tree as text with every bracket written."""
    match node:
        case Literal(value=value):
            return str(value)
        case Name(id=name):
            return name
        case Unary(op=op, operand=operand):
            return f"({op} {bracketed(operand)})"
        case Binary(op=op, left=left, right=right):
            return f"({bracketed(left)} {op} {bracketed(right)})"
        case Ternary(value=value, condition=condition, other=other):
            return f"({bracketed(value)} if {bracketed(condition)} else {bracketed(other)})"
        case Index(target=target, index=index):
            return f"{bracketed(target)}[{bracketed(index)}]"
        case Call(function=function, arguments=arguments):
            return f"{bracketed(function)}({','.join(map(bracketed, arguments))})"
    raise TypeError(node)


def grouped(words: list[str]) -> str:
    """A second reading of the precedence table: unary operators first, then level by level from the left."""
    items: list[str] = []
    for word in reversed(words):
        if word.startswith("~"):
            items[0] = f"({word[1:]} {items[0]})"
        else:
            items.insert(0, word)
    for level in LEVELS:
        out = items[:1]
        for op, right in zip(items[1::2], items[2::2], strict=True):
            if op in level:
                out[-1] = f"({out[-1]} {op} {right})"
            else:
                out += [op, right]
        items = out
    return items[0]


@st.composite
def chains(draw: st.DrawFn) -> list[str]:
    """Operands with unary operators (marked ~) before them, joined by binary ones."""
    words: list[str] = []
    for i in range(draw(st.integers(1, 7))):
        words += [draw(st.sampled_from(OPERATORS))] if i else []
        words += [f"~{op}" for op in draw(st.lists(st.sampled_from(["not", "-", "+"]), max_size=2))] + [f"x{i}"]
    return words


@settings(max_examples=200, deadline=None, derandomize=True)
@given(chains())
def test_every_chain_of_operators_is_grouped_as_the_table_says(words):
    text = " ".join(word.removeprefix("~") for word in words)
    assert bracketed(expression(text)) == grouped(words)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("not a==b", "((not a) == b)"),
        ("-2^2", "((- 2) ^ 2)"),
        ("2^3^2", "((2 ^ 3) ^ 2)"),
        ("2^-1", "(2 ^ (- 1))"),
        ("7*3%4", "((7 * 3) % 4)"),
        ("2%3*2", "(2 % (3 * 2))"),
        ("a or b and c", "((a or b) and c)"),
        ("1 if a else 2 if b else 3", "((1 if a else 2) if b else 3)"),
        ("1 if a if b else c else 2", "(1 if (a if b else c) else 2)"),
        ("x in l and y", "(x in (l and y))"),
        ("1 if x in l else 2", "(1 if (x in l) else 2)"),
        ("a if b else c in d", "((a if b else c) in d)"),
        ("1<2<3", "((1 < 2) < 3)"),
        ("-x[0]", "(- x[0])"),
        ("not f(a)(b)[1]", "(not f(a)(b)[1])"),
        ("round(x)[0]", "(round x)[0]"),
        ("indicator(a) + 1", "((indicator a) + 1)"),
    ],
)
def test_precedence(text, tree):
    assert bracketed(expression(text)) == tree


def test_fused_tokens_are_calls_of_the_language_only_without_a_space():
    assert isinstance(expression("select(a,b,!=)"), Select)
    assert isinstance(expression("aggregate(a,b)"), Aggregate)
    assert isinstance(expression("aggregate(a,b,0)"), Aggregate)
    assert isinstance(expression("range(3)"), Builtin)
    for word in ("range", "zip", "len", "aggregate"):
        assert isinstance(expression(f"{word} (a)"), Call)
    with pytest.raises(RaspError):
        parse("select (a,b,==);")


def test_s_op_is_one_word_and_keywords_are_no_names():
    with pytest.raises(RaspError):
        parse("s-op;")
    for word in ("example", "examples", "on", "off", "show", "set", "load", "draw", "selector", "in", "round"):
        with pytest.raises(RaspError):
            parse(f"{word} = 1;")
    assert bracketed(expression("notes - online")) == "(notes - online)"


def test_statements():
    program = parse(
        "a,b = 1,2;\ndef f(x,y) {\n for i,j in zip(x,y) { z = i; }\n return z, x;\n}\n"
        'set example [1,\n2]\nload "x";\nd = {k:v for k,v in l};\nshow s-op example\nexit()'
    )
    kinds = [type(s).__name__ for s in program.statements]
    assert kinds == ["Assign", "Define", "SetExample", "Load", "Assign", "ShowExample", "Quit"]
    define = program.statements[1]
    assert isinstance(define, Define) and isinstance(define.body[0], Loop) and len(define.returns) == 2
    dictionary = program.statements[4]
    assert isinstance(dictionary, Assign) and isinstance(dictionary.values[0], Comprehension)


def test_commands_end_with_their_line_where_an_expression_could_go_on():
    first, second = parse("set example [1]\n[2];").statements
    assert (type(first).__name__, type(second).__name__) == ("SetExample", "Evaluate")


def test_a_node_knows_its_place():
    node = expression("1 +\n  foo * 2")
    assert isinstance(node, Binary)
    assert (node.right.at.line, node.right.at.column, node.right.at.end_column) == (2, 3, 10)


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("a=1\nb=2;", 1, 4, "';' is missing after '1'"),
        ("a = f(1)   # comment\n\nb=2;", 1, 9, "';' is missing"),
        ("def f(a) { b=a; }", 1, 17, "return"),
        ("def f(a) { return a; b; }", 1, 22, "after its `return`"),
        ("x = [1,2;", 1, 9, "'[' of line 1 is still open"),
        ("7//2;", 1, 3, "there is no `//`"),
        ("a**2;", 1, 3, "`^`"),
        ("a != b;", 1, 3, "not (a == b)"),
        ("a = b = c;", 1, 7, "`==`"),
        ("a='x';", 1, 3, "double quotes"),
        ('a="x\n";', 1, 3, "on the same line"),
        (".5;", 1, 1, "0.5"),
        ("1.;", 1, 2, "1.0"),
        ("\n  a=@;", 2, 5, "'@'"),
        ('set example "a";', 1, 16, "takes no ';'"),
        ("retrun x;", 1, 8, "Did you mean 'return'?"),
        ("a = if;", 1, 5, "keyword"),
        ("1e3;", 1, 2, "e3"),
        ("a = " + "9" * 2000 + ";", 1, 5, "digits"),
    ],
)
def test_errors_say_where_and_what_to_type(text, line, column, says):
    with pytest.raises(RaspError) as caught:
        parse(text, "prog.rasp")
    assert (caught.value.span.line, caught.value.span.column) == (line, column)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"prog.rasp:{line}:{column}: ")


def test_the_caret_stands_under_the_place():
    with pytest.raises(RaspError) as caught:
        parse("ok;\n\tx = 1 $ 2;", "p")
    assert str(caught.value).splitlines()[1:] == ["    \tx = 1 $ 2;", "    \t      ^"]


@pytest.mark.parametrize("text", ["a=1", "f(", "def f(a) {", "[1,", "a = 1 +", "for i in range(3) { a=i;"])
def test_an_unfinished_text_is_told_from_a_wrong_one(text):
    with pytest.raises(Incomplete):
        parse(text)


TRAPS = {
    "not a==b": "`not` binds tighter",
    "a or b and c": "bind alike",
    "1 if a else 2 if b else 3": "`(a if b else c) if d else e`",
    "x in l and y": "loosest",
    "1<2<3": "do not chain",
    "2^3^2": "to the left",
    "-2^2": "tighter than `^`",
    "2%3*2": "looser",
}


@pytest.mark.parametrize("text", TRAPS)
def test_traps_are_seen(text):
    ((span, message),) = traps(parse(f"\n {text};"))
    assert TRAPS[text] in message
    assert (span.line, span.column) == (2, 2)


@pytest.mark.parametrize(
    "text",
    [
        "(not a)==b",
        "not (a==b)",
        "(a or b) and c",
        "a and b and c",
        "(1 if a else 2) if b else 3",
        "1 if a else (2 if b else 3)",
        "(x in l) and y",
        "x in (l and y)",
        "(2^3)^2",
        "(-2)^2",
        "7*3%4",
        "not a or b",
        "a+b==c",
    ],
)
def test_parentheses_silence_the_warning(text):
    assert traps(parse(text + ";")) == []


# ---- noise

WORDS = [
    *("a", "tokens", "1", "2.5", '"x"', "aggregate(", "select(", "range(", "zip(", "len(", "round", "indicator", "("),
    *(")", "[", "]", "{", "}", ",", ";", ":", "=", "==", "!=", "<", "+", "-", "*", "/", "%", "^", "not", "and", "or"),
    *("in", "if", "else", "for", "def", "return", "load", "draw", "set", "example", "show", "s-op", "examples", "on"),
    *("full seq display", "exit()", "#c\n", "\n", " "),
]


def checked(text: str) -> None:
    """Either a tree or an error that stands inside the text."""
    error = None
    try:
        program = parse(text)
    except RaspError as caught:
        error = caught
    if error is None:
        assert next(walk(program)) is program
        return
    lines = text.split("\n")
    assert error.span is not None
    assert 1 <= error.span.line <= len(lines)
    assert 1 <= error.span.column <= len(lines[error.span.line - 1]) + 1
    assert str(error)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_any_words_give_a_tree_or_an_error_with_a_place(text):
    checked(text)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_gives_a_tree_or_an_error_with_a_place(text):
    checked(text)


EXAMPLE = 'def f ( a ) { b = a [ 1 ] ; return a if b else { 1 : 2 } ; } set example "x" \n f ( tokens ) ;'


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_program_with_one_word_taken_out_or_put_in(data):
    words = EXAMPLE.split(" ")
    place = data.draw(st.integers(0, len(words) - 1))
    new = data.draw(st.lists(st.sampled_from(WORDS), max_size=1))
    checked(" ".join(words[:place] + new + words[place + 1 :]))


@pytest.mark.parametrize(
    "text", ["(" * 5000, "(" * 5000 + "1" + ")" * 5000 + ";", "-" * 5000 + "1;", "1" + "+1" * 5000 + ";"]
)
def test_deep_nesting_is_an_error(text):
    with pytest.raises(RaspError):
        parse(text)


def test_a_program_too_long_is_an_error():
    with pytest.raises(RaspError, match="characters"):
        parse("a;" * (LONGEST // 2 + 1))
