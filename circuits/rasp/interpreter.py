"""Runs statements: environments, functions, loops, and the s-ops that expressions make."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from circuits.rasp import graph, ops, syntax
from circuits.rasp.errors import Budget, RaspError, Span
from circuits.rasp.evaluate import Matrix, Run, Sequence
from circuits.rasp.graph import Node, Selector, SOp
from circuits.rasp.parser import LONGEST, parse
from circuits.rasp.syntax import Expression, Name, Program, Statement
from interp.errors import nearest

RESERVED = {"if", "else", "not", "and", "or", "out", "def", "return", "range", "for", "in", "zip", "len", "get"}
CONSTANTS = {"True": True, "False": False}
INPUTS = ("indices", *ops.CASTS)
PACKAGED = Path(str(files("circuits.rasp").joinpath("library")))
DEEPEST = 2_000  # nested evaluations, over all calls
SHORT = 10  # elements, and half the letters, of a list in a label
FUSED = {"select", "aggregate", "zip", "range", "len"}


class Stop(Exception):
    """The program asked to quit."""


@dataclass(eq=False)
class Scope:
    """Names and their values; a name not found here is looked up in the parent, when it is used."""

    parent: Scope | None = None
    values: dict[str, Any] = field(default_factory=dict)
    name: str = "console"  # that its functions are shown with

    def inside(self, values: dict[str, Any] | None = None) -> Scope:
        """A scope within this one, for a function's body or a comprehension."""
        return Scope(self, values or {}, f"{self.name}'")

    def find(self, name: str) -> Any:
        """The value of the name. Raises `RaspError`, with the nearest names."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        hint = f" `{name}(` is written without a space." if name in FUSED else nearest(name, self.known())
        raise RaspError(f"the name {name!r} is not defined.{hint}")

    def known(self) -> set[str]:
        """All names that can be used here."""
        return set(self.values) | (self.parent.known() if self.parent else set())


@dataclass(eq=False)
class Function:
    """A function with the scope it was defined in."""

    name: str
    parameters: tuple[str, ...]
    body: tuple[Statement, ...]
    returns: tuple[Expression, ...]
    scope: Scope
    library: bool


@dataclass(frozen=True)
class Shown:
    """What a statement has to show: the value of a name, `out` where it has none of its own; None: an s-op's on an input.

    Names that a file gave are shown without an example.
    """

    name: str | None
    value: Any
    example: bool = True


@dataclass(frozen=True)
class Drawn:
    """What `draw` has to show: a step and its values on an input."""

    value: Node
    run: Run


class Interpreter:
    """RASP's state: names, the examples every new s-op and selector is tried on, and what there is to show.

    `problems` collects errors in loaded files, which do not stop the program that loads them; `shown` what statements show,
    with these errors among it. `out` is in every scope the last value that an expression had there.
    """

    def __init__(self) -> None:
        self.budget = Budget()
        self.problems: list[RaspError] = []
        self.shown: list[Shown | Drawn | syntax.ShowExample | syntax.Switch | RaspError] = []
        self.loading: list[Path] = []
        self.reserved = RESERVED | CONSTANTS.keys() | set(INPUTS)
        self.depth = 0
        self.examples = dict.fromkeys(("s-op", "selector"), Run("hello", self.budget))
        self.base = Scope(None, CONSTANTS | {name: _input(name) for name in INPUTS})
        self.base.values["tokens"] = self.base.values["tokens_str"]
        self._load_library()
        self.scope = Scope(self.base)

    def run(self, program: Program) -> None:
        """Execute every statement in the global scope. Raises the `RaspError` of the first that fails."""
        with contextlib.suppress(Stop):
            for statement in program.statements:
                self.execute(statement)

    def run_file(self, file: Path) -> Program:
        """Execute a file; a statement that fails is kept in `problems`, and the next is tried.

        Raises `RaspError` for a file that cannot be read or parsed.
        """
        self.loading = [file.resolve()]
        program = parse(read_program(file), str(file))
        self._run_on(program, self.execute)
        return program

    def _run_on(self, program: Program, execute: Callable[[Statement], None]) -> None:
        with contextlib.suppress(Stop):
            for statement in program.statements:
                try:
                    execute(statement)
                except RaspError as error:
                    self.problems.append(error)
                    self.shown.append(error)

    def execute(self, statement: Statement) -> None:
        """Execute one statement in the global scope; one that fails changes nothing but what it did before it failed."""
        self.budget.left = Budget.UNITS
        try:
            with _deep_recursion():
                self._execute(statement, self.scope, top=True)
        except RecursionError:
            raise RaspError("nested too deep: it was stopped", statement.at) from None

    def value(self, name: str) -> Any:
        """What a global name is bound to. Raises `RaspError` where it is not."""
        return self.scope.find(name)

    # ---- statements

    def _execute(self, statement: Statement, scope: Scope, top: bool = False) -> None:
        try:
            self._statement(statement, scope, top)
        except RaspError as error:
            raise error.placed(statement.at) from None

    def _statement(self, statement: Statement, scope: Scope, top: bool) -> None:
        match statement:
            case syntax.Evaluate(expression=expression):
                value = self._evaluate(expression, scope)
                if top:
                    applied = isinstance(expression, syntax.Call) and isinstance(value, Sequence | Matrix)
                    self._show(expression.id if isinstance(expression, Name) else None if applied else "out", value)
            case syntax.Assign(names=names, values=values):
                self._assign(names, self._several(values, scope), scope, top)
            case syntax.Define(name=name, parameters=parameters, body=body, returns=returns):
                ids = tuple(p.id for p in parameters)
                function = Function(name.id, ids, body, returns, scope, library=not self.scope_is_ready)
                self._bind(name, function, scope)
                if top:
                    self._show(name.id, function)
            case syntax.Loop(names=names, iterable=iterable, body=body):
                for item in self._items(iterable, scope, "for loop"):
                    for variable, value in self._unpacked(names, item):
                        self._bind(variable, value, scope)
                    for inner in body:
                        self._execute(inner, scope)
            case syntax.Load(path=path):
                self._load(path, scope)
            case syntax.SetExample(kind=kind, value=expression):
                run = Run(self._evaluate(expression, scope), self.budget)
                self.examples |= {kind: run} if kind else {"s-op": run, "selector": run}
            case syntax.Draw(value=expression, input=tokens):
                self._draw(expression, tokens, scope)
            case syntax.ShowExample() | syntax.Switch():
                self.shown.append(statement)
            case syntax.Quit():
                raise Stop

    def _show(self, name: str | None, value: Any) -> None:
        self.shown.append(Shown(name, value))

    def _draw(self, expression: Expression, tokens: Expression | None, scope: Scope) -> None:
        value = self._evaluate(expression, scope)
        if not isinstance(value, Node):
            raise RaspError(f"draw expects an s-op or selector, got: {_brief(value)}")
        run = Run(self._evaluate(tokens, scope), self.budget) if tokens else self.examples["s-op"]
        run.result(value)  # type: ignore[arg-type]
        self.shown.append(Drawn(value, run))

    def _assign(self, names: tuple[Name, ...], value: Any, scope: Scope, top: bool) -> None:
        if len(names) == 1:
            pairs = [(names[0], value)]
        else:
            if not isinstance(value, str | list | dict):
                raise RaspError(f"expected {len(names)} values, but got one: {_brief(value)}")
            if len(value) != len(names):
                raise RaspError(f"expected {len(names)} values, but got: {len(value)}")
            pairs = list(zip(names, value, strict=True))
        for name, each in pairs:
            self._bind(name, each, scope)
            if top:
                self._show(name.id, each)

    def _bind(self, name: Name, value: Any, scope: Scope) -> None:
        if name.id in self.reserved:
            raise RaspError(f"cannot set the reserved name {name.id!r}", name.at)
        scope.values[name.id] = value
        if isinstance(value, Node):
            value.label = name.id
        if isinstance(value, Node) and not isinstance(value, graph.Input) and (value.name is None or value.inner):
            value.name, value.inner = name.id, scope is not self.scope

    def _load(self, path: str, scope: Scope) -> None:
        """Run a file over the library alone; its public names come here and are shown. Its errors are kept in `problems`."""
        file = find_file(path, self.loading[-1].parent if self.loading else None)
        inner = Scope(self.base, name=path)
        if file in self.loading:
            raise RaspError(f"{file} loads itself")
        shown, outer, self.scope = len(self.shown), self.scope, inner
        self.loading.append(file)
        try:
            self._run_on(
                parse(read_program(file), str(file)), lambda statement: self._execute(statement, inner, top=True)
            )
        finally:
            self.loading.pop()
            self.scope = outer
            self.shown[shown:] = _of_file(self.shown[shown:])
        scope.values |= {k: v for k, v in inner.values.items() if _public(k)}

    def _load_library(self) -> None:
        """The standard library: its public names become reserved."""
        self.scope = Scope(self.base, name="RASP_support/rasplib")  # as the reference shows its functions
        self.run(_library())
        public = {k: v for k, v in self.scope.values.items() if _public(k)}
        self.base.values |= public
        self.reserved |= public.keys()
        self.shown.clear()

    # ---- expressions

    def _evaluate(self, node: Expression, scope: Scope) -> Any:
        self.budget.spend(10)
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise RaspError("this calls itself without end, or is nested too deep: it was stopped", node.at)
            value = self._expression(node, scope)
            if not (isinstance(node, syntax.Call) and isinstance(value, Sequence | Matrix)):
                scope.values["out"] = value
            return value
        except RaspError as error:
            raise error.placed(node.at) from None
        finally:
            self.depth -= 1

    def _expression(self, node: Expression, scope: Scope) -> Any:
        match node:
            case syntax.Literal(value=value):
                return value
            case Name(id=name):
                return self._tried(scope.find(name))
            case syntax.Unary(op=op, operand=operand):
                return self._unary(op, self._evaluate(operand, scope), node.at)
            case syntax.Binary(op=op, left=left, right=right):
                return self._binary(op, self._evaluate(left, scope), self._evaluate(right, scope), node.at)
            case syntax.Ternary():
                return self._ternary(node, scope)
            case syntax.Index(target=target, index=index):
                return self._index(self._evaluate(target, scope), self._evaluate(index, scope), node.at)
            case syntax.Call():
                return self._call(node, scope)
            case syntax.Builtin(name=name, arguments=arguments):
                return BUILTINS[name](self, [self._evaluate(a, scope) for a in arguments])
            case syntax.Select(key=key, query=query, op=op):
                sides = [self._side(self._evaluate(e, scope)) for e in (key, query)]
                return self._made(graph.Select(sides[0], sides[1], op), node.at)
            case syntax.Aggregate():
                return self._aggregate(node, scope)
            case syntax.List(items=items):
                return [self._evaluate(item, scope) for item in items]
            case syntax.Dict(pairs=pairs):
                return {self._key(self._evaluate(k, scope)): self._evaluate(v, scope) for k, v in pairs}
            case syntax.Comprehension():
                return self._comprehension(node, scope)
        raise TypeError(f"no expression: {node!r}")

    def _made(self, step: Node, at: Span) -> Any:
        self.budget.spend(100)
        step.at = at
        return self._tried(step)

    def _tried(self, step: Any) -> Any:
        """The value itself; an s-op or selector, new or named, is run at once on the current example."""
        if not isinstance(step, Node):
            return step
        run = self.examples["selector" if isinstance(step, Selector) else "s-op"]
        try:
            run.result(step)  # type: ignore[arg-type]
        except RaspError as error:
            raise RaspError(f"{error.message} (tried on {ops.brief(run.tokens)})", error.span) from None
        return step

    def _elementwise(self, op: str, *arguments: Any, at: Span) -> Any:
        """`op` of atoms now, of s-ops at every position later."""
        for value in arguments:
            if isinstance(value, Function | Sequence | Matrix | Selector):
                raise RaspError(f"`{op}` does not work on {_brief(value)}")
        if any(isinstance(value, SOp) for value in arguments):
            return self._made(graph.Elementwise(op, arguments), at)
        if op != "index":
            self.budget.spend(sum(ops.size(value) for value in arguments if not isinstance(value, int | float)))
        return ops.apply(op, *arguments)

    def _unary(self, op: str, value: Any, at: Span) -> Any:
        if op == "indicator" and not isinstance(value, SOp):
            raise RaspError(f"indicator operator expects s-op, got: {_brief(value)}")
        if op == "not" and isinstance(value, Selector):
            return self._made(graph.Combine("not", (value,)), at)
        return self._elementwise({"-": "minus", "+": "plus"}.get(op, op), value, at=at)

    def _binary(self, op: str, left: Any, right: Any, at: Span) -> Any:
        if op == "in":
            return self._contains(left, right, at)
        if op in ("and", "or") and (isinstance(left, Selector) or isinstance(right, Selector)):
            if not (isinstance(left, Selector) and isinstance(right, Selector)):
                raise RaspError("Cannot apply and/or between selector and non-selector")
            return self._made(graph.Combine(op, (left, right)), at)
        if op in ("and", "or") and not (isinstance(left, SOp) or isinstance(right, SOp)):
            return (left and right) if op == "and" else (left or right)
        if op in ("and", "or"):
            left, right = self._side(left), self._side(right)
        return self._elementwise(op, left, right, at=at)

    def _contains(self, left: Any, right: Any, at: Span) -> Any:
        """An atom or each element in a list; an atom anywhere in an s-op, by one head that attends everywhere."""
        if isinstance(left, Selector):
            raise RaspError("a selector cannot be looked for in a list: selectors are not compared")
        if isinstance(right, SOp) and ops.is_atom(left):
            here = self._unary("indicator", self._elementwise("==", right, left, at=at), at)
            share = self._made(graph.Aggregate(self.base.values["full_s"], here, 0), at)
            return self._elementwise(">", share, 0, at=at)
        if not isinstance(right, list):
            raise RaspError(f"`in` expects a list on its right (or an atom in an s-op), got: {_brief(right)}")
        if isinstance(left, SOp) and not all(map(ops.is_atom, right)):
            raise RaspError(f"an s-op can be looked for in a list of atoms only, got: {_brief(right)}")
        return self._elementwise("in", left, right, at=at)

    def _ternary(self, node: syntax.Ternary, scope: Scope) -> Any:
        """With an atom as condition only the chosen side is evaluated; with an s-op both are, at every position."""
        condition = self._evaluate(node.condition, scope)
        if not isinstance(condition, SOp | Selector):
            return self._evaluate(node.value if condition else node.other, scope)
        value, other = self._evaluate(node.value, scope), self._evaluate(node.other, scope)
        return self._elementwise("if", condition, value, other, at=node.at)

    def _index(self, target: Any, index: Any, at: Span) -> Any:
        if isinstance(target, SOp):
            return self._element(target, index, at)
        if not isinstance(target, list | dict | str):
            raise RaspError(f"only lists, dicts, strings and s-ops have elements, got: {_brief(target)}")
        return self._elementwise("index", target, index, at=at)

    def _element(self, target: SOp, index: Any, at: Span) -> Any:
        """The element at a fixed position, at every position; from the end if the index is negative."""
        if type(index) is not int:
            raise RaspError(f"the index of an s-op is an integer, got: {_brief(index)}")
        place = index
        if index < 0:
            place = self._elementwise("+", self.base.values["length"], index, at=at)
        selector = self._made(graph.Select(self.base.values["indices"], place, "=="), at)
        step = self._made(graph.Aggregate(selector, target, 0), at)
        step.label = f"{graph.label(target)}[{index}]"
        return step

    def _aggregate(self, node: syntax.Aggregate, scope: Scope) -> Any:
        selector = self._evaluate(node.selector, scope)
        if not isinstance(selector, Selector):
            raise RaspError(f"Expected selector, got: {_brief(selector)}", node.selector.at)
        value = self._evaluate(node.value, scope)
        default = self._evaluate(node.default, scope) if node.default else 0
        if not ops.is_atom(default):
            raise RaspError(f"Expected atom, got: {_brief(default)}", node.default.at if node.default else None)
        return self._made(graph.Aggregate(selector, self._side(value), default), node.at)

    def _side(self, value: Any) -> Any:
        if not isinstance(value, SOp) and not ops.is_atom(value):
            raise RaspError(f"expected an s-op or atom, got: {_brief(value)}")
        return value

    def _key(self, value: Any) -> Any:
        if not ops.is_atom(value):
            raise RaspError(f"the keys of a dict are atoms, got: {_brief(value)}")
        return value

    def _several(self, values: tuple[Expression, ...], scope: Scope) -> Any:
        """One value, or a list of several."""
        found = [self._evaluate(value, scope) for value in values]
        return found[0] if len(found) == 1 else found

    def _items(self, node: Expression, scope: Scope, what: str) -> list[Any]:
        value = self._evaluate(node, scope)
        if not isinstance(value, list | dict):
            raise RaspError(f"a {what} goes over a list or dict, got: {_brief(value)}", node.at)
        return list(value)

    def _unpacked(self, names: tuple[Name, ...], item: Any) -> list[tuple[Name, Any]]:
        if len(names) == 1:
            return [(names[0], item)]
        if not isinstance(item, list):
            raise RaspError(f"{len(names)} names, but a single value: {_brief(item)}", names[0].at)
        if len(item) != len(names):
            raise RaspError(f"{len(names)} names, but {len(item)} values: {_brief(item)}", names[0].at)
        return list(zip(names, item, strict=True))

    def _comprehension(self, node: syntax.Comprehension, scope: Scope) -> Any:
        what = "list comprehension" if node.key is None else "dict comprehension"
        inner, keys, values = scope.inside(), [], []
        for item in self._items(node.iterable, scope, what):
            inner.values = {name.id: value for name, value in self._unpacked(node.names, item)}
            keys.append(self._key(self._evaluate(node.key, inner)) if node.key else None)
            values.append(self._evaluate(node.item, inner))
        return values if node.key is None else dict(zip(keys, values, strict=True))

    # ---- calls

    def _call(self, node: syntax.Call, scope: Scope) -> Any:
        arguments = [self._evaluate(argument, scope) for argument in node.arguments]
        with self._tried_on(arguments):
            function = self._evaluate(node.function, scope)
        if isinstance(function, Node):
            self._check_count("an s-op or selector", 1, arguments)
            scope.values["out"] = arguments[0]
            return Run(arguments[0], self.budget).result(function)  # type: ignore[arg-type]
        if not isinstance(function, Function):
            raise RaspError(f"only functions, s-ops and selectors can be called, got: {_brief(function)}")
        self._check_count(function.name, len(function.parameters), arguments)
        inner = function.scope.inside(dict(zip(function.parameters, arguments, strict=True)))
        try:
            for statement in function.body:
                self._execute(statement, inner)
            result = self._several(function.returns, inner)
        except RaspError as error:
            error.calls.append(node.at)
            raise
        if function.library and function.name == "selector_width":
            result = self._made(graph.Width(arguments[0], result), node.at)
        if isinstance(result, Node):
            result.label = f"{function.name}({' , '.join(map(_argument, arguments))})"
        return result

    def _check_count(self, name: str, expected: int, arguments: list[Any]) -> None:
        if len(arguments) != expected:
            raise RaspError(f"wrong number of arguments for {name}: expected {expected}, got {len(arguments)}")

    @contextlib.contextmanager
    def _tried_on(self, arguments: list[Any]) -> Iterator[None]:
        """`s-op(input)`: the s-op is tried on that input, not on the example."""
        kept = self.examples
        if len(arguments) == 1 and isinstance(arguments[0], str | list):
            with contextlib.suppress(RaspError):
                self.examples = dict.fromkeys(kept, Run(arguments[0], self.budget))
        try:
            yield
        finally:
            self.examples = kept

    # ---- range, zip, len

    def _range(self, arguments: list[Any]) -> list[int]:
        if not 1 <= len(arguments) <= 3:
            raise RaspError(f"range expects 1, 2 or 3 arguments, got {len(arguments)}")
        if not all(isinstance(a, int) for a in arguments):
            raise RaspError(f"range expects integers, got: {_brief(arguments)}")
        if len(arguments) == 3 and arguments[2] == 0:
            raise RaspError("the step of a range is not 0")
        numbers = range(*arguments)
        if max(abs(a) for a in arguments) > 2**62 or len(numbers) > ops.ITEMS:
            raise RaspError(f"a range of more than {ops.ITEMS:,} numbers")
        self.budget.spend(10 * len(numbers))
        return list(numbers)

    def _zip(self, arguments: list[Any]) -> list[list[Any]]:
        if not arguments or not all(isinstance(a, list) for a in arguments):
            raise RaspError(f"zip expects lists, got: {_brief(arguments)}")
        if len({len(a) for a in arguments}) > 1:
            raise RaspError(f"zip expects lists of one length, got: {', '.join(str(len(a)) for a in arguments)}")
        self.budget.spend(10 * sum(map(len, arguments)))
        return [list(row) for row in zip(*arguments, strict=True)]

    def _len(self, arguments: list[Any]) -> int:
        if len(arguments) != 1 or not isinstance(arguments[0], list):
            raise RaspError(f"len expects one list, got: {_brief(arguments)}. The length of the input is `length`.")
        return len(arguments[0])

    @property
    def scope_is_ready(self) -> bool:
        """Whether the library has been read."""
        return "length" in self.reserved


def _public(name: str) -> bool:
    """Whether a file's name is one for those who load it."""
    return not name.startswith("_") and name != "out"


