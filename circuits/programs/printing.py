"""A program as a Python file that needs nothing but Python: plain code, laid out as formatters leave it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuits.programs.program import COUNT, NEVER, ONES, TOKENS, Head, Program, Step, Table, Words
from circuits.programs.tasks import END, UNKNOWN

WIDTH = 88
LONG = 50  # lines of branches, above which a table is written as one

CLOSEST_CODE = '''def closest(wanted, keys, values):
    """At each position the value at the nearest other one whose key is the wanted one.

    Of two equally near the earlier; else its own value if its key is the wanted one;
    else the value at the first position.{note}
    """
    found = []
    for i, want in enumerate(wanted):
        places = [j for j, key in enumerate({keys}) if key == want]
        nearest = min(places, key=lambda j: (j == i, abs(i - j), j), default=0)
        found.append(values[nearest])
    return found'''

COUNT_CODE = '''def count(wanted, keys, values):
    """At each position the sum of the values whose key is the wanted one.{note}"""
    found = []
    for {i}want in {wanted}:
        pairs = zip({keys}, values, strict={strict})
        found.append(sum(v for k, v in pairs if k == want))
    return found'''

MAIN = """if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run({argument}))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
"""


def printed(program: Program, about: str, how: str = "") -> str:
    """The text of the file: `run(body)` gives the labels of a body.

    Started alone it takes a body as its arguments, or JSON lists from standard input, one a line.
    """
    used = {step.kind for step in program.steps if isinstance(step, Head)}
    helpers = [code for kind, code in _helpers(program.causal).items() if kind in used]
    choices = [_choice(program, step) for step in program.steps]
    letters = program.vocabulary[1 : -1 if program.vocabulary[-1] == END else None]
    argument = '"".join(sys.argv[1:])' if all(len(letter) == 1 for letter in letters) else "sys.argv[1:]"
    blocks = [_top(program, about, how), *helpers, *choices, *_label(program), _run(program)]
    return "\n\n\n".join([*blocks, MAIN.format(argument=argument)])


def _helpers(causal: bool) -> dict[str, str]:
    note = " Only what comes before counts." if causal else ""
    each = {"i": "i, ", "wanted": "enumerate(wanted)", "keys": "keys[: i + 1]", "strict": "False"}
    if not causal:
        each = {"i": "", "wanted": "wanted", "keys": "keys", "strict": "True"}
    closest = CLOSEST_CODE.format(keys=each["keys"], note=f"\n   {note}" if causal else "")
    return {"closest": closest, COUNT: COUNT_CODE.format(**each, note=note)}


def _top(program: Program, about: str, how: str) -> str:
    title = f'"""{about[:1].upper()}{about[1:]}.'
    lines = [f'{title}"""' if not how else f'{title}\n\n{how}\n"""', "", "import json", "import sys", ""]
    lines += _spread("LABELS = ", "[]", map(_text, program.labels))
    return "\n".join(lines)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _spread(before: str, brackets: str, items: Iterable[str], after: str = "", indent: str = "") -> list[str]:
    """Items in brackets: on one line, or one a line where that is too long."""
    items = list(items)
    line = f"{indent}{before}{brackets[0]}{', '.join(items)}{brackets[1]}{after}"
    if len(line) <= WIDTH:
        return [line]
    inside = [f"{indent}    {item}," for item in items]
    return [f"{indent}{before}{brackets[0]}", *inside, f"{indent}{brackets[1]}{after}"]


# ---------------------------------------------------------------- choices: what a head seeks, what a table gives


def _groups(values: Mapping[Any, Any]) -> list[tuple[Any, list[Any]]]:
    """(result, the values that give it), the result of most values last."""
    found: dict[Any, list[Any]] = {}
    for value, result in values.items():
        found.setdefault(result, []).append(value)
    return sorted(found.items(), key=lambda pair: len(pair[1]) == max(map(len, found.values())))


def _asks(name: str, values: Sequence[Any], indent: str) -> list[str]:
    if len(values) == 1:
        return [f"{indent}if {name} == {_text(values[0])}:"]
    return _spread(f"if {name} in ", "()", map(_text, values), ":", indent)


