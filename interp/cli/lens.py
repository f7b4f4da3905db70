"""`interp lens`: watch a prediction form from site to site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    from interp.lenses import Lens, Trajectory
    from interp.model import Model

KINDS = ("logit",)


@guarded
def lens(
    model: Annotated[str, typer.Argument(help="zoo:books, a folder, or a hub id")],
    text: Annotated[str | None, typer.Argument(help="the text to read; none with --ids")] = None,
    kind: Annotated[str, typer.Option(help=f"of the lens: {', '.join(KINDS)}")] = "logit",
    ids: Annotated[str | None, typer.Option(help="token ids instead of a text, as 5,6,7")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream after every block")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="how many of the likeliest tokens")] = 5,
    token: Annotated[list[str] | None, typer.Option(help="a token, or an id, to follow; may be given again")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write a page to this HTML file")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Read what each site of a model would say, through the model's own head."""
    from interp.model import load

    wrapped = load(model, device=device)
    seen = _made(wrapped, kind)(_input(wrapped, text, ids), site or None, k=k, tokens=[_token(t) for t in token or ()])
    if out is not None:
        from interp.reports.lens import write_lens

        write_lens(out, seen, {"model": model, "sites": ", ".join(site or ["the stream after every block"])})
    answer(as_dict(seen), as_json, lambda _: _show(seen, out))


def _input(model: Model, text: str | None, ids: str | None) -> Any:
    """What the model is run on."""
    import torch

    if (text is None) == (ids is None):
        raise WrongUse(
            'give a text or --ids, one of the two: interp lens MODEL "a text", or interp lens MODEL --ids 5,6,7.'
        )
    if ids is None:
        return text
    parts = [part.strip() for part in ids.split(",")]
    if not all(part.isdigit() for part in parts):
        raise WrongUse(f"--ids takes numbers with commas between them, as 5,6,7; not {ids!r}.")
    table = model.weights.get("W_E")
    if table is not None and max(map(int, parts)) >= len(table):
        raise WrongUse(f"token {max(map(int, parts))} is not there: ids run from 0 to {len(table) - 1}.")
    return torch.tensor([[int(part) for part in parts]])


def _token(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _made(model: Model, kind: str) -> Lens:
    from interp.lenses import Lens

    if kind not in KINDS:
        raise WrongUse(f"there is no lens of the kind {kind!r}.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    return Lens(model)


def as_dict(seen: Trajectory) -> dict[str, Any]:
    """A trajectory as JSON values: kind, tokens[T], sites[L], top[L][T][k] of token and prob, and numbers [L][T]."""
    from interp.lenses.trajectory import VALUES

    top = [
        [
            [{"token": w, "id": i, "prob": p} for w, i, p in zip(seen.words(row), row, probs, strict=True)]
            for row, probs in zip(rows, values, strict=True)
        ]
        for rows, values in zip(seen.top.tolist(), seen.top_log_prob.exp().tolist(), strict=True)
    ]
    numbers = {n: _numbers(getattr(seen, n).tolist()) for n in VALUES if n != "prob"}
    chosen = [
        {
            "token": word,
            "id": i,
            "log_prob": _numbers(seen.chosen_log_prob[..., n].tolist()),
            "rank": seen.chosen_rank[..., n].tolist(),
        }
        for n, (word, i) in enumerate(zip(seen.words(seen.chosen), seen.chosen, strict=True))
    ]
    return {
        "kind": seen.kind,
        "tokens": seen.tokens,
        "sites": list(seen.sites),
        "top": top,
        **numbers,
        "chosen": chosen,
    }


def _numbers(rows: list[list[Any]]) -> list[list[Any]]:
    """NaN, which JSON has no word for, as null."""
    return [[None if value != value else value for value in row] for row in rows]


def _show(seen: Trajectory, out: Path | None) -> None:
    """The likeliest token at each site, the last site at the top, and means."""
    from rich import print as show
    from rich.table import Table
    from rich.text import Text

    from interp.lenses.trajectory import short_names

    table = Table("site", "entropy", "KL", title=f"{seen.kind} lens, the last tokens")
    for word in seen.tokens[-8:]:
        table.add_column(Text(word))
    for row, name in reversed(list(enumerate(short_names(seen.sites)))):
        numbers = f"{seen.entropy[row].mean():.2f}", f"{seen.kl_forward[row].mean():.2f}"
        table.add_row(name, *numbers, *(Text(w) for w in seen.words(seen.top[row, -8:, 0].tolist())))
    show(table)
    if out is not None:
        print(f"page: {out}")
