"""Training runs: one dictionary, or many over one stream of rows."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.dictionaries.config import TrainConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.endtoend import EndToEnd
from interp.dictionaries.run import Run
from interp.dictionaries.sources import Source, together
from interp.dictionaries.trainer import Trainer
from interp.dictionaries.watch import Watch
from interp.errors import Failed, WrongUse
from interp.files import command_line
from interp.ranks import mesh, rank, ranks, same, share, start, wait, within


class Diverged(Failed):
    """Rows or a loss that are not finite: this run stops, others beside it go on."""


def train(
    config: TrainConfig,
    source: Source,
    out: str | Path,
    resume: bool = False,
    device: str | torch.device = "cpu",
    command: str | None = None,
    watch: Sequence[Watch] = (),
) -> Dictionary:
    """Train a dictionary on `source` into the folder `out`; returns it, for raw rows.

    `out` then holds config.json, weights.safetensors, metrics.csv, speed.csv, state.safetensors and run.json. A run
    that was stopped, however, goes on with `resume=True` and ends in the same bytes as one that was not (same
    machine, versions, thread count). `watch`: who is shown the metrics beside metrics.csv. Raises `WrongUse` if `out`
    holds a run and `resume` is not asked for, or is of another config; `Failed` for NaN in the rows (site and step
    named) or a file that cannot be written. Under `torchrun` the latents are shared by the processes (see `sharded`).
    """
    said = command or command_line(out)
    run = _run(Path(out), config, source, device, said, watch, ranks() > 1)
    for error in _finish([run], resume).values():
        raise error
    return run.trainer.finished()


def train_many(
    configs: Mapping[str, TrainConfig],
    sources: Source | Mapping[str, Source],
    out: str | Path,
    resume: bool = False,
    device: str | torch.device = "cpu",
    command: str | None = None,
    watch: Sequence[Watch] = (),
    together: int = 1,
) -> dict[str, Dictionary]:
    """Train a dictionary for each config in one pass over one stream of rows; number NAME has the folder `out`/NAME.

    Each folder ends in the bytes that `train` gives with the same config, source and command: what they share is the
    reading of rows. `sources` is one source for all, or one for each name, over one store; `batch` and the order of the
    rows (`data_seed`, or else `seed`) must be the same for all. A dictionary whose rows or loss are not finite stops by
    itself; when the others are through, `Diverged` names it. Otherwise raises what `train` raises. Under `torchrun` each
    process trains its share of them, every so many-th, reading the stream for itself, and returns those; with `together`
    it is so many processes that train a share, and the latents of each dictionary are shared by them (see `sharded`).
    """
    _check_shared(configs)
    of = sources if isinstance(sources, Mapping) else dict.fromkeys(configs, sources)
    said = command or command_line(out)
    if ranks() > 1:
        start()
        same({name: config.to_dict() for name, config in configs.items()})
    if together < 1 or ranks() % together:
        raise WrongUse(
            f"together={together}: {ranks()} processes cannot be shared out by so many (torchrun starts them)."
        )
    with contextlib.ExitStack() as stack:
        mine = share(list(configs))
        if together > 1:
            layout = mesh(dictionaries=ranks() // together, latents=together)
            with within(layout["dictionaries"]):
                mine = share(list(configs))
            stack.enter_context(within(layout["latents"]))
        shared = together > 1
        runs = [_run(Path(out) / name, configs[name], of[name], device, said, watch, shared) for name in mine]
        stopped = _finish(runs, resume) if runs else {}
        trained = {run.folder.name: run.trainer.finished() for run in runs if run not in stopped}
    wait()
    if stopped:
        told = " ".join(f"{run.folder.name}: {error}" for run, error in stopped.items())
        raise Diverged(f"{len(stopped)} of {len(runs)} dictionaries stopped, the others are trained. {told}")
    return trained


def _run(
    folder: Path, config: TrainConfig, source: Source, device: Any, said: str, watch: Sequence[Watch], shared: bool
) -> Run:
    """The run of a dictionary, or of this process's latents of it."""
    if shared:
        from interp.dictionaries.sharded import sharded_run

        return sharded_run(folder, config, source, device, said, watch)
    return Run(folder, trainer(config)(config, source, device), said, watch)


def trainer(config: TrainConfig) -> type[Trainer]:
    """What makes the steps of such a run."""
    return EndToEnd if config.end_to_end else Trainer


def _check_shared(configs: Mapping[str, TrainConfig]) -> None:
    """One stream is cut into batches of one size, and has one order."""
    if not configs:
        raise WrongUse("There is nothing to train: no config was given.")
    for name in configs:
        if Path(name).name != name:
            raise WrongUse(f"{name!r} cannot be the name of a folder.")
    first, *others = configs
    for name in others:
        one, two = ({"batch": c.batch, "data_seed": c.order} for c in (configs[first], configs[name]))
        if one != two:
            raise WrongUse(
                f"Dictionaries of one stream share batch and data_seed (else the seed): {first} has {one}, {name} {two}."
            )


