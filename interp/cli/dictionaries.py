"""`interp dictionaries`: the kinds of sparse dictionaries there are, with their papers, equations and defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson


@guarded
def dictionaries(
    names: Annotated[bool, typer.Option("--names", help="only their names, one a line")] = False,
    as_json: AsJson = False,
) -> None:
    """List the kinds that `interp train sae --kind` and `interp train transcoder --kind` take."""
    found = {"kinds": described()}
    answer(found, as_json, (lambda _: print("\n".join(k["name"] for k in found["kinds"]))) if names else _show)


def described() -> list[dict[str, Any]]:
    """Name, paper, equation, settings with their defaults and learning rate of every kind, and whether it transcodes."""
    from interp.dictionaries import KINDS
    from interp.dictionaries.kinds import TIED

    return [
        {
            "name": name,
            "paper": kind.paper,
            "equation": kind.equation,
            "defaults": {f.name: f.default for f in fields(kind)} | {"lr": kind.lr},
            "transcoder": kind.activation not in TIED,
        }
        for name, kind in KINDS.items()
    ]


def table() -> str:
    """The kinds as a Markdown table; docs/dictionaries.md holds it."""
    lines = ["| kind | paper | equation | defaults |", "| --- | --- | --- | --- |"]
    for kind in described():
        shown = ", ".join(f"{n} {'–' if v is None else v}" for n, v in kind["defaults"].items())
        lines.append(f"| `{kind['name']}` | {kind['paper']} | {kind['equation']} | {shown} |")
    return "\n".join(lines)


def _show(_: dict[str, Any]) -> None:
    print(table())
