"""The read-evaluate-print loop: one statement at a time, over as many lines as it takes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from circuits.rasp.display import Display, error_text
from circuits.rasp.errors import RaspError
from circuits.rasp.interpreter import Interpreter, Stop
from circuits.rasp.parser import Incomplete, parse
from circuits.rasp.traps import traps

HISTORY = 1_000  # lines kept


class Repl:
    """Takes lines; gives what to print to `say`, and warnings about precedence to `warn`."""

    def __init__(self, say: Callable[[str], None] = print, warn: Callable[[str], None] | None = None) -> None:
        self.interpreter = Interpreter()
        self.display = Display(self.interpreter)
        self.say, self.warn = say, warn
        self.lines: list[str] = []

    def feed(self, line: str) -> bool:
        """Take one line; whether the statement is complete. Raises `Stop` on `quit`."""
        self.lines.append(line)
        try:
            self._statement("\n".join(self.lines))
        except Incomplete:
            return False
        except RaspError as error:
            self.say(error_text(error))
        self.lines.clear()
        return True

    def end(self) -> None:
        """Say what is missing if the input ends in the middle of a statement."""
        try:
            parse("\n".join(self.lines), "<input>")
        except RaspError as error:
            self.say(error_text(error))

    def _statement(self, text: str) -> None:
        program = parse(text, "<input>")
        if len(program.statements) > 1:
            raise RaspError("one statement at a time: put this one on a line of its own", program.statements[1].at)
        for span, message in traps(program) if self.warn else ():
            self.warn(f"{span}: warning: {message}\n{span.picture()}")  # type: ignore[misc]
        try:
            self.interpreter.run(program)
        finally:
            for shown in self.display.flush():
                self.say(shown)


def repl(warnings: bool = True) -> None:
    """Read from the terminal with a prompt and a history, or from a pipe without, until `quit` or the end."""
    loop = Repl(warn=(lambda text: print(text, file=sys.stderr)) if warnings else None)
    with contextlib.suppress(Stop):
        for line in _typed(loop) if sys.stdin.isatty() else sys.stdin:
            loop.feed(line.rstrip("\n"))
        loop.end()


def _typed(loop: Repl) -> Iterator[str]:
    import readline

    file = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "interp" / "rasp_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        while True:
            try:
                yield input(".. " if loop.lines else ">> ")
            except KeyboardInterrupt:
                loop.lines.clear()
                print()
            except EOFError:
                print()
                return
    finally:
        readline.set_history_length(HISTORY)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
