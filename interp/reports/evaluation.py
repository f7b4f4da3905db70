"""What evaluated dictionaries come to, as one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from interp.reports.charts import Bars, LineChart, Scale
from interp.reports.page import Table, number, write_report
from interp.reports.training import ORDER

if TYPE_CHECKING:
    import pandas as pd

    from interp.dictionaries.compare import Comparison

MEANING = {
    "rows": "tokens measured on",
    "fvu": "Σ‖y − ŷ‖² / Σ‖y − ȳ‖²",
    "explained_variance": "1 − FVU",
    "l0": "latents that fire on a row",
    "dead": "latents that fire on no row",
    "dead_share": "of all latents",
    "cosine": "mean cos(y, ŷ)",
    "bias": "E‖ŷ‖² / E⟨y, ŷ⟩; 1 is unbiased",
    "l2_ratio": "mean ‖ŷ‖ / ‖y‖",
    "shrinkage": "share by which what latents write is too short",
    "tokens": "predictions counted",
    "cross_entropy.clean": "of the next token, nats",
    "cross_entropy.zero": "the site zeroed",
    "cross_entropy.mean": "the site at its mean",
    "cross_entropy.replaced": "the site replaced by ŷ",
    "kl.zero": "KL(clean ‖ zeroed), nats",
    "kl.mean": "KL(clean ‖ at the mean)",
    "kl.replaced": "KL(clean ‖ replaced)",
    "loss_recovered.zero": "(CE zero − CE replaced) / (CE zero − CE clean)",
    "loss_recovered.mean": "(CE mean − CE replaced) / (CE mean − CE clean)",
    "kl_recovered.zero": "1 − KL replaced / KL zero",
    "kl_recovered.mean": "1 − KL replaced / KL mean",
    "absorption.fraction": "mean share of a label's direction that other latents took over",
    "absorption.full": "words whose main latents are silent, another in their place",
}
BY_NUMBER = {
    "sparse_probing": "test accuracy of a probe on so many latents; x: on all that is read",
    "tpp": "accuracy that a label's latents cost its own probe, less the others'",
    "scr": "share of a biased probe's loss won back by ablating the bias",
}


def write_evaluation(
    path: str | Path,
    compared: Comparison,
    histograms: Mapping[str, pd.DataFrame],
    facts: Mapping[str, str],
) -> None:
    """One page: a column for each group of runs that differ in their seed alone, mean ± half of the 95 % interval.

    `histograms`: of a run of each group, by the group's name, as `Reconstruction.density_histogram` gives them.
    Raises `OSError` if the page cannot be written.
    """
    groups = compared.groups()
    runs = {name: len(of) for name, of in groups.items()}
    write_report(
        path,
        "How faithful is it?" if len(groups) == 1 else f"How faithful are these {len(groups)} dictionaries?",
        lead="Measured on rows, and in the model with its site replaced by what the dictionary makes of it."
        if "kl.replaced" in compared.names()
        else "Measured on rows.",
        facts=dict(facts) | {"Runs": "; ".join(f"{name}: {count}" for name, count in runs.items())},
        tables=[measures(compared)],
        charts=[*_entropies(compared), densities(histograms)],
    )


def measures(compared: Comparison) -> Table:
    """Measures down, groups across, and what each measure is."""
    found = compared.over_seeds()

    def cell(group: str, name: str) -> str:
        mean, half = found[group][name]
        if half > 0:
            return str(found[group][name])
        return number(None if mean != mean else int(mean) if mean == int(mean) else mean)

    names = sorted(compared.names(), key=lambda name: [*MEANING, name].index(name))
    rows = [
        [name, *(cell(group, name) for group in found), MEANING.get(name, BY_NUMBER.get(name.split(".")[0], ""))]
        for name in names
    ]
    several = any(len(runs) > 1 for runs in compared.groups().values())
    note = "± is half of Student's 95 % interval over runs that differ in their seed alone." if several else ""
    return Table("Measures", ["", *found, "What it is"], rows, note)


def densities(histograms: Mapping[str, pd.DataFrame]) -> Bars:
    """Latents by how often they fire; bins from the rarest seen to always, those that never fire first."""
    lowest = min(len(h) for h in histograms.values())  # runs measured on as many rows have as many bins
    tables = {name: h.iloc[[0, *range(len(h) - lowest + 1, len(h))]] for name, h in histograms.items()}
    labels = ["never", *(f"{low:.1g}" for low in next(iter(tables.values()))["low"].iloc[1:])]
    rows = {name: [int(n) for n in h["latents"]] for name, h in tables.items()}
    return Bars("How often latents fire", "share of rows, from", labels, rows)


def _entropies(compared: Comparison) -> list[LineChart | Scale | Bars]:
    """Cross-entropies on one axis, means over seeds; none if no model was given."""
    found = compared.over_seeds()
    keys = {name: f"cross_entropy.{name}" for name in ORDER}
    if not set(keys.values()) <= set(compared.names()):
        return []
    rows = {group: {name: of[key].mean for name, key in keys.items()} for group, of in found.items()}
    return [Scale("Cross-entropy of the next token", "nats a token", rows)]
