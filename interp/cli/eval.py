"""`interp eval`: how faithful a dictionary is, on rows and inside its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.train import rows_source
from interp.errors import WrongUse


@guarded
def evaluate(
    folder: Annotated[Path, typer.Argument(help="a dictionary's folder")],
    model: Annotated[str | None, typer.Argument(help="zoo:books, a folder, or a hub id; none with --rows")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="safetensors file with rows [n, d], or a dictionary's folder: its decoder")
    ] = None,
    targets: Annotated[Path | None, typer.Option(help="a transcoder's targets of --rows")] = None,
    text: Annotated[str | None, typer.Option(help="text file or folder; default: Python's help texts")] = None,
    dataset: Annotated[str | None, typer.Option(help="hub data set with a column 'text'")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="stop after about this many tokens of text")] = 50_000,
    context: Annotated[int, typer.Option(help="tokens a window of text")] = 512,
    batch: Annotated[int, typer.Option(help="windows a forward pass")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="the model runs in: float32, bfloat16, float16, float64")] = "float32",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say rows, bytes and minutes")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure a dictionary on rows; with a MODEL, also what the model loses when it is put in place of the site.

    Nothing is written, so there is nothing to resume.
    """
    from interp.dictionaries import evaluate as on_rows
    from interp.dictionaries import evaluate_model, load_dictionary, rows_of

    if (model is None) == (rows is None):
        raise WrongUse("Give --rows X.safetensors, or a MODEL: one of the two.")
    dictionary = load_dictionary(folder, device)
    if rows is not None:
        if not dictionary.config.autoencoder and targets is None:
            raise WrongUse(f"{folder} holds a transcoder: it needs --targets beside --rows.")
        source = rows_source(rows, targets)
        if dry_run:
            return answer({"rows": source.rows, "bytes": 0, "minutes": 0.0}, as_json, _show)
        return answer(on_rows(dictionary, source).to_dict(), as_json, _show)
    from interp.model import load
    from interp.store.recording import plan
    from interp.texts import read_texts

    wrapped, texts = load(str(model), device=device, dtype=dtype), list(read_texts(text, dataset))
    if dry_run:
        once = plan(wrapped, dictionary.config.reads, texts, tokens=tokens, dtype=dtype, batch=batch, context=context)
        # rows, mean, and the loss clean, zeroed, at the mean and replaced: six passes over the text
        return answer({"rows": once.rows, "bytes": 0, "minutes": round(6 * once.minutes, 2)}, as_json, _show)
    result = on_rows(dictionary, rows_of(dictionary, wrapped, texts, tokens, batch, context)).to_dict()
    return answer(result | evaluate_model(dictionary, wrapped, texts, tokens, batch, context).to_dict(), as_json, _show)


def _show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:16} {value}")
