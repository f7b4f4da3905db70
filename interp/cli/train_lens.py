"""`interp train lens`: make a lens that has to be trained or fitted."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.lens import TRAINED, lens_class
from interp.cli.options import AsJson, Dataset, Device, ModelName, TextFile
from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    from interp.lenses.affine import AffineLens
    from interp.lenses.fitting import Job

DESCENT = ("tuned", "future", "attention")  # kinds that take steps; the others read their text once
ONCE = {"shortcut": (None, 256), "jacobian": (12_800, 128)}  # tokens, context


@guarded
def train_lens(
    model: ModelName,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the lens")],
    text: TextFile = None,
    dataset: Dataset = None,
    kind: Annotated[str, typer.Option(help=f"{', '.join(TRAINED)}")] = "tuned",
    steps: Annotated[int | None, typer.Option(help="tuned, future, attention: training steps; default 250")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="tokens a step (262144); shortcut, jacobian: tokens read (all; 12800)"),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="tokens a window; default: 2048, shortcut 256, jacobian 128")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd (Nesterov) or adam")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate; default: 0.1 for sgd, 0.001 for adam")] = None,
    bias_only: Annotated[bool, typer.Option("--bias-only", help="train the biases alone")] = False,
    seed: Annotated[int | None, typer.Option(help="of the order of the text")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say rows, bytes and minutes")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train a lens: an affine map a layer or head, from which the model's own head reads."""
    from interp.model import load
    from interp.texts import read_texts

    if kind not in TRAINED:
        raise WrongUse(
            f"there is no lens of the kind {kind!r} to train.{nearest(kind, TRAINED)} Kinds: {', '.join(TRAINED)}."
        )
    given = {"steps": steps, "optimizer": optimizer, "lr": lr, "bias_only": bias_only or None, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    if kind in ONCE and given:
        name = next(iter(given)).replace("_", "-")
        raise WrongUse(f"the {kind} lens reads its text once and takes no steps, so --{name} means nothing to it.")
    wrapped = load(model, device=device)
    texts: Callable[[], Iterable[str]] = lambda: read_texts(text, dataset)  # noqa: E731
    lens = lens_class(kind)(wrapped)
    sizes = {name: value for name, value in {"tokens": tokens, "context": context}.items() if value is not None}
    job = _descent(lens, texts(), given | sizes) if kind in DESCENT else _once(lens, texts(), sizes)
    if dry_run:
        return answer(job.plan(), as_json, _show_plan)
    job.run(out, resume)
    result = {"path": str(out), "kind": kind, "sites": lens.sites}
    return answer(result | (_last(out) if kind in DESCENT else _measured(lens, texts(), sizes)), as_json, _show)


def _descent(lens: AffineLens, texts: Iterable[str], given: dict[str, Any]) -> Job:
    from interp.lenses.future import FromLeastSquares
    from interp.lenses.tuned import Descent, Recipe, descent

    return descent((FromLeastSquares if lens.kind == "future" else Descent)(lens, Recipe(**given)), texts)


def _once(lens: AffineLens, texts: Iterable[str], sizes: dict[str, int]) -> Job:
    from interp.lenses.jacobian import jacobians
    from interp.lenses.shortcut import RIDGE, squares

    read = _sizes(lens.kind, sizes)
    return jacobians(lens, texts, **read) if lens.kind == "jacobian" else squares(lens, texts, ridge=RIDGE, **read)


def _sizes(kind: str, sizes: dict[str, int]) -> dict[str, Any]:
    return dict(zip(("tokens", "context"), ONCE[kind], strict=True)) | sizes


def _last(out: Path) -> dict[str, Any]:
    """The steps taken, and the last losses."""
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    return {"steps": int(last.pop("step")) + 1, "kl": {site: float(kl) for site, kl in last.items()}}


def _measured(lens: AffineLens, texts: Iterable[str], sizes: dict[str, int]) -> dict[str, Any]:
    """R² of the maps and of the identity on the windows kept out of the fit; of a Jacobian lens what the expansion leaves out."""
    from interp.lenses import explained

    try:
        found = explained(lens, texts, held_out=True, **_sizes(lens.kind, sizes))
    except WrongUse:  # fewer than ten windows: none was kept out
        return {"r2": None, "identity": None}
    r2, same = (dict(zip(lens.sites, found[n].tolist(), strict=True)) for n in (lens.kind, "identity"))
    left = {"truncation": {row: 1 - value for row, value in r2.items()}} if lens.kind == "jacobian" else {}
    return {"r2": r2, "identity": same} | left


def _show_plan(plan: dict[str, float]) -> None:
    for name, value in plan.items():
        print(f"{name:10} {value}")


def _show(result: dict[str, Any]) -> None:
    print(f"{result['path']}: {result['kind']} lens" + (f", {result['steps']} steps" if "steps" in result else ""))
    if result.get("r2"):
        print(
            f"{'on held-out windows':30} {'R²':>8} {'identity':>9}" + (" truncation" if "truncation" in result else "")
        )
    for site in result["sites"]:
        if "kl" in result:
            print(f"{site:30} KL {result['kl'][site]:.4f}")
        elif result["r2"]:
            left = f" {result['truncation'][site]:10.3f}" if "truncation" in result else ""
            print(f"{site:30} {result['r2'][site]:8.3f} {result['identity'][site]:9.3f}{left}")
