"""From text to the syntax tree: the whole file at once, with an error that says where, why and what to type."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Tree, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive

from circuits.rasp.errors import RaspError, Source, Span
from circuits.rasp.syntax import (
    Aggregate,
    Assign,
    Binary,
    Builtin,
    Call,
    Comprehension,
    Define,
    Dict,
    Draw,
    Evaluate,
    Expression,
    Index,
    List,
    Literal,
    Load,
    Loop,
    Name,
    Program,
    Quit,
    Select,
    SetExample,
    ShowExample,
    Statement,
    Switch,
    Ternary,
    Unary,
)
from interp.errors import nearest

NESTING = 250  # levels of the syntax tree
LONGEST = 1_000_000  # characters of a program
DIGITS = 1_000  # of a number
COMMANDS = {"SET", "SHOW", "EXAMPLES", "FULL_SEQ_DISPLAY", "QUIT"}
OPENING = {"LPAR", "LSQB", "LBRACE", "SELECT", "AGGREGATE", "RANGE", "ZIP", "LEN"}
CLOSING = {"RPAR", "RSQB", "RBRACE"}
KEYWORDS = (
    *("def", "return", "for", "in", "if", "else", "and", "or", "not", "round", "indicator", "load", "draw"),
    *("set", "show", "example", "examples", "on", "off", "s-op", "selector"),
)


class Incomplete(RaspError):
    """The text ends in the middle of a statement."""


def parse(text: str, name: str = "<text>") -> Program:
    """The syntax tree of a program.

    Raises `Incomplete` where the text ends too early, `RaspError` for anything else that is not RASP, for more than
    `LONGEST` characters and for more than `NESTING` levels.
    """
    source = Source(name, text)
    if len(text) > LONGEST:
        raise RaspError(f"{name}: a program has at most {LONGEST:,} characters")
    try:
        tree = _lark().parse(text)
    except UnexpectedInput as error:
        raise _explained(error, source) from None
    _check_nesting(tree, source)
    try:
        return _Builder(source).transform(tree)
    except VisitError as error:
        raise error.orig_exc from None


@functools.cache
def _lark() -> Lark:
    grammar = files("circuits.rasp").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", postlex=_LineEnds(), propagate_positions=True)


class _LineEnds:
    """Commands have no semicolon: they end with their line, where this puts the token END."""

    always_accept = ()

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """The tokens, with an END after each command."""
        last, depth = None, 0  # of the command that is being read
        for token in stream:
            if last is not None and depth <= 0 and (token.line or 0) > (last.end_line or 0):
                yield Token.new_borrow_pos("END", "", last)
                last, depth = None, 0
            if last is not None or token.type in COMMANDS:
                last = token
                depth += (token.type in OPENING) - (token.type in CLOSING)
            yield token
        if last is not None:
            yield Token.new_borrow_pos("END", "", last)


def _check_nesting(tree: Tree[Token], source: Source) -> None:
    depth: dict[int, int] = {}
    for node in tree.iter_subtrees():  # children before parents
        depth[id(node)] = 1 + max((depth[id(c)] for c in node.children if isinstance(c, Tree)), default=0)
        if depth[id(node)] > NESTING:
            raise RaspError(f"nested more than {NESTING} levels deep", _span(node.meta, source))


def _span(at: Meta | Token, source: Source) -> Span:
    if isinstance(at, Meta) and at.empty:
        return Span(source, 1, 1, 1, 1)
    return Span(source, at.line or 1, at.column or 1, at.end_line or 1, at.end_column or 1)


@v_args(meta=True)
class _Builder(Transformer_NonRecursive[Token, Any]):
    """One method for each rule of the grammar."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def _at(self, at: Meta | Token) -> Span:
        return _span(at, self.source)

    def _name(self, token: Token) -> Name:
        return Name(self._at(token), str(token))

    def start(self, meta: Meta, children: list[Statement]) -> Program:
        return Program(tuple(children))

    def statement(self, meta: Meta, children: list[Any]) -> Evaluate:
        return Evaluate(self._at(meta), children[0])

    def assign(self, meta: Meta, children: list[Any]) -> Assign:
        return Assign(self._at(meta), *children)

    def draw(self, meta: Meta, children: list[Any]) -> Draw:
        return Draw(self._at(meta), *children)

    def load(self, meta: Meta, children: list[Any]) -> Load:
        return Load(self._at(meta), children[0][1:-1])

    def define(self, meta: Meta, children: list[Any]) -> Define:
        name, parameters, body, returns = children
        return Define(self._at(meta), self._name(name), parameters or (), body, returns)

    def loop(self, meta: Meta, children: list[Any]) -> Loop:
        return Loop(self._at(meta), *children)

    def body(self, meta: Meta, children: list[Any]) -> tuple[Statement, ...]:
        return tuple(children)

    def names(self, meta: Meta, children: list[Token]) -> tuple[Name, ...]:
        return tuple(self._name(token) for token in children)

    def expressions(self, meta: Meta, children: list[Any]) -> tuple[Expression, ...]:
        return tuple(children)

    def command(self, meta: Meta, children: list[Any]) -> Statement:
        return children[0]

    def set_example(self, meta: Meta, children: list[Any]) -> SetExample:
        return SetExample(self._at(meta), *children)

    def show_example(self, meta: Meta, children: list[Any]) -> ShowExample:
        return ShowExample(self._at(meta), children[0])

    def switch_examples(self, meta: Meta, children: list[Any]) -> Switch:
        return Switch(self._at(meta), *children)

    def switch_display(self, meta: Meta, children: list[Any]) -> Switch:
        return Switch(self._at(meta), "full", children[1])

    def quit(self, meta: Meta, children: list[Any]) -> Quit:
        return Quit(self._at(meta))

    def kind(self, meta: Meta, children: list[Token]) -> str:
        return str(children[0])

    def state(self, meta: Meta, children: list[Token]) -> bool:
        return children[0] == "on"

    def binary(self, meta: Meta, children: list[Any]) -> Binary:
        left, op, right = children
        return Binary(self._at(meta), str(op), left, right)

    def unary(self, meta: Meta, children: list[Any]) -> Unary:
        return Unary(self._at(meta), str(children[0]), children[1])

    def ternary(self, meta: Meta, children: list[Any]) -> Ternary:
        return Ternary(self._at(meta), *children)

    def index(self, meta: Meta, children: list[Any]) -> Index:
        return Index(self._at(meta), *children)

    def call(self, meta: Meta, children: list[Any]) -> Call:
        return Call(self._at(meta), children[0], children[1] or ())

    def integer(self, meta: Meta, children: list[Token]) -> Literal:
        if len(children[0]) > DIGITS:
            raise RaspError(f"a number of more than {DIGITS} digits", self._at(meta))
        return Literal(self._at(meta), int(children[0]))

    def decimal(self, meta: Meta, children: list[Token]) -> Literal:
        if not math.isfinite(float(children[0])):
            raise RaspError("a number too large for a float", self._at(meta))
        return Literal(self._at(meta), float(children[0]))

    def string(self, meta: Meta, children: list[Token]) -> Literal:
        return Literal(self._at(meta), str(children[0][1:-1]))

    def name(self, meta: Meta, children: list[Token]) -> Name:
        return self._name(children[0])

    def group(self, meta: Meta, children: list[Any]) -> Expression:
        return replace(children[0], grouped=True)

    def list_display(self, meta: Meta, children: list[Any]) -> List:
        return List(self._at(meta), children[0] or ())

    def pair(self, meta: Meta, children: list[Any]) -> tuple[Expression, Expression]:
        return children[0], children[1]

    def dict_display(self, meta: Meta, children: list[Any]) -> Dict:
        return Dict(self._at(meta), tuple(pair for pair in children if pair))

    def list_comprehension(self, meta: Meta, children: list[Any]) -> Comprehension:
        return Comprehension(self._at(meta), None, *children)

    def dict_comprehension(self, meta: Meta, children: list[Any]) -> Comprehension:
        return Comprehension(self._at(meta), *children)

    def select(self, meta: Meta, children: list[Any]) -> Select:
        _, key, query, op = children
        return Select(self._at(meta), key, query, str(op))

    def aggregate(self, meta: Meta, children: list[Any]) -> Aggregate:
        return Aggregate(self._at(meta), *children[1:])

    def builtin(self, meta: Meta, children: list[Any]) -> Builtin:
        return Builtin(self._at(meta), children[0][:-1], children[1] or ())


