"""`interp eval`: how faithful dictionaries are, on rows and inside their model, with error bars over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.dashboard import recorded
from interp.cli.options import AsJson, Dataset, TextFile
from interp.cli.train import rows_source
from interp.errors import WrongUse

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary, Reconstruction
    from interp.model import Model, Together
    from interp.store.recording import Data


@guarded
def evaluate(
    given: Annotated[
        list[str],
        typer.Argument(
            help="dictionaries' folders, then zoo:books, a model's folder, or a hub id, if not the run's; none with --rows"
        ),
    ],
    rows: Annotated[
        Path | None, typer.Option(help="safetensors file with rows [n, d], or a dictionary's folder: its decoder")
    ] = None,
    targets: Annotated[Path | None, typer.Option(help="a transcoder's targets of --rows")] = None,
    text: TextFile = None,
    dataset: Dataset = None,
    inputs: Annotated[
        Path | None, typer.Option(help="instead of text: safetensors file of the MODEL's ready inputs, as pixel_values")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="stop after about this many tokens of text")] = 50_000,
    context: Annotated[int, typer.Option(help="tokens a window of text")] = 512,
    batch: Annotated[int, typer.Option(help="windows a forward pass")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="the model runs in: float32, bfloat16, float16, float64")] = "float32",
    labels: Annotated[
        Path | None, typer.Option(help="labelled text: .csv or .jsonl with text, label[, spurious]")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="k-sparse probing, TPP and (spurious) SCR of --labels")
    ] = False,
    absorption: Annotated[
        bool,
        typer.Option("--absorption", help="of --labels, at the last token of each text, such as words by first letter"),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write a report page here, such as page.html")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say rows, bytes and minutes")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure dictionaries on rows; with a MODEL, also what the model loses when each is put in place of its site.

    Of several, those that differ in their seed alone are one group: mean ± half of the 95 % interval. Nothing is written
    but the page of --out, so there is nothing to resume.
    """
    from interp.dictionaries import load_dictionary

    folders, model = _asked(given, rows)
    loaded = {folder: load_dictionary(folder, device) for folder in folders}
    on_labels = _on_labels(labels, probe, absorption, model)
    if rows is not None:
        measure, planned = _on_rows(loaded, rows, targets)
    else:
        measure, planned = _in_model(
            loaded, str(model), text, dataset, inputs, tokens, context, batch, device, dtype, on_labels
        )
    if dry_run:
        return answer(planned(), as_json, _show)
    found = {folder: measure(D) for folder, D in loaded.items()}
    result = _compared(
        found,
        out,
        {"Model": str(model or "none"), "Text": str(rows or inputs or text or dataset or "Python's help texts")},
    )
    return answer(result, as_json, _show)


Measure = Callable[["Dictionary"], tuple["Reconstruction", dict[str, Any]]]  # on rows, and everything for JSON
Planned = Callable[[], dict[str, Any]]
OnLabels = Callable[["Dictionary", Any], dict[str, Any]]


def _asked(given: list[str], rows: Path | None) -> tuple[list[str], str | None]:
    """The dictionaries and the model."""
    if rows is not None:
        return given, None
    if (Path(given[-1]) / "weights.safetensors").exists():  # a dictionary
        given = [*given, *filter(None, [recorded(Path(given[-1])).get("model")])]
    if len(given) < 2 or (Path(given[-1]) / "weights.safetensors").exists():
        raise WrongUse("Give --rows X.safetensors, or a MODEL after the dictionaries: one of the two.")
    return given[:-1], given[-1]


def _on_rows(loaded: dict[str, Dictionary], rows: Path, targets: Path | None) -> tuple[Measure, Planned]:
    from interp.dictionaries import evaluate as on_rows

    for folder, D in loaded.items():
        if not D.config.autoencoder and targets is None:
            raise WrongUse(f"{folder} holds a transcoder: it needs --targets beside --rows.")
    source = rows_source(rows, targets)

    def measure(D: Dictionary) -> tuple[Reconstruction, dict[str, Any]]:
        found = on_rows(D, source)
        return found, found.to_dict()

    return measure, lambda: {"rows": source.rows, "bytes": 0, "minutes": 0.0}


