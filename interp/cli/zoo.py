"""`interp zoo`: list the bundled models, train one from its recipe, measure one, make inputs for one."""

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
from interp.errors import WrongUse, check_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from interp.zoo.regularisers import Penalty

app = typer.Typer(no_args_is_help=True, help=__doc__)

NAME = typer.Argument(help="the model's name in the zoo, such as books or numbers")
TEXT = typer.Option(
    None, "--text", help="books only: a folder of novels, one *.txt each; the last 5 % of each is held out"
)
DEVICE = typer.Option("cpu", "--device", help="where to compute: cpu, cuda, cuda:1 …")
JSON = typer.Option(False, "--json", help="print one JSON object and nothing else")


@app.command("list")
@guarded
def list_models(as_json: bool = JSON) -> None:
    """The models that are bundled, and the names that can be trained."""
    bundled = [{"name": n, "path": str(zoo.path(n)), "bytes": _bytes(zoo.path(n))} for n in zoo.names()]
    answer({"models": bundled, "recipes": list(zoo.RECIPES)}, as_json, _show_list)


@app.command()
@guarded
def train(
    name: str = NAME,
    text: Path | None = TEXT,
    out: Path | None = typer.Option(None, "-o", "--out", help="the folder to train into (default: ./NAME)"),
    steps: int | None = typer.Option(None, "--steps", min=1, help="optimiser steps (default: the recipe's)"),
    seed: int | None = typer.Option(None, "--seed", min=0, help="of weights and batches (default: the recipe's)"),
    device: str = DEVICE,
    dtype: str | None = typer.Option(
        None, "--dtype", help="of the products: float32 or bfloat16 (default: the recipe's)"
    ),
    penalty: str | None = typer.Option(
        None, "--penalty", help="added to the loss: layer-cosine, seq-vcr (not of books)"
    ),
    penalty_weight: float = typer.Option(0.1, "--penalty-weight", help="times the penalty"),
    resume: bool = typer.Option(False, "--resume", help="go on with the run in the folder"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only say how much will be read and written, and how long"),
    as_json: bool = JSON,
) -> None:
    """Train a model of the zoo, deterministically; a killed run goes on with --resume to the same weights."""
    from interp.zoo import books, training
    from interp.zoo.regularisers import Penalty

    recipe_name = zoo.recipe_name(name)
    _readable(recipe_name, text)
    if penalty is not None and recipe_name == "books":
        raise WrongUse("books is trained without a penalty: take one of " + ", ".join(zoo.RECIPES[1:]) + ".")
    added = None if penalty is None else Penalty(penalty, penalty_weight)
    out = Path(name) if out is None else out
    check_keys([dtype or "bfloat16"], ("float32", "bfloat16"), "the list of dtypes")
    recipe = _recipe(recipe_name, out, resume, {"steps": steps, "seed": seed, "dtype": dtype}, added)
    if dry_run:
        return answer(_plan(recipe_name, recipe, device), as_json, _show)
    if recipe_name == "books":
        books.train(text or "", out, recipe, device=device)
    else:
        training.train(recipe_name, zoo.task(recipe_name), out, recipe, device=device, penalty=added)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        last = {key: float(value) for key, value in list(csv.DictReader(file))[-1].items()}
    return answer({"path": str(out), "seed": recipe.seed} | last, as_json, _show)


@app.command()
@guarded
def check(
    name: str = NAME,
    text: Path | None = TEXT,
    model: Path | None = typer.Option(None, "--model", help="measure the model in this folder, not the bundled one"),
    seed: int = typer.Option(0, "--seed", min=0, help="of what is drawn to measure on"),
    device: str = DEVICE,
    dtype: str = typer.Option("float32", "--dtype", help="books only: float32, bfloat16 or float16"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only say how much will be read, and how long it takes"),
    as_json: bool = JSON,
) -> None:
    """Measure what a recipe promises, from the weights: of books in minutes, of the others in less than one.

    Nothing is written, so there is nothing to resume.
    """
    from interp.zoo.check import check as measure
    from interp.zoo.check import plan

    recipe_name = zoo.recipe_name(name)
    _readable(recipe_name, text)
    folder = zoo.path(name) if model is None else model
    if recipe_name == "books":
        return answer((plan if dry_run else measure)(folder, text or "", seed, device, dtype), as_json, _show)
    if dry_run:
        return answer({"bytes": 0, "minutes": 1}, as_json, _show)
    return answer(zoo.task(name).check(folder, seed, device), as_json, _show)


@app.command()
@guarded
def sample(
    name: str = NAME,
    text: str | None = typer.Option(
        None, "--text", help="what it is of, such as 4071; default: drawn from what is held out"
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="of what is drawn"),
    out: Path | None = typer.Option(None, "-o", "--out", help="the file to write: *.wav of tones, *.png of digits"),
    as_json: bool = JSON,
) -> None:
    """Make an input for a model: tones as a sound file, digits as a picture, a question for numbers, brackets."""
    if zoo.recipe_name(name) == "books":
        raise WrongUse("books reads any text, so none is made for it; the others: " + ", ".join(zoo.RECIPES[1:]) + ".")
    answer(zoo.task(name).sample(text, seed, out), as_json, _show)


@app.command()
@guarded
def inputs(
    name: str = NAME,
    out: Path = typer.Option(..., "-o", "--out", help="the file to write, *.safetensors"),
    count: int = typer.Option(1000, "--count", min=1, help="how many"),
    seed: int = typer.Option(0, "--seed", min=0, help="of what is drawn"),
    as_json: bool = JSON,
) -> None:
    """Write ready inputs as a model was trained on, for `--inputs` of `interp record`, `train` and `eval`."""
    from interp.files import save_tensors
    from interp.zoo.training import ready

    if zoo.recipe_name(name) == "books":
        raise WrongUse(
            "books reads text: give --text there. Inputs are for the others: " + ", ".join(zoo.RECIPES[1:]) + "."
        )
    if out.suffix != ".safetensors":
        raise WrongUse(f"inputs are one file: -o {out.with_suffix('.safetensors')}.")
    made = ready(zoo.task(name), zoo.path(name), count, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(out, made)
    answer({"path": str(out)} | {k: " x ".join(map(str, v.shape)) for k, v in made.items()}, as_json, _show)


@app.command()
@guarded
def corpus(
    name: str = NAME,
    text: Path | None = TEXT,
    out: Path = typer.Option(..., "-o", "--out", help="the folder to write train/*.txt and held_out/*.txt into"),
    as_json: bool = JSON,
) -> None:
    """Write the text a model learns from and the text held out, as its recipe splits them, a file a document."""
    from interp.files import write_text
    from interp.zoo.corpus import novels, topics

    if zoo.recipe_name(name) != "books":
        raise WrongUse(
            f"{name} learns from examples that are made, not from a text: interp zoo sample {name} makes one."
        )
    _readable(name, text)
    assert text is not None
    sizes = {"train": 0, "held_out": 0}
    for split in [*novels(text), topics()]:
        for part in sizes:
            (out / part).mkdir(parents=True, exist_ok=True)
            write_text(out / part / f"{split.name}.txt", getattr(split, part))
            sizes[part] += len(getattr(split, part))
    answer({"path": str(out), "characters": sizes}, as_json, _show)


def _readable(name: str, text: Path | None) -> None:
    """Say what is wrong with the folder of novels before any work is done."""
    from interp.zoo.corpus import novels

    if (name == "books") != (text is not None):
        raise WrongUse(
            "books is trained and measured on novels: give --text FOLDER, with one *.txt each."
            if name == "books"
            else f"{name} makes its own data: leave --text out."
        )
    if text is None:
        return
    try:
        empty = [split.name for split in novels(text) if not split.held_out]
    except FileNotFoundError as error:
        raise WrongUse(str(error)) from error
    except UnicodeDecodeError as error:
        raise WrongUse(f"a *.txt file in {text} is not UTF-8 text ({error}).") from error
    if empty:
        raise WrongUse(f"{text}/{empty[0]}.txt is too short to hold out a part of it: remove it or give more text.")


def _recipe(name: str, out: Path, resume: bool, asked: dict[str, int | str | None], penalty: Penalty | None) -> Any:
    """The recipe of the run: the one that `out` was begun with, or a new one for a folder without a run."""
    from interp.zoo import books

    new = books.Recipe() if name == "books" else zoo.task(name).Recipe()
    changes: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    begun = [file for file in ("state.safetensors", "recipe.json", "tokenizer.json") if (out / file).exists()]
    if begun and not resume:
        raise WrongUse(f"{out} holds a run already ({', '.join(begun)}): add --resume, or give another -o FOLDER.")
    if "recipe.json" not in begun:
        return replace(new, **changes)
    saved = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    check_keys(saved, [*asdict(new), "about", "penalty"], f"{out / 'recipe.json'}")
    numbers = {key: value for key, value in saved.items() if key not in ("about", "penalty")}
    if saved.get("penalty") != (None if penalty is None else asdict(penalty)):
        raise WrongUse(f"the run in {out} has the penalty {saved.get('penalty')}: resume it as it was begun.")
    recipe = books.read_recipe(numbers) if name == "books" else replace(new, **numbers)
    for key, value in changes.items():
        if value != saved[key]:
            raise WrongUse(f"the run in {out} has --{key} {saved[key]}, not {value}: resume it as it was begun.")
    return recipe


def _plan(name: str, recipe: Any, device: str) -> dict[str, Any]:
    """Rows and bytes of a run, and its minutes: one step (of books, one window) forward and backward, timed."""

    from interp.zoo import books, training

    rows, loss, more = recipe.steps * recipe.batch, _loss_of_a_step(name, recipe), {}
    if name == "books":
        model, passes, more = books.build_model(recipe).to(device), rows, {"tokens": rows * recipe.context}
    else:
        model, passes = zoo.task(name).build_model(recipe).to(device), recipe.steps
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        loss(model).backward()
        next(model.parameters()).grad.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    size = 0
    for optimiser, kept in zip(training.optimisers(model, recipe), (1, 2), strict=True):
        # float32 weights and what the optimiser keeps beside them, and the bfloat16 weights that ship
        size += sum((4 + 4 * kept + 2) * p.numel() for group in optimiser.param_groups for p in group["params"])
    minutes = round(passes * min(seconds) / 60, 1)
    return {"rows": rows, **more, "bytes": size, "minutes": minutes, "recipe": asdict(recipe)}


def _loss_of_a_step(name: str, recipe: Any) -> Callable[[Any], Tensor]:
    """The loss of one step of a small model, or of one window of books, of the model it is called with."""
    import torch

    from interp.zoo import books, training

    if name == "books":
        ids = torch.randint(3, recipe.vocabulary, (1, recipe.context))
        return lambda model: books.summed_loss(model, ids.to(model.device), ids.to(model.device))
    return lambda model: training.loss_of(model, zoo.task(name).batch(recipe, 0), recipe.dtype)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _show_list(result: dict[str, Any]) -> None:
    for model in result["models"]:
        typer.echo(f"{model['name']:16} {model['bytes'] / 1e6:6.1f} MB  {model['path']}")
    typer.echo(f"recipes: {', '.join(result['recipes'])}")


def _show(result: dict[str, Any], indent: str = "") -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(indent + key)
            _show(value, indent + "  ")
        else:
            typer.echo(f"{indent + key:24}{value:.4f}" if isinstance(value, float) else f"{indent + key:24}{value}")
