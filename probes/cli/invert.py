"""`interp invert`: the prompt behind hidden states, how near the states of different prompts come, a sentence in one vector."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from interp.cli import answer, guarded, prompt_ids
from interp.cli.options import AsJson, Device, Ids, ModelName, TextFile

app = typer.Typer(no_args_is_help=True, help=__doc__)

Dtype = Annotated[str, typer.Option(help="of the model: float64 tells more tokens apart than float32")]


@app.command()
@guarded
def prompt(
    model: ModelName,
    text: Annotated[
        str | None, typer.Argument(help="whose states are made, and then inverted; none with --ids")
    ] = None,
    ids: Ids = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: after the middle block")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="gradient (SipIt), brute; may be given again")] = None,
    every: Annotated[bool, typer.Option("--every", help="test all tokens: margins and collisions")] = False,
    batch: Annotated[int, typer.Option(min=1, help="tokens tested at a time")] = 64,
    seed: Annotated[int, typer.Option(help="of the order of brute force")] = 0,
    dtype: Dtype = "float64",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Give a text's states at a site to the search, and nothing else, and see whether it finds the text."""
    import torch

    from interp.model import load
    from probes.inversion import recover

    wrapped = load(model, device=device, dtype=dtype)
    wanted = prompt_ids(wrapped, text, ids, "interp invert prompt")
    names = wrapped.names(site or f"blocks.{len(wrapped.wiring.stacks[-1].blocks) // 2}.resid_post")
    cache = wrapped.record(torch.tensor([wanted]), names)
    runs = []
    for name in names:
        for how in policy or ["gradient"]:
            found = recover(wrapped, cache[name][0], name, policy=how, every=every, batch=batch, seed=seed)
            told = {"site": name, "policy": how, "exact": found.ids.tolist() == wanted, "ids": found.ids.tolist()}
            told |= {"text": found.text, "tests": int(found.tests.sum()), "seconds": found.seconds}
            finite = found.rival[found.rival < torch.inf]
            told |= {"distance": float(found.distance.max()), "collisions": int((found.matches > 1).sum())}
            runs.append(told | {"rival": float(finite.min()) if len(finite) else None})
    result = {"model": model, "dtype": dtype, "ids": wanted, "runs": runs}
    answer(result, as_json, _show_prompt)


def _show_prompt(result: dict[str, Any]) -> None:
    import pandas as pd

    frame = pd.DataFrame(result["runs"]).drop(columns=["ids", "text"])
    print(frame.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    for run in result["runs"]:
        print(f"{run['site']}, {run['policy']}: {run['text']}")


@app.command()
@guarded
def collisions(
    model: ModelName,
    text: TextFile = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream after every block")
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="windows of the text")] = 1000,
    context: Annotated[int, typer.Option(min=1, help="tokens of a window")] = 32,
    k: Annotated[int, typer.Option(min=1, help="pairs told of each site")] = 3,
    append: Annotated[
        bool, typer.Option("--append", help="the nearest pair again, with every token behind each")
    ] = False,
    dtype: Dtype = "float64",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """The nearest last states among all pairs of prompts."""
    from itertools import islice

    from interp.model import load
    from interp.store.recording import windows
    from interp.texts import read_texts
    from probes.inversion import appended
    from probes.inversion import collisions as search

    wrapped = load(model, device=device, dtype=dtype)
    given = [ids for _, ids in islice(windows(wrapped, read_texts(text), context), prompts)]
    found = search(wrapped, given, site or "blocks.*.resid_post", k=k)
    result: dict[str, Any] = {"model": model, "dtype": dtype, "prompts": len(found.prompts)}
    result["pairs"] = found.to_frame().to_dict("records")
    if append:
        nearest = {s: [found.prompts[i] for i in p[0].tolist()] for s, p in found.pairs.items()}
        result["appended"] = {s: float(appended(wrapped, a, b, s, k=1)[1][0]) for s, (a, b) in nearest.items()}
    answer(result, as_json, _show_collisions)


def _show_collisions(result: dict[str, Any]) -> None:
    import pandas as pd

    print(f"{result['prompts']:,} prompts")
    print(pd.DataFrame(result["pairs"]).to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    for site, distance in result.get("appended", {}).items():
        print(f"{site}: {distance:.3g} with every token behind the nearest two")


@app.command()
@guarded
def sentence(
    model: ModelName,
    text: Annotated[str, typer.Argument(help="the sentence")],
    site: Annotated[str, typer.Option(help="where the vector is added, at every position")] = "embed",
    steps: Annotated[int, typer.Option(min=1, help="of Adam, at most")] = 1000,
    lr: Annotated[float, typer.Option(help="learning rate")] = 0.1,
    restarts: Annotated[int, typer.Option(min=1, help="starts, until one is decoded whole")] = 3,
    seed: Annotated[int, typer.Option(help="of the starts")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find one vector that has the model say a sentence, and have it said."""
    from interp.model import load
    from probes.inversion import sentence_vector

    wrapped = load(model, device=device, dtype="float32")
    found = sentence_vector(wrapped, text, site, steps=steps, lr=lr, restarts=restarts, seed=seed)
    said = wrapped.tokenizer.decode(found.said.tolist(), skip_special_tokens=True)
    result = {"model": model, "site": site, "tokens": len(found.ids), "exact": found.exact, "prefix": found.prefix}
    result |= {"accuracy": found.accuracy, "said": said, "steps": len(found.losses), "loss": float(found.losses[-1])}
    answer(result, as_json, _show_sentence)


def _show_sentence(r: dict[str, Any]) -> None:
    print(f"{r['tokens']} tokens, loss {r['loss']:.3g} nats a token after {r['steps']} steps")
    print(
        f"{'recovered whole' if r['exact'] else str(r['prefix']) + ' tokens recovered'}, {r['accuracy']:.0%} of positions: {r['said']}"
    )
