"""`interp lens`: watch a prediction form from site to site, in text, sound and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded, numbers_in, text_or_ids
from interp.cli.options import AsJson, Device
from interp.errors import Failed, WrongUse, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from interp.lenses import ClassLens, Lens, Trajectory
    from interp.model import Model

TRAINED = ("tuned", "shortcut", "jacobian", "future", "attention")
TAKES = {  # what --target means to those kinds that take one
    "decoder": "the text that the decoder is made to read",
    "patchscope": "the prompt that states are put into",
    "backward": "the token whose loss is meant",
    "class": "the class whose evolution is shown",
}
KINDS = ("logit", *TRAINED, *TAKES)
MEDIA = {"audio": "decoder", "image": "class"}  # and the kind that reads them, unless another is asked for


@guarded
def lens(
    model: Annotated[
        str, typer.Argument(help="zoo:books, a folder, or a hub id; or `audio`, `image`: a file comes next")
    ],
    text: Annotated[str | None, typer.Argument(help="the text to read, or the file; none with --ids")] = None,
    kind: Annotated[
        str | None, typer.Option(help=f"of the lens: {', '.join(KINDS)}; default: logit, or what --lens holds")
    ] = None,
    of: Annotated[str | None, typer.Option("--model", help="the model that reads an audio or image file")] = None,
    weights: Annotated[
        Path | None, typer.Option("--lens", help="folder of a lens that `interp train lens` made")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="; ".join(f"{kind}: {what}" for kind, what in TAKES.items()) + "; ids with --ids")
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="folder of a dictionary to attach: --site SITE.latents reads what it makes of SITE"),
    ] = None,
    ids: Annotated[str | None, typer.Option(help="token ids instead of a text, as 5,6,7")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="site or glob; may be given again; default: the stream after every block")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="how many of the likeliest tokens")] = 5,
    token: Annotated[list[str] | None, typer.Option(help="a token, or an id, to follow; may be given again")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write a page to this HTML file")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Read what each site of a model would say, through the model's own head."""
    from interp.model import load

    media = model if model in MEDIA else None
    if (media is None) != (of is None) or (media is not None and text is None):
        raise WrongUse(
            "a file is read as `interp lens audio FILE --model MODEL` (or image); a text as `interp lens MODEL TEXT`."
        )
    wrapped = load(of or model, device=device)
    if dictionary is not None:
        from interp.dictionaries import load_dictionary

        wrapped.attach(load_dictionary(dictionary))
    x = _input(wrapped, text, ids) if media is None else _file(wrapped, str(of), media, Path(str(text)))
    made = _made(wrapped, kind or _kind(weights, media), weights, target, ids is not None)
    x = _forced(made, x, target, ids is not None)
    seen = made(x, site or None, k=k, tokens=[_token(t) for t in token or ()])
    more = _layers(made, x, site or None) | _picture(made, x, site or None, target)
    if out is not None:
        from interp.reports.lens import write_lens

        facts = {"model": of or model, "sites": ", ".join(site or ["the stream after every block"])}
        write_lens(out, seen, facts | ({} if target is None else {"target": target}), more)
    answer(as_dict(seen) | more, as_json, lambda _: _show(seen, more, out))


def _kind(weights: Path | None, media: str | None) -> str:
    """The kind that is meant where none was named."""
    config = None if weights is None else weights / "config.json"
    if config is not None and config.is_file():
        try:
            return str(json.loads(config.read_text(encoding="utf-8")).get("kind"))
        except (ValueError, AttributeError) as error:
            raise Failed(f"{config} cannot be read: {error}") from error
    return "tuned" if config is not None else MEDIA.get(media or "", "logit")


def _forced(made: Lens, x: Any, target: str | None, as_ids: bool) -> Any:
    """The input, with what a decoder is made to read."""
    import torch

    from interp.lenses import DecoderLens

    if target is None or not isinstance(made, DecoderLens):
        return x
    return made.forced(x, torch.tensor([numbers_in(target, "--target")]) if as_ids else target)


def _picture(made: Lens, x: Any, sites: list[str] | None, target: str | None) -> dict[str, Any]:
    """How the tokens of a picture say the class, under "label", "picture" and "identifiability" [L][T]."""
    from interp.lenses import ClassLens

    if not isinstance(made, ClassLens):
        return {}
    seen = made.evolution(x, sites, label=_label(made, target))
    return {
        "label": made.words([int(seen.labels[0])])[0],
        "picture": vars(seen.picture),
        "identifiability": seen.identifiability[:, 0].tolist(),
        "importance": None if made.pooled else made.importance(x, label=int(seen.labels[0])).drop.tolist(),
    }