def _of_file(shown: list[Any]) -> list[Any]:
    """What is shown of a file: its names, each as it was last, without examples; all that happened if there were errors.

    The switch to the full display outlasts the file.
    """
    errors = any(isinstance(each, RaspError) for each in shown)
    last = {each.name: each for each in shown if isinstance(each, Shown)}
    kept: list[Any] = []
    for each in shown:
        if not isinstance(each, Shown):
            kept += [each] if isinstance(each, RaspError | syntax.ShowExample) or _is_full(each) else []
        elif _public(each.name or "out") and (errors or each is last[each.name]):
            kept.append(replace(each, example=False))
    return kept


def _is_full(shown: Any) -> bool:
    return isinstance(shown, syntax.Switch) and shown.what == "full"


BUILTINS = {"range": Interpreter._range, "zip": Interpreter._zip, "len": Interpreter._len}


def run(text: str, name: str = "<text>") -> Interpreter:
    """An interpreter that has run the program. Raises `RaspError`."""
    interpreter = Interpreter()
    interpreter.run(parse(text, name))
    return interpreter


def find_file(path: str, beside: Path | None) -> Path:
    """What `load "path"` reads: the file in the folder of the one that loads it, else in the working directory, else a packaged one.

    Raises `RaspError` where there is none.
    """
    folders = [*([beside] if beside else []), Path(), PACKAGED]
    with contextlib.suppress(OSError, ValueError):  # names that no file system takes
        for folder in folders:
            if (folder / f"{path}.rasp").is_file():
                return (folder / f"{path}.rasp").resolve()
    known = {f.stem for folder in folders for f in folder.glob("*.rasp")}
    raise RaspError(f"could not find file: {path}.rasp.{nearest(path, known)}")


