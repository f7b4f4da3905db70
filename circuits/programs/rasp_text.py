"""A program in RASP: the s-op `labels` has the label at every position of `<s>`, the body and, where there is one, `</s>`.

Which of several matching keys is the closest cannot be said by one selector. A key is numbered among those of its value; the
last match before a query and the first behind it are then single keys, and the nearer is read. Where no query ever finds two
keys, one selector does. What occurs on no input of the task is given the first value there is, so that every input has one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np

from circuits.programs.program import CHUNK, COUNT, NEVER, NOTHING, ONES, POSITIONS, TOKENS, Head, Program, Table, Words
from circuits.programs.tasks import END, START, Task
from circuits.rasp.batch import evaluate_batch
from circuits.rasp.interpreter import run


def rasp_text(program: Program, task: Task) -> str:
    """The program's source. Raises nothing: every program can be said, if not always compiled."""
    single = singles(program, task)
    example = [START, *islice(cycle(task.letters), task.longest), *([END] if task.end else [])]
    lines = [f"# {task.about}", f"set example {json.dumps(example, ensure_ascii=False)}"]
    for step in program.steps:
        if isinstance(step, Words):
            lines.append(f"{step.name} = {_map(dict(zip(program.vocabulary, step.kinds, strict=True)), 'tokens')};")
        elif isinstance(step, Table):
            lines += _table(program, step)
        else:
            lines += _head(program, step, step.name in single)
    return "\n".join([*lines, *_labels(program), ""])


def singles(program: Program, task: Task) -> set[str]:
    """Heads whose queries find at most one key: on every input of the task, or because keys are positions."""
    found = {s.name for s in program.steps if isinstance(s, Head) and s.key == POSITIONS}
    if task.countable:
        found = {s.name for s in program.steps if isinstance(s, Head)}
        batch = task.encode(list(task.everything()))
        for i in range(0, len(batch.tokens), CHUNK):
            found -= _several(program, batch.tokens[i : i + CHUNK], batch.real[i : i + CHUNK])
    return found


def _several(program: Program, tokens: np.ndarray, real: np.ndarray) -> set[str]:
    values = program.variables(tokens, real)
    seen = real[:, :, None] & real[:, None, :] & (np.tri(tokens.shape[1], dtype=bool) if program.causal else True)
    heads = [s for s in program.steps if isinstance(s, Head)]
    found = set()
    for head in heads:
        wanted = np.array(head.wanted)[values[head.query]]
        if (((wanted[:, :, None] == values[head.key][:, None, :]) & seen).sum(-1) > 1).any():
            found.add(head.name)
    return found


def disagreements(program: Program, text: str, task: Task, bodies: Sequence[Sequence[str]]) -> int:
    """How many labels of the bodies the RASP interpreter and the program differ on, at positions that are asked for."""
    labels = run(text).value("labels")
    wrong = 0
    for length in sorted({len(body) for body in bodies}):
        batch = task.encode([tuple(body) for body in bodies if len(body) == length])
        n = int(batch.real[0].sum())
        codes = evaluate_batch(labels, [[task.vocabulary[t] for t in row[:n]] for row in batch.tokens], task.causal)
        said = np.array([task.labels.index(v) if v in task.labels else -1 for v in codes.values])[codes.at]
        said[codes.undefined] = -1
        expected = program.run(batch.tokens, batch.real)[:, :n]
        wrong += int((said != expected)[batch.labels[:, :n] >= 0].sum())
    return wrong


# ---------------------------------------------------------------- names and maps

NAMES = {TOKENS: "tokens", POSITIONS: "indices"}


def _name(variable: str) -> str:
    return NAMES.get(variable, variable)


