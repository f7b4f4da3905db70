"""`interp sites` and `interp doctor`: what can be recorded in a model, and the proof that it is what it says."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from interp.cli import answer, guarded


@guarded
def sites(
    model: Annotated[str, typer.Argument(help="zoo:books, a folder, or a hub id")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """List every site of a model as a tree, with shapes and what they hold."""
    from interp.model import load

    wrapped = load(model, device=device)
    answer({"model": model, "sites": wrapped.sites(), "refused": wrapped.binding.refused}, as_json, _show_sites)


def _show_sites(result: dict[str, Any]) -> None:
    from rich import print as show
    from rich.tree import Tree

    from interp.sites import meaning

    root = Tree(f"[bold]{result['model']}[/bold]")
    branches: dict[str, Tree] = {"": root}
    for name, shape in result["sites"].items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            path = ".".join(parts[:depth])
            if path not in branches:
                branches[path] = branches[".".join(parts[: depth - 1])].add(parts[depth - 1])
        text = meaning(name).split(" [")[0]
        branches[".".join(parts[:-1])].add(
            f"{parts[-1]}  [cyan]\\[{', '.join(map(str, shape))}][/cyan]  [dim]{text}[/dim]"
        )
    show(root)
    for name, why in result["refused"].items():
        show(f"[dim]not available: {name}: {why}[/dim]")


@guarded
def doctor(
    model: Annotated[str, typer.Argument(help="zoo:books, a folder, or a hub id")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Prove a model's wiring on this machine; exit status 1 if a proof fails."""
    from dataclasses import asdict

    from interp.model import load
    from interp.model.proof import doctor as prove

    proofs = prove(load(model, device=device))
    rows = [asdict(p) | {"passed": p.passed} for p in proofs]
    answer(
        {"model": model, "proofs": rows, "passed": all(p.passed is not False for p in proofs)}, as_json, _show_proofs
    )
    if any(p.passed is False for p in proofs):
        raise typer.Exit(1)


def _show_proofs(result: dict[str, Any]) -> None:
    from rich import print as show
    from rich.table import Table

    table = Table("", "claim", "error", "tolerance", "", title=result["model"])
    for p in result["proofs"]:
        verdict = {True: "[green]proven[/green]", False: "[red]FAILED[/red]", None: "does not apply"}[p["passed"]]
        table.add_row(
            p["name"],
            p["claim"],
            "" if p["error"] is None else f"{p['error']:.1e}",
            f"{p['tolerance']:.0e}",
            f"{verdict} {p['why']}",
        )
    show(table)
