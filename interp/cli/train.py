"""`interp train SHAPE`: a sparse dictionary from a model and text, or from anyone's tensors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.errors import Failed, WrongUse

if TYPE_CHECKING:
    from interp.dictionaries import RowsSource, Source, StoreSource, TrainConfig
    from interp.model import Model

app = typer.Typer(no_args_is_help=True, help="Train a sparse dictionary.")

MODEL = typer.Argument(help="zoo:books, a folder, or a hub id; none with --rows")
OUT = typer.Option("-o", "--out", help="folder of the run")
SITE = typer.Option(help="site to read; a transcoder of an MLP: blocks.3.mlp; several: blocks.*.mlp")
TARGET = typer.Option(help="transcoder: site to write, if not the .write beside the .in that is read")
TEXT = typer.Option(help="text file or folder; default: Python's help texts")
DATASET = typer.Option(help="hub data set with a column 'text'")
TOKENS = typer.Option(help="stop recording after this many rows")
CONTEXT = typer.Option(help="tokens a window of text")
ROWS = typer.Option(help="instead of a model: safetensors file with rows [n, d], or a dictionary's folder: its decoder")
TARGETS = typer.Option(help="transcoder: safetensors file with the targets of --rows")
KIND = typer.Option(help="topk, or another that `interp dictionaries` lists")
K = typer.Option(help="active latents a row, for the kinds that fix it")
SPARSITY = typer.Option(help="λ, the penalty's coefficient, for the kinds that have one")
LATENTS = typer.Option(help="latents in the dictionary")
STEPS = typer.Option(help="training steps")
BATCH = typer.Option(help="rows a step")
LR = typer.Option(help="learning rate; default: the kind's")
SKIP = typer.Option("--skip", help="transcoder: add a linear path from input to output")
SEED = typer.Option(help="of the weights and of every shuffle")
CONFIG = typer.Option("--config", help="YAML or JSON file: settings of the run and of its kind; options win over it")
RESUME = typer.Option("--resume", help="go on with an interrupted run")
DRY_RUN = typer.Option("--dry-run", help="only say rows, bytes and minutes")
DEVICE = typer.Option(help="cpu, cuda, ...")
DTYPE = typer.Option(help="of the encoder's product: float32, bfloat16, float16, float64")
AS_JSON = typer.Option("--json", help="print one JSON object")


def _command(shape: str) -> Callable[..., None]:
    @guarded
    def command(
        out: Annotated[Path, OUT],
        model: Annotated[str | None, MODEL] = None,
        site: Annotated[str | None, SITE] = None,
        target: Annotated[str | None, TARGET] = None,
        text: Annotated[str | None, TEXT] = None,
        dataset: Annotated[str | None, DATASET] = None,
        tokens: Annotated[int | None, TOKENS] = None,
        context: Annotated[int, CONTEXT] = 512,
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
        seed: Annotated[int | None, SEED] = None,
        config: Annotated[Path | None, CONFIG] = None,
        resume: Annotated[bool, RESUME] = False,
        dry_run: Annotated[bool, DRY_RUN] = False,
        device: Annotated[str, DEVICE] = "cpu",
        dtype: Annotated[str | None, DTYPE] = None,
        as_json: Annotated[bool, AS_JSON] = False,
    ) -> None:
        from interp.dictionaries import plan, train

        given = {"kind": kind, "k": k, "sparsity": sparsity, "latents": latents, "steps": steps, "batch": batch}
        given |= {"lr": lr, "skip": skip or None, "cross_layer": shape == "clt" or None, "seed": seed, "dtype": dtype}
        wanted = _settings(config, given)
        _check_asked(shape, model, site, target, rows, targets, wanted)
        if rows is not None:
            source: Source = rows_source(rows, targets)
            before = {"rows": 0, "bytes": 0, "minutes": 0.0}
        else:
            text_of = Recording(str(model), str(site), target, shape, device, text, dataset, tokens, context)
            source, before = text_of.planned() if dry_run else text_of.made(out, wanted.seed, resume)
        if dry_run:
            training = plan(wanted, source, device)
            return answer({name: training[name] + before[name] for name in training}, as_json, _show)
        train(wanted, source, out, resume, device)
        return answer(_result(out, wanted), as_json, _show)

    return command


for shape, what in {
    "sae": "Train a sparse autoencoder of one site: x̂ = f W_dec + b_dec.",
    "transcoder": "Train a transcoder, from one site to another: ŷ = f W_dec + b_dec [+ W_skip x].",
    "crosscoder": "Train a crosscoder: one code for several sites, x̂^s = f W_dec^s + b^s.",
    "clt": "Train a cross-layer transcoder: latents read their layer's MLP and write to it and to all above.",
}.items():
    app.command(shape, help=what)(_command(shape))


def _settings(file: Path | None, given: dict[str, Any]) -> TrainConfig:
    """Defaults, then the file, then what was said on the command line."""
    from interp.dictionaries import TrainConfig, read_config

    said = {name: value for name, value in given.items() if value is not None}
    return TrainConfig.from_dict((read_config(file) if file else {}) | said, str(file or "The command line"))


def _check_asked(
    shape: str,
    model: str | None,
    site: str | None,
    target: str | None,
    rows: Path | None,
    targets: Path | None,
    wanted: TrainConfig,
) -> None:
    from interp.dictionaries.kinds import TIED

    if (model is None) == (rows is None):
        raise WrongUse("Give a MODEL and --site, or --rows X.safetensors: one of the two.")
    if (model is None) != (site is None):
        raise WrongUse(
            "--site goes with a MODEL: `interp sites MODEL` lists the sites." if model else "--site needs a MODEL."
        )
    if shape in ("sae", "crosscoder") and (targets or target or wanted.skip):
        raise WrongUse(
            "An autoencoder's target is its input: --targets, --target and --skip are for `interp train transcoder`."
        )
    if shape == "clt" and (targets or target or wanted.skip):
        raise WrongUse("A cross-layer transcoder writes to the .write beside each .in; it takes no target and no skip.")
    if shape != "sae" and wanted.kind.activation in TIED:
        raise WrongUse(f"{wanted.kind.name} takes one site: {TIED[wanted.kind.activation]}.")
    if shape in ("crosscoder", "clt") and rows is not None:
        raise WrongUse(f"A {shape} reads several sites of a MODEL; --rows has one.")
    if shape == "transcoder" and rows is not None and targets is None:
        raise WrongUse("A transcoder needs --targets Y.safetensors beside --rows.")


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


@dataclass(frozen=True)
class Recording:
    """Where the rows come from when a model is given: its activations at some sites, over text."""

    model: str
    site: str
    target: str | None
    shape: str
    device: str
    text: str | None
    dataset: str | None
    tokens: int | None
    context: int

    def made(self, out: Path, seed: int, resume: bool) -> tuple[StoreSource, dict[str, float]]:
        """The rows, recorded into OUT/activations (or read from there, if an interrupted run had finished them)."""
        from interp.dictionaries import StoreSource
        from interp.files import command_line
        from interp.store.recording import record_text

        model, reads, writes = self._loaded()
        meta = {"command": command_line(out), "seed": seed, "text": self.text, "dataset": self.dataset}
        folder = out / "activations"
        store = record_text(
            model, list(dict.fromkeys(reads + writes)), self._texts(), folder,
            tokens=self.tokens, seed=seed, resume=resume, context=self.context, meta=meta,
        )  # fmt: skip
        return StoreSource(store, reads, writes), {}

    def planned(self) -> tuple[RowsSource, dict[str, float]]:
        """Noise of the right widths to time training on, and what recording will take."""
        import torch

        from interp.dictionaries import RowsSource
        from interp.store.recording import plan

        model, reads, writes = self._loaded()
        cost = plan(
            model,
            list(dict.fromkeys(reads + writes)),
            self._texts(),
            tokens=self.tokens,
            dtype="bfloat16",
            batch=16,
            context=self.context,
        )
        w_in, w_out = ({s: model.width(s) for s in sites} for sites in (reads, writes))
        x, y = (torch.randn(4096, sum(widths.values())) for widths in (w_in, w_out))
        # the rows of the plan are those recorded: what the example holds is taken off again
        before = {"rows": cost.rows - len(x), "bytes": cost.bytes, "minutes": cost.minutes}
        return RowsSource(x, None if reads == writes else y, w_in, w_out), before

    def _texts(self) -> Iterator[str]:
        from interp.texts import read_texts

        return read_texts(self.text, self.dataset)

    def _loaded(self) -> tuple[Model, list[str], list[str]]:
        """The model, the sites to read and the sites to write."""
        from interp.model import load

        model = load(self.model, device=self.device)
        if self.shape in ("sae", "crosscoder"):
            return model, *2 * (self._named(model, self.site),)
        whole = self.site.endswith(".in") or self.target is not None
        reads = self._named(model, self.site if whole else f"{self.site}.in")
        if self.target is not None:
            return model, reads, self._named(model, self.target)
        return model, reads, [f"{site.removesuffix('.in')}.write" for site in reads]

    def _named(self, model: Model, site: str) -> list[str]:
        names = model.names(site)
        one = self.shape in ("sae", "transcoder")
        if one and len(names) > 1:
            raise WrongUse(
                f"{site} means {len(names)} sites ({names[0]}, {names[1]}, …); a dictionary of this shape reads one. "
                "`interp train crosscoder` and `clt` read several."
            )
        if not one and len(names) < 2:
            raise WrongUse(
                f"{site} is one site; a {self.shape} reads several, such as blocks.*.{site.split('.', 2)[-1]}."
            )
        return names


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
