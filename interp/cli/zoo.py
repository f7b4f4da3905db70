"""`interp zoo`: list the bundled models, train one from its recipe, measure one."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from interp import zoo
from interp.cli import answer, guarded
from interp.errors import WrongUse, check_keys, nearest

if TYPE_CHECKING:
    from interp.zoo.books import Recipe

app = typer.Typer(no_args_is_help=True, help=__doc__)

RECIPES = ("books",)

NAME = typer.Argument(help="the model's name in the zoo, such as books")
TEXT = typer.Option(..., "--text", help="a folder of novels, one *.txt each; the last 5 % of each is held out")
DEVICE = typer.Option("cpu", "--device", help="where to compute: cpu, cuda, cuda:1 …")
JSON = typer.Option(False, "--json", help="print one JSON object and nothing else")


@app.command("list")
@guarded
def list_models(as_json: bool = JSON) -> None:
    """The models that are bundled, and the names that can be trained."""
    bundled = [{"name": n, "path": str(zoo.path(n)), "bytes": _bytes(zoo.path(n))} for n in zoo.names()]
    answer({"models": bundled, "recipes": list(RECIPES)}, as_json, _show_list)


@app.command()
@guarded
def train(
    name: str = NAME,
    text: Path = TEXT,
    out: Path | None = typer.Option(None, "-o", "--out", help="the folder to train into (default: ./NAME)"),
    steps: int | None = typer.Option(None, "--steps", min=1, help="optimiser steps (default: the recipe's)"),
    seed: int | None = typer.Option(None, "--seed", min=0, help="of weights and batches (default: the recipe's)"),
    device: str = DEVICE,
    dtype: str | None = typer.Option(None, "--dtype", help="of the products: float32 or bfloat16 (default: bfloat16)"),
    resume: bool = typer.Option(False, "--resume", help="go on with the run in the folder"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only say how much will be read and written, and how long"),
    as_json: bool = JSON,
) -> None:
    """Train a model of the zoo from text, deterministically; a killed run goes on with --resume to the same weights."""
    from interp.zoo import books

    _known(name)
    _readable(text)
    out = Path(name) if out is None else out
    check_keys([dtype or "bfloat16"], ("float32", "bfloat16"), "the list of dtypes")
    recipe = _recipe(out, resume, {"steps": steps, "seed": seed, "dtype": dtype})
    if dry_run:
        return answer(_plan(recipe, device), as_json, _show)
    books.train(text, out, recipe, device=device)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        last = {key: float(value) for key, value in list(csv.DictReader(file))[-1].items()}
    return answer({"path": str(out), "seed": recipe.seed} | last, as_json, _show)


@app.command()
@guarded
def check(
    name: str = NAME,
    text: Path = TEXT,
    model: Path | None = typer.Option(None, "--model", help="measure the model in this folder, not the bundled one"),
    seed: int = typer.Option(0, "--seed", min=0, help="of the samples and the random tokens"),
    device: str = DEVICE,
    dtype: str = typer.Option("float32", "--dtype", help="the model runs in: float32, bfloat16 or float16"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only say how much will be read, and how long it takes"),
    as_json: bool = JSON,
) -> None:
    """Measure what the recipe promises: bits per byte beside n-gram models, induction, known words. Takes minutes.

    Nothing is written, so there is nothing to resume.
    """
    from interp.zoo.check import check as measure
    from interp.zoo.check import plan

    _known(name)
    _readable(text)
    folder = zoo.path(name) if model is None else model
    answer((plan if dry_run else measure)(folder, text, seed, device, dtype), as_json, _show)


@app.command()
@guarded
def corpus(
    name: str = NAME,
    text: Path = TEXT,
    out: Path = typer.Option(..., "-o", "--out", help="the folder to write train/*.txt and held_out/*.txt into"),
    as_json: bool = JSON,
) -> None:
    """Write the text a model learns from and the text held out, as its recipe splits them, a file a document."""
    from interp.files import write_text
    from interp.zoo.corpus import novels, topics

    _known(name)
    _readable(text)
    sizes = {"train": 0, "held_out": 0}
    for split in [*novels(text), topics()]:
        for part in sizes:
            (out / part).mkdir(parents=True, exist_ok=True)
            write_text(out / part / f"{split.name}.txt", getattr(split, part))
            sizes[part] += len(getattr(split, part))
    answer({"path": str(out), "characters": sizes}, as_json, _show)


def _known(name: str) -> None:
    if name not in RECIPES:
        raise WrongUse(f"the zoo has no recipe {name!r}.{nearest(name, RECIPES)} It has: {', '.join(RECIPES)}.")


def _readable(text: Path) -> None:
    """Say what is wrong with the folder of novels before any work is done."""
    from interp.zoo.corpus import novels

    try:
        empty = [split.name for split in novels(text) if not split.held_out]
    except FileNotFoundError as error:
        raise WrongUse(str(error)) from error
    except UnicodeDecodeError as error:
        raise WrongUse(f"a *.txt file in {text} is not UTF-8 text ({error}).") from error
    if empty:
        raise WrongUse(f"{text}/{empty[0]}.txt is too short to hold out a part of it: remove it or give more text.")


def _recipe(out: Path, resume: bool, asked: dict[str, int | str | None]) -> Recipe:
    """The recipe of the run: the one that `out` was begun with, or a new one for a folder without a run."""
    from interp.zoo.books import Recipe, read_recipe

    changes: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    begun = [name for name in ("state.safetensors", "recipe.json", "tokenizer.json") if (out / name).exists()]
    if begun and not resume:
        raise WrongUse(f"{out} holds a run already ({', '.join(begun)}): add --resume, or give another -o FOLDER.")
    if "recipe.json" not in begun:
        return replace(Recipe(), **changes)
    saved = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    check_keys(saved, [*asdict(Recipe()), "about"], f"{out / 'recipe.json'}")
    recipe = read_recipe({key: value for key, value in saved.items() if key != "about"})
    for key, value in changes.items():
        if value != saved[key]:
            raise WrongUse(f"the run in {out} has --{key} {saved[key]}, not {value}: resume it as it was begun.")
    return recipe


def _plan(recipe: Recipe, device: str) -> dict[str, Any]:
    """Rows (windows) and bytes of a run, and its minutes: a window forward and backward, timed, times their number."""
    import torch

    from interp.zoo import books

    model = books.build_model(recipe).to(device)
    ids = torch.randint(3, recipe.vocabulary, (1, recipe.context), device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        books.summed_loss(model, ids, ids).backward()
        next(model.parameters()).grad.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    rows, size = recipe.steps * recipe.batch, 0
    for optimiser, kept in zip(books.optimisers(model, recipe), (1, 2), strict=True):
        # float32 weights and what the optimiser keeps beside them, and the bfloat16 weights that ship
        size += sum((4 + 4 * kept + 2) * p.numel() for group in optimiser.param_groups for p in group["params"])
    minutes = round(rows * min(seconds) / 60, 1)
    return {"rows": rows, "tokens": rows * recipe.context, "bytes": size, "minutes": minutes, "recipe": asdict(recipe)}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _show_list(result: dict[str, Any]) -> None:
    for model in result["models"]:
        typer.echo(f"{model['name']:12} {model['bytes'] / 1e6:6.1f} MB  {model['path']}")
    typer.echo(f"recipes: {', '.join(result['recipes'])}")


def _show(result: dict[str, Any], indent: str = "") -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(indent + key)
            _show(value, indent + "  ")
        else:
            typer.echo(f"{indent + key:24}{value:.4f}" if isinstance(value, float) else f"{indent + key:24}{value}")