def _in_model(
    loaded: dict[str, Dictionary],
    name: str,
    text: str | None,
    dataset: str | None,
    inputs: Path | None,
    tokens: int,
    context: int,
    batch: int,
    device: str,
    dtype: str,
    on_labels: OnLabels,
) -> tuple[Measure, Planned]:
    from interp.dictionaries import evaluate as on_rows
    from interp.dictionaries import evaluate_model, evaluate_together, rows_of
    from interp.model import Together
    from interp.model.together import load_together
    from interp.store.recording import read_data

    model = load_together(name, device, dtype)
    data = read_data(model, text, dataset, inputs)
    texts = data if isinstance(data, Mapping) else list(data)

    def measure(D: Dictionary) -> tuple[Reconstruction, dict[str, Any]]:
        found = on_rows(D, rows_of(D, model, texts, tokens, batch, context))
        whole = found.to_dict() | on_labels(D, model)
        if not isinstance(model, Together):
            return found, whole | evaluate_model(D, model, texts, tokens, batch, context).to_dict()
        each = evaluate_together(D, model, texts, tokens, batch, context)
        return found, whole | {f"{key} of {of}": v for of, told in each.items() for key, v in told.to_dict().items()}

    def planned() -> dict[str, Any]:
        return _planned(loaded, model, texts, tokens, context, batch, dtype)

    return measure, planned


def _on_labels(labels: Path | None, probe: bool, absorption: bool, model: str | None) -> OnLabels:
    """What is to be measured on labelled text; nothing, if none is given."""
    if (labels is None) != (not (probe or absorption)) or (labels is not None and model is None):
        raise WrongUse(
            "Labelled text takes a MODEL, --labels FILE, and what to do with it: --probe, --absorption, or both."
        )
    if labels is None:
        return lambda D, model: {}
    from interp.dictionaries.labelled import absorbs, probed, read_labelled

    data = read_labelled(labels)
    wanted = [f for f, asked in ((probed, probe), (absorbs, absorption)) if asked]
    return lambda D, model: {name: v for f in wanted for name, v in f(D, model, data).items()}


def _planned(
    loaded: dict[str, Dictionary],
    model: Model | Together,
    texts: Data,
    tokens: int,
    context: int,
    batch: int,
    dtype: str,
) -> dict[str, Any]:
    """Rows and minutes; for each dictionary rows, mean, loss clean, zeroed, at the mean and replaced: six passes over the text."""
    from interp.store.recording import plan

    once = [
        plan(model, D.config.reads, texts, tokens=tokens, dtype=dtype, batch=batch, context=context)
        for D in loaded.values()
    ]
    return {"rows": once[0].rows, "bytes": 0, "minutes": round(6 * sum(o.minutes for o in once), 2)}


def _compared(
    found: dict[str, tuple[Reconstruction, dict[str, Any]]], out: Path | None, facts: dict[str, str]
) -> dict[str, Any]:
    """What to print: a single dictionary's measures, or runs and groups; and the page, if it is asked for."""
    from interp.dictionaries.compare import Comparison, Measured
    from interp.files import command_line

    compared = Comparison(tuple(Measured.of(folder, measures) for folder, (_, measures) in found.items()))
    if out is not None:
        from interp.reports.evaluation import write_evaluation

        first = {name: found[runs[0].path][0].density_histogram() for name, runs in compared.groups().items()}
        write_evaluation(out, compared, first, {"Command": command_line(out)} | facts)
    return compared.to_dict() if len(found) > 1 else next(iter(found.values()))[1]


def _show(result: dict[str, Any]) -> None:
    if "groups" not in result:
        return print("\n".join(f"{name:18} {value}" for name, value in result.items()))
    for name, group in result["groups"].items():
        print(f"{name}: {group.pop('runs')} runs")
        for measure, of in group.items():
            mean, half = (float("nan") if v is None else v for v in of.values())
            print(f"  {measure:24} {mean:.4g}" + (f" ± {half:.2g}" if half > 0 else ""))
    return None
