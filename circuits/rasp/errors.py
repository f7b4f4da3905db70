"""Where a piece of a program stands, and the error that points there."""

from __future__ import annotations

from dataclasses import dataclass, field

from interp.errors import Failed


@dataclass(frozen=True)
class Source:
    """A program's text and the name it goes by in messages."""

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Span:
    """From (line, column) up to (end_line, end_column), both counted from 1, the end not included."""

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def picture(self) -> str:
        """The line of the program with a caret under the place."""
        lines = self.source.text.split("\n")
        text = lines[self.line - 1].rstrip("\r") if self.line <= len(lines) else ""
        end = self.end_column if self.end_line == self.line else len(text) + 1
        cut = max(0, self.column - 60)  # a caret far to the right would not be seen
        width = max(1, min(end, len(text) + 1, cut + 100) - self.column)
        pad = "".join("\t" if c == "\t" else " " for c in text[cut : self.column - 1])
        return f"    {text[cut : cut + 100]}\n    {pad}^{'~' * (width - 1)}"


class RaspError(Failed):
    """A program that cannot be read or run: `file:line:column: why`, with the line and a caret below.

    Raised without a place where none is known; whoever knows it calls `placed`. `calls` are the calls it came through.
    """

    def __init__(self, message: str, span: Span | None = None) -> None:
        super().__init__(message)
        self.message, self.span = message, span
        self.calls: list[Span] = []

    def placed(self, span: Span) -> RaspError:
        """Self, standing at `span` unless it had a place already."""
        self.span = self.span or span
        return self

    def __str__(self) -> str:
        if self.span is None:
            return self.message
        through = "".join(f"\n    called from {call}" for call in self.calls[:3])
        more = f"\n    ... and {len(self.calls) - 3} calls more" if len(self.calls) > 3 else ""
        return f"{self.span}: {self.message}\n{self.span.picture()}{through}{more}"


class Budget:
    """How much work a program may still do, so that a hostile one ends. An evaluated expression costs 10 units, a compared
    pair or a sequence's element 1; 20 million units are a few seconds."""

    UNITS = 20_000_000

    def __init__(self, units: int = UNITS) -> None:
        self.left = units

    def spend(self, units: int) -> None:
        """Take `units` off; raises `RaspError` when nothing is left."""
        self.left -= units
        if self.left < 0:
            raise RaspError("this takes too much work: the program was stopped. Use smaller ranges or shorter inputs.")
