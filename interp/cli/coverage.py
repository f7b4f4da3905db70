"""`interp coverage`: the doctor's proofs on a tiny random model of every type that transformers knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson
from interp.errors import WrongUse


@guarded
def coverage(
    types: Annotated[str | None, typer.Option(help="model types, as llama,bert; default: all")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="the page that is written")] = Path("docs/coverage.md"),
    rows: Annotated[Path, typer.Option(help="rows already done, one JSON object a line")] = Path("runs/coverage.jsonl"),
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    limit: Annotated[float, typer.Option(help="seconds of processor time a type may take")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="keep the rows that are done")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say how many types, and how long at most")] = False,
    as_json: AsJson = False,
) -> None:
    """Build every model type of transformers at tiny size and prove its wiring; --types does a few and writes no page."""
    from interp.model.tiny import config_class, model_types

    kinds = model_types() if types is None else [kind.strip() for kind in types.split(",")]
    for kind in kinds if types is not None else ():
        config_class(kind)  # a misspelt type is an error before anything is built
    if dry_run:
        most = round(len(kinds) * limit / 60 / workers, 1)
        return answer({"types": len(kinds), "minutes_at_most": most}, as_json, _show_plan)
    if types is not None:
        return answer(_result(_run(kinds, {}, None, workers, limit)), as_json, _show)
    done = _read(rows) if resume else {}
    rows.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        rows.unlink(missing_ok=True)
    found = _run(kinds, done, rows, workers, limit)
    from interp.files import write_text
    from interp.reports.coverage import page

    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page(found))
    return answer(_result(found), as_json, _show)


def _read(path: Path) -> dict[str, Any]:
    """The rows of an earlier run, by type. A last line that was cut off is done again."""
    done: dict[str, Any] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise WrongUse(
                    f"{path}, line {number} is no JSON ({error}): remove it, or run without --resume."
                ) from error
            path.write_text("".join(kept + "\n" for kept in lines[:-1]), encoding="utf-8")
            break
        done[row["type"]] = row
    return done


def _run(kinds: list[str], done: dict[str, Any], rows: Path | None, workers: int, limit: float) -> list[dict[str, Any]]:
    from tqdm.auto import tqdm

    from interp.model.coverage import cover_all

    todo = [kind for kind in kinds if kind not in done]
    for row in tqdm(cover_all(todo, workers, limit), total=len(todo), desc="types", unit="type"):
        done[row["type"]] = row
        if rows is not None:
            with open(rows, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return [done[kind] for kind in kinds]


def _result(found: list[dict[str, Any]]) -> dict[str, Any]:
    from interp.model.coverage import counts

    return {"counts": counts(found), "types": found}


def _show_plan(result: dict[str, Any]) -> None:
    typer.echo(f"{result['types']} types, at most {result['minutes_at_most']} minutes")


def _show(result: dict[str, Any]) -> None:
    from rich import print as show
    from rich.table import Table

    marks = {"pass": "[green]✓[/green]", "fail": "[red]✗[/red]", "na": "–"}
    table = Table("type", *"abcdefgh", "")
    for row in result["types"] if len(result["types"]) <= 50 else ():
        verdicts = [marks[row["proofs"][a]["status"]] if "proofs" in row else "" for a in "abcdefgh"]
        reasons = [p["reason"] for p in row.get("proofs", {}).values() if p["status"] == "fail"]
        table.add_row(row["type"], *verdicts, row.get("error", reasons[0] if reasons else ""))
    if table.rows:
        show(table)
    found = result["counts"]
    passed = ", ".join(f"{a} {v['pass']}" for a, v in found["proofs"].items())
    typer.echo(f"{found['built']} of {found['types']} types built, {found['ran']} ran; proofs passed: {passed}")
