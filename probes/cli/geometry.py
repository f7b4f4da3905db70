"""`interp geometry`: every curve of a model's representations from layer to layer, and one page of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Device, ModelName, TextFile

if TYPE_CHECKING:
    from probes.geometry import Geometry

SHEET = {  # the page's pictures, and the curves in each
    "Linearity of blocks": ("linearity", "linearity of the update", "cka", "procrustes"),
    "How much is written": ("update", "attention write", "mlp write"),
    "Norm of the stream": ("norm",),
    "Matrix entropy": ("matrix entropy",),
    "Dimensions": ("participation ratio", "intrinsic dimension"),
    "How alike states are": ("anisotropy", "mean cosine", "rank-one residual", "partition ratio"),
    "Coding rate": ("coding rate",),
    "Compression of values": ("compression",),
    "Order of positions": ("order in the stream", "order in attention"),
    "Attention entropy": ("attention entropy",),
    "Heads": ("attention entropy, share", "overloaded heads", "collapsed heads"),
    "Neurons": ("neurons at zero", "neuron sparsity"),
}
LOGARITHMIC = ("How much is written", "Norm of the stream")


@guarded
def geometry(
    model: ModelName,
    text: TextFile = None,
    context: Annotated[int, typer.Option(min=2, help="tokens of a window")] = 512,
    tokens: Annotated[int, typer.Option(min=2, help="at most as many in all")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="windows at a time")] = 4,
    stack: Annotated[str | None, typer.Option(help="of a model with several: encoder., decoder., …")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write a page to this HTML file")] = None,
    dtype: Annotated[str | None, typer.Option(help="of the model; default: its own")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Linearity, dimension, isotropy, order, entropy, sparsity: every layer's curve of each, over full windows of text."""
    from interp.model import load
    from interp.texts import read_texts
    from probes.geometry import geometry as measured

    wrapped = load(model, device=device, dtype=dtype)
    seen = measured(wrapped, read_texts(text), context=context, tokens=tokens, batch=batch, stack=stack)
    if out is not None:
        facts = {
            "model": model,
            "text": text or "Python's help texts",
            "windows": f"{seen.windows} of {context} tokens",
        }
        write_geometry(out, seen, facts)
    answer(as_dict(seen) | {"model": model}, as_json, lambda r: _show(r, out))


def as_dict(seen: Geometry) -> dict[str, Any]:
    """Curves as JSON values: {curve: [{site, value}]}, NaN as null; tokens, windows, and what linearity scores by chance."""
    curves = {
        name: [{"site": s, "value": None if math.isnan(v) else v} for s, v in row] for name, row in seen.curves.items()
    }
    told = {"tokens": seen.tokens, "windows": seen.windows, "chance": seen.chance, "curves": curves}
    return told | {"entropy_spread": seen.spread, "heads": None if seen.heads is None else seen.heads.tolist()}


def write_geometry(path: str | Path, seen: Geometry, facts: dict[str, str]) -> None:
    """One page with every curve: pictures, and a table of all numbers. Needs nothing else. Raises `OSError`."""
    from interp.reports.charts import Curve, LineChart
    from interp.reports.page import Table, write_report
    from probes.geometry import CURVES, short

    charts = []
    for title, names in SHEET.items():
        curves = []
        for name in names:
            y = seen.curve(name).tolist() if name in seen.curves else []
            first = len(seen.curves["norm"]) - len(y)  # a block's curve stands at its end
            points = [(i + first, v) for i, v in enumerate(y) if math.isfinite(v)]
            if points:
                curves.append(Curve(name, [x for x, _ in points], [v for _, v in points]))
        if curves and max(c.x[-1] for c in curves) > 0:
            levels = {"linearity by chance": seen.chance} if "linearity" in names else {}
            even = title not in LOGARITHMIC or min(min(c.y) for c in curves) <= 0
            charts.append(LineChart(title, "blocks passed", curves, levels, linear=even))
    sites = [s for s, _ in seen.curves["norm"]]
    rows = [[name, *_row(seen, name, len(sites))] for name in seen.curves]
    header = ("curve", *(short(s) for s in sites))
    meaning = Table("What they mean", ("curve", "is"), [[name, CURVES[name]] for name in seen.curves])
    write_report(
        path,
        "Geometry",
        lead="The states of a model from layer to layer: how linear its blocks are, how many directions they fill, how alike they are.",
        facts=facts | {"tokens": f"{seen.tokens:,}"},
        highlights=_tiles(seen),
        tables=[Table("Every curve", header, rows), meaning],
        charts=charts,
    )


def _row(seen: Geometry, name: str, sites: int) -> list[float | None]:
    """A curve's values below the sites; curves of blocks stand below the block's end."""
    values = [v if math.isfinite(v) else None for v in seen.curve(name).tolist()]
    return [*[None] * (sites - len(values)), *values]


def _tiles(seen: Geometry) -> list[tuple[str, str, str]]:
    told = [("tokens", f"{seen.tokens:,}", f"in {seen.windows} windows")]
    for name in ("linearity", "linearity of the update"):
        told.append((name, f"{float(seen.curve(name).mean()):.3f}", f"mean over blocks; {seen.chance:.3f} by chance"))
    return told


def _show(result: dict[str, Any], out: Path | None) -> None:
    import pandas as pd

    sites = [row["site"] for row in result["curves"]["norm"]]
    table = pd.DataFrame({n: {r["site"]: r["value"] for r in rows} for n, rows in result["curves"].items()}).T[sites]
    table.columns = ["start", *(site.split(".")[-2] for site in sites[1:])]
    print(f"{result['tokens']:,} tokens in {result['windows']} windows; linearity by chance: {result['chance']:.3f}")
    print(table.astype(float).to_string(float_format=lambda v: f"{v:.3g}", na_rep=""))
    if out is not None:
        print(f"page: {out}")
