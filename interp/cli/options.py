"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

ModelName = Annotated[str, typer.Argument(help="zoo:books, a folder, or a hub id")]
TextFile = Annotated[str | None, typer.Option(help="text file or folder; default: Python's help texts")]
Dataset = Annotated[str | None, typer.Option(help="hub data set with a column 'text'")]
Ids = Annotated[str | None, typer.Option(help="token ids instead of a text, as 5,6,7")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
