"""`interp lens`: watch a prediction form from site to site; `interp train lens`: train a tuned lens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.errors import Failed, WrongUse, nearest

if TYPE_CHECKING:
    from interp.lenses import Lens, Trajectory
    from interp.model import Model

KINDS = ("logit", "tuned", "shortcut", "decoder")
TRAINED = ("tuned", "shortcut")
MEDIA = ("audio", "image")


@guarded
def lens(
    model: Annotated[
        str, typer.Argument(help="zoo:books, a folder, or a hub id; or `audio`, `image`: a file comes next")
    ],
    text: Annotated[str | None, typer.Argument(help="the text to read, or the file; none with --ids")] = None,
    kind: Annotated[str, typer.Option(help=f"of the lens: {', '.join(KINDS)}")] = "logit",
    of: Annotated[str | None, typer.Option("--model", help="the model that reads an audio or image file")] = None,
    weights: Annotated[
        Path | None, typer.Option("--lens", help="folder of a lens that `interp train lens` made")
    ] = None,
    ids: Annotated[str | None, typer.Option(help="token ids instead of a text, as 5,6,7")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream after every block")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="how many of the likeliest tokens")] = 5,
    token: Annotated[list[str] | None, typer.Option(help="a token, or an id, to follow; may be given again")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write a page to this HTML file")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Read what each site of a model would say, through the model's own head."""
    from interp.model import load

    media = model if model in MEDIA else None
    if (media is None) != (of is None) or (media is not None and text is None):
        raise WrongUse(
            "a file is read as `interp lens audio FILE --model MODEL` (or image); a text as `interp lens MODEL TEXT`."
        )
    wrapped = load(of or model, device=device)
    x = _input(wrapped, text, ids) if media is None else _file(wrapped, str(of), media, Path(str(text)))
    made = _made(wrapped, kind, weights)
    seen = made(x, site or None, k=k, tokens=[_token(t) for t in token or ()])
    if out is not None:
        from interp.reports.lens import write_lens

        write_lens(out, seen, {"model": of or model, "sites": ", ".join(site or ["the stream after every block"])})
    layers = _layers(made, x, site or None)
    answer(as_dict(seen) | layers, as_json, lambda _: _show(seen, layers, out))


def _layers(made: Lens, x: Any, sites: list[str] | None) -> dict[str, Any]:
    """What a decoder writes from each layer of its encoder, under "layers"; nothing for other lenses."""
    from interp.lenses import DecoderLens

    if not isinstance(made, DecoderLens):
        return {}
    said = made.generate(x, sites)
    rows = [{"layer": i, "site": s.site, "text": s.texts[0], "error_rate": s.error_rate} for i, s in enumerate(said)]
    return {"layers": rows}


def _file(model: Model, source: str, media: str, path: Path) -> dict[str, Any]:
    """A sound (WAV, 16 bits) or a picture as the model's own processor makes it."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    from interp.model.load import _folder

    if not path.is_file():
        raise WrongUse(f"there is no file {path}.")
    where = str(_folder(source) or source)
    try:
        if media == "audio":
            sound, rate = _wave(path)
            made = AutoFeatureExtractor.from_pretrained(where)(sound, sampling_rate=rate, return_tensors="pt")
        else:
            try:
                from PIL import Image
            except ImportError as error:
                raise Failed("reading a picture needs Pillow: pip install 'interp-kit[vision]'.") from error
            made = AutoImageProcessor.from_pretrained(where)(Image.open(path).convert("RGB"), return_tensors="pt")
    except (OSError, ValueError, ImportError) as error:
        raise WrongUse(f"{source} cannot take {path} as {media}: {error}") from error
    return {name: t.to(model.device, model.dtype) if t.is_floating_point() else t for name, t in made.items()}


def _wave(path: Path) -> tuple[Any, int]:
    """(Samples from -1 to 1, the first channel's; samples a second)."""
    import wave

    import numpy as np

    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2:
                raise WrongUse(f"{path} has {8 * file.getsampwidth()} bits a sample: give a WAV file of 16.")
            data = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, file.getnchannels())
            return data[:, 0] / 32768.0, file.getframerate()
    except (wave.Error, EOFError) as error:
        raise WrongUse(f"{path} is no WAV file: {error}.") from error


def _input(model: Model, text: str | None, ids: str | None) -> Any:
    """What the model is run on."""
    import torch

    if (text is None) == (ids is None):
        raise WrongUse(
            'give a text or --ids, one of the two: interp lens MODEL "a text", or interp lens MODEL --ids 5,6,7.'
        )
    if ids is None:
        return text
    parts = [part.strip() for part in ids.split(",")]
    if not all(part.isdigit() for part in parts):
        raise WrongUse(f"--ids takes numbers with commas between them, as 5,6,7; not {ids!r}.")
    table = model.weights.get("W_E")
    if table is not None and max(map(int, parts)) >= len(table):
        raise WrongUse(f"token {max(map(int, parts))} is not there: ids run from 0 to {len(table) - 1}.")
    return torch.tensor([[int(part) for part in parts]])


