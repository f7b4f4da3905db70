"""A group of commands that says which it has when one is asked for that it has not."""

from __future__ import annotations

import json
import sys
from typing import Any

from typer.core import TyperGroup

from interp.errors import nearest


class Group(TyperGroup):
    """`interp GROUP NAME`: exit status 2 and one line for a NAME that is no command of the group, JSON too if asked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it, for a name that is there or an option."""
        if args[0].startswith("-") or self.get_command(ctx, args[0]) is not None:
            return super().resolve_command(ctx, args)
        names = self.list_commands(ctx)
        text = f"{ctx.command_path} has no {args[0]!r}.{nearest(args[0], names)} It has: {', '.join(names)}."
        print(f"interp: {text}", file=sys.stderr)
        if "--json" in args:
            print(json.dumps({"error": text}))
        raise SystemExit(2)