def _explained(error: UnexpectedInput, source: Source) -> RaspError:
    """What a person needs to know of a syntax error."""
    if isinstance(error, UnexpectedCharacters):
        at = Span(source, error.line, error.column, error.line, error.column + 1)
        return RaspError(_bad_character(source.text[error.pos_in_stream or 0 :]), at)
    assert isinstance(error, UnexpectedToken)
    token, before = error.token, _tokens_before(error.token, source.text)
    accepted = set(error.accepts or ())
    if "SEMICOLON" in accepted and before and (token.type == "$END" or token.line > (before[-1].end_line or 0)):
        last = _span(before[-1], source)
        at = replace(last, line=last.end_line, column=last.end_column, end_column=last.end_column + 1)
        kind = Incomplete if token.type == "$END" else RaspError
        return kind(f"a ';' is missing after {str(before[-1])!r}{_keyword_hint(before, token)}", at)
    if token.type == "$END":
        return Incomplete(*_unfinished(before, source))
    if token.type == "END":
        return RaspError("the command ends too early: it stands on one line", _span(token, source))
    return RaspError(_bad_token(token, before, accepted), _span(token, source))


def _tokens_before(token: Token, text: str) -> list[Token]:
    before = []
    for each in _lark().lex(text):
        if token.type != "$END" and (each.start_pos or 0) >= (token.start_pos or 0):
            break
        before.append(each)
    return [each for each in before if each.type != "END"]


