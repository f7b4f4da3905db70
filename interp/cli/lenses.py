"""`interp lens MODEL "text"`, and by name: `interp lens over`, `memories`, `updates`, `exits`, `embedding` MODEL."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from interp.cli.lens import lens
from interp.cli.memories import embedding, exits, memories, updates
from interp.cli.over import over

OTHERS = {"over": over, "memories": memories, "updates": updates, "exits": exits, "embedding": embedding}
ALSO = "Also: " + ", ".join(f"interp lens {name} MODEL" for name in OTHERS) + "; each takes --help."


class Lenses(TyperGroup):
    """A group whose first word may be left out: what names no other command is read as a model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`MODEL …` as `read MODEL …`."""
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else ["read", *args])


app = typer.Typer(cls=Lenses, add_completion=False, help=lens.__doc__)
app.command("read", epilog=ALSO)(lens)
for name, command in OTHERS.items():
    app.command(name)(command)  # type: ignore[type-var]