def read_program(file: Path) -> str:
    """The text of a program, up to where it is too long for one. Raises `RaspError`."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            return opened.read(LONGEST + 1)  # `parse` refuses what is longer
    except (OSError, UnicodeDecodeError) as error:
        raise RaspError(f"could not read {file}: {error}") from None


def _input(source: str) -> graph.Input:
    step = graph.Input(source)
    step.name = "tokens" if source == "tokens_str" else source
    return step


@functools.cache
def _library() -> Program:
    return parse(read_program(PACKAGED / "rasplib.rasp"), "rasplib.rasp")


@contextlib.contextmanager
def _deep_recursion() -> Iterator[None]:
    """Python's own limit is lower than `DEEPEST` evaluations need."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEPEST * 12))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _argument(value: Any, depth: int = 0) -> str:
    """A value in the label of what a call made; lists and dicts only where they are short."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Node):
        return graph.label(value)
    if not isinstance(value, list | dict):
        return str(value) if ops.is_atom(value) else _brief(value)
    if len(value) > SHORT or depth > SHORT:
        return f"({type(value).__name__})"
    if isinstance(value, list):
        text = f"[{', '.join(_argument(item, depth + 1) for item in value)}]"
    else:
        text = f"{{{', '.join(f'{_argument(k)}: {_argument(v, depth + 1)}' for k, v in value.items())}}}"
    return text if len(text) <= 2 * SHORT else f"({type(value).__name__})"


def _brief(value: Any) -> str:
    """A value in an error message."""
    if isinstance(value, Node):
        return value.name or ("a selector" if isinstance(value, Selector) else "an s-op")
    if isinstance(value, Function):
        return f"the function {value.name}"
    return ops.brief(value)
