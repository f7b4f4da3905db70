"""`interp dashboard`: one HTML file of any number of latents: where they fire, what they write, who fires with them."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Dataset
from interp.errors import Failed, WrongUse
from interp.files import command_line

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary
    from interp.model import Model, Together

DEFAULT = 1000  # latents shown if nothing is said
Groups = Iterable[Sequence[Sequence[int]]]


@guarded
def dashboard(
    run: Annotated[Path, typer.Argument(help="a dictionary's folder")],
    model: Annotated[str | None, typer.Argument(help="zoo:books, a folder, or a hub id; default: the run's")] = None,
    latents: Annotated[
        str | None, typer.Option(help='"all", or such as 0-999 or 3,17,40-49; default: the first 1,000')
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="text file or folder, or safetensors with token ids [windows, pos]; default: the run's text"),
    ] = None,
    dataset: Dataset = None,
    tokens: Annotated[int, typer.Option(min=1, help="stop after about this many tokens of text")] = 1_000_000,
    labels: Annotated[
        Path | None, typer.Option(help='CSV with the columns latent and label, or JSON {"12": "label", ...}')
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="HTML file; default: RUN/dashboard.html")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the contexts that are drawn")] = 0,
    context: Annotated[int, typer.Option(min=2, help="tokens a window of text")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="windows a forward pass")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="the model runs in: float32, bfloat16, float16, float64")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Write one HTML file that shows a dictionary's latents; it needs nothing but a browser.

    The model runs over the text once. A page of 1,000 latents takes a few megabytes.
    """
    from interp.dictionaries import load_dictionary
    from interp.model.together import load_together
    from interp.reports.dashboard import write_dashboard

    begin, out = time.perf_counter(), out or run / "dashboard.html"
    if out.is_dir():
        raise WrongUse(f"{out} is a folder: give an HTML file with -o.")
    check_folder(run)
    before = recorded(run)
    asked = Text(text, dataset, tokens, context, batch).or_else(before)
    dictionary = load_dictionary(run, device)
    name = model or before.get("model")
    if name is None:
        raise WrongUse(f"{run} does not say which model it is of: `interp dashboard {run} MODEL`.")
    chosen = parse_latents(latents, dictionary.config.latents)
    wrapped = load_together(str(name), device, dtype)
    check_sites(wrapped, dictionary, str(name))
    named = read_labels(labels, dictionary.config.latents) if labels else {}
    title = f"{' … '.join(dict.fromkeys(dictionary.config.writes[i] for i in (0, -1)))} of {name}"
    facts = about(dictionary, run, str(name), asked, chosen, seed, command_line(out))
    shown = write_dashboard(
        out, dictionary, wrapped, asked.groups(wrapped), chosen, title=title, facts=facts, labels=named, seed=seed
    )
    told = {"path": str(out), "latents": len(chosen), "tokens": shown, "bytes": out.stat().st_size}
    return answer(told | {"seconds": round(time.perf_counter() - begin, 1)}, as_json, _show)


def parse_latents(said: str | None, m: int) -> list[int]:
    """The latents of a dictionary of `m` that "all", "3" or "3,17,40-49" means, in order; None means the first 1,000."""
    if said is None or said == "all":
        return list(range(m if said else min(m, DEFAULT)))
    found: set[int] = set()
    for part in said.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise WrongUse(f"--latents {said}: {part!r} is no number and no range. Such as 3,17,40-49, or all.")
        low, high = int(ends[1]), int(ends[2] or ends[1])
        if low > high or high >= m:
            raise WrongUse(f"--latents {said}: {part.strip()} is not within 0-{m - 1}, the latents there are.")
        found.update(range(low, high + 1))
    return sorted(found)


def check_folder(run: Path) -> None:
    """Raise `WrongUse` with the dictionaries in a folder that is none itself, such as a demo's."""
    inside = [str(p.parent) for p in sorted(run.glob("**/config.json"))]
    if inside and not (run / "config.json").exists():
        raise WrongUse(f"{run} is no dictionary, but holds some. Give one of {', '.join(inside)}.")


