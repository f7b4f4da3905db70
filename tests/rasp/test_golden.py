"""Recorded behaviour of the reference implementation, where it lies beside the repository."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from circuits.rasp import Matrix, RaspError, cost, evaluate, run
from circuits.rasp.display import sequence_text
from circuits.rasp.interpreter import Stop
from circuits.rasp.repl import Repl

GOLDEN = Path(os.environ.get("INTERP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
NEXT = re.compile(r"^( {4,5}(value|list|dict|s-op|selector|console function)|\t =)")

needs = pytest.mark.skipif(not (GOLDEN / "rasp_repl.json").is_file(), reason=f"no recorded behaviour in {GOLDEN}")


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def found(node: Any, tokens: Any) -> dict[str, Any]:
    try:
        value = evaluate(node, tokens)
    except RaspError as error:
        return {"error": str(error)}
    if isinstance(value, Matrix):
        return {"matrix": [list(row) for row in value.rows]}
    return {"output": list(value.values), "type": value.type, "display": sequence_text(value)}


def differs(mine: dict[str, Any], case: dict[str, Any]) -> bool:
    if "error" in case:
        return "error" not in mine
    return repr({k: mine.get(k) for k in case if k != "input"}) != repr({k: v for k, v in case.items() if k != "input"})


@needs
def test_programs():
    wrong = []
    for program in cases("rasp_programs.json"):
        node = run(program["program"], program["name"]).value(program["var"])
        needed = cost(node)
        heads = {str(k): v for k, v in needed.heads_per_layer.items()}
        if "layers" in program and (needed.layers, heads) != (program["layers"], program["heads_per_layer"]):
            wrong.append((program["name"], needed))
        wrong += [(program["name"], case) for case in program["cases"] if differs(found(node, case["input"]), case)]
    assert wrong == []


def meaning(transcript: str) -> list[str]:
    """The lines, with any error as the one word ERROR."""
    lines, in_error = [], False
    for line in transcript.rstrip("\n").split("\n"):
        if "!!" in line or line.startswith("something went wrong"):
            lines.append("ERROR")
            in_error = True
        elif not in_error or NEXT.match(line):
            lines.append(line)
            in_error = False
    return lines


@needs
def test_transcripts():
    wrong = []
    for case in cases("rasp_repl.json"):
        lines: list[str] = []
        loop = Repl(say=lines.append)
        try:
            for line in case["input"].rstrip("\n").split("\n"):
                loop.feed(line)
            loop.end()
        except Stop:
            pass
        if meaning("\n".join(lines)) != meaning(case["stdout"]):
            wrong.append(case["name"])
    assert wrong == []
