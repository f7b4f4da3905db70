"""`interp lens over MODEL`: a lens over a whole text, as means with bands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.lens import KINDS, _kind, _made, _numbers
from interp.cli.options import AsJson, Dataset, Device, ModelName, TextFile

if TYPE_CHECKING:
    from interp.lenses import Averages

SHOWN = ("cross_entropy", "kl_forward", "agreement")  # what fits eighty columns; --json has all


@guarded
def over(
    model: ModelName,
    text: TextFile = None,
    dataset: Dataset = None,
    kind: Annotated[
        str | None, typer.Option(help=f"of the lens: {', '.join(KINDS)}; default: logit, or what --lens holds")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--lens", help="folder of a lens that `interp train lens` made")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream after every block")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="tokens of a window of text")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="stop after about this many tokens of text")] = 20_000,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Read a whole text with a lens: the mean of every value at every site, with 95 % bands."""
    from interp.model import load
    from interp.texts import read_texts

    made = _made(load(model, device=device), kind or _kind(weights, None), weights, None, False)
    found = made.over(read_texts(text, dataset), site or None, context=context, tokens=tokens)
    answer(_as_dict(model, found), as_json, lambda _: _show(found))


def _as_dict(model: str, found: Averages) -> dict[str, Any]:
    """`{model, kind, tokens, sites[L], means: {value: {mean[L], low[L], high[L]}}}`, null where there is nothing to average."""
    means = {}
    for value in found.sums:
        rows = _numbers([found.mean(value).tolist(), *found.band(value).tolist()])
        means[value] = dict(zip(("mean", "low", "high"), rows, strict=True))
    return {"model": model, "kind": found.kind, "tokens": found.tokens, "sites": list(found.sites), "means": means}


def _show(found: Averages) -> None:
    """The last site at the top, each mean with its band."""
    from interp.lenses.trajectory import short_names

    names = short_names(found.sites)
    wide = max(map(len, names))
    print(f"{found.kind} lens over {found.tokens:,} tokens, mean and 95 % band")
    print(f"{'':{wide}}" + "".join(f"{value.replace('_', ' '):>22}" for value in SHOWN))
    columns = [zip(found.mean(v).tolist(), *found.band(v).tolist(), strict=True) for v in SHOWN]
    for name, *cells in reversed(list(zip(names, *columns, strict=True))):
        print(f"{name:{wide}}" + "".join(f"{m:7.3f} [{low:5.2f}, {high:5.2f}]" for m, low, high in cells))
