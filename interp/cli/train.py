"""`interp train SHAPE`: a sparse dictionary from a model and text, or from anyone's tensors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.activations import Activations, Ends, check_shape, ends, names_in
from interp.cli.options import AsJson, TextFile
from interp.cli.sweep import TENSORBOARD, WANDB, sweep, watches
from interp.cli.train_lens import train_lens
from interp.errors import Failed, WrongUse

if TYPE_CHECKING:
    from interp.dictionaries import RowsSource, Source, StoreSource, TrainConfig

app = typer.Typer(no_args_is_help=True, help="Train a sparse dictionary.")

MODEL = typer.Argument(
    help="zoo:books, a folder, or a hub id; none with --store or --rows; crosscoder: also several, 'MODEL + MODEL'"
)
OUT = typer.Option("-o", "--out", help="folder of the run")
SITE = typer.Option(help="site to read; a transcoder of an MLP: blocks.3.mlp; several: blocks.*.mlp")
TARGET = typer.Option(help="transcoder: site to write, if not the .write beside the .in that is read")
DATASET = typer.Option(help="hub data set, or folder of one, with a column 'text'")
INPUTS = typer.Option(
    help="instead of text: safetensors file of the MODEL's ready inputs, as pixel_values [n, 3, h, w]"
)
TOKENS = typer.Option(help="stop recording after this many rows")
CONTEXT = typer.Option(help="tokens a window of text")
STREAM = typer.Option("--stream", help="train on a MODEL's rows as they are computed; nothing is recorded")
STORE = typer.Option(help="instead of a model: folder of a store that `interp record` made")
ROWS = typer.Option(help="instead of a model: safetensors file with rows [n, d], or a dictionary's folder: its decoder")
TARGETS = typer.Option(help="transcoder: safetensors file with the targets of --rows")
KIND = typer.Option(help="topk, or another that `interp dictionaries` lists")
K = typer.Option(help="active latents a row, for the kinds that fix it")
SPARSITY = typer.Option(help="λ, the penalty's coefficient, for the kinds that have one")
LATENTS = typer.Option(help="latents in the dictionary")
STEPS = typer.Option(help="training steps")
BATCH = typer.Option(help="rows a step")
LR = typer.Option(help="learning rate; default: the kind's")
END_TO_END = typer.Option(
    "--end-to-end", help="train on what the MODEL predicts with the site replaced (KL), not on the site"
)
DOWNSTREAM = typer.Option(help="with --end-to-end: β, weight of the streams after later blocks")
SKIP = typer.Option("--skip", help="transcoder: add a linear path from input to output")
SEED = typer.Option(help="of the weights and of every shuffle")
CONFIG = typer.Option("--config", help="YAML or JSON file: settings of the run and of its kind; options win over it")
RESUME = typer.Option("--resume", help="go on with an interrupted run")
DRY_RUN = typer.Option("--dry-run", help="only say rows, bytes and minutes")
DEVICE = typer.Option(help="cpu, cuda, ...")
DTYPE = typer.Option(help="of the encoder's product: float32, bfloat16, float16, float64")


def _command(shape: str) -> Callable[..., None]:
    @guarded
    def command(
        out: Annotated[Path, OUT],
        model: Annotated[str | None, MODEL] = None,
        site: Annotated[str | None, SITE] = None,
        target: Annotated[str | None, TARGET] = None,
        text: TextFile = None,
        dataset: Annotated[str | None, DATASET] = None,
        inputs: Annotated[Path | None, INPUTS] = None,
        tokens: Annotated[int | None, TOKENS] = None,
        context: Annotated[int, CONTEXT] = 512,
        stream: Annotated[bool, STREAM] = False,
        store: Annotated[Path | None, STORE] = None,
        rows: Annotated[Path | None, ROWS] = None,
        targets: Annotated[Path | None, TARGETS] = None,
        kind: Annotated[str | None, KIND] = None,
        k: Annotated[int | None, K] = None,
        sparsity: Annotated[float | None, SPARSITY] = None,
        latents: Annotated[int | None, LATENTS] = None,
        steps: Annotated[int | None, STEPS] = None,
        batch: Annotated[int | None, BATCH] = None,
        lr: Annotated[float | None, LR] = None,
        skip: Annotated[bool, SKIP] = False,
        end_to_end: Annotated[bool, END_TO_END] = False,
        downstream: Annotated[float | None, DOWNSTREAM] = None,
        seed: Annotated[int | None, SEED] = None,
        config: Annotated[Path | None, CONFIG] = None,
        resume: Annotated[bool, RESUME] = False,
        dry_run: Annotated[bool, DRY_RUN] = False,
        tensorboard: Annotated[bool, TENSORBOARD] = False,
        wandb: Annotated[str | None, WANDB] = None,
        device: Annotated[str, DEVICE] = "cpu",
        dtype: Annotated[str | None, DTYPE] = None,
        as_json: AsJson = False,
    ) -> None:
        from interp import ranks
        from interp.dictionaries import plan, train

        given = {"kind": kind, "k": k, "sparsity": sparsity, "latents": latents, "steps": steps, "batch": batch}
        given |= {"lr": lr, "skip": skip or None, "cross_layer": shape == "clt" or None, "seed": seed, "dtype": dtype}
        given |= {"end_to_end": end_to_end or None, "downstream": downstream}
        wanted, watch = _settings(config, given), watches(tensorboard, wandb)
        check_shape(shape, wanted, target or targets)
        _check_from(shape, model, store, rows, site, targets, stream)
        before: dict[str, float] = {}
        if rows is not None:
            source: Source = rows_source(rows, targets)
        elif store is not None:
            source = store_source(store, shape, str(site), target)
        else:
            there = Activations.of(str(model), device, text, dataset, tokens, context, inputs)
            both = ends(there.model.names, shape, str(site), target)
            source, before = of_model(there, both, wanted, stream, out, resume, dry_run)
        if dry_run:
            return answer(added(plan(wanted, source, device), before), as_json, _show)
        train(wanted, source, out, resume, device, watch=watch)
        return None if ranks.rank() else answer(_result(out, wanted), as_json, _show)

    return command


for shape, what in {
    "sae": "Train a sparse autoencoder of one site: x̂ = f W_dec + b_dec.",
    "transcoder": "Train a transcoder, from one site to another: ŷ = f W_dec + b_dec [+ W_skip x].",
    "crosscoder": "Train a crosscoder: one code for several sites, x̂^s = f W_dec^s + b^s.",
    "clt": "Train a cross-layer transcoder: latents read their layer's MLP and write to it and to all above.",
}.items():
    app.command(shape, help=what)(_command(shape))


app.command("sweep")(sweep)
app.command("lens")(train_lens)


def _settings(file: Path | None, given: dict[str, Any]) -> TrainConfig:
    """Defaults, then the file, then what was said on the command line."""
    from interp.dictionaries import TrainConfig, read_config

    said = {name: value for name, value in given.items() if value is not None}
    return TrainConfig.from_dict((read_config(file) if file else {}) | said, str(file or "The command line"))


def _check_from(
    shape: str,
    model: str | None,
    store: Path | None,
    rows: Path | None,
    site: str | None,
    targets: Path | None,
    stream: bool,
) -> None:
    if sum(place is not None for place in (model, store, rows)) != 1:
        raise WrongUse("Give a MODEL and --site, --store FOLDER and --site, or --rows X.safetensors: one of the three.")
    if stream and model is None:
        raise WrongUse("--stream needs a MODEL: a --store is recorded already, and --rows are in memory.")
    if rows is not None and site is not None:
        raise WrongUse("--site needs a MODEL or a --store: --rows holds one site.")
    if rows is None and site is None:
        raise WrongUse("--site says what to read: `interp sites MODEL` lists the sites.")
    if rows is None and targets is not None:
        raise WrongUse("--targets goes with --rows: of a MODEL or a --store, --target names the site to write.")
    if shape in ("crosscoder", "clt") and rows is not None:
        raise WrongUse(f"A {shape} reads several sites of a MODEL; --rows has one.")
    if shape == "transcoder" and rows is not None and targets is None:
        raise WrongUse("A transcoder needs --targets Y.safetensors beside --rows.")


def of_model(
    there: Activations, both: Ends, config: TrainConfig, stream: bool, out: Path, resume: bool, dry_run: bool
) -> tuple[Source, dict[str, float]]:
    """The rows of a model: text itself for training end to end, noise and what recording will take for a dry run."""
    from interp.dictionaries import StoreSource

    sites = [*both[0], *both[1]]
    if config.end_to_end:
        return there.windows(*both, stream), {}
    if dry_run:
        return there.like(*both), there.planned(sites)
    return StoreSource(there.rows(sites, stream, out, config.order, resume), *both), {}


def added(training: dict[str, float], recording: dict[str, float]) -> dict[str, float]:
    """Both together; the rows of training are those that were recorded."""
    whole = {name: value + recording.get(name, 0) for name, value in training.items()}
    return whole | {"rows": recording.get("rows", training["rows"])}


def store_source(folder: Path, shape: str, site: str, target: str | None = None) -> StoreSource:
    """Sites of a store. Raises what `open_store` and `ends` raise."""
    from interp.dictionaries import StoreSource
    from interp.store import open_store

    store = open_store(folder)
    return StoreSource(store, *ends(names_in(store), shape, site, target))


def rows_source(rows: Path, targets: Path | None) -> RowsSource:
    """Rows from files, for training and for evaluation. Raises what `only_tensor` raises."""
    from interp.dictionaries import RowsSource

    return RowsSource(only_tensor(rows, ("x", "rows")), only_tensor(targets, ("y", "targets")) if targets else None)


def only_tensor(path: Path, names: tuple[str, ...]) -> Any:
    """The tensor of a safetensors file: the only one, or the one with a name of `names`; the decoder of a dictionary's folder.

    Raises `WrongUse` otherwise.
    """
    from interp.dictionaries import load_dictionary
    from interp.files import load_tensors

    if path.is_dir():
        return load_dictionary(path).W_dec.detach()
    if not path.is_file():
        raise WrongUse(f"{path} does not exist. It should be a safetensors file with one tensor [n, d].")
    try:
        tensors = load_tensors(path)[0]
    except ValueError as error:
        raise Failed(str(error)) from error
    found = list(tensors) if len(tensors) == 1 else [name for name in names if name in tensors]
    if len(found) != 1:
        wanted = " or ".join(map(repr, names))
        raise WrongUse(
            f"{path} holds {', '.join(tensors) or 'nothing'}: it should hold one tensor, or one named {wanted}."
        )
    return tensors[found[0]]


def _result(out: Path, config: TrainConfig) -> dict[str, Any]:
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        last = {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    counts = {"steps": config.steps, "dead": int(last["dead"]), "dead_window": run["dead_window"]}
    return {
        "path": str(out),
        "kind": config.kind.name,
        "fvu": last["fvu"],
        "l0": last["l0"],
        **counts,
        "seed": config.seed,
    }


def _show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:12} {value}")
