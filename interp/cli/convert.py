"""`interp convert`: a dictionary from one library's format to another's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson
from interp.errors import WrongUse, check_keys


@guarded
def convert(
    where: Annotated[
        str, typer.Argument(metavar="IN", help="a dictionary: folder, file, zoo:books/sae, hub:REPO/FOLDER, saelens:…")
    ],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    to: Annotated[
        str, typer.Option(help="interp, saelens, sparsify, dictionary_learning, gemma_scope or circuit_tracer")
    ],
    site: Annotated[str | None, typer.Option(help="site read, for a file that does not name it")] = None,
    target: Annotated[str | None, typer.Option(help="site written, of a transcoder")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="of the numbers written: float32, bfloat16, float16; IN's if nothing is said")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a dictionary in another format. The format of IN is found; what OUT cannot say is said, or refused.

    Nothing is overwritten; a circuit_tracer folder takes one layer after the other.
    """
    from interp.dictionaries.config import DTYPES
    from interp.interop import formats
    from interp.interop.hub import opened
    from interp.interop.parts import placed

    read = opened(where)
    D = placed(read.dictionary, site, target)
    if dtype is not None:
        check_keys([dtype], DTYPES, "the list of dtypes")
        D = D.to(DTYPES[dtype])
    there = next((name for name, format in formats.FORMATS.items() if format.found(out)), None)
    if there not in (None, "circuit_tracer") or (there and there != to.replace("-", "_")):
        raise WrongUse(f"{out} already holds a dictionary ({there}): choose another folder.")
    lost = formats.write(D, out, to, read.about)
    answer({"from": read.about["format"], "to": to, "path": str(out), **_said(D), "lost": lost}, as_json, _show)


def _said(D: Any) -> dict[str, Any]:
    c = D.config
    kind = {"activation": c.activation} | ({"k": c.k} if c.k else {}) | ({"skip": True} if c.skip else {})
    return {"reads": list(c.reads), "writes": list(c.writes), "latents": c.latents, **kind}


def _show(result: dict[str, Any]) -> None:
    lost = result.pop("lost")
    for name, value in result.items():
        print(f"{name:12} {', '.join(value) if isinstance(value, list) else value}")
    for what in lost:
        print(f"not kept     {what}")
