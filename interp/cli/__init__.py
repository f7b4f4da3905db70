"""The command line: commands are found through the entry-point group `interp.commands`."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from interp.errors import Failed, WrongUse

if TYPE_CHECKING:
    from interp.model import Model

F = TypeVar("F", bound=Callable[..., Any])


def answer(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a command's result: one JSON value on standard output under `--json`, else what `show` makes of it."""
    if as_json:
        print(json.dumps(result, allow_nan=False, default=str))
    else:
        show(result)


def numbers_in(text: str, option: str) -> list[int]:
    """Token ids as they are typed, "5,6,7". Raises `WrongUse` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise WrongUse(f"{option} takes numbers with commas between them, as 5,6,7; not {text!r}.")
    return [int(part) for part in parts]


def text_or_ids(model: Model, text: str | None, ids: str | None, command: str) -> str | list[int]:
    """The text, or the ids of --ids. Raises `WrongUse` for both, for neither, and for ids that the model has not."""
    if (text is None) == (ids is None):
        raise WrongUse(
            f'give a text or --ids, one of the two: {command} MODEL "a text", or {command} MODEL --ids 5,6,7.'
        )
    if ids is None:
        return str(text)
    numbers, table = numbers_in(ids, "--ids"), model.weights.get("W_E")
    size = getattr(model.config, "vocab_size", None) if table is None else len(table)
    if size is not None and max(numbers) >= size:
        raise WrongUse(f"token {max(numbers)} is not there: ids run from 0 to {size - 1}.")
    return numbers


def prompt_ids(model: Model, text: str | None, ids: str | None, command: str) -> list[int]:
    """`text_or_ids`, the text as its token ids."""
    given = text_or_ids(model, text, ids, command)
    return model.tokens(given).ids[0].tolist() if isinstance(given, str) else given


def guarded(function: F) -> F:
    """Turn errors into exit status 1 (failed) or 2 (wrong use), with one line on standard error, JSON too if asked."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (WrongUse, Failed, OSError) as error:
            text = str(error)
            print(f"interp: {text}", file=sys.stderr)
            if kwargs.get("as_json"):
                print(json.dumps({"error": text}))
            raise SystemExit(2 if isinstance(error, WrongUse) else 1) from error

    return run  # type: ignore[return-value]


def _commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="interp.commands")}


def _root() -> None:
    """Wrap models, record activations, train sparse dictionaries. Every command takes --help; most take --json."""


def main() -> None:
    """Run `interp COMMAND ...`, importing only the command that was asked for."""
    import typer

    from interp.cli.group import Group

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads that spin starve a busy machine
    commands = _commands()
    app = typer.Typer(cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    asked = next((a for a in sys.argv[1:] if not a.startswith("-")), None)
    for name in [asked] if asked in commands else sorted(commands):
        loaded = commands[name].load()
        if isinstance(loaded, typer.Typer):
            own = loaded.info.cls if isinstance(loaded.info.cls, type) else Group
            app.add_typer(loaded, name=name, cls=own)
        else:
            app.command(name)(loaded)
    try:
        app()
    except KeyboardInterrupt:
        print("interp: interrupted; what was saved can be continued with --resume", file=sys.stderr)
        raise SystemExit(130) from None
