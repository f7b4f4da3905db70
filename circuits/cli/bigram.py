"""`interp bigram`: count what follows each token, find the weights that know it, and say what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Dataset, Device, ModelName, TextFile
from interp.errors import WrongUse, check_keys

if TYPE_CHECKING:
    from torch import Tensor

    from circuits.bigram import Counts, Mask
    from interp.model import Model

app = typer.Typer(no_args_is_help=True, help=__doc__)

MODEL = typer.Argument(help="zoo:books, a folder, or a hub id")
CONTEXT = typer.Option(min=2, help="tokens a window of text")
COUNTS = typer.Option(help="counts that `interp bigram count` made")


@app.command()
@guarded
def count(
    model: Annotated[
        str, typer.Argument(help="whose tokenizer: zoo:books, a folder (a tokenizer will do), or a hub id")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="the file to write, .safetensors")],
    text: TextFile = None,
    dataset: Dataset = None,
    n: Annotated[int, typer.Option("-n", min=1, help="tokens a gram: 2 for bigrams")] = 2,
    context: Annotated[int, CONTEXT] = 128,
    as_json: AsJson = False,
) -> None:
    """Count what follows each context of n - 1 tokens, exactly, reading the text once."""
    from circuits.bigram import count as counted
    from interp.model.load import tokenizer_of
    from interp.store.recording import token_windows
    from interp.texts import read_texts

    if out.suffix != ".safetensors":
        raise WrongUse(f"counts are one file: -o {out}.safetensors.")
    tokenizer = tokenizer_of(model)
    windows = (ids for _, ids in token_windows(tokenizer, read_texts(text, dataset), context))
    found = counted(_shown(windows, "tokens"), len(tokenizer), n, tokenizer)
    if not found.total:
        raise WrongUse("the text is empty: there is nothing to count.")
    out.parent.mkdir(parents=True, exist_ok=True)
    found.save(out)
    sizes = {"n": n, "vocabulary": found.vocabulary, "tokens": found.total, "contexts": len(found.contexts)}
    answer({"path": str(out), **sizes, "grams": len(found.tokens), "hash": found.hash}, as_json, _list)


@app.command()
@guarded
def train(
    model: ModelName,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder of the run; of several: of folders penalty-P-seed-S")
    ],
    counts: Annotated[Path | None, COUNTS] = None,
    towards: Annotated[str, typer.Option(help="counts, or model: the model's own predictions")] = "counts",
    text: TextFile = None,
    dataset: Dataset = None,
    penalty: Annotated[list[float] | None, typer.Option(help="λ of the masks' mean; may be given again (10)")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="of the order of the text; may be given again (0)")] = None,
    steps: Annotated[int, typer.Option(min=1, help="at most; the temperature's schedule fits itself to them")] = 1500,
    lr: Annotated[float, typer.Option(help="learning rate")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="windows a step")] = 4,
    context: Annotated[int, CONTEXT] = 128,
    dtype: Annotated[str, typer.Option(help="of the products: float32 or bfloat16")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="go on with interrupted runs")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train masks: the fewer weights, the higher the penalty, that predict as the counts (or as the whole model) do."""
    from circuits.bigram import Counts, Recipe, own_distribution
    from circuits.bigram import train as trained
    from interp.model import load

    check_keys([towards], ("counts", "model"), "--towards")
    if (towards == "counts") != (counts is not None):
        raise WrongUse("give --counts FILE, or --towards model without counts.")
    wrapped = load(model, device=device)
    pairs = [(p, s) for s in seed or [0] for p in penalty or [10.0]]
    recipes = [Recipe(p, s, steps, lr, batch=batch, context=context, dtype=dtype) for p, s in pairs]
    about: dict[str, Any] = {"towards": towards}
    target = own_distribution(wrapped)
    if counts is not None:
        table = Counts.load(counts)
        table.check(wrapped.tokenizer)
        about, target = about | {"n": table.n, "counts": table.hash}, table.distribution
    read = list(_shown(_windows(wrapped, text, dataset, context), "tokens"))
    runs = []
    for recipe in recipes:
        folder = out if len(recipes) == 1 else out / f"penalty-{recipe.penalty:g}-seed-{recipe.seed}"
        mask = trained(wrapped, read, target, folder, recipe, about, resume)
        told = {name: mask.about[name] for name in ("steps_done", "stopped", "undecided_share", "stable")}
        shares = {"kept": mask.kept, "kept_share": mask.kept / mask.size}
        runs.append({"path": str(folder), "penalty": recipe.penalty, "seed": recipe.seed, **shares, **told})
    answer({"runs": runs}, as_json, _table)


