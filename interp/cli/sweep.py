"""`interp train sweep FILE.yaml`: many dictionaries in one pass, compared in a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.activations import SHAPES, Activations, Ends, check_shape, each, names_in
from interp.cli.options import AsJson
from interp.errors import check_keys

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary, Source, Spliced, TrainConfig
    from interp.dictionaries.sweep import Sweep
    from interp.dictionaries.watch import Watch
    from interp.store import Store, Stream

FILE = typer.Argument(help="YAML or JSON: model or store, sites, kinds, seeds, settings; lists are crossed")
OUT = typer.Option("-o", "--out", help="folder of the sweep, with a folder in it for each dictionary")
RESUME = typer.Option("--resume", help="go on with an interrupted sweep")
DRY_RUN = typer.Option("--dry-run", help="only say rows, bytes and minutes")
DEVICE = typer.Option(help="cpu, cuda, ...")
TOGETHER = typer.Option(help="under torchrun: processes that share the latents of a dictionary")
TENSORBOARD = typer.Option("--tensorboard", help="also write the metrics for TensorBoard")
WANDB = typer.Option(help="also send the metrics to this project of Weights & Biases")


@guarded
def sweep(
    file: Annotated[Path, FILE],
    out: Annotated[Path, OUT],
    resume: Annotated[bool, RESUME] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    tensorboard: Annotated[bool, TENSORBOARD] = False,
    wandb: Annotated[str | None, WANDB] = None,
    device: Annotated[str, DEVICE] = "cpu",
    together: Annotated[int, TOGETHER] = 1,
    as_json: AsJson = False,
) -> None:
    """Train sites × kinds × settings × seeds in one pass; OUT/sweep.csv and OUT/pareto.html say what they come to."""
    from interp import ranks
    from interp.dictionaries import Diverged, StoreSource, train_many
    from interp.dictionaries.run import check_free
    from interp.dictionaries.sweep import read_sweep
    from interp.store import open_store

    asked, watch = read_sweep(file), watches(tensorboard, wandb)
    text = _text(asked, device)
    store = open_store(asked.store) if asked.store else None
    sites = _sites(asked, store, text)
    configs, site_of = _members(asked, sites)
    if dry_run:
        return answer(_planned(sites, configs, site_of, store, text, device), as_json, _show_plan)
    for name in configs:
        check_free(out / name, resume)  # before anything is recorded
    held: Store | Stream | None = store
    if store is None and text is not None:
        every = [site for both in sites.values() for part in both for site in part]
        order = next(iter(configs.values())).order
        held = text.rows(every, asked.stream, out, order, resume)
    views = {name: StoreSource(held, *both) for name, both in sites.items()}
    sources = {name: views[site] for name, site in site_of.items()}
    failure: Diverged | None = None
    try:
        train_many(configs, sources, out, resume, device, watch=watch, together=together)
    except Diverged as error:  # told when the table is written, of those that did not stop
        failure = error
    rows = [] if ranks.rank() else _compared(out, configs, sources, asked, text)
    ranks.wait()
    if failure:
        raise failure
    return None if ranks.rank() else answer({"path": str(out), "dictionaries": rows}, as_json, _show)


def watches(tensorboard: bool, project: str | None) -> list[Watch]:
    """Who is shown the metrics as they come. Raises `WrongUse` if what is asked for is not installed."""
    from interp.dictionaries import watch

    return ([watch.tensorboard()] if tensorboard else []) + ([watch.wandb(project)] if project else [])


def _text(asked: Sweep, device: str) -> Activations | None:
    if asked.model is None:
        return None
    return Activations.of(asked.model, device, asked.text, asked.dataset, asked.tokens, asked.context)


def _sites(asked: Sweep, store: Store | None, text: Activations | None) -> dict[str, Ends]:
    """What is read and written, by the names that folders begin with."""
    check_keys([asked.shape], SHAPES, "the list of shapes")
    if store is not None:
        names = names_in(store)
    else:
        assert text is not None  # a sweep has one of the two
        names = text.model.names
    return {name: both for site in asked.sites for name, both in each(names, asked.shape, site).items()}


def _members(asked: Sweep, sites: Mapping[str, Ends]) -> tuple[dict[str, TrainConfig], dict[str, str]]:
    """Config and site of every dictionary, by the name of its folder."""
    configs = {name: replace(c, cross_layer=c.cross_layer or asked.shape == "clt") for name, c in asked.configs.items()}
    for config in configs.values():
        check_shape(asked.shape, config)
    crossed = [(f"{site}-{name}", site, config) for site in sites for name, config in configs.items()]
    return {name: config for name, _, config in crossed}, {name: site for name, site, _ in crossed}


def _planned(
    sites: Mapping[str, Ends],
    configs: Mapping[str, TrainConfig],
    site_of: Mapping[str, str],
    store: Store | None,
    text: Activations | None,
    device: str,
) -> dict[str, float]:
    """Rows, bytes and minutes of it all: a few steps of every dictionary are made and timed."""
    from interp.dictionaries import StoreSource, plan

    total = {"rows": float(store.rows) if store else 0.0, "bytes": 0.0, "minutes": 0.0}
    if store is None and text is not None:
        total |= text.planned([site for both in sites.values() for part in both for site in part])
    for name, config in configs.items():
        both = sites[site_of[name]]
        source = StoreSource(store, *both) if store or text is None else text.like(*both)
        training = plan(config, source, device)
        total |= {key: total[key] + training[key] for key in ("bytes", "minutes")}
    return total | {"dictionaries": len(configs)}


def _spliced(asked: Sweep, text: Activations | None) -> Callable[[Dictionary], Spliced] | None:
    """What measures a dictionary in its model, if there is a model."""
    from interp.dictionaries import evaluate_model
    from interp.model import Together
    from interp.texts import read_texts

    if text is None or isinstance(text.model, Together):  # of several models `interp eval` measures each
        return None
    model, tokens, context = text.model, asked.eval_tokens, asked.context
    texts = text.texts if asked.eval_text is None else lambda: read_texts(asked.eval_text)
    return lambda D: evaluate_model(D, model, texts(), tokens, context=context)


def _compared(
    out: Path,
    configs: Mapping[str, TrainConfig],
    sources: Mapping[str, Source],
    asked: Sweep,
    text: Activations | None,
) -> list[dict[str, Any]]:
    """The table, which is also written, and its page."""
    from interp.dictionaries.sweep import compared, write_table

    rows = compared(out, configs, sources, _spliced(asked, text))
    write_table(out / "sweep.csv", rows)
    _write_page(out, rows, asked, text)
    return rows


def _write_page(out: Path, rows: list[dict[str, Any]], asked: Sweep, text: Activations | None) -> None:
    from interp.files import command_line
    from interp.reports.pareto import write_sweep

    note = "L0 and FVU: of the rows that follow the last step of training in the stream. Dead: silent in the last rows of it."
    if text is not None:
        on = asked.eval_text or "the text of training"
        note += f" Loss recovered (against zero) and KL: of {asked.eval_tokens:,} predictions on {on}."
    places = {
        "Command": command_line(out),
        "Model": asked.model,
        "Store": asked.store,
        "Text": asked.text or asked.dataset,
    }
    write_sweep(out / "pareto.html", rows, {name: value for name, value in places.items() if value}, note)


def _show(result: dict[str, Any]) -> None:
    from interp.reports.page import number

    shown = ("l0", "fvu", "dead", "loss_recovered", "kl")
    rows = result["dictionaries"]
    columns = [key for key in shown if any(key in row for row in rows)]
    width = max(len(row["name"]) for row in rows)
    print(f"{'':{width}}  " + "  ".join(f"{key:>14}" for key in columns))
    for row in rows:
        print(f"{row['name']:{width}}  " + "  ".join(f"{number(row.get(key)):>14}" for key in columns))
    print(f"Open {result['path']}/pareto.html; the table is {result['path']}/sweep.csv.")


def _show_plan(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:12} {value:,.6g}")