def _atom(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _map(values: dict[Any, Any], of: str) -> str:
    pairs = ",".join(f"{_atom(k)}:{_atom(v)}" for k, v in values.items())
    return f"{{{pairs}}}[{of}]"


def _head(program: Program, head: Head, single: bool) -> list[str]:
    name, key, value = head.name, _name(head.key), _name(head.value)
    keys, queries = program.names(head.key), program.names(head.query)
    nothing = "" if isinstance(keys[0], str) else -1
    codes = [w if w >= 0 else NOTHING for w in head.wanted[: len(queries)]]
    wanted = {q: nothing if w == NOTHING or w >= len(keys) else keys[w] for q, w in zip(queries, codes, strict=True)}
    lines = [f"{name}_seeks = {_map(wanted, _name(head.query))};", f"{name}_match = select({key},{name}_seeks,==);"]
    if head.kind == COUNT:
        if head.value == ONES:
            return [*lines, f"{name} = selector_width({name}_match);"]
        return [*lines, f"{name} = round(selector_width({name}_match)*aggregate({name}_match,{value}));"]
    if single:
        lines.append(f"{name}_from = aggregate({name}_match,indices,0);")
    else:
        lines += _nearest(name, key, program.causal)
    return [*lines, f"{name} = aggregate(select(indices,{name}_from,==),{value});"]


def _nearest(name: str, key: str, causal: bool) -> list[str]:
    """Lines for `NAME_from`, the position that a query reads."""
    own = f"{name}_own = {key}=={name}_seeks;"
    lines = [
        f"{name}_number = selector_width(select({key},{key},==) and select(indices,indices,<));",
        f"{name}_earlier = selector_width({name}_match and select(indices,indices,<));",
        own,
        f"{name}_left = aggregate({name}_match and select({name}_number,{name}_earlier-1,==),indices,-1);",
    ]
    last = f"(indices if {name}_own else 0)"
    if causal:
        return [*lines, f"{name}_from = {name}_left if {name}_left>=0 else {last};"]
    lines += [
        f"{name}_next = {name}_earlier+indicator({name}_own);",
        f"{name}_right = aggregate({name}_match and select({name}_number,{name}_next,==),indices,-1);",
        f"{name}_far = {name}_right if {name}_right>=0 else 10000;",
        f"{name}_leftmost = ({name}_left>=0) and (indices-{name}_left<={name}_far-indices);",
        f"{name}_from = {name}_left if {name}_leftmost else ({name}_right if {name}_right>=0 else {last});",
    ]
    return lines


def _code(program: Program, name: str) -> str:
    """A variable as a number from 0."""
    values = program.names(name) if not program.is_count(name) else ()
    if values and isinstance(values[0], str):
        return _map({v: i for i, v in enumerate(values)}, _name(name))
    if name == ONES:
        return "1"
    return f"({program.length} if {name}>{program.length} else {name})" if program.is_sum(name) else _name(name)


def _table(program: Program, table: Table) -> list[str]:
    wide = len(table.values[0])
    first = next((v for row in table.values for v in row if v != NEVER), 0)
    cells = {i * wide + j: first if v == NEVER else v for i, row in enumerate(table.values) for j, v in enumerate(row)}
    a, b = (_code(program, name) for name in table.reads)
    if table.first == table.second:
        return [f"{table.name} = {_map({i: cells[i * wide + i] for i in range(wide)}, a)};"]
    return [f"{table.name}_pair = {wide}*{a}+{b};", f"{table.name} = {_map(cells, f'{table.name}_pair')};"]


def _labels(program: Program) -> list[str]:
    alone = program.lookup()
    if alone:
        name, said = alone
        return [f"labels = {_map(said, _name(name))};"]
    scores = []
    for i in range(len(program.labels)):
        terms = [str(program.bias[i])]
        for name, rows in program.votes.items():
            if program.is_count(name):
                terms.append(f"{rows[0][i]}*{'1' if name == ONES else name}")
            else:
                values = program.names(name)
                terms.append(_map({v: row[i] for v, row in zip(values, rows, strict=False)}, _name(name)))
        scores.append(terms)
    lines = [f"votes_{i} = {'+'.join(terms)};" for i, terms in enumerate(scores)]
    lines += [
        "most_0 = votes_0+0*indices;",
        f"label_0 = {_atom(program.labels[0])} if indices>=0 else {_atom(program.labels[0])};",
    ]
    for i in range(1, len(scores)):
        lines += [
            f"more_{i} = votes_{i}>most_{i - 1};",
            f"most_{i} = votes_{i} if more_{i} else most_{i - 1};",
            f"label_{i} = {_atom(program.labels[i])} if more_{i} else label_{i - 1};",
        ]
    return [*lines, f"labels = label_{len(scores) - 1};"]