RUN = typer.Argument(help="folder of a run, or a mask.safetensors")
TOKENS = typer.Option(min=1, help="of the text, evenly spaced")


@app.command()
@guarded
def report(
    run: Annotated[Path, RUN],
    text: TextFile = None,
    dataset: Dataset = None,
    counts: Annotated[Path | None, COUNTS] = None,
    model: Annotated[str | None, typer.Option(help="the mask's model, if not found under its own name")] = None,
    tokens: Annotated[int, TOKENS] = 16_384,
    random: Annotated[int, typer.Option(min=1, help="random subnetworks to compare with")] = 3,
    seed: Annotated[int, typer.Option(help="of the random subnetworks")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write a page to this HTML file")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """What a subnetwork says against the bigram model on held-out text, against random ones, and where its weights are."""
    from circuits.bigram.measure import as_dict
    from circuits.bigram.measure import report as reported

    mask, wrapped, table = _opened(run, counts, model, device)
    ids = _held_out(mask, wrapped, table, text, dataset, tokens)
    found = reported(mask, wrapped, table, ids, random, seed)
    result = as_dict(mask, wrapped, found) | {"model": mask.model, "tokens": ids.numel(), "n": table.n}
    if out is not None:
        from circuits.cli.bigram_page import write_page

        write_page(
            out, result, {"run": str(run), "model": mask.model, "text": f"{ids.numel():,} tokens of {text or dataset}"}
        )
    answer(result, as_json, _show_report)


@app.command()
@guarded
def select(
    runs: Annotated[Path, typer.Argument(help="folder of folders of runs")],
    text: TextFile = None,
    dataset: Dataset = None,
    counts: Annotated[Path | None, COUNTS] = None,
    model: Annotated[str | None, typer.Option(help="the masks' model, if not found under its own name")] = None,
    tokens: Annotated[int, TOKENS] = 16_384,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """The penalty to choose: the highest whose correlation is within 0.04 of that without a penalty, of stable runs."""
    from circuits.bigram import Mask
    from circuits.bigram.measure import compare

    folders = sorted(file.parent for file in runs.glob("*/mask.safetensors"))
    if not folders:
        raise WrongUse(
            f"{runs} holds no finished runs: `interp bigram train MODEL --penalty 0 --penalty 10 -o {runs}`."
        )
    first, wrapped, table = _opened(folders[0], counts, model, device)
    masks = [Mask.load(folder) for folder in folders]
    for folder, mask in zip(folders, masks, strict=True):
        _check_counts(folder, mask, table)
    found = compare(masks, wrapped, table, _held_out(first, wrapped, table, text, dataset, tokens))
    rows = found.to_frame().to_dict("records")
    answer({"runs": rows, "penalty": found.penalty}, as_json, _show_selected)


@app.command()
@guarded
def overlap(
    first: Annotated[Path, RUN],
    second: Annotated[Path, RUN],
    model: Annotated[str | None, typer.Option(help="the masks' model, if not found under its own name")] = None,
    draws: Annotated[int, typer.Option(min=1, help="shuffles of both masks within every matrix")] = 10_000,
    seed: Annotated[int, typer.Option(help="of the shuffles")] = 0,
    as_json: AsJson = False,
) -> None:
    """How many weights two subnetworks share, and how many they would by chance."""
    from circuits.bigram import Mask
    from circuits.bigram import overlap as overlapping
    from interp.model import load

    a, b = Mask.load(first), Mask.load(second)
    found = overlapping(a, b, load(model or a.model), draws, seed)
    row = found.to_frame().to_dict("records")[0]
    answer({str(name): value for name, value in row.items()}, as_json, _list)


@app.command()
@guarded
def stream(
    source: Annotated[str, typer.Argument(help="folder of a run; or a model, to see the whole of it")],
    text: TextFile = None,
    dataset: Dataset = None,
    model: Annotated[str | None, typer.Option(help="the mask's model, if not found under its own name")] = None,
    tokens: Annotated[int, TOKENS] = 16_384,
    context: Annotated[int, CONTEXT] = 128,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """How the stream turns towards the next token: angles of maps, recall of tokens, similarity of covariances by layer."""
    import torch

    from circuits.bigram import Mask
    from circuits.bigram.stream import turning
    from interp.model import load

    if (Path(source) / "mask.safetensors").is_file() or source.endswith(".safetensors"):
        mask = Mask.load(source)
        wrapped = mask.apply(load(model or mask.model, device=device))
    else:
        wrapped = load(source, device=device)
    read = list(_shown(_windows(wrapped, text, dataset, context), "tokens"))
    if not read:
        raise WrongUse(f"the text is shorter than one window of {context} tokens: give more text.")
    wanted = min(len(read), max(2, tokens // context))
    found = turning(wrapped, torch.tensor([read[i * len(read) // wanted] for i in range(wanted)]))
    rows = found.to_frame().to_dict("records")
    answer({"layers": rows, "covariance": found.covariance.tolist()}, as_json, _show_layers)


def _opened(run: Path, counts: Path | None, model: str | None, device: str | None) -> tuple[Mask, Model, Counts]:
    """A mask, its model, and its counts: those named, or counts.safetensors in the run's folder or the one above."""
    from circuits.bigram import Counts, Mask
    from interp.model import load

    mask, folder = Mask.load(run), run if run.is_dir() else run.parent
    beside = [file for file in (folder / "counts.safetensors", folder.parent / "counts.safetensors") if file.is_file()]
    if counts is None and not beside:
        raise WrongUse(f"there is no counts.safetensors in {folder} or above it: name them, --counts FILE.")
    table = Counts.load(counts or beside[0])
    _check_counts(run, mask, table)
    return mask, load(model or mask.model, device=device), table


def _check_counts(run: Path, mask: Mask, table: Counts) -> None:
    wanted = mask.about.get("about", {}).get("counts")
    if wanted is not None and wanted != table.hash:
        raise WrongUse(f"{run} was trained towards other counts (hash {wanted[:8]}) than these ({table.hash[:8]}).")


def _held_out(mask: Mask, model: Model, table: Counts, text: str | None, dataset: str | None, tokens: int) -> Tensor:
    from circuits.bigram.measure import held_out

    table.check(model.tokenizer)
    context = mask.about.get("context", 128)
    return held_out(_shown(_windows(model, text, dataset, context), "tokens"), table, context, tokens)


def _windows(model: Model, text: str | None, dataset: str | None, context: int) -> Iterator[list[int]]:
    """Windows of exactly `context` tokens."""
    from interp.store.recording import windows
    from interp.texts import read_texts

    return (ids for _, ids in windows(model, read_texts(text, dataset), context) if len(ids) == context)


def _shown(windows: Iterator[list[int]], unit: str) -> Iterator[list[int]]:
    """With a progress bar that counts tokens."""
    from tqdm.auto import tqdm

    with tqdm(unit=f" {unit}", unit_scale=True, desc="reading", mininterval=1) as bar:
        for ids in windows:
            yield ids
            bar.update(len(ids))


def _list(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:24}{value:.4f}" if isinstance(value, float) else f"{name:24}{value}")


def _table(result: dict[str, Any]) -> None:
    import pandas as pd

    print(pd.DataFrame(result["runs"]).to_string(index=False))


def _show_report(result: dict[str, Any]) -> None:
    _list({name: value for name, value in result.items() if not isinstance(value, dict)})
    _list({f"without it: {name}": v for name, v in result["ablation_loss"].items() if not isinstance(v, list)})
    for name in ("by_block", "by_matrix"):
        for key, row in result[name].items():
            print(f"{key:24}{row['kept']:>10} of {row['size']:<10}{row['share_of_kept']:8.1%}")


def _show_selected(result: dict[str, Any]) -> None:
    _table(result)
    print(f"penalty {result['penalty']:g}")


def _show_layers(result: dict[str, Any]) -> None:
    _table({"runs": result["layers"]})