def _token(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _made(model: Model, kind: str, weights: Path | None) -> Lens:
    from interp.lenses import DecoderLens, Lens, Shortcut, TunedLens

    if kind not in KINDS:
        raise WrongUse(f"there is no lens of the kind {kind!r}.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    if (kind in TRAINED) != (weights is not None):
        raise WrongUse(
            f"--lens FOLDER goes together with --kind {' or '.join(TRAINED)}: `interp train lens MODEL -o FOLDER` makes one."
        )
    if weights is not None:
        return (TunedLens if kind == "tuned" else Shortcut).load(weights, model)
    return DecoderLens(model) if kind == "decoder" else Lens(model)


def as_dict(seen: Trajectory) -> dict[str, Any]:
    """A trajectory as JSON values: kind, tokens[T], sites[L], top[L][T][k] of token and prob, and numbers [L][T]."""
    from interp.lenses.trajectory import VALUES

    top = [
        [
            [{"token": w, "id": i, "prob": p} for w, i, p in zip(seen.words(row), row, probs, strict=True)]
            for row, probs in zip(rows, values, strict=True)
        ]
        for rows, values in zip(seen.top.tolist(), seen.top_log_prob.exp().tolist(), strict=True)
    ]
    numbers = {n: _numbers(getattr(seen, n).tolist()) for n in VALUES if n != "prob"}
    chosen = [
        {
            "token": word,
            "id": i,
            "log_prob": _numbers(seen.chosen_log_prob[..., n].tolist()),
            "rank": seen.chosen_rank[..., n].tolist(),
        }
        for n, (word, i) in enumerate(zip(seen.words(seen.chosen), seen.chosen, strict=True))
    ]
    return {
        "kind": seen.kind,
        "tokens": seen.tokens,
        "sites": list(seen.sites),
        "top": top,
        **numbers,
        "chosen": chosen,
    }


def _numbers(rows: list[list[Any]]) -> list[list[Any]]:
    """NaN, which JSON has no word for, as null."""
    return [[None if value != value else value for value in row] for row in rows]


def _show(seen: Trajectory, layers: dict[str, Any], out: Path | None) -> None:
    """The likeliest token at each site, the last site at the top, and means."""
    from rich import print as show
    from rich.table import Table
    from rich.text import Text

    from interp.lenses.trajectory import short_names

    table = Table("site", "entropy", "KL", title=f"{seen.kind} lens, the last tokens")
    for word in seen.tokens[-8:]:
        table.add_column(Text(word))
    for row, name in reversed(list(enumerate(short_names(seen.sites)))):
        numbers = f"{seen.entropy[row].mean():.2f}", f"{seen.kl_forward[row].mean():.2f}"
        table.add_row(name, *numbers, *(Text(w) for w in seen.words(seen.top[row, -8:, 0].tolist())))
    show(table)
    for row in layers.get("layers", ()):
        print(f"{row['site']:28} {row['error_rate']:5.2f}  {row['text']}")
    if out is not None:
        print(f"page: {out}")


@guarded
def train_lens(
    model: Annotated[str, typer.Argument(help="zoo:books, a folder, or a hub id")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the lens")],
    text: Annotated[str | None, typer.Option(help="text file or folder; default: Python's help texts")] = None,
    dataset: Annotated[str | None, typer.Option(help="hub data set with a column 'text'")] = None,
    kind: Annotated[str, typer.Option(help="tuned, or shortcut: least squares to the last stream")] = "tuned",
    steps: Annotated[int, typer.Option(help="training steps; of a shortcut: steps × tokens are read once")] = 250,
    tokens: Annotated[int, typer.Option(help="tokens a step")] = 2**18,
    context: Annotated[int, typer.Option(help="tokens a window of text")] = 2048,
    optimizer: Annotated[str, typer.Option(help="sgd (Nesterov) or adam")] = "sgd",
    lr: Annotated[float | None, typer.Option(help="learning rate; default: 0.1 for sgd, 0.001 for adam")] = None,
    bias_only: Annotated[bool, typer.Option("--bias-only", help="train b_l alone")] = False,
    seed: Annotated[int, typer.Option(help="of the order of the text")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train an affine map a layer, from which the head reads what the model will say (or, by least squares, its last stream)."""
    import csv

    from interp.lenses import Recipe, fit_shortcut, train_tuned_lens
    from interp.model import load
    from interp.texts import read_texts

    if kind not in TRAINED:
        raise WrongUse(
            f"there is no lens of the kind {kind!r} to train.{nearest(kind, TRAINED)} Kinds: {', '.join(TRAINED)}."
        )
    if kind == "shortcut":
        fitted = fit_shortcut(
            load(model, device=device), read_texts(text, dataset), context=context, tokens=steps * tokens
        )
        fitted.save(out)
        return answer({"path": str(out), "sites": fitted.sites}, as_json, lambda result: print(result["path"]))
    recipe = Recipe(steps, tokens, context, optimizer, lr, bias_only=bias_only, seed=seed)
    made = train_tuned_lens(load(model, device=device), read_texts(text, dataset), out, recipe)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    result = {"path": str(out), "steps": int(last.pop("step")) + 1, "sites": made.sites}
    return answer(result | {"kl": {site: float(kl) for site, kl in last.items()}}, as_json, _show_trained)


def _show_trained(result: dict[str, Any]) -> None:
    print(f"{result['path']}: {result['steps']} steps")
    for site, kl in result["kl"].items():
        print(f"{site:28} KL {kl:.4f}")
