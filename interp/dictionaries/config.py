"""What a training run is: its settings, checked, and as files have them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from interp.dictionaries.kinds import KINDS, Kind, TopK
from interp.dictionaries.kinds.kind import at_least, positive
from interp.errors import WrongUse, check_keys


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is; the settings of its kind are the kind's. `None` means: as said beside it."""

    kind: Kind = TopK()  # noqa: RUF009  (frozen)
    latents: int = 4096
    skip: bool = False  # a transcoder's linear path
    cross_layer: bool = False  # a transcoder's latents belong to the layers read, and write to those above
    end_to_end: bool = False  # the error is that of the model's predictions (see `endtoend`)
    downstream: float = 0.0  # β: with end_to_end, weight of the streams after later blocks
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
    seed: int = 0  # of the first weights
    data_seed: int | None = None  # of the order of the rows; the seed
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        check_keys([self.dtype], DTYPES, "the list of dtypes")
        at_least(
            self,
            latents=1,
            steps=1,
            batch=2,
            log_every=1,
            save_every=1,
            dead_after=1,
            seed=0,
            data_seed=0,
            average=0,
            downstream=0,
        )
        positive(self, "lr", "clip")
        self.kind.check(self.latents)
        if self.downstream and not self.end_to_end:
            raise WrongUse(f"downstream={self.downstream} goes with end_to_end: otherwise the model does not run.")
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
        types = settings(name)
        check_keys(given, ["kind", *types], f"{what} (kind {name})")
        values = {key: typed(key, v, types[key], what) for key, v in given.items() if key != "kind"}
        own = {f.name for f in fields(KINDS[name])}
        kind = KINDS[name](**{key: v for key, v in values.items() if key in own})
        return cls(kind, **{key: v for key, v in values.items() if key not in own})

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, as JSON has it."""
        whole = {"kind": self.kind.name, **{k: v for k, v in asdict(self).items() if k != "kind"}, **asdict(self.kind)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items()}

    @property
    def order(self) -> int:
        """The seed of the order in which rows come."""
        return self.seed if self.data_seed is None else self.data_seed

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


def settings(kind: str) -> dict[str, str]:
    """The settings of a run and of its kind, with their types. Raises `WrongUse` for a kind that there is not."""
    check_keys([kind], KINDS, "the list of kinds")
    return {f.name: str(f.type) for c in (TrainConfig, KINDS[kind]) for f in fields(c) if f.name != "kind"}


def typed(name: str, value: Any, kind: str, what: str) -> Any:
    """`value` as the field's type; YAML reads 1e-4 as text, so text that is a number is taken as one."""
    if value is None and kind.endswith("| None"):
        return None
    if kind.startswith("tuple[int"):
        return tuple(typed(name, v, "int", what) for v in (value if isinstance(value, (list, tuple)) else [value]))
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[kind.removesuffix(" | None")]
    try:
        made = wanted(value)
    except (TypeError, ValueError):
        made = None
    if made is None or (wanted is bool) != isinstance(value, bool) or (wanted is int and made != float(value)):
        raise WrongUse(f"{what}: {name} must be {kind}; it is {value!r}.")
    return made


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