def _bad_character(rest: str) -> str:
    hints = {
        "'": "strings are written in double quotes",
        '"': "a string ends with a double quote on the same line",
        ".": "a number with a point has digits on both sides: 0.5, 1.0",
        "!": NOT_EQUAL,
        "&": "write `and`",
        "|": "write `or`",
    }
    hint = hints.get(rest[0])
    return f"unexpected character {rest[0]!r}" + (f": {hint}" if hint else "")


def _still_open(before: list[Token]) -> list[Token]:
    still_open: list[Token] = []
    for token in before:
        if token.type in OPENING:
            still_open.append(token)
        elif token.type in CLOSING and still_open:
            still_open.pop()
    return still_open


def _unfinished(before: list[Token], source: Source) -> tuple[str, Span]:
    still_open = _still_open(before)
    if still_open:
        return f"{str(still_open[-1])!r} is never closed", _span(still_open[-1], source)
    return "the program ends in the middle of a statement", _span(before[-1], source)


NOT_EQUAL = "`!=` stands only as the last argument of select; elsewhere write not (a == b)"


def _bad_token(token: Token, before: list[Token], accepted: set[str]) -> str:
    hint = _token_hint(token, before, accepted)
    return f"unexpected {str(token)!r}" + (f": {hint}" if hint else "") + _keyword_hint(before, token)


def _token_hint(token: Token, before: list[Token], accepted: set[str]) -> str:
    last, still_open = before[-1] if before else None, _still_open(before)
    cases = [
        (last and token.type == last.type == "SLASH", "division is `/`, there is no `//`"),
        (last and token.type == last.type == "STAR", "a power is written `^`"),
        (token.type == "DIFFERS", NOT_EQUAL),
        (token.type == "EQUAL" and "COMPARE" in accepted, "a comparison is written `==`"),
        (token.type == "RBRACE" and "RETURN" in accepted, "a function ends with `return` and a value"),
        (token.type == "RBRACE" and "SEMICOLON" in accepted, "a ';' is missing before it"),
        (accepted == {"RBRACE"}, "a function ends after its `return`, here comes '}'"),
        ("END" in accepted, "a command ends with its line, and takes no ';'"),
        (str(token) in KEYWORDS or token.type in COMMANDS, "it is a keyword and cannot be a name"),
        (still_open, still_open and f"the {str(still_open[-1])!r} of line {still_open[-1].line} is still open"),
    ]
    return next((str(hint) for true, hint in cases if true), "")


def _keyword_hint(before: list[Token], token: Token) -> str:
    """A misspelt keyword is read as a name, and the word after it comes unexpected."""
    word = str(before[-1]) if before and before[-1].type == "ID" else ""
    follows = token.type in ("ID", "INT", "FLOAT", "STRING")
    return nearest(word, KEYWORDS, count=1).replace(" Did", ". Did") if follows and len(word) > 2 else ""
