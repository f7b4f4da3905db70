"""`interp record`: activations of a model over text, into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Device, ModelName, TextFile
from interp.files import command_line


@guarded
def record(
    model: ModelName,
    site: Annotated[list[str], typer.Option(help="site or glob; may be given again")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the store")],
    text: TextFile = None,
    dataset: Annotated[str | None, typer.Option(help="hub data set, or folder of one, with a column 'text'")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help="instead of text: safetensors file of ready inputs, as pixel_values [n, 3, h, w]"),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="stop after this many rows")] = None,
    context: Annotated[int, typer.Option(help="tokens a window")] = 512,
    batch: Annotated[int, typer.Option(help="windows a forward pass")] = 16,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32 or int8 rows")] = "bfloat16",
    max_fvu: Annotated[
        float | None, typer.Option(help="share of the variance int8 rows may lose; default 1e-3")
    ] = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="of the shuffle")] = 0,
    max_memory: Annotated[str | None, typer.Option(help="refuse batches whose recording takes more, as 500MB")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted recording")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say rows, bytes and minutes")] = False,
    as_json: AsJson = False,
) -> None:
    """Record activations over text into a shuffled, checksummed store."""
    import torch

    from interp import ranks
    from interp.model import load
    from interp.model.memory import check_plan, in_bytes
    from interp.store.recording import plan, read_data, record_text

    ranks.start()  # first: "cuda" then means the GPU of this process
    wrapped = load(model, device=device)
    texts = read_data(wrapped, text, dataset, inputs)
    if max_memory is not None:
        costs = wrapped.plan(torch.zeros(batch, context, dtype=torch.long), site).by_site
        advice = "Record fewer sites, or fewer or shorter windows a pass: --batch, --context."
        check_plan(costs, in_bytes(max_memory), share=1, advice=advice)
    if dry_run:
        cost = vars(plan(wrapped, site, texts, tokens=tokens, dtype=dtype, batch=batch, context=context))
        return None if ranks.rank() else answer(cost, as_json, _show)
    meta = {"command": command_line(out), "seed": seed}
    store = record_text(
        wrapped,
        site,
        texts,
        out,
        tokens=tokens,
        dtype=dtype,
        seed=seed,
        resume=resume,
        batch=batch,
        context=context,
        max_fvu=max_fvu,
        meta=meta,
    )
    lost = {"fvu": store.index.told("fvu"), "lost": store.index.told("lost")} if dtype == "int8" else {}
    result = {"path": str(out), "rows": store.rows, "sites": dict(store.widths), "dtype": dtype}
    return None if ranks.rank() else answer(result | lost, as_json, _show)


def _show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:10} {value}")