def plan(config: TrainConfig, source: Source, device: str | torch.device = "cpu", steps: int = 3) -> dict[str, float]:
    """What a run will take: rows there are, bytes it leaves on disk, minutes (a few of its steps are made and timed)."""
    tried = trainer(config)(config, source, device)
    tried.begin()
    begin = 0.0
    for step, (x, y) in enumerate(source.batches(config.batch, config.order, 0, steps + 1)):
        begin = time.perf_counter() if step == 1 else begin  # the first step also makes Adam's moments
        tried.update(x, y).total.item()
    minutes = (time.perf_counter() - begin) / steps * config.steps / 60
    size = sum(t.numel() * t.element_size() for t in (*tried.state().values(), *tried.dictionary.parameters()))
    return {"rows": source.rows, "bytes": size, "minutes": round(minutes, 2)}


def _finish(runs: Sequence[Run], resume: bool) -> dict[Run, Diverged]:
    """Everything from the first or the last checkpoint to the end; those that stopped before theirs."""
    try:
        _begin(runs, resume)
        return _loop(runs)
    except KeyboardInterrupt:
        step = max(run.trainer.step for run in runs)
        print(f"\nStopped at step {step}. {_kept(runs)} Go on with the same command and --resume.", file=sys.stderr)
        raise
    finally:
        for run in runs:
            run.close()


def _begin(runs: Sequence[Run], resume: bool) -> None:
    """Restore the runs that have a checkpoint; the others start from the first rows, which are read together."""
    fresh = defaultdict(list)
    for run in runs:
        if not run.restored(resume):
            fresh[run.trainer.sample_rows].append(run)
    for rows, group in fresh.items():
        samples = together([run.trainer.source for run in group], rows, group[0].trainer.config.order, 0, 1)
        for run, sample in zip(group, next(samples), strict=True):
            run.trainer.begin(sample)
    for run in runs:
        run.begin()


def _kept(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].kept()
    steps = [run.saved for run in runs if run.saved is not None]
    where = f"{len(steps)} of {len(runs)} dictionaries in {runs[0].folder.parent} have a checkpoint"
    return f"{where}, of step {min(steps)} or later." if steps else f"{where}."


def _loop(runs: Sequence[Run]) -> dict[Run, Diverged]:
    """Read each batch once and give it to every run that stands at its number: killed, they may stand apart."""
    from tqdm.auto import tqdm

    config = runs[0].trainer.config
    first, last = min(run.trainer.step for run in runs), max(run.trainer.config.steps for run in runs)
    stream = together([run.trainer.source for run in runs], config.batch, config.order, first, last)
    stopped: dict[Run, Diverged] = {}
    name = runs[0].folder.name if len(runs) == 1 else f"{len(runs)} dictionaries"
    with tqdm(total=last, initial=first, desc=name, unit="step", mininterval=1, disable=rank() > 0) as bar:
        for step, pairs in enumerate(stream, first):
            for run, (x, y) in zip(runs, pairs, strict=True):
                if run not in stopped and run.trainer.step == step < run.trainer.config.steps:
                    try:
                        _step(run, x, y)
                    except Diverged as error:
                        stopped[run] = error
            bar.set_postfix(_shown(runs, stopped), refresh=False)
            bar.update()
            if len(stopped) == len(runs):
                break
    return stopped


def _shown(runs: Sequence[Run], stopped: Mapping[Run, Diverged]) -> dict[str, Any]:
    """What stands beside the bar: the FVU last logged, the least and the largest of many, and who stopped."""
    found = sorted(run.last["fvu"] for run in runs if run.last)
    fvu = "–".join(f"{v:.4f}" for v in dict.fromkeys([*found[:1], *found[-1:]]))
    told = {"fvu": fvu, "dead": runs[0].last.get("dead") if len(runs) == 1 else None, "stopped": len(stopped) or None}
    return {name: value for name, value in told.items() if value not in (None, "")}


def _step(run: Run, x: Tensor, y: Tensor) -> None:
    """One step of one run, with what it writes."""
    trainer, c = run.trainer, run.trainer.config
    _check_finite(x, y, run)
    loss = trainer.update(x, y)
    if not math.isfinite(loss.total.item()):
        raise Diverged(
            f"The loss is {loss.total.item()} at step {trainer.step}: lower lr={trainer.lr:.3g}. {run.kept()}"
        )
    if trainer.step % c.log_every == 0 or trainer.step == c.steps:
        run.log(loss)
    if trainer.step % c.save_every == 0 or trainer.step == c.steps:
        run.save()


def _check_finite(x: Tensor, y: Tensor, run: Run) -> None:
    trainer = run.trainer
    for rows, sites in ((x, trainer.source.reads), (y, trainer.source.writes)):
        # a sum is finite unless something in it is not, or it overflows: only then is every number looked at
        if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows).all(-1)).sum())
            if trainer.step:
                run.save()
            raise Diverged(
                f"NaN or infinite activations at {', '.join(sites)}, step {trainer.step + 1}: {bad} of {len(rows)} rows."
                f" Training has stopped. {run.kept()}"
            )
