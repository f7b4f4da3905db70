"""The page of a subnetwork: what it says, what is lost without it, and where its weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.reports.page import Table, write_report


def write_page(path: Path, result: dict[str, Any], facts: dict[str, str]) -> None:
    """From what `interp bigram report --json` prints."""
    ablation = result["ablation_loss"]
    highlights = [
        ("correlation", f"{result['r']:.3f}", f"of surprisals; without infinite ones {result['r_dropinf']:.3f}"),
        ("weights kept", f"{result['kept_share']:.2%}", f"{result['kept']:,} of those in the blocks"),
        ("the whole model", f"{result['r_full_model']:.3f}", f"random weights, as many: {result['r_random_mask']:.3f}"),
        ("loss without it", f"{ablation['subnetwork']:.2f}", f"without random ones: {ablation['random']:.2f}"),
    ]
    write_report(
        path,
        "Bigram subnetwork",
        lead="The weights with which the model predicts from its last token alone, and how well it does so with no others.",
        facts=facts,
        highlights=highlights,
        tables=[_against(result), _places(result)],
    )


def _against(result: dict[str, Any]) -> Table:
    rest = result["dropinf"]
    rows = [
        ["the subnetwork", result["r"], result["r_dropinf"]],
        ["the whole model", result["r_full_model"], rest["full_model"]],
        ["random weights, as many in every matrix", result["r_random_mask"], rest["random_mask"]],
        ["no weights in the blocks", result["r_empty_mask"], rest["empty_mask"]],
    ]
    note = (
        "r: infinite surprisals of the n-gram model are replaced by its largest finite one; dropped: such tokens are left "
        "out. Nothing is trained here, and all masks are hard."
    )
    return Table("Correlation with the surprisals of the n-gram model", ["", "r", "r, dropped"], rows, note)


def _places(result: dict[str, Any]) -> Table:
    """Shares of the kept weights: by block, in attention and MLP, and by matrix."""
    parts = list(dict.fromkeys(name.rsplit(".", 1)[1] for name in result["by_part"]))
    rows: list[list[str | float | None]] = []
    for block, whole in result["by_block"].items():
        found = [result["by_part"].get(f"{block}.{part}") for part in parts]
        shares = [None if f is None else f"{f['share_of_kept']:.1%}" for f in found]
        rows.append([block, *shares, f"{whole['share_of_kept']:.1%}", whole["kept"]])
    rows += [
        [kind, *[""] * len(parts), f"{row['share_of_kept']:.1%}", row["kept"]]
        for kind, row in result["by_matrix"].items()
    ]
    return Table("Where the kept weights are", ["", *parts, "all", "weights"], rows)
