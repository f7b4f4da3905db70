"""`interp probe`: linear probes of a model's states at every site, beside shuffled labels and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Device, ModelName
from interp.errors import WrongUse, check_keys

if TYPE_CHECKING:
    from interp.model import Model
    from probes.labels import Labels

TASKS = {
    "position": "the place of a token in its window",
    "number": "a number written in digits",
    "part-of-speech": "--corpus: a zip of word/tag files",
    "sentiment": "--corpus: a zip of FOLDER/NAME.txt, the folders being the labels",
}
KINDS = "logistic, linear, ridge, mean-difference, sparse"


@guarded
def probe(
    model: ModelName,
    labels: Annotated[
        Path | None,
        typer.Option(help='.csv or .jsonl of text and label, or .jsonl of {"words": [...], "labels": [...]}'),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="instead of --labels: " + "; ".join(f"{k} ({v})" for k, v in TASKS.items()))
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="the labelled text of a --task that needs one")] = None,
    text: Annotated[
        str | None, typer.Option(help="position: text file or folder; default: Python's help texts")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream after every block")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"{KINDS}; default: logistic, of numbers ridge")] = None,
    pool: Annotated[str, typer.Option(help="the tokens of a labelled text: their mean, or the last or first")] = "mean",
    context: Annotated[int, typer.Option(min=2, help="tokens read of a text, or of a window")] = 128,
    rows: Annotated[int, typer.Option(min=4, help="of a --task: texts, sentences, numbers or windows")] = 200,
    folds: Annotated[int, typer.Option(min=2, help="no text stands in two of them")] = 5,
    control: Annotated[
        list[str] | None, typer.Option(help="shuffled, random, or none; may be given again; default: the first two")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="entries of a sparse probe")] = 5,
    alpha: Annotated[float | None, typer.Option(min=0.0, help="of ridge; default: by leaving rows out")] = None,
    seed: Annotated[int, typer.Option(help="of folds, shuffled labels and random weights")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Fit probes at every site, cross-validated, with controls."""
    from interp.model import load
    from probes.linear import CONTROLS
    from probes.linear import probe as fitted

    if (labels is None) == (task is None):
        raise WrongUse(f"give --labels FILE, or --task {', '.join(TASKS)}, one of the two.")
    wrapped = load(model, device=device)
    data = (
        _read(wrapped, labels, pool, context)
        if labels
        else _made(wrapped, str(task), corpus, text, pool, context, rows)
    )
    numbers = all(isinstance(label, float) for label in data.labels)
    chosen = [c for c in control or CONTROLS if c != "none"]
    found = fitted(
        wrapped, data, site or "*blocks.*.resid_post", kind=kind or ("ridge" if numbers else "logistic"),
        folds=folds, controls=chosen, alpha=alpha, k=k, seed=seed,
    )  # fmt: skip
    result = {"model": model, "kind": found.kind, "metric": found.metric, "rows": found.rows, "folds": folds}
    result |= {"classes": found.classes, "chance": found.chance, "best": found.best}
    result["scores"] = [
        {"site": s, "control": c or None, "mean": float(v.mean()), "folds": v.tolist()}
        for (s, c), v in found.scores.items()
    ]
    answer(result, as_json, _show)


def _read(model: Model, path: Path, pool: str, context: int) -> Labels:
    """Labels of a file: of words, or of texts."""
    from interp.dictionaries.labelled import read_labelled
    from probes.labels import of_texts, of_words, read_words

    if path.suffix == ".jsonl" and path.is_file() and '"words"' in path.open(encoding="utf-8").readline():
        return of_words(model, read_words(path), context)
    return of_texts(model, read_labelled(path), pool, context)


def _made(model: Model, task: str, corpus: Path | None, text: str | None, pool: str, context: int, rows: int) -> Labels:
    """Labels of a task."""
    from interp.texts import read_texts
    from probes import labels

    check_keys([task], TASKS, "the list of tasks")
    if TASKS[task].startswith("--corpus") != (corpus is not None):
        raise WrongUse(f"--task {task} " + ("needs --corpus FILE.zip." if corpus is None else "takes no --corpus."))
    if task == "position":
        return labels.of_positions(model, read_texts(text), context, windows=rows)
    if task == "number":
        return labels.of_numbers(model, rows)
    assert corpus is not None
    if task == "sentiment":
        return labels.of_texts(model, labels.reviews(corpus, rows), pool, context)
    return labels.of_words(model, labels.tagged(corpus, rows), context)


def _show(result: dict[str, Any]) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        [{"site": r["site"], "control": r["control"] or "labels", "score": r["mean"]} for r in result["scores"]]
    )
    told = f"{result['kind']} probes, {result['rows']:,} rows, {result['folds']} folds: {result['metric']}"
    print(f"{told}; chance {result['chance']:.3f}")
    print(frame.pivot(index="site", columns="control", values="score").to_string(float_format=lambda v: f"{v:.3f}"))
