"""What training runs and evaluations come to: one table and two charts, for the page and for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.reports.charts import Curve, LineChart, Scale
from interp.reports.page import Cell, Table

Measured = Mapping[str, Mapping[str, Any]]  # by the name of the dictionary, as `interp demo` writes it to summary.json

ORDER = ("clean", "replaced", "mean", "zero")


def comparison(measured: Measured, held_out: int) -> Table:
    """One column a dictionary, one row a measure, with what it means."""

    def row(name: str, meaning: str, *keys: str) -> list[Cell]:
        return [name, *(_dig(m, keys) for m in measured.values()), meaning]

    entropy = "cross-entropy of the next token, nats"
    rows = [
        row("Loss recovered, zero", "(CE zero − CE replaced) / (CE zero − CE clean)", "loss_recovered", "zero"),
        row("Loss recovered, mean", "(CE mean − CE replaced) / (CE mean − CE clean)", "loss_recovered", "mean"),
        row("CE clean", entropy, "cross_entropy", "clean"),
        row("CE replaced", "the site’s rows replaced by the dictionary’s output", "cross_entropy", "replaced"),
        row("CE mean", "replaced by their mean", "cross_entropy", "mean"),
        row("CE zero", "replaced by zero", "cross_entropy", "zero"),
        row("KL replaced", "KL(clean ‖ replaced) of the next token, nats", "kl", "replaced"),
        row("FVU", "share of the rows’ variance that is missed", "fvu"),
        row("FVU of PCA", "as many principal components as latents are active", "baselines", "pca"),
        row(
            "FVU, random decoder",
            "an encoder trained as long over frozen random directions",
            "baselines",
            "random_decoder",
        ),
        row("L0", "latents active on a token, of those below", "l0"),
        row("Latents", "in the dictionary", "latents"),
        row("Dead latents", "not one firing in the window", "dead"),
        row("Dead window", "tokens", "dead_window"),
        row("Tokens a second", "while training", "tokens_per_second"),
    ]
    names = [str(m["title"]) for m in measured.values()]
    note = f"Everything but the last four rows is measured on {held_out:,} tokens of text that was held out."
    return Table("How faithful, how sparse", ["", *names, "What it is"], rows, note)


def entropy_scale(measured: Measured) -> Scale:
    """Where the replaced rows leave the cross-entropy, between the model as it is and without the site."""
    rows = {str(m["title"]): {k: float(m["cross_entropy"][k]) for k in ORDER} for m in measured.values()}
    return Scale("Cross-entropy on held-out text", "nats per token", rows)


def training_chart(curves: Mapping[str, Path], levels: Mapping[str, float]) -> LineChart:
    """FVU of the training batches over steps, from each run's metrics.csv, with `levels` to compare with."""
    return LineChart("FVU while training", "step", [_curve(name, path) for name, path in curves.items()], levels)


def _curve(name: str, path: Path) -> Curve:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Curve(name, [int(r["step"]) for r in rows], [float(r["fvu"]) for r in rows])


def _dig(value: Any, keys: tuple[str, ...]) -> Cell:
    for key in keys:
        value = (value or {}).get(key)
    return value
