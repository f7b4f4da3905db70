"""`interp squash`: how much of what a model read its last token still holds, and where different texts come to look alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded, numbers_in, prompt_ids
from interp.cli.options import AsJson, Device, Ids, ModelName, TextFile
from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd

    from interp.model import Model

app = typer.Typer(no_args_is_help=True, help=__doc__)

Text = Annotated[str | None, typer.Argument(help="the prompt; none with --ids")]
Pos = Annotated[int, typer.Option(help="the token whose output is meant; from the end if negative")]
Probes = Annotated[
    int | None,
    typer.Option(help="random probes instead of all of the Jacobian; 0: all; default: all up to 1024 outputs"),
]
Seed = Annotated[int, typer.Option(help="of what is drawn")]
Dtype = Annotated[str, typer.Option(help="that the model computes in")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="write the figure here, as one HTML file")]
LENGTHS = "16,32,64,128,256,512,1024"


def _loaded(model: str, dtype: str, device: str | None) -> Model:
    from interp.model import load

    return load(model, device=device, dtype=dtype)


def _drawn(figure: Any, out: Path | None) -> None:
    if out is not None:
        from interp.files import write_text

        write_text(out, figure.to_html(include_plotlyjs=True, full_html=True))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; a number that is none is null."""
    return [{str(k): None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]


def _print(rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.4g}"))


# ---------------------------------------------------------------- one prompt


@app.command()
@guarded
def jacobian(
    model: ModelName,
    text: Text = None,
    ids: Ids = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream at every layer")
    ] = None,
    until: Annotated[str | None, typer.Option(help="whose output is meant; default: the last norm's")] = None,
    pos: Pos = -1,
    probes: Probes = None,
    seed: Seed = 0,
    held: Annotated[bool, typer.Option("--held", help="patterns are constants, as in the bound")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Exact Jacobian norms of the last token's output with respect to every token, at every layer."""
    from probes.sensitivity import sensitivity

    wrapped = _loaded(model, dtype, device)
    x = prompt_ids(wrapped, text, ids, "interp squash jacobian")
    found = sensitivity(wrapped, x, site, until=until, pos=pos, probes=probes, seed=seed, held=held)
    result: dict[str, Any] = {"model": model, "dtype": dtype, "ids": x, "until": found.until, "pos": found.pos}
    result |= {"probes": found.probes, "norms": {n: v.tolist() for n, v in found.norms.items()}}
    result |= {"errors": {n: v.tolist() for n, v in found.errors.items()}, "field": _records(found.field())}
    _drawn(found.plot(), out)
    answer(result, as_json, lambda r: _print(r["field"]))


@app.command()
@guarded
def paths(
    model: ModelName,
    text: Text = None,
    ids: Ids = None,
    pos: Pos = -1,
    bound: Annotated[bool, typer.Option("--bound", help="the bound on Jacobian norms, beside the exact ones")] = False,
    probes: Probes = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Products of attention patterns over layers, rollout, and with --bound what they allow the last token to feel."""
    from probes.paths import path_bound
    from probes.paths import paths as products

    wrapped = _loaded(model, dtype, device)
    x = prompt_ids(wrapped, text, ids, "interp squash paths")
    result: dict[str, Any] = {"model": model, "dtype": dtype, "ids": x}
    if bound:
        found = path_bound(wrapped, x, pos=pos, probes=probes, seed=seed)
        result |= {"constants": _records(found.constants), "last": found.last, "looseness": _records(found.looseness)}
        _drawn(found.plot(), out)
        rows = found.to_frame()
    else:
        made = products(wrapped, x, pos=pos)
        _drawn(made.plot(), out)
        rows = made.to_frame()
    result["rows"] = _records(rows)
    answer(result, as_json, _show_paths)


def _show_paths(result: dict[str, Any]) -> None:
    first = result["rows"][0]["site"]
    _print([{k: v for k, v in r.items() if k != "site"} for r in result["rows"] if r["site"] == first])
    if "constants" in result:
        print(f"\nconstants, the largest over tokens; ‖∂y/∂v^L‖ = {result['last']:.4g}")
        _print(result["constants"])
        print(
            "\nbound / exact with patterns held; exact_above: share of tokens whose norm as it is lies above the bound"
        )
        _print(result["looseness"])


# ---------------------------------------------------------------- collapse


@app.command()
@guarded
def collapse(
    model: ModelName,
    family: Annotated[str, typer.Option(help="repeat_last, digits, copying, counting, separators")] = "repeat_last",
    lengths: Annotated[str, typer.Option(help="tokens of v, rising")] = LENGTHS,
    site: Annotated[str | None, typer.Option(help="default: the stream after the last block")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="ids for one, zero, the separator, and digits, as 5,6,7,8,9; default: 1 0 , and digits"),
    ] = None,
    p: Annotated[float, typer.Option(help="share of the model's rotary frequencies that turn (p-RoPE)")] = 1.0,
    remedy: Annotated[bool, typer.Option("--remedy", help="beside it: a separator after every third token")] = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How near the last token's representations come when it stands once more, and from which length on they are the same."""
    from contextlib import nullcontext

    from probes.collapse import REMEDY, collapse_curve
    from probes.collapse import family as named
    from probes.rotary import p_rope

    wrapped = _loaded(model, dtype, device)
    given = None if tokens is None else numbers_in(tokens, "--tokens")
    steps = numbers_in(lengths, "--lengths")
    names = [family] + [REMEDY] * (remedy and family != REMEDY)
    with p_rope(wrapped, p) if p != 1 else nullcontext():
        curves = [collapse_curve(wrapped, named(wrapped, n, tokens=given, seed=seed), steps, site) for n in names]
    result = {"model": model, "p": p, **curves[0].to_dict()}
    if len(curves) > 1:
        result["remedy"] = curves[1].to_dict()
    _drawn(curves[0].plot(*curves[1:]), out)
    answer(result, as_json, _show_collapse)


def _show_collapse(result: dict[str, Any]) -> None:
    for curve in (result, result.get("remedy")):
        if curve is None:
            continue
        roles = ", ".join(f"{k} {v}" for k, v in curve["tokens"].items())
        print(f"{curve['family']} at {curve['site']}, computed in {curve['computed_in']}; token ids: {roles}")
        _print(
            [
                dict(zip(("n", "l1", "l2", "linf"), row, strict=True))
                for row in zip(*(curve[k] for k in ("n", "l1", "l2", "linf")), strict=True)
            ]
        )
        print("same bits from: " + ", ".join(f"{k} {v}" for k, v in curve["equal_at"].items()))


@app.command()
@guarded
def schemes(
    scheme: Annotated[list[str] | None, typer.Option(help="none, absolute, rotary, alibi; default: all")] = None,
    lengths: Annotated[str, typer.Option(help="tokens of the sequence, rising")] = LENGTHS + ",2048,4096",
    slope: Annotated[float, typer.Option(help="ALiBi's, a token of distance")] = 0.5,
    p: Annotated[float, typer.Option(help="share of the rotary frequencies that turn")] = 1.0,
    draws: Annotated[int, typer.Option(min=1, help="of tokens, averaged")] = 16,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The constructed layer under every scheme of positions: does it forget how often its last token stood there?"""
    from probes.schemes import SCHEMES, Layer, alternating, perturbed, scheme_curve

    steps = numbers_in(lengths, "--lengths")
    curves = [scheme_curve(Layer(s, slope=slope, p=p), steps, draws=draws, seed=seed) for s in scheme or SCHEMES]
    told = {c.layer.scheme: {"l1": c.l1.mean(0).tolist(), "slope": c.slope} for c in curves}
    result = {"n": steps, "draws": draws, "alibi_slope": slope, "p": p, "schemes": told}
    result |= {
        "alternating": [alternating(2 * n) for n in steps],
        "perturbed": [perturbed(n) for n in steps if n >= 200],
    }
    _drawn(curves[0].plot(*curves[1:]), out)
    answer(result, as_json, _show_schemes)


def _show_schemes(result: dict[str, Any]) -> None:
    _print([{"n": n, **{s: c["l1"][i] for s, c in result["schemes"].items()}} for i, n in enumerate(result["n"])])
    print("falls as n to the power of: " + ", ".join(f"{s} {c['slope']:.2f}" for s, c in result["schemes"].items()))
    print(f"logits 1 0 1 0 … against 0 1 0 1 …: distance {result['alternating'][0]:.5f} at every even length")


# ---------------------------------------------------------------- rotary


@app.command()
@guarded
def rotary(
    model: ModelName,
    text: Text = None,
    ids: Ids = None,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How long queries and keys are in each pair of numbers that turns with the position, the fastest first."""
    from probes.rotary import usage

    wrapped = _loaded(model, dtype, device)
    x = prompt_ids(wrapped, text, ids, "interp squash rotary")
    found = usage(wrapped, x)
    _drawn(found.plot(), out)
    answer({"model": model, "ids": x, "rows": _records(found.to_frame())}, as_json, _show_rotary)


def _show_rotary(result: dict[str, Any]) -> None:
    import pandas as pd

    frame = pd.DataFrame(result["rows"])
    means = frame.groupby(["attention", "pair"], sort=False)[["frequency", "q", "k"]].mean().reset_index()
    print(means.to_string(index=False, float_format=lambda v: f"{v:.4g}"))


@app.command()
@guarded
def decay(
    at: Annotated[int, typer.Option(min=1, help="the distance that a key is made for")] = 100,
    furthest: Annotated[int, typer.Option(min=2, help="distances looked at")] = 256,
    draws: Annotated[int, typer.Option(min=2, help="of Gaussian queries and keys")] = 4096,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Counter-examples to "rotary positions decay with distance"."""
    from probes.rotary import decay as measured

    found = measured(range(furthest), at=at, draws=draws, seed=seed)
    frame = found.to_frame()
    peak = int(frame["peaked"].to_numpy().argmax())
    result = {"at": at, "peak": peak, "largest_mean_in_errors": float((found.mean / found.error).abs().max())}
    _drawn(found.plot(), out)
    answer(result | {"rows": _records(frame)}, as_json, _show_decay)


def _show_decay(result: dict[str, Any]) -> None:
    print(f"a key made for distance {result['at']} has its largest logit at distance {result['peak']}")
    print(f"Gaussian queries and keys: mean logits within {result['largest_mean_in_errors']:.1f} standard errors of 0")


# ---------------------------------------------------------------- sinks


@app.command()
@guarded
def sinks(
    model: ModelName,
    text: TextFile = None,
    windows: Annotated[int, typer.Option(min=2, help="of text")] = 32,
    context: Annotated[int, typer.Option(min=8, help="tokens of a window")] = 64,
    eps: Annotated[float, typer.Option(help="mean attention above which a head is a sink")] = 0.8,
    changed: Annotated[int, typer.Option(min=1, help="the token that is changed, counted behind the start token")] = 4,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Attention to the first token, with and without the start token, and how far one changed token spreads."""
    from probes.sinks import mean_spread
    from probes.sinks import sinks as measured

    wrapped = _loaded(model, dtype, device)
    given = _windows(wrapped, text, windows, context)
    ways = {"with_bos": True, "without_bos": False} if _start(wrapped) is not None else {"as_is": None}
    result: dict[str, Any] = {"model": model, "windows": len(given), "context": context, "eps": eps}
    figure = None
    for name, bos in ways.items():
        found = measured(wrapped, given, context=context, bos=bos)
        figure = figure or found.plot()
        told = {"rate": found.rate(eps), "mass": found.mass.mean(1).tolist(), "heads": _records(found.to_frame())}
        far = mean_spread(wrapped, given, context=context, bos=bos, changed=changed)
        result[name] = told | {"spread": list(far.values())}
    _drawn(figure, out)
    answer(result, as_json, _show_sinks)


def _start(model: Model) -> int | None:
    return getattr(model.tokenizer, "bos_token_id", None)


def _windows(model: Model, text: str | None, count: int, context: int) -> list[list[int]]:
    """Windows of text of one token more than asked for, so that one may be taken away; texts that are shorter give none."""
    from interp.store.recording import windows
    from interp.texts import read_texts

    found: list[list[int]] = []
    longest = 0
    for _, ids in windows(model, read_texts(text), context + 1):
        longest = max(longest, len(ids))
        found += [ids] * (len(ids) == context + 1)
        if len(found) == count:
            break
    if not found:
        raise WrongUse(
            f"the longest text has {longest} tokens, fewer than the {context + 1} of a window: give longer text, or a smaller "
            "--context."
        )
    return found


def _show_sinks(result: dict[str, Any]) -> None:
    for name in ("with_bos", "without_bos", "as_is"):
        if name in result:
            told = result[name]
            print(f"{name}: {told['rate']:.1%} of heads give the first token more than {result['eps']}")
            print("  mass by layer: " + ", ".join(f"{m:.3f}" for m in told["mass"]))
            print("  change of later tokens by layer: " + ", ".join(f"{m:.4f}" for m in told["spread"]))


# ---------------------------------------------------------------- source


@app.command()
@guarded
def source(
    model: ModelName,
    other: Annotated[str | None, typer.Argument(help="another model, on the same texts")] = None,
    text: Annotated[str, typer.Option(help="what is read")] = "digits: forty two thousand seven hundred",
    target: Annotated[str | None, typer.Option(help="what is written; default: what the first model says")] = None,
    steps: Annotated[int, typer.Option(min=2, help="of the target, at most")] = 24,
    probes: Probes = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What is left of the source while a target is written: an encoder and a decoder against a decoder alone."""
    from probes.source import source_share

    models = [_loaded(m, dtype, device) for m in (model, other) if m is not None]
    said = target if target is not None else _said(models[0], text, steps)
    found = []
    for wrapped in models:
        read = wrapped.tokens(text).ids[0].tolist()
        written = wrapped.tokens(said).ids[0].tolist() if said else []
        found.append(source_share(wrapped, read, written[:steps], probes=probes, seed=seed))
    _drawn(found[0].plot(*found[1:]), out)
    told = [
        {
            "model": name,
            "parameters": sum(p.numel() for p in w.module.parameters()),
            "encoder": f.encoder,
            "source": f.length,
        }
        | {"exponent": f.exponent, "rows": _records(f.to_frame())}
        for name, w, f in zip((model, other), models, found, strict=False)
    ]
    answer({"text": text, "target": said, "models": told}, as_json, _show_source)


def _said(model: Model, text: str, steps: int) -> str:
    said = model.generate(text, max_new_tokens=steps)
    return said if getattr(model.config, "is_encoder_decoder", False) else said.removeprefix(text)


def _show_source(result: dict[str, Any]) -> None:
    print(f"{result['text']!r} → {result['target']!r}")
    for m in result["models"]:
        kind = "encoder-decoder" if m["encoder"] else "decoder alone"
        print(f"{m['model']}, {kind}, {m['parameters']:,} parameters: mass ~ (S + t)^{m['exponent']:.2f}")
        _print([{k: v for k, v in row.items() if k != "model"} for row in m["rows"]])


@app.command()
@guarded
def rewrite(
    model: ModelName,
    text: Text = None,
    ids: Ids = None,
    source: Annotated[int | None, typer.Option(help="tokens that the encoder reads; default: half")] = None,
    dtype: Dtype = "float64",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """A decoder alone, exactly rewritten as an encoder and a decoder: how far off its logits are."""
    from contextlib import nullcontext

    from interp.model.twin import Lifted
    from probes.source import rewritten

    with Lifted() if dtype == "float64" else nullcontext():
        wrapped = _loaded(model, dtype, device)
        x = prompt_ids(wrapped, text, ids, "interp squash rewrite")
        at = len(x) // 2 if source is None else source
        if not 0 < at < len(x):
            raise WrongUse(f"--source {at} of {len(x)} tokens leaves nothing to read or nothing to write.")
        found = rewritten(wrapped, x[:at], x[at:])
    _drawn(found.plot(), out)
    result = {"model": model, "dtype": dtype, "source": at, "target": len(x) - at, "error": found.error}
    answer(result | {"mixture": found.mixture, "share": found.share.mean((1, 2)).tolist()}, as_json, _show_rewrite)


def _show_rewrite(r: dict[str, Any]) -> None:
    print(
        f"{r['source']} tokens read, {r['target']} written, {r['dtype']}: logits off by {r['error']:.1e} of the largest"
    )
    print(
        f"z = s cross + (1 - s) self: off by {r['mixture']:.1e}; s by layer: "
        + ", ".join(f"{s:.3f}" for s in r["share"])
    )


# ---------------------------------------------------------------- claims


@app.command()
@guarded
def claims(
    model: Annotated[
        str | None, typer.Argument(help="for the claims about trained models; none: the constructed layer's")
    ] = None,
    text: TextFile = None,
    windows: Annotated[int, typer.Option(min=2, help="of text, for the sinks")] = 32,
    context: Annotated[int, typer.Option(min=8, help="tokens of a window")] = 64,
    lengths: Annotated[str, typer.Option(help="tokens of the sequences, rising")] = LENGTHS,
    dtype: Dtype = "float32",
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What the papers claim beside what is measured; with -o a page with a figure for each."""
    from probes.claims import Claims, constructed, of_model

    rows = list(constructed())
    if model is not None:
        wrapped = _loaded(model, dtype, device)
        given = _windows(wrapped, text, windows, context)
        rows += of_model(wrapped, given[0][:context], given, numbers_in(lengths, "--lengths"))
    found = Claims(tuple(rows))
    if out is not None:
        from probes.cli.squash_page import write_page

        write_page(out, found)
    answer({"model": model, "claims": _records(found.to_frame())}, as_json, _show_claims)


def _show_claims(result: dict[str, Any]) -> None:
    for c in result["claims"]:
        print(f"{c['said']} ({c['source']})\n  {c['verdict']}: {c['measured']}")