def _label(made: ClassLens, target: str | None) -> int | str | None:
    """A class by its name, or by its number where no class has that name."""
    names = getattr(made.model.config, "id2label", None) or {}
    return target if target is None or target in names.values() else _token(target)


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

    given = text_or_ids(model, text, ids, "interp lens")
    return given if isinstance(given, str) else torch.tensor([given])


def _token(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def lens_class(kind: str) -> type[Any]:
    """The class of a kind. Raises `WrongUse` for a kind that is not there."""
    from interp import lenses

    if kind not in KINDS:
        raise WrongUse(f"there is no lens of the kind {kind!r}.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    kinds = [getattr(lenses, name) for name in lenses.__all__]
    return next(
        c for c in kinds if isinstance(c, type) and getattr(c, "kind", None) == kind and issubclass(c, lenses.Lens)
    )


def _made(model: Model, kind: str, weights: Path | None, target: str | None, as_ids: bool) -> Lens:
    build = lens_class(kind)
    if (kind in TRAINED) != (weights is not None):
        raise WrongUse(
            f"--lens FOLDER goes together with --kind {', '.join(TRAINED[:-1])} or {TRAINED[-1]}: "
            f"`interp train lens MODEL --kind {kind if kind in TRAINED else 'tuned'} -o FOLDER` makes one."
        )
    if target is not None and kind not in TAKES:
        raise WrongUse(f"the {kind} lens takes no --target. {'; '.join(f'{k}: {what}' for k, what in TAKES.items())}.")
    if weights is not None:
        return build.load(weights, model)
    if kind == "backward":
        return build(model, None if target is None else _token(target))
    if kind == "patchscope":
        return build(model, numbers_in(target, "--target") if as_ids and target is not None else target)
    return build(model)


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


def _show(seen: Trajectory, more: dict[str, Any], out: Path | None) -> None:
    """The likeliest token at each site, the last site at the top, and means."""
    from rich.console import Console

    console = Console()
    shown = (
        seen.at(slice(more["picture"]["first"] or None)) if "picture" in more else seen
    )  # the picture itself comes below
    console.print(_table(shown, console.width))
    for row in more.get("layers", ()):
        print(f"{row['site']:28} {row['error_rate']:5.2f}  {row['text']}")
    if "picture" in more:
        print(_shaded(seen, more, console.width))
    if out is not None:
        print(f"page: {out}")


def _table(seen: Trajectory, width: int) -> Table:
    """As many of the last tokens as the width has room for, none of them cut."""
    from rich.table import Table
    from rich.text import Text

    from interp.lenses.trajectory import short_names

    columns = [
        [_plain(word), *map(_plain, seen.words(tops))]
        for word, tops in zip(seen.tokens, seen.top[..., 0].T.tolist(), strict=True)
    ]
    names, count = short_names(seen.sites), len(columns)
    room = width - max(map(len, names)) - 25  # two numbers, borders and padding
    for shown in range(1, count + 1):
        room -= max(Text(cell).cell_len for cell in columns[-shown]) + 3
        if room < 0 and shown > 1:
            columns = columns[-shown + 1 :]
            break
    what = f"{count} tokens" if len(columns) == count else f"the last {len(columns)} of {count} tokens"
    table = Table("site", "entropy", "KL", title=f"{seen.kind} lens, {what}", title_style="")
    for cells in columns:
        table.add_column(Text(cells[0]), overflow="fold")
    for row, name in reversed(list(enumerate(names))):
        numbers = f"{seen.entropy[row].mean():.2f}", f"{seen.kl_forward[row].nanmean():.2f}"
        table.add_row(name, *numbers, *(Text(cells[1 + row]) for cells in columns))
    return table


def _plain(word: str) -> str:
    from interp.reports.words import parts

    return "".join(run for run, _ in parts(word))


SHADES = " ░▒▓█"


def _shaded(seen: Trajectory, more: dict[str, Any], width: int) -> str:
    """How well tokens of the picture say the class, in the picture's shape: as many sites as fit side by side, ends included."""
    from interp.lenses.trajectory import short_names

    rows, columns, first = (more["picture"][n] for n in ("rows", "columns", "first"))
    names, wide = short_names(seen.sites), max(2 * columns, 14) + 2
    fit = min(len(names), max(2, width // wide))
    chosen = sorted({round(i * (len(names) - 1) / (fit - 1)) for i in range(fit)}) if fit > 1 else [0]
    lines = [f"identifiability of {more['label']!r}, from 0 to 1: '{SHADES}'"]
    lines.append("".join(f"{names[i]:{wide}}" for i in chosen))
    for row in range(rows):
        cells = [more["identifiability"][i][first + row * columns :][:columns] for i in chosen]
        marks = ["".join(2 * SHADES[min(4, int(5 * value))] for value in part) for part in cells]
        lines.append("".join(f"{mark:{wide}}" for mark in marks).rstrip())
    return "\n".join(lines)
