"""One trainer for every dictionary: Adam, AuxK against dead latents, unit decoder rows, and an exact resume.

Everything random is a function of (seed, number of the pass), so the state of a run is its weights, Adam's moments,
the counters of silent latents and the step: no generator has a state of its own to save.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.dictionaries.dictionary import ACTIVATIONS, Dictionary, DictionaryConfig
from interp.dictionaries.run import Run
from interp.dictionaries.sources import Source
from interp.dictionaries.start import initialise, scales
from interp.dictionaries.topk import Loss
from interp.errors import Failed, WrongUse, check_keys
from interp.files import command_line

SAMPLE_ROWS, SAMPLE_NUMBERS = 16_384, 2**25  # the rows that scales and centres are estimated on, and a bound on memory


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is. `None` means: from the widths, as said beside it."""

    kind: str = "topk"
    k: int = 32
    latents: int = 4096
    skip: bool = False  # a transcoder's linear path
    steps: int = 10_000
    batch: int = 4096
    lr: float | None = None  # 2e-4 / √(latents / 2¹⁴), Gao et al. 2024, appendix A.3
    warmup: float = 0.05  # share of the steps in which the learning rate rises linearly
    decay: float = 0.2  # share of the steps, the last ones, in which it falls linearly to zero
    clip: float = 1.0  # largest norm of the gradient
    aux: float = 1 / 32  # α, the weight of AuxK
    k_aux: int | None = None  # d_out / 2
    dead_after: int = 10_000_000  # rows without firing; never more than one pass over the data
    frozen_decoder: bool = False  # the baseline: an encoder trained over random directions
    dtype: str = "float32"  # of the encoder's product; float64 is for everything. Weights are at least float32
    seed: int = 0
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        check_keys([self.kind], ACTIVATIONS, "the list of kinds")
        check_keys([self.dtype], DTYPES, "the list of dtypes")
        least = dict.fromkeys(("k", "latents", "steps", "log_every", "save_every", "dead_after", "k_aux"), 1)
        for name, bound in (least | {"seed": 0, "aux": 0, "batch": 2}).items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise WrongUse(f"{name} must be at least {bound}; it is {value}.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise WrongUse(f"{name} must be positive; it is {value}.")
        if self.k > self.latents:
            raise WrongUse(f"k={self.k} of latents={self.latents} cannot be active.")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise WrongUse(
                f"warmup={self.warmup} and decay={self.decay} are shares of the steps, one or less together."
            )

    @classmethod
    def from_dict(cls, given: dict[str, Any], what: str = "A training config") -> TrainConfig:
        """Check the keys and the types of `given`. Raises `WrongUse` for an unknown key, naming the nearest."""
        kinds = {f.name: str(f.type) for f in fields(cls)}
        check_keys(given, kinds, what)
        return cls(**{name: _typed(name, value, kinds[name], what) for name, value in given.items()})

    def schedule(self, step: int) -> float:
        """The learning rate of step `step` (from 0) as a share of `lr`: up, level, down."""
        rise = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        fall = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, rise, fall)


DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def _typed(name: str, value: Any, kind: str, what: str) -> Any:
    """`value` as the field's type; YAML reads 1e-4 as text, so text that is a number is taken as one."""
    if value is None and kind.endswith("| None"):
        return None
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[kind.removesuffix(" | None")]
    try:
        typed = wanted(value)
    except (TypeError, ValueError):
        typed = None
    if typed is None or (wanted is bool) != isinstance(value, bool) or (wanted is int and typed != float(value)):
        raise WrongUse(f"{what}: {name} must be {kind}; it is {value!r}.")
    return typed


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file (every JSON file is YAML). Raises `WrongUse` if it holds none."""
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongUse(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(given, dict):
        raise WrongUse(f"{path} must hold keys and values, such as `k: 32`.")
    return given


class Trainer:
    """A dictionary in training units (see `scales`), its optimiser and its counters."""

    def __init__(self, config: TrainConfig, source: Source, device: str | torch.device = "cpu"):
        self.config, self.source, self.device = config, source, torch.device(device)
        double = config.dtype == "float64"
        self.dtype = torch.float64 if double else torch.float32
        shape = DictionaryConfig(
            source.reads, source.writes, source.d_in, source.d_out, config.latents, config.k, config.kind, config.skip
        )
        self.dictionary = Dictionary(shape, DTYPES[config.dtype]).to(self.device, self.dtype)
        self.dictionary.W_dec.requires_grad_(not config.frozen_decoder)
        self.lr = config.lr or 2e-4 / math.sqrt(config.latents / 2**14)
        self.window = min(config.dead_after, source.rows)
        self.k_aux = config.k_aux or max(1, source.d_out // 2)
        self.optimiser = torch.optim.Adam(self.trained.values(), lr=self.lr, eps=6.25e-10, fused=True)
        self.silent = torch.zeros(config.latents, dtype=torch.int64, device=self.device)  # rows since each latent fired
        self.scales = (1.0, 1.0)
        self.step = 0

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser moves, by name."""
        return {name: p for name, p in self.dictionary.named_parameters() if p.requires_grad}

    def begin(self) -> None:
        """Scales, centres and directions of step 0, from the first rows of the stream."""
        source, size = self.source, max(2, SAMPLE_NUMBERS // max(self.source.d_in, self.source.d_out))
        x, y = next(source.batches(min(source.rows, SAMPLE_ROWS, size), self.config.seed, 0, 1))
        whole = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)  # a damaged row is named at the step that meets it
        x, y = x[whole], y[whole]
        self.scales = scales(self.dictionary, x, y)
        initialise(self.dictionary, x * self.scales[0], y * self.scales[1], self.config.seed)

    def update(self, x: Tensor, y: Tensor) -> Loss:
        """One step on the raw rows (x [batch, d_in], y [batch, d_out]); returns the loss before it."""
        autoencoder = y is x
        x = x.to(self.device, self.dtype) * self.scales[0]
        y = x if autoencoder else y.to(self.device, self.dtype) * self.scales[1]
        dead = self.dead.nonzero().flatten()
        kind = ACTIVATIONS[self.config.kind]
        loss = kind.loss(self.dictionary, x, y, dead, self.config.aux, self.k_aux)
        self.optimiser.zero_grad()
        loss.total.backward()
        self._move()
        self.silent += len(x)
        self.silent[loss.code.indices[loss.code.values > 0]] = 0
        return loss

    @property
    def dead(self) -> Tensor:
        """Which latents have not fired in the last `window` rows [m]."""
        return self.silent >= self.window

    @torch.no_grad()
    def _move(self) -> None:
        W = self.dictionary.W_dec
        if W.requires_grad:
            project_out(W)
        torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip)
        self.optimiser.param_groups[0]["lr"] = self.lr * self.config.schedule(self.step)
        self.optimiser.step()
        if W.requires_grad:
            W.div_(W.norm(dim=1, keepdim=True))
        self.step += 1

    def finished(self) -> Dictionary:
        """The dictionary for raw rows: scales folded into the weights."""
        return self.dictionary.rescaled(*self.scales)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        tensors = {f"weights.{name}": p for name, p in self.dictionary.named_parameters()}
        for name, p in self.trained.items():
            moments = self.optimiser.state[p]
            tensors |= {
                f"adam.{key}.{name}": moments.get(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq")
            }
        return tensors | {"silent": self.silent}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int, scales: tuple[float, float]) -> None:
        """Put back what `state` gave."""
        self.step, self.scales = step, scales
        self.silent.copy_(tensors["silent"])
        for name, p in self.dictionary.named_parameters():
            p.copy_(tensors[f"weights.{name}"])
        for name, p in self.trained.items():
            moments = {
                key: torch.empty_like(p).copy_(tensors[f"adam.{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")
            }
            self.optimiser.state[p] = {"step": torch.tensor(float(step), device=self.device), **moments}


def project_out(W: Tensor) -> None:
    """g_i ← g_i − ⟨g_i, d_i⟩ d_i: W.grad loses what would only change the length of the decoder's unit rows."""
    assert W.grad is not None
    W.grad.addcmul_(W, (W.grad * W).sum(1, keepdim=True), value=-1)


def train(
    config: TrainConfig,
    source: Source,
    out: str | Path,
    resume: bool = False,
    device: str | torch.device = "cpu",
    command: str | None = None,
) -> Dictionary:
    """Train a dictionary on `source` into the folder `out`; returns it, for raw rows.

    `out` then holds config.json, weights.safetensors, metrics.csv, speed.csv, state.safetensors and run.json. A run
    that was stopped, however, goes on with `resume=True` and ends in the same bytes as one that was not (same
    machine, versions, thread count). Raises `WrongUse` if `out` holds a run and `resume` is not asked for, or is of
    another config; `Failed` for NaN in the rows (site and step named) or a file that cannot be written.
    """
    trainer = Trainer(config, source, device)
    run = Run(Path(out), trainer, command or command_line(out))
    run.begin(resume)
    try:
        _loop(trainer, run)
    except KeyboardInterrupt:
        print(
            f"\nStopped at step {trainer.step}. {run.kept()} Go on with the same command and --resume.", file=sys.stderr
        )
        raise
    finally:
        run.close()
    return trainer.finished()


def plan(config: TrainConfig, source: Source, device: str | torch.device = "cpu", steps: int = 3) -> dict[str, float]:
    """What a run will take: rows there are, bytes it leaves on disk, minutes (a few of its steps are made and timed)."""
    trainer = Trainer(config, source, device)
    trainer.begin()
    begin = 0.0
    for step, (x, y) in enumerate(source.batches(config.batch, config.seed, 0, steps + 1)):
        begin = time.perf_counter() if step == 1 else begin  # the first step also makes Adam's moments
        trainer.update(x, y).total.item()
    minutes = (time.perf_counter() - begin) / steps * config.steps / 60
    size = sum(t.numel() * t.element_size() for t in (*trainer.state().values(), *trainer.dictionary.parameters()))
    return {"rows": source.rows, "bytes": size, "minutes": round(minutes, 2)}


def _loop(trainer: Trainer, run: Run) -> None:
    from tqdm.auto import tqdm

    c, clock, logged = trainer.config, time.perf_counter(), trainer.step
    with tqdm(total=c.steps, initial=trainer.step, desc=run.folder.name, unit="step", mininterval=1) as bar:
        for x, y in trainer.source.batches(c.batch, c.seed, trainer.step, c.steps):
            _check_finite(x, y, trainer, run)
            loss = trainer.update(x, y)
            if not math.isfinite(loss.total.item()):
                raise Failed(
                    f"The loss is {loss.total.item()} at step {trainer.step}: lower lr={trainer.lr:.3g}. {run.kept()}"
                )
            bar.update()
            if trainer.step % c.log_every == 0 or trainer.step == c.steps:
                row = run.log(loss, (trainer.step - logged) * c.batch / (time.perf_counter() - clock))
                clock, logged = time.perf_counter(), trainer.step
                bar.set_postfix(fvu=f"{row['fvu']:.4f}", dead=row["dead"])
            if trainer.step % c.save_every == 0 or trainer.step == c.steps:
                run.save()


def _check_finite(x: Tensor, y: Tensor, trainer: Trainer, run: Run) -> None:
    for rows, sites in ((x, trainer.source.reads), (y, trainer.source.writes)):
        # a sum is finite unless something in it is not, or it overflows: only then is every number looked at
        if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows).all(-1)).sum())
            if trainer.step:
                run.save()
            raise Failed(
                f"NaN or infinite activations at {', '.join(sites)}, step {trainer.step + 1}: {bad} of {len(rows)} rows."
                f" Training has stopped. {run.kept()}"
            )
