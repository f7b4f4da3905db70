"""`interp generate`: continue a text, with edits read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Device, ModelName
from interp.errors import WrongUse

if TYPE_CHECKING:
    from interp.model import Edit


@guarded
def generate(
    model: ModelName,
    text: Annotated[str, typer.Argument(help="the text to continue")],
    edits: Annotated[Path | None, typer.Option(help="JSON file: a list of edits as edit.to_json() writes them")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to add")] = 40,
    temperature: Annotated[float | None, typer.Option(help="sample at this temperature; default: greedy")] = None,
    seed: Annotated[int | None, typer.Option(help="sample under this seed")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text with a model; say how often each edit fired."""
    from interp.model import load

    if max_new_tokens < 1 or (temperature is not None and temperature <= 0):
        raise WrongUse("--max-new-tokens must be at least 1, and --temperature above 0 (leave it out for greedy).")
    made = _read(edits) if edits is not None else []
    wrapped = load(model, device=device)
    seed = 0 if seed is None and temperature is not None else seed
    options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    with wrapped.edit(*made):
        written = wrapped.generate(text, max_new_tokens, seed=seed, **options)
    fired = [{"edit": type(e).__name__, "site": e.site, "fired": wrapped.fired(e)} for e in made]
    result = {"model": model, "prompt": text, "text": written, "seed": seed, "temperature": temperature, "edits": fired}
    answer(result, as_json, _show)


def _read(path: Path) -> list[Edit]:
    """The edits in a file. Raises `WrongUse` if it is no JSON, or no edits."""
    from interp.model import edits_from_json

    try:
        return edits_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise WrongUse(f"there is no file {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WrongUse(f"{path} is no JSON: {error}.") from error


def _show(result: dict[str, Any]) -> None:
    print(result["text"])
    for edit in result["edits"]:
        print(f"{edit['edit']}({edit['site']}) fired {edit['fired']} times")