def recorded(run: Path) -> dict[str, Any]:
    """What a run, or the recording it was trained on, says of its model and text: its own, or a demo's that it is part of."""
    folders = [run, *list(run.resolve().parents)[:2]]
    for file in (run / "run.json", *(i for f in folders for i in sorted(f.glob("activations/**/index.json")))):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["meta"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # neither; the user is then asked for the model
        if found and isinstance(found, dict):
            return found
    return {}


@dataclass(frozen=True)
class Text:
    """Which text is read, and how."""

    text: str | None
    dataset: str | None
    tokens: int
    context: int
    batch: int

    def or_else(self, before: dict[str, Any]) -> Text:
        """The text of the run, if none was asked for."""
        if self.text is not None or self.dataset is not None:
            return self
        text, dataset = before.get("text"), before.get("dataset")
        if text is not None and not Path(text).exists():
            raise WrongUse(f"the run was trained on {text}, which is not there any more: give --text or --dataset.")
        return Text(text, dataset, self.tokens, self.context, self.batch)

    @property
    def name(self) -> str:
        """For people."""
        return self.text or self.dataset or "Python’s help texts"

    def groups(self, model: Model | Together) -> Iterator[Sequence[Sequence[int]]]:
        """Batches of windows of token ids, until there are enough, with a progress bar."""
        from tqdm.auto import tqdm

        if self.text and self.text.endswith(".safetensors"):
            found = read_ids(Path(self.text), self.batch)
        elif model.tokenizer is None:
            raise WrongUse(
                f"{model.id} has no tokenizer: give token ids, --text IDS.safetensors with one tensor [windows, pos]."
            )
        else:
            found = self._windows(model)
        total = sum(len(ids) for group in self._enough(found()) for ids in group) if self.dataset is None else None
        with tqdm(total=total or self.tokens, desc="looking", unit=" tokens", mininterval=1) as bar:
            for group in self._enough(found()):
                yield group
                bar.update(sum(map(len, group)))
        if not bar.n:
            raise WrongUse(f"There is no text in {self.name}.")

    def _windows(self, model: Model | Together) -> Callable[[], Groups]:
        from interp.store.recording import batches
        from interp.texts import read_texts

        def found() -> Groups:
            return (group for _, group in batches(model, read_texts(self.text, self.dataset), self.context, self.batch))

        return found

    def _enough(self, groups: Groups) -> Iterator[Sequence[Sequence[int]]]:
        seen = 0
        for group in groups:
            yield group
            seen += sum(map(len, group))
            if seen >= self.tokens:
                return


def read_ids(path: Path, batch: int) -> Callable[[], Groups]:
    """A function that gives windows of token ids from a safetensors file, in batches."""
    from interp.files import load_tensors

    if not path.is_file():
        raise WrongUse(f"there is no file {path}.")
    try:
        tensors = list(load_tensors(path)[0].values())
    except ValueError as error:
        raise Failed(str(error)) from error
    if len(tensors) != 1 or tensors[0].ndim != 2 or tensors[0].is_floating_point():
        raise WrongUse(f"{path} should hold one tensor of token ids [windows, pos], of whole numbers.")
    return lambda: (part.tolist() for part in tensors[0].split(batch))


def read_labels(path: Path, m: int) -> dict[int, str]:
    """Labels by latent, from CSV or JSON. Raises `WrongUse` for what is neither, or names a latent that is not there."""
    from interp.texts import read_file

    text = read_file(path)
    try:
        if path.suffix == ".json":
            pairs = list(json.loads(text).items())
        else:
            pairs = [(row["latent"], row["label"]) for row in csv.DictReader(io.StringIO(text))]
        found = {int(latent): str(label) for latent, label in pairs}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = 'CSV with the columns latent and label, or JSON such as {"12": "label"}'
        raise WrongUse(f"{path} holds no labels ({type(error).__name__}: {error}): it should be {wanted}.") from error
    wrong = [i for i in found if not 0 <= i < m]
    if wrong:
        raise WrongUse(f"{path} has a label for latent {wrong[0]}: this dictionary has latents 0 to {m - 1}.")
    return found


def check_sites(model: Model | Together, dictionary: Dictionary, name: str) -> None:
    """Raise `WrongUse` if the model is not one that the dictionary can read."""
    for site, width in zip(
        dictionary.config.reads, dictionary.config.widths_in or (dictionary.config.d_in,), strict=True
    ):
        there = model.width(model.names(site)[0])
        if there != width:
            raise WrongUse(f"The dictionary reads {width} numbers of {site}; in {name} there are {there}.")


def about(
    dictionary: Dictionary, run: Path, model: str, text: Text, chosen: Sequence[int], seed: int, command: str
) -> dict[str, str]:
    """What stands on the page about how it was made."""
    c = dictionary.config
    kind = f"{c.activation}, k = {c.k}" if c.k else c.activation
    return {
        "Command": command,
        "Model": model,
        "Dictionary": f"{run.name}: {', '.join(c.reads)} → {', '.join(c.writes)}; {kind}; {c.latents:,} latents",
        "Shown": f"{len(chosen):,} latents, {chosen[0]} to {chosen[-1]}",
        "Text": f"{text.name}, in windows of {text.context} tokens",
        "Contexts": f"the strongest, and some drawn by seed {seed} in each fifth of the range; none share a token",
    }


def _show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:8} {value}")
