"""`interp sites` and `interp doctor`: what can be recorded in a model, and the proof that it is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Device, ModelName
from interp.errors import WrongUse

if TYPE_CHECKING:
    from interp.model.wiring import Wiring


@guarded
def sites(
    model: ModelName,
    device: Device = None,
    as_json: AsJson = False,
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
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="a model, or with --model a dictionary")],
    model: Annotated[str | None, typer.Option(help="the model that the dictionary SUBJECT is examined on")] = None,
    text: Annotated[
        str | None, typer.Option(help="dictionary: text file or folder; default: Python's help texts")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="dictionary: about this many tokens of text")] = 2000,
    site: Annotated[str | None, typer.Option(help="dictionary: site read, if not the one its file says")] = None,
    target: Annotated[str | None, typer.Option(help="dictionary: site written, of a transcoder")] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="the model runs in: float32, bfloat16, float16, float64")] = None,
    export_wiring: Annotated[Path | None, typer.Option(help="model: write the solved wiring to this JSON file")] = None,
    wiring: Annotated[
        Path | None, typer.Option(help="model: put the wiring in this JSON file to the proof instead")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove a model's wiring on this machine; exit status 1 if a proof fails. Of a dictionary, say why its numbers differ."""
    if model is None and (text or site or target):
        raise WrongUse("--text, --site and --target are for a dictionary: say --model MODEL too.")
    if model is None:
        return _prove(subject, device, dtype, export_wiring, wiring, as_json)
    if export_wiring or wiring:
        raise WrongUse("--export-wiring and --wiring are for a model; --model makes SUBJECT a dictionary.")
    from interp.cli.examine import examined, show

    return answer(examined(subject, model, text, tokens, site, target, device, dtype), as_json, show)


def _prove(
    model: str, device: str | None, dtype: str | None, export_wiring: Path | None, wiring: Path | None, as_json: bool
) -> None:
    from interp.files import write_json
    from interp.model import load
    from interp.model.proof import by_letter
    from interp.model.proof import doctor as prove

    wrapped = load(model, device=device, **({"dtype": dtype} if dtype else {}))
    given = None if wiring is None else _read_wiring(wiring)
    if export_wiring is not None:
        write_json(export_wiring, wrapped.wiring.to_json())
    proofs = by_letter(prove(wrapped, given))
    answer({"model": model, "proofs": proofs}, as_json, _show_proofs)
    if any(p["status"] == "fail" for p in proofs.values()):
        raise typer.Exit(1)


def _read_wiring(path: Path) -> Wiring:
    from interp.model.wiring import Wiring

    if not path.is_file():
        raise WrongUse(f"there is no file {path}: `interp doctor MODEL --export-wiring {path}` writes one.")
    try:
        return Wiring.from_json(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise WrongUse(f"{path} is no JSON file: {error}.") from error


def _show_proofs(result: dict[str, Any]) -> None:
    from rich import print as show
    from rich.table import Table

    table = Table("", "claim", "error", "tolerance", "", title=result["model"])
    verdicts = {"pass": "[green]proven[/green]", "fail": "[red]FAILED[/red]", "na": "does not apply:"}
    for letter, proof in result["proofs"].items():
        for p in proof["claims"]:
            error = "" if p["error"] is None else f"{p['error']:.1e}"
            why = "" if p["status"] == "pass" else f" {p['why']}"
            table.add_row(letter, p["claim"], error, f"{p['tolerance']:.0e}", verdicts[p["status"]] + why)
    show(table)
