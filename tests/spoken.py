"""Commands as they are typed in tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from typer import Typer
from typer.testing import CliRunner


def spoken(app: Typer) -> tuple[Callable[..., Any], Callable[..., str]]:
    """(What a command answers under --json, what one that is used wrongly says and exits with 2)."""
    runner = CliRunner()

    def told(*words: object) -> Any:
        done = runner.invoke(app, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.strip().splitlines()[-1])

    def refused(*words: object) -> str:
        done = runner.invoke(app, list(map(str, words)))
        assert done.exit_code == 2, done.output
        return done.stderr

    return told, refused
