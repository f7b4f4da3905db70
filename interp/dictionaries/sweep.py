"""A sweep: one file that says many dictionaries, and what each of them comes to."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from interp.dictionaries.config import TrainConfig, read_config, settings, typed
from interp.dictionaries.dictionary import Dictionary, load_dictionary
from interp.dictionaries.evaluate import Spliced, evaluate
from interp.dictionaries.sources import Pair, RowsSource, Source, together
from interp.errors import WrongUse, check_keys
from interp.files import write_text

CROSSED = ("kinds", "seeds")
SHOWN = ("kind", "k", "sparsity", "target_l0", "latents", "steps", "seed")  # settings that stand in the table
HELD_ROWS = 16_384  # that every dictionary is measured on: those that follow training in the stream


@dataclass(frozen=True)
class Sweep:
    """The dictionaries of a sweep, and where their rows come from: a store, or a model over text."""

    sites: tuple[str, ...]
    shape: str = "sae"
    model: str | None = None
    store: str | None = None
    text: str | None = None
    dataset: str | None = None
    tokens: int | None = None
    context: int = 512
    stream: bool = False  # train on the model's rows as they are computed; nothing is recorded
    eval_text: str | None = None  # what the loss recovered is measured on; the text itself
    eval_tokens: int = 8192
    configs: dict[str, TrainConfig] = field(default_factory=dict)  # of every site

    def __post_init__(self) -> None:
        if self.model is None and self.store is None:
            raise WrongUse("A sweep needs rows: `store: FOLDER`, or `model: NAME`, whose activations are recorded.")
        if self.store is not None and (self.tokens is not None or self.stream):
            raise WrongUse("`tokens` and `stream` say how a model's rows come; a `store` has its rows: leave them out.")
        if any(config.end_to_end for config in self.configs.values()):
            raise WrongUse(
                "end_to_end runs the model for one dictionary: `interp train sae --end-to-end`, not a sweep."
            )
        if self.model is None and (self.text or self.dataset or self.eval_text):
            raise WrongUse("`text`, `dataset` and `eval_text` are for a `model`, and none is given.")


def read_sweep(path: str | Path) -> Sweep:
    """A sweep from a YAML or JSON file. Raises `WrongUse` for a key that is unknown, naming the nearest, or missing."""
    given = read_config(path)
    own = {f.name: str(f.type) for f in fields(Sweep) if f.name not in ("configs", "sites")}
    said = {key: typed(key, given[key], kind, str(path)) for key, kind in own.items() if key in given}
    sites = given.get("sites", [])
    if not sites:
        raise WrongUse(f"{path} must list sites, such as `sites: [blocks.2.resid_post]`.")
    rest = {key: value for key, value in given.items() if key not in own and key != "sites"}
    return Sweep(tuple(_list(sites)), configs=crossed(rest, str(path), [*own, "sites"]), **said)


def crossed(given: Mapping[str, Any], what: str, beside: Iterable[str] = ()) -> dict[str, TrainConfig]:
    """A config for every kind, seed, and combination of the settings that are lists, by names such as topk-k32-seed0.

    `kinds` is a list of names, or settings by name; `seeds` is a list. A setting beside them is for the kinds that have
    it, and settings of a kind's own win. Weights differ by seed, the order of the rows is that of `data_seed`, 0. Raises
    `WrongUse` for a setting that no kind has (`beside` are other keys that the file may have).
    """
    kinds = _kinds(given.get("kinds"), what)
    types = {kind: {k: t for k, t in settings(kind).items() if k != "seed"} for kind in kinds}
    check_keys(given, {*CROSSED, *beside}.union(*types.values()), what)
    configs: dict[str, TrainConfig] = {}
    for kind, own in kinds.items():
        check_keys(own, types[kind], f"{what} (kind {kind})")
        mine = {"data_seed": 0} | {key: value for key, value in given.items() if key in types[kind]} | own
        many = {k: v for k, v in mine.items() if isinstance(v, list) and not types[kind][k].startswith("tuple")}
        many["seed"] = _list(given.get("seeds", 0))
        for values in itertools.product(*many.values()):
            one = dict(zip(many, values, strict=True))
            name = "-".join([kind, *(f"{key}{value}" for key, value in one.items())])
            if name in configs:
                raise WrongUse(f"{what} says {name} twice.")
            configs[name] = TrainConfig.from_dict({"kind": kind} | mine | one, f"{what}, {name}")
    return configs


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _kinds(given: Any, what: str) -> dict[str, dict[str, Any]]:
    """Kinds by name, with the settings that they have of their own."""
    parts = [given] if isinstance(given, Mapping) else _list(given or [])
    pairs = [pair for part in parts for pair in (part.items() if isinstance(part, Mapping) else [(part, None)])]
    if not pairs or not all(isinstance(own, Mapping | None) for _, own in pairs):
        raise WrongUse(f"{what} must list kinds, such as `kinds: [topk, batchtopk]` or `kinds: {{topk: {{k: 16}}}}`.")
    return {str(kind): dict(own or {}) for kind, own in pairs}


def held(sources: Sequence[Source], config: TrainConfig, rows: int = HELD_ROWS) -> list[RowsSource]:
    """The rows after the last step of training, for each source: never seen, if a pass is longer than the training was."""
    stop = config.steps + -(-rows // config.batch)
    batches = list(together(sources, config.batch, config.order, config.steps, stop))
    return [_in_memory(source, [pairs[n] for pairs in batches]) for n, source in enumerate(sources)]


def _in_memory(source: Source, pairs: Sequence[Pair]) -> RowsSource:
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    widths_in, widths_out = (
        dict(zip(sites, widths, strict=True))
        for sites, widths in ((source.reads, source.widths_in), (source.writes, source.widths_out))
    )
    return RowsSource(x, None if source.reads == source.writes else y, widths_in, widths_out)


def compared(
    out: Path,
    configs: Mapping[str, TrainConfig],
    sources: Mapping[str, Source],
    spliced: Callable[[Dictionary], Spliced] | None = None,
) -> list[dict[str, Any]]:
    """The table of a sweep: L0 and FVU of rows after training, the share of dead latents, and what the model loses.

    A latent is dead if it did not fire in the last rows of training (`dead_window` of run.json). `spliced` measures a
    dictionary in its model. Of a dictionary that stopped there is only the name and the step.
    """
    of_each = list(dict.fromkeys(sources[name] for name in configs))
    rows = dict(zip(of_each, held(of_each, max(configs.values(), key=lambda c: c.steps)), strict=True))
    table = []
    for name, config in configs.items():
        last = last_row(out / name)
        if last["step"] < config.steps:
            table.append({"name": name, "stopped": int(last["step"])})
            continue
        D = load_dictionary(out / name)
        here, whole = evaluate(D, rows[sources[name]]), config.to_dict()
        row: dict[str, Any] = {"name": name, "reads": " ".join(D.config.reads), "writes": " ".join(D.config.writes)}
        row |= {key: whole.get(key) for key in SHOWN}
        row |= {"l0": here.l0, "fvu": here.fvu, "dead": last["dead"] / config.latents}
        table.append(row | (_losses(spliced(D)) if spliced else {}))
    return table


def _losses(told: Spliced) -> dict[str, float]:
    return {"loss_recovered": told.loss_recovered["zero"], "kl": told.kl["replaced"]}


def last_row(folder: Path) -> dict[str, float]:
    """The last row of a run's metrics; step 0 if there is none."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: float(value) for key, value in rows[-1].items()} if rows else {"step": 0.0}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as CSV, with the columns of all of them; what a row does not have stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with io.StringIO(newline="") as text:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
