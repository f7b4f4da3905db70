"""One trainer for every kind of dictionary: Adam, schedules, unit decoder rows, averages, and an exact resume.

Everything random is a function of (seed, number of the pass), so the state of a run is its weights, Adam's moments,
the counters of silent latents, what its kind keeps, and the step: no generator has a state of its own to save.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.dictionaries.dictionary import Dictionary, DictionaryConfig
from interp.dictionaries.kinds import COUNTED, KINDS, Kind, Loss, Now, TopK
from interp.dictionaries.kinds.kind import at_least, positive
from interp.dictionaries.run import Run
from interp.dictionaries.sources import Source
from interp.dictionaries.sparse import fired
from interp.dictionaries.start import Scales, initialise, scales, spread
from interp.errors import Failed, WrongUse, check_keys
from interp.files import command_line

SAMPLE_ROWS, SAMPLE_NUMBERS = 16_384, 2**25  # the rows that scales and centres are estimated on, and a bound on memory


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is; the settings of its kind are the kind's. `None` means: as said beside it."""

    kind: Kind = TopK()  # noqa: RUF009  (frozen)
    latents: int = 4096
    skip: bool = False  # a transcoder's linear path
    cross_layer: bool = False  # a transcoder's latents belong to the layers read, and write to those above
    steps: int = 10_000
    batch: int = 4096
    lr: float | None = None  # the kind's
    warmup: float = 0.05  # share of the steps in which the learning rate rises linearly
    decay: float = 0.2  # share of the steps, the last ones, in which it falls linearly to zero
    sparsity_warmup: float | None = None  # share of the steps in which the penalty's coefficient rises; the kind's
    clip: float = 1.0  # largest norm of the gradient
    average: float = 0.0  # β of the weights' exponential moving average, which is then what is saved; 0: none
    dead_after: int = 10_000_000  # rows without firing; never more than one pass over the data
    frozen_decoder: bool = False  # the baseline: an encoder trained over random directions
    dtype: str = "float32"  # of the encoder's product; float64 is for everything. Weights are at least float32
    seed: int = 0
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        check_keys([self.dtype], DTYPES, "the list of dtypes")
        at_least(self, latents=1, steps=1, batch=2, log_every=1, save_every=1, dead_after=1, seed=0, average=0)
        positive(self, "lr", "clip")
        self.kind.check(self.latents)
        if self.average >= 1:
            raise WrongUse(f"average must be below 1; it is {self.average}.")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise WrongUse(
                f"warmup={self.warmup} and decay={self.decay} are shares of the steps, one or less together."
            )
        if self.sparsity_warmup is not None and not 0 <= self.sparsity_warmup <= 1:
            raise WrongUse(f"sparsity_warmup={self.sparsity_warmup} is a share of the steps, 0 to 1.")

    @classmethod
    def from_dict(cls, given: dict[str, Any], what: str = "A training config") -> TrainConfig:
        """Check the keys and the types of `given`: `kind` is a name, the settings of that kind stand beside the others.

        Raises `WrongUse` for an unknown key, naming the nearest.
        """
        name = given.get("kind", TopK.name)
        check_keys([name], KINDS, "the list of kinds")
        own, types = ({f.name: str(f.type) for f in fields(c) if f.name != "kind"} for c in (KINDS[name], cls))
        check_keys(given, ["kind", *own, *types], f"{what} (kind {name})")
        typed = {key: _typed(key, v, (own | types)[key], what) for key, v in given.items() if key != "kind"}
        kind = KINDS[name](**{key: v for key, v in typed.items() if key in own})
        return cls(kind, **{key: v for key, v in typed.items() if key in types})

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, as JSON has it."""
        whole = {"kind": self.kind.name, **{k: v for k, v in asdict(self).items() if k != "kind"}, **asdict(self.kind)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items()}

    def schedule(self, step: int) -> float:
        """The learning rate of step `step` (from 0) as a share of `lr`: up, level, down."""
        rise = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        fall = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, rise, fall)

    def warm(self, step: int) -> float:
        """What the penalty's coefficient is multiplied by at step `step` (from 0)."""
        share = self.kind.warmup if self.sparsity_warmup is None else self.sparsity_warmup
        return min(1.0, (step + 1) / (share * self.steps)) if share else 1.0


DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def _typed(name: str, value: Any, kind: str, what: str) -> Any:
    """`value` as the field's type; YAML reads 1e-4 as text, so text that is a number is taken as one."""
    if value is None and kind.endswith("| None"):
        return None
    if kind.startswith("tuple[int"):
        return tuple(_typed(name, v, "int", what) for v in (value if isinstance(value, (list, tuple)) else [value]))
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
        self.config, self.kind, self.source, self.device = config, config.kind, source, torch.device(device)
        self.dtype = torch.float64 if config.dtype == "float64" else torch.float32
        self.dictionary = self._made().to(self.device, self.dtype)
        self.lr = config.lr or self.kind.learning_rate(config.latents)
        self.window = min(config.dead_after, source.rows)
        self.optimiser = torch.optim.Adam(
            self.trained.values(), lr=self.lr, betas=self.kind.betas, eps=6.25e-10, fused=True
        )
        self.silent = torch.zeros(config.latents, dtype=torch.int64, device=self.device)  # rows since each latent fired
        self.averages = {name: torch.zeros_like(p) for name, p in self.trained.items() if config.average}
        self.scales: Scales = ((1.0,), (1.0,))
        self.step = 0

    def _made(self) -> Dictionary:
        c, source, kind = self.config, self.source, self.kind
        k = getattr(kind, "k", None) if kind.activation in COUNTED else None
        w_in, w_out = ((w if len(w) > 1 else ()) for w in (source.widths_in, source.widths_out))
        sites = (source.reads, source.writes, source.d_in, source.d_out)
        shape = DictionaryConfig(
            *sites, c.latents, k, kind.activation, c.skip, w_in, w_out, c.cross_layer, getattr(kind, "heads", 1)
        )
        D = Dictionary(shape, DTYPES[c.dtype])
        kind.prepare(D)
        D.W_dec.requires_grad_(not c.frozen_decoder)
        if not D.config.autoencoder:
            D.b_in.requires_grad_(kind.centred)
        return D

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser moves, by name."""
        return {name: p for name, p in self.dictionary.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def begin(self) -> None:
        """Scales, centres and directions of step 0, from the first rows of the stream."""
        source, size = self.source, max(2, SAMPLE_NUMBERS // max(self.source.d_in, self.source.d_out))
        x, y = next(source.batches(min(source.rows, SAMPLE_ROWS, size), self.config.seed, 0, 1))
        whole = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)  # a damaged row is named at the step that meets it
        x, y = x[whole], y[whole]
        D = self.dictionary
        self.scales = scales(D, x, y, self.kind.sizes(D.config))
        s_x, s_y = self._spread(x)
        initialise(D, x * s_x, y * s_y, self.config.seed)
        if not (D.config.autoencoder or self.kind.centred):
            D.b_in.zero_()
        self.kind.begin(D, x * s_x)

    def update(self, x: Tensor, y: Tensor) -> Loss:
        """One step on the raw rows (x [batch, d_in], y [batch, d_out]); returns the loss before it."""
        autoencoder = y is x
        s_x, s_y = self._spread(self.dictionary.b_dec)
        x = x.to(self.device, self.dtype) * s_x
        y = x if autoencoder else y.to(self.device, self.dtype) * s_y
        c, D = self.config, self.dictionary
        now = Now(self.dead.nonzero().flatten(), self.step, c.steps, c.warm(self.step))
        loss = self.kind.loss(D, x, y, now)
        self.optimiser.zero_grad()
        loss.total.backward()
        self._move()
        with torch.no_grad():
            self.silent += len(x)
            self.silent[fired(loss.code)] = 0
            self.kind.after(D, loss, now)
            self._forget(self.kind.revived(D, x, y, self.silent, now))
        return loss

    def _spread(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The scales, dimension by dimension."""
        c = self.dictionary.config
        return spread(self.scales[0], c.widths_in, like), spread(self.scales[1], c.widths_out, like)

    def _forget(self, latents: Tensor) -> None:
        """Latents that start anew have no momentum, and have not been silent."""
        self.silent[latents] = 0
        self.dictionary.confine()
        for name in {"W_enc", "b_enc", "W_dec", *self.kind.tensors} & self.trained.keys():
            for key in ("exp_avg", "exp_avg_sq"):
                moments = self.optimiser.state[self.trained[name]][key]
                (moments.T if name == "W_enc" else moments)[latents] = 0

    @property
    def dead(self) -> Tensor:
        """Which latents have not fired in the last `window` rows [m]."""
        return self.silent >= self.window

    @torch.no_grad()
    def _move(self) -> None:
        W = self.dictionary.W_dec
        unit = self.kind.unit and W.requires_grad
        if unit:
            project_out(W)
        torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip)
        self.optimiser.param_groups[0]["lr"] = self.lr * self.config.schedule(self.step)
        self.optimiser.step()
        if unit:
            W.div_(W.norm(dim=1, keepdim=True))
        for name, average in self.averages.items():
            average.lerp_(self.trained[name], 1 - self.config.average)
        self.step += 1

    @torch.no_grad()
    def finished(self) -> Dictionary:
        """The dictionary for raw rows: scales and all that only training needs folded into the weights."""
        s = self._spread(torch.empty(0, dtype=torch.float64, device=self.device))
        if not self.averages or not self.step:
            return self.kind.folded(self.dictionary).rescaled(*s)
        D = copy.deepcopy(self.dictionary)
        for name, average in self.averages.items():
            D.get_parameter(name).copy_(average / (1 - self.config.average**self.step))
        return self.kind.folded(D).unit_rows().rescaled(*s)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        D = self.dictionary
        tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in D.named_parameters()}
        tensors |= {f"kept.{name}": t for name, t in D.named_buffers()}
        tensors |= {f"average.{name}": t for name, t in self.averages.items()}
        for name, p in self.trained.items():
            moments = self.optimiser.state[p]
            tensors |= {
                f"adam.{key}.{name}": moments.get(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq")
            }
        return tensors | {"silent": self.silent}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int, scales: Scales) -> None:
        """Put back what `state` gave."""
        self.step, self.scales = step, scales
        for name, mine in self.state().items():
            if not name.startswith("adam."):
                mine.copy_(tensors[name])
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
