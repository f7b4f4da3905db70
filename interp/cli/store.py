"""`interp store`: look at recorded activations, and check every byte of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from interp.cli import answer, guarded

app = typer.Typer(no_args_is_help=True, help=__doc__)

FOLDER = typer.Argument(..., help="The folder of the store.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON object on standard output.")


@app.command()
@guarded
def check(folder: Path = FOLDER, as_json: bool = AS_JSON) -> None:
    """Read every shard and compare its checksum. Exit status 1 if one is missing, cut or altered."""
    from interp.store import check_store

    result = check_store(folder)
    answer(result, as_json, _show_check)
    if result["bad"]:
        raise typer.Exit(1)


@app.command()
@guarded
def info(folder: Path = FOLDER, as_json: bool = AS_JSON) -> None:
    """Print rows, sites, widths, dtype, seed, piles, bytes, what int8 rows have lost, and how the store was made."""
    from interp.store import open_store

    index = open_store(folder).index
    result = {
        "rows": index.rows,
        "bytes": index.bytes,
        "dtype": index.dtype,
        "widths": index.widths,
        "seed": index.seed,
        "piles": len(index.piles),
        "shards": len(index.shards),
        **({"fvu": index.told("fvu"), "lost": index.told("lost")} if index.dtype == "int8" else {}),
        "meta": index.meta,
    }
    answer(result, as_json, _show_info)


def _show_check(result: dict[str, Any]) -> None:
    print(f"{result['rows']:,} rows in {result['shards']:,} shards, {len(result['bad'])} bad")
    for bad in result["bad"]:
        print(f"  {bad['shard']}: {bad['why']}")


def _show_info(result: dict[str, Any]) -> None:
    for key, value in result.items():
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            label = f"{key} {name}".rstrip()
            print(f"{label:28} {part:,}" if isinstance(part, int) else f"{label:28} {part}")
