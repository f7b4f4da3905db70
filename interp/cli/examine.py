"""`interp doctor DICTIONARY --model MODEL`: why a dictionary's numbers differ."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from interp.errors import WrongUse

SAYS = (  # what a file of another library may say that bears on its numbers
    *("model_name", "lm_name", "prepend_bos", "context_size", "dtype", "normalize_activations"),
    *("apply_b_dec_to_input", "model_from_pretrained_kwargs", "norm_scaling_factor", "transcode"),
)


def examined(
    subject: str,
    model: str,
    text: str | None,
    tokens: int,
    site: str | None,
    target: str | None,
    device: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """Every reading of the dictionary, and the one that fits the model. Raises `WrongUse` if nothing says its site."""
    from interp.interop.doctor import examine
    from interp.interop.hub import opened
    from interp.interop.parts import placed
    from interp.model import load
    from interp.texts import read_texts

    read = opened(subject)
    D, about = placed(read.dictionary, site, target), read.about
    if D.config.reads == ("rows",):
        raise WrongUse(f"{subject} does not say what site it reads: --site blocks.N.resid_post, say.")
    wrapped = load(model, device=device, dtype=dtype or "float32")
    told = examine(D.to(wrapped.device), wrapped, read_texts(text, None), tokens)
    sites = {"reads": list(D.config.reads), "writes": list(D.config.writes)}
    whole = {"dictionary": subject, "format": about["format"], "model": model, "says": _says(about["config"]), **sites}
    return whole | asdict(told)


def _says(config: dict[str, Any]) -> dict[str, Any]:
    flat = config | (config.get("trainer") or {}) | (config.get("metadata") or {})
    return {name: flat[name] for name in SAYS if flat.get(name) is not None}


def show(result: dict[str, Any]) -> None:
    """A table, least FVU first, and the verdict."""
    from rich import print as show
    from rich.table import Table

    now = next(r for r in result["readings"] if r["cause"] == "none")
    table = Table("cause", "read as", "FVU", "change", "L0", "loss recovered", title=result["dictionary"])
    for r in result["readings"]:
        change = "" if r is now or None in (r["fvu"], now["fvu"]) else f"{r['fvu'] - now['fvu']:+.3g}"
        row = [_number(r["fvu"]), change, _number(r["l0"]), _number(r["loss_recovered"])]
        table.add_row("" if r is now else r["cause"], r["said"] + " *" * (not r["telling"]), *row)
    if result["says"]:
        show("its file says: " + ", ".join(f"{name} {value}" for name, value in result["says"].items()))
    show(table)
    if any(not r["telling"] for r in result["readings"]):
        show("* other rows, or a small factor: a lower FVU there explains nothing")
    fits = result["fits"]
    if fits["cause"] == "none":
        show("[green]It fits the model as it is read.[/green]")
    else:
        show(f"[yellow]It fits the model read otherwise. {fits['cause']}: {fits['said']}[/yellow]")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