def _branches(name: str, values: Mapping[Any, Any], indent: str) -> list[str]:
    """`if` and `return` for a map from values to results; `return name` where most give themselves."""
    same = [v for v, result in values.items() if type(v) is type(result) and v == result]
    if len(same) < max(2, len(values) / 2):
        *others, (last, _) = _groups(values)
        end = f"{indent}return {_text(last)}"
    else:
        others = _groups({v: result for v, result in values.items() if v not in same})
        end = f"{indent}return {name}"
    lines = []
    for result, members in others:
        lines += [*_asks(name, members, indent), f"{indent}    return {_text(result)}"]
    return [*lines, end]


def _nested(names: Sequence[str], rows: Mapping[Any, Mapping[Any, Any]], indent: str) -> list[str]:
    """The same for two variables; rows that do not contradict each other are one branch."""
    merged: list[tuple[list[Any], dict[Any, Any]]] = []
    for value, row in rows.items():
        for members, known in merged:
            if all(known.get(k, v) == v for k, v in row.items()):
                members.append(value)
                known.update(row)
                break
        else:
            merged.append(([value], dict(row)))
    merged.sort(key=lambda pair: len(pair[0]))
    lines = []
    for members, row in merged[:-1]:
        lines += [*_asks(names[0], members, indent), *_branches(names[1], row, indent + "    ")]
    return lines + _branches(names[1], merged[-1][1], indent)


def _words(program: Program, step: Words) -> str:
    lists: dict[int, list[str]] = {}
    for word, kind in zip(program.vocabulary, step.kinds, strict=True):
        lists.setdefault(kind, []).append(word)
    name = step.name.upper()
    lines = [
        f"{name}_LISTS = {{",
        *(f"    {k}: {_text(' '.join(lists[k]))}," for k in sorted(lists)),
        "}",
        f"{name} = {{",
    ]
    return "\n".join([*lines, f"    word: kind for kind, words in {name}_LISTS.items() for word in words.split()", "}"])


def _choice(program: Program, step: Step) -> str:
    if isinstance(step, Words):
        return _words(program, step)
    if isinstance(step, Head):
        queries, keys = program.names(step.query), program.names(step.key)
        wanted = [keys[w] if 0 <= w < len(keys) else None for w in step.wanted[: len(queries)]]
        values = {queries[q]: w for q, w in enumerate(wanted) if step.wanted[q] != NEVER}
        head = f"def {step.name}_seeks({step.query}):"
        about = f'    """Which {step.key} a position with these {step.query} looks for."""'
        return "\n".join([head, about, *_branches(step.query, values, "    ")])
    return _table(program, step)


def _value_names(program: Program, name: str) -> Sequence[Any]:
    return range(program.length + 1) if program.is_count(name) else program.names(name)


def _table(program: Program, step: Table) -> str:
    first, second = (_value_names(program, name) for name in step.reads)
    cells = {
        (i, j): v
        for i, row in enumerate(step.values[: len(first)])
        for j, v in enumerate(row[: len(second)])
        if v != NEVER
    }
    if step.first == step.second:
        values = {first[i]: v for (i, j), v in cells.items() if i == j}
        says = f'    """What it says of {step.first}."""'
        return "\n".join([f"def {step.name}_is({step.first}):", says, *_branches(step.first, values, "    ")])
    rows: dict[Any, dict[Any, int]] = {}
    columns: dict[Any, dict[Any, int]] = {}
    for (i, j), v in cells.items():
        rows.setdefault(first[i], {})[second[j]] = v
        columns.setdefault(second[j], {})[first[i]] = v
    names = list(step.reads)
    written = min(_nested(names, rows, "    "), _nested(names[::-1], columns, "    "), key=len)
    top = [f"def {step.name}_is({', '.join(names)}):", f'    """What it says of {names[0]} and {names[1]}."""']
    if len(written) <= LONG:
        return "\n".join([*top, *written])
    default = Counter(cells.values()).most_common(1)[0][0]
    lines = [f"{step.name.upper()} = {{"]
    for value, row in rows.items():
        entries = [row.get(other, default) for other in second]
        if isinstance(second[0], str):
            items = [f"{_text(other)}: {v}" for other, v in zip(second, entries, strict=True)]
            lines += _spread(f"{_text(value)}: ", "{}", items, ",", "    ")
        else:
            lines += _spread(f"{_text(value)}: ", "[]", map(str, entries), ",", "    ")
    return "\n".join([*lines, "}", "", "", *top, f"    return {step.name.upper()}[{names[0]}][{names[1]}]"])


