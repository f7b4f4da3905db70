"""`interp demo`: from nothing to a sparse autoencoder and a transcoder of a real language model, in one command."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson
from interp.errors import WrongUse
from interp.files import command_line, load_tensors, write_json, write_text

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary, StoreSource, TrainConfig
    from interp.model import Model
    from interp.reports import LatentExamples
    from interp.store import Store

FORMAT, MARKER = "interp.demo", "demo.json"  # written first, removed last: by it a folder is known to be a demo's
MADE = ("activations", "dictionaries", "metrics.csv", "report.html", "summary.json", MARKER)
EXPANSION, SHARE = 8, 8  # latents for each dimension of the stream; dimensions for each active latent
BATCH, CONTEXT, WINDOWS = 1024, 512, 16  # rows a training step; tokens a window; windows a forward pass
RATE = 1e-3  # learning rate: a run of minutes wants more than the trainer's default, which is for long ones
HELD_OUT = 0.1  # the share of the documents, the last ones, that nothing is trained on
SHOWN = 10  # latents on the page
TITLES = {"sae": "SAE", "transcoder": "Transcoder", "random_decoder": "Random decoder"}

OUT = typer.Option("-o", "--out", help="folder of the run; a demo that is there is replaced")
MODEL = typer.Option(help="any language model: zoo:books, a folder, or a hub id")
TOKENS = typer.Option(min=2 * BATCH, help="tokens each dictionary is trained on, in several passes over the text")
SEED = typer.Option(min=0, help="of the shuffle, the weights, and the choice of latents that are shown")
DTYPE = typer.Option(help="of the recorded rows: bfloat16, float16 or float32")
DEVICE = typer.Option(help="cpu, cuda, ...")
RESUME = typer.Option("--resume", help="go on with an interrupted demo instead of replacing it")
DRY_RUN = typer.Option("--dry-run", help="only say rows, bytes and minutes")


@dataclass(frozen=True)
class Settings:
    """What a demo is a function of, on one machine."""

    model: str
    tokens: int
    seed: int
    dtype: str
    device: str


@guarded
def demo(
    out: Annotated[Path, OUT] = Path("runs/demo"),
    model: Annotated[str, MODEL] = "zoo:books",
    tokens: Annotated[int, TOKENS] = 300_000,
    seed: Annotated[int, SEED] = 0,
    dtype: Annotated[str, DTYPE] = "bfloat16",
    device: Annotated[str, DEVICE] = "cpu",
    resume: Annotated[bool, RESUME] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    as_json: AsJson = False,
) -> None:
    """Record a language model, train an autoencoder and a transcoder on it, measure them, and show them on one page.

    The text is Python's own help texts, which every machine has; the last tenth of them is held out.
    """
    settings = Settings(model, tokens, seed, dtype, device)
    if dry_run:
        return answer(plan(settings), as_json, _show_plan)
    prepare(out, settings, resume)
    return answer(run(out, settings, resume), as_json, _show)


# ------------------------------------------------------------ the folder


def prepare(out: Path, settings: Settings, resume: bool) -> None:
    """Make `out` ready: new, emptied of an earlier demo, or left as it is to be resumed.

    Raises `WrongUse`, with nothing touched, if it holds anything that a demo does not make.
    """
    if out.exists() and not out.is_dir():
        raise WrongUse(f"{out} is a file: give a folder with -o.")
    found = {p.name for p in out.iterdir()} if out.exists() else set()
    begun = _marker(out) if found else {}
    foreign = sorted(name for name in found - {*MADE} if not (name.startswith(".") and name.endswith(".tmp")))
    if foreign:
        raise WrongUse(f"{out} holds {', '.join(foreign)}, not made by `interp demo`: move that, or give another -o.")
    if found and resume:
        _check_same(out, begun, settings)
        return
    for name in [*sorted(found - {MARKER}), *({MARKER} & found)]:
        _remove(out / name)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"format": FORMAT, "version": 1, "command": command_line(), **asdict(settings)})


def _marker(out: Path) -> dict[str, Any]:
    """What an earlier demo wrote first."""
    try:
        begun = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        begun = None
    if not isinstance(begun, dict) or begun.get("format") != FORMAT:
        raise WrongUse(f"{out} is not empty and was not made by `interp demo`: give another folder with -o.")
    return begun


def _check_same(out: Path, begun: dict[str, Any], settings: Settings) -> None:
    for name, value in asdict(settings).items():
        if begun.get(name) != value:
            raise WrongUse(f"the demo in {out} has --{name} {begun.get(name)}, not {value}: resume it as it was begun.")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# ------------------------------------------------------------ what is run


@dataclass(frozen=True)
class Sites:
    """The stream after the middle block, and what that block's MLP reads and adds."""

    stream: str
    reads: str
    writes: str

    def source(self, name: str, store: Store) -> StoreSource:
        """The rows that a dictionary reads and writes."""
        from interp.dictionaries import StoreSource

        pair = (self.reads, self.writes) if name == "transcoder" else (self.stream, None)
        return StoreSource(store, *pair)


