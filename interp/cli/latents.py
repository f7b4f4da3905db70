"""`interp latents`: which latents of a dictionary have to do with a token, or with a direction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, TextFile
from interp.errors import WrongUse

if TYPE_CHECKING:
    from torch import Tensor


@guarded
def latents(
    folder: Annotated[Path, typer.Argument(help="a dictionary's folder")],
    token: Annotated[str | None, typer.Option(help="string to look for in the text, as ' said': spaces count")] = None,
    direction: Annotated[Path | None, typer.Option(help="safetensors file with one vector [d]")] = None,
    of: Annotated[str, typer.Option(help="decoder or encoder: whose directions are compared")] = "decoder",
    site: Annotated[str | None, typer.Option(help="which of several sites the vector belongs to")] = None,
    model: Annotated[str | None, typer.Option(help="zoo:books, a folder, or a hub id; for --token")] = None,
    text: TextFile = None,
    dataset: Annotated[str | None, typer.Option(help="hub data set, or folder of one, with a column 'text'")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="stop after about this many tokens of text")] = 50_000,
    top: Annotated[int, typer.Option(min=1, help="latents to list")] = 20,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """List the latents that tell where a token stands, or that point along a direction."""
    from interp.dictionaries import load_dictionary, search_direction, search_token

    if (token is None) == (direction is None) or (token is None) != (model is None):
        raise WrongUse("Give --token ' said' --model MODEL, or --direction FILE: one of the two.")
    D = load_dictionary(folder, device)
    if direction is not None:
        found = search_direction(D, _vector(direction), of, site)
    else:
        from interp.model import load
        from interp.texts import read_texts

        found = search_token(D, load(str(model), device=device), read_texts(text, dataset), str(token), tokens)
    answer({"path": str(folder), "latents": found.head(top).to_dict("records")}, as_json, _show)


def _vector(path: Path) -> Tensor:
    """The one tensor of a file. Raises `WrongUse` if there are others, or none."""
    from interp.files import load_tensors

    if not path.is_file():
        raise WrongUse(f"{path} does not exist. It should be a safetensors file with one vector.")
    try:
        tensors = load_tensors(path)[0]
    except ValueError as error:
        raise WrongUse(str(error)) from error
    if len(tensors) != 1:
        raise WrongUse(f"{path} holds {', '.join(tensors) or 'nothing'}: it should hold one vector.")
    return next(iter(tensors.values()))


def _show(result: dict[str, Any]) -> None:
    import pandas as pd

    print(pd.DataFrame(result["latents"]).to_string(index=False, float_format=lambda v: f"{v:.4g}"))