# ---------------------------------------------------------------- the label


def _label(program: Program) -> list[str]:
    if not program.votes:
        return []
    alone = program.lookup()
    if alone:
        name, values = alone
        says = f'    """The label that a {name} says."""'
        return ["\n".join([f"def label({name}):", says, *_branches(name, values, "    ")])]
    lines: list[str] = []
    for n, rows in program.votes.items():
        if program.is_count(n):
            lines += _spread(f"{n.upper()}_VOTES = ", "[]", map(str, rows[0]))
            continue
        lines.append(f"{n.upper()}_VOTES = {{")
        for value, row in zip(program.names(n), rows, strict=False):
            lines += _spread(f"{_text(value)}: ", "[]", map(str, row), ",", "    ")
        lines.append("}")
    lines += _spread("BIAS = ", "[]", map(str, program.bias))
    return ["\n".join(lines), "\n".join(_counting(program))]


def _counting(program: Program) -> list[str]:
    lines = _spread("def label", "()", program.votes, ":")
    lines += ['    """The label with most votes; of equals the first."""', "    votes = list(BIAS)"]
    lines.append("    for i in range(len(LABELS)):")
    for name in program.votes:
        votes = f"{name.upper()}_VOTES"
        lines.append(
            f"        votes[i] += {name} * {votes}[i]"
            if program.is_count(name)
            else f"        votes[i] += {votes}[{name}][i]"
        )
    return [*lines, "    return LABELS[votes.index(max(votes))]"]


def _best(votes: Sequence[int]) -> int:
    return max(range(len(votes)), key=lambda i: (votes[i], -i))


# ---------------------------------------------------------------- the whole


def _run(program: Program) -> str:
    end = program.vocabulary[-1] == END
    read = program.live() | {TOKENS}
    around = ", ".join([_text(program.vocabulary[0]), "*body", *([_text(END)] if end else [])])
    lines = ["def run(body):", '    """The label of each token of the body."""', f"    tokens = [{around}]"]
    if "positions" in read:
        lines.append("    positions = list(range(len(tokens)))")
    if ONES in read:
        lines.append("    ones = [1] * len(tokens)")
    for step in program.steps:
        lines += _step(program, step)
    names = list(program.votes)
    if not names:
        lines.append(f"    labels = [{_text(program.labels[_best(program.bias)])}] * len(tokens)")
    elif len(names) == 1:
        lines.append(f"    labels = [label(x) for x in {names[0]}]")
    else:
        row = f"    labels = [label(*row) for row in zip({', '.join(names)}, strict=True)]"
        if len(row) <= WIDTH:
            lines.append(row)
        else:
            lines += _spread("rows = zip", "()", [*names, "strict=True"], "", "    ")
            lines.append("    labels = [label(*row) for row in rows]")
    return "\n".join([*lines, f"    return labels[1:{'-1' if end else ''}]"])


def _step(program: Program, step: Step) -> list[str]:
    if isinstance(step, Words):
        kinds = step.name.upper()
        return [f"    {step.name} = [{kinds}.get(token, {kinds}[{_text(UNKNOWN)}]) for token in tokens]"]
    if isinstance(step, Head):
        wanted = f"[{step.name}_seeks(x) for x in {step.query}]"
        whole = f"    {step.name} = {step.kind}({wanted}, {step.key}, {step.value})"
        if len(whole) <= WIDTH:
            return [whole]
        return [f"    wanted = {wanted}", f"    {step.name} = {step.kind}(wanted, {step.key}, {step.value})"]
    names = [_read(program, name) for name in step.reads]
    if step.first == step.second:
        return [f"    {step.name} = [{step.name}_is({names[0].replace(step.first, 'x')}) for x in {step.first}]"]
    call = f"{step.name}_is({names[0].replace(step.first, 'a')}, {names[1].replace(step.second, 'b')})"
    pairs = f"zip({step.first}, {step.second}, strict=True)"
    whole = f"    {step.name} = [{call} for a, b in {pairs}]"
    return [whole] if len(whole) <= WIDTH else [f"    pairs = {pairs}", f"    {step.name} = [{call} for a, b in pairs]"]


def _read(program: Program, name: str) -> str:
    """A count that may be above the task's length is read as the length."""
    return f"min({name}, {program.length})" if program.is_sum(name) else name