def middle(model: Model) -> Sites:
    """The sites of the middle block. Raises `WrongUse` for a model without them."""
    streams = model.names("*blocks.*.resid_post")
    stream = streams[len(streams) // 2]
    block = stream.removesuffix("resid_post")
    return Sites(stream, *model.names([f"{block}mlp.in", f"{block}mlp.write"]))


def split() -> tuple[list[str], list[str]]:
    """The default text's documents: those to train on, and the last ones, held out."""
    from interp.texts import default_text

    texts = default_text()
    held = max(1, round(HELD_OUT * len(texts)))
    return texts[:-held], texts[-held:]


def run(out: Path, settings: Settings, resume: bool) -> dict[str, Any]:
    """Everything after the folder is ready; returns what summary.json holds."""
    from interp.model import load

    start = time.perf_counter()
    model = load(settings.model, device=settings.device, dtype="float32")
    sites = middle(model)
    rows, held = (record(name, model, sites, out, settings, resume) for name in ("train", "held_out"))
    trained = {name: fit(name, sites, rows, out, settings, resume) for name in TITLES}
    measured = measure(trained, model, sites, rows, held, out)
    examples = look(trained["sae"], model, out, settings.seed)
    about = {"folder": str(out), "command": command_line(out), **asdict(settings), "versions": versions()}
    counts = {"recorded": rows.rows, "held_out": held.rows, "shown": [latent.index for latent in examples.latents]}
    result = {**about, **counts, "dictionaries": measured, "seconds": round(time.perf_counter() - start, 1)}
    write_metrics(out)
    write_page(out, result, examples)
    write_json(out / "summary.json", result)
    return result


def record(name: str, model: Model, sites: Sites, out: Path, settings: Settings, resume: bool) -> Store:
    """The activations of the text to train on ("train") or of the text held out ("held_out")."""
    from interp.store.recording import record_text

    texts = split()[name == "held_out"]
    return record_text(
        model,
        [sites.stream, sites.reads, sites.writes],
        texts,
        out / "activations" / name,
        tokens=min(settings.tokens, count(model, texts)),
        dtype=settings.dtype,
        seed=settings.seed,
        resume=resume,
        batch=WINDOWS,
        context=CONTEXT,
        meta={"command": command_line(out), "seed": settings.seed},
    )


def count(model: Model, texts: Sequence[str]) -> int:
    """Tokens in the texts, without those that only mark a beginning."""
    from interp.store.recording import windows

    found = windows(model, texts, CONTEXT)
    return sum(len(ids) - (ids[0] == model.tokenizer.bos_token_id) for _, ids in found)


def config(name: str, width: int, settings: Settings) -> TrainConfig:
    """What each of the three training runs is."""
    from interp.dictionaries import TopK, TrainConfig

    return TrainConfig(
        TopK(k=max(1, width // SHARE)),
        latents=EXPANSION * width,
        steps=settings.tokens // BATCH,
        batch=BATCH,
        lr=RATE,
        frozen_decoder=name == "random_decoder",
        seed=settings.seed,
        log_every=10,
        save_every=100,
    )


def fit(name: str, sites: Sites, rows: Store, out: Path, settings: Settings, resume: bool) -> Dictionary:
    """Train one dictionary into its folder."""
    from interp.dictionaries import train

    wanted = config(name, rows.widths[sites.stream], settings)
    return train(
        wanted, sites.source(name, rows), out / "dictionaries" / name, resume, settings.device, command_line(out)
    )


# ------------------------------------------------------------ what is told


def measure(
    trained: dict[str, Dictionary], model: Model, sites: Sites, rows: Store, held: Store, out: Path
) -> dict[str, dict[str, Any]]:
    """What the table shows of the autoencoder and the transcoder, by name; on held-out text but for the training run."""
    from interp.dictionaries import evaluate, evaluate_model, pca_fvu

    random = evaluate(trained["random_decoder"], sites.source("random_decoder", held)).fvu
    found = {}
    for name in ("sae", "transcoder"):
        D, source = trained[name], sites.source(name, held)
        on_rows, in_model = evaluate(D, source), evaluate_model(D, model, split()[1], context=CONTEXT).to_dict()
        pca = pca_fvu(sites.source(name, rows), source, D.config.k or 1)
        found[name] = {
            "title": TITLES[name],
            "reads": D.config.reads[0],
            "writes": D.config.writes[0],
            "latents": D.config.latents,
            "k": D.config.k,
            **{k: in_model[k] for k in ("loss_recovered", "cross_entropy", "kl")},
            "fvu": on_rows.fvu,
            "l0": on_rows.l0,
            "baselines": {"pca": pca, "random_decoder": random if name == "sae" else None},
            **history(out / "dictionaries" / name),
        }
    return found


def history(folder: Path) -> dict[str, Any]:
    """Dead latents at the end of a training run, the rows they were silent for, and its speed."""
    live, window = living(folder)
    with open(folder / "speed.csv", newline="", encoding="utf-8") as file:
        seconds = [1 / float(row["tokens_per_second"]) for row in csv.DictReader(file)]
    return {"dead": int((~live).sum()), "dead_window": window, "tokens_per_second": round(len(seconds) / sum(seconds))}


def living(folder: Path) -> tuple[Any, int]:
    """Which latents fired in the last rows of a training run [m], and how many rows those were."""
    tensors, meta = load_tensors(folder / "state.safetensors")
    return tensors["silent"] < meta["dead_window"], meta["dead_window"]


def look(dictionary: Dictionary, model: Model, out: Path, seed: int) -> LatentExamples:
    """Ten live latents, drawn by seed, over all of the text."""
    from tqdm.auto import tqdm

    from interp.reports import draw_live, latent_examples
    from interp.store.recording import batches

    texts = [text for part in split() for text in part]
    groups = [group for _, group in batches(model, texts, CONTEXT, WINDOWS)]
    drawn = draw_live(living(out / "dictionaries" / "sae")[0], SHOWN, seed)
    bar = tqdm(groups, desc="looking", unit="batch", mininterval=1)
    return latent_examples(dictionary, model, bar, drawn, window=12, seed=seed)


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import torch
    import transformers

    import interp

    found = {"interp": interp.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"python": platform.python_version(), **found}


def write_metrics(out: Path) -> None:
    """The three training runs' metrics in one file, with the name of the dictionary before them."""
    lines: list[str] = []
    for name in TITLES:
        header, *rows = (out / "dictionaries" / name / "metrics.csv").read_text(encoding="utf-8").splitlines()
        lines += [f"dictionary,{header}"] * (not lines) + [f"{name},{row}" for row in rows]
    write_text(out / "metrics.csv", "\n".join(lines) + "\n")


def write_page(out: Path, result: dict[str, Any], examples: LatentExamples) -> None:
    """report.html."""
    from interp.reports import training, write_report

    measured, sae = result["dictionaries"], result["dictionaries"]["sae"]
    curves = {title: out / "dictionaries" / name / "metrics.csv" for name, title in TITLES.items()}
    write_report(
        out / "report.html",
        f"Two sparse dictionaries of {result['model']}",
        lead=f"A sparse autoencoder of {sae['writes']} and a transcoder of the same block’s MLP, trained on "
        f"{result['tokens']:,} tokens of Python’s help texts and measured on {result['held_out']:,} held-out tokens.",
        facts=_facts(result),
        highlights=_highlights(sae, result["recorded"]),
        tables=[training.comparison(measured, result["held_out"])],
        charts=[
            training.entropy_scale(measured),
            training.training_chart(curves, {f"PCA for the SAE, k = {sae['k']}": sae["baselines"]["pca"]}),
        ],
        latents=examples,
        about_latents=f"{len(examples.latents)} latents of the SAE, drawn by seed {result['seed']} among those "
        f"that fired in the last {sae['dead_window']:,} training tokens. Densities and contexts are over all of the "
        f"text, {examples.tokens:,} tokens; no two contexts of a latent share a token. Promoted and suppressed: the "
        "tokens whose logits the latent moves most by the direct path.",
    )


def _facts(result: dict[str, Any]) -> dict[str, str]:
    return {
        "Command": result["command"],
        "Model": result["model"],
        "Sites": ", ".join(f"{m['title']}: {m['reads']} → {m['writes']}" for m in result["dictionaries"].values()),
        "Text": f"pydoc_data.topics, {result['recorded']:,} tokens recorded, the last tenth of the documents held out",
        "Seed": str(result["seed"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }


def _highlights(sae: dict[str, Any], recorded: int) -> list[tuple[str, str, str]]:
    recovered, base = sae["loss_recovered"], sae["baselines"]
    beside = f"PCA {base['pca']:.3f}, random decoder {base['random_decoder']:.3f}"
    return [
        ("Loss recovered", f"{recovered['zero']:.1%}", f"against zeros; {recovered['mean']:.1%} against the mean"),
        ("FVU", f"{sae['fvu']:.3f}", beside),
        ("L0", f"{sae['l0']:.1f}", f"of {sae['latents']:,} latents"),
        ("Dead latents", f"{sae['dead']:,}", f"silent for {sae['dead_window']:,} tokens"),
    ]


# ------------------------------------------------------------ what is printed


def plan(settings: Settings) -> dict[str, Any]:
    """Rows to record, bytes they and the dictionaries take, and minutes: a batch and some training steps are timed."""
    import torch

    from interp.dictionaries import RowsSource
    from interp.dictionaries import plan as plan_training
    from interp.model import load
    from interp.store.recording import plan as plan_recording

    model = load(settings.model, device=settings.device, dtype="float32")
    sites, texts = middle(model), [text for part in split() for text in part]
    names = [sites.stream, sites.reads, sites.writes]
    options: dict[str, Any] = dict(tokens=settings.tokens, dtype=settings.dtype, batch=WINDOWS, context=CONTEXT)
    recording = plan_recording(model, names, texts, **options)
    noise = RowsSource(torch.randn(4 * BATCH, model.width(sites.stream)))
    training = plan_training(config("sae", noise.d_in, settings), noise, settings.device)
    # the text is read twice, to record it and to look for contexts, and three dictionaries are trained
    minutes = 2 * recording.minutes + 3 * training["minutes"]
    return {
        "rows": recording.rows,
        "bytes": int(recording.bytes + 3 * training["bytes"]),
        "minutes": round(minutes, 1),
    }


def _show_plan(result: dict[str, Any]) -> None:
    print(f"{result['rows']:,} rows, {result['bytes'] / 1e6:,.0f} MB, about {result['minutes']:.1f} minutes")


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    from interp.reports.page import number
    from interp.reports.training import comparison

    table = comparison(result["dictionaries"], result["held_out"])
    shown = RichTable(title=f"{result['model']}, held-out text", title_justify="left")
    for column, name in enumerate(table.header[:-1]):
        shown.add_column(name, justify="right" if column else "left")
    for first, *cells, _ in table.rows:
        shown.add_row(str(first), *(c if isinstance(c, str) else number(c) for c in cells))
    console = Console()
    console.print(shown)
    console.print("Loss recovered, zero = (CE zero − CE replaced) / (CE zero − CE clean)", style="dim")
    console.print(f"{result['seconds']:.0f} s. Open {result['folder']}/report.html", highlight=False)
