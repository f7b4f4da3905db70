"""Continuous sparsification: which weights a model needs to predict as a given function of the prefix does.

    L = CE(p(· | x_≤t), softmax(logits_t)) + λ mean(M),   M = σ(τ m),   weights W ⊙ M,   τ = factor^step

W is frozen, m is trained by AdamW, τ rises after every step, and at the end the mask is 1[m > 0]. Entries that are 0 in
the model are never kept. Sources: Savarese, Silva & Maire 2020 (arXiv:1912.04427); Chang & Bergen 2025 (arXiv:2504.15471),
whose settings are the defaults, with the temperature's schedule squeezed into fewer steps.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from circuits.bigram.mask import Mask, model_hash
from circuits.bigram.places import places
from circuits.bigram.text import check_causal, logits_of
from interp.errors import Failed, WrongUse
from interp.files import check_run, command_line, load_tensors, save_tensors, write_json, write_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.model import Model

    Target = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]

PAPER_STEPS, PAPER_FACTOR = 15_000, 1.001
NEVER = -1e6  # m of a weight that is 0
HIGH, LOW = 0.9, 0.1  # a mask above or below is decided
BETAS, EPS = (0.9, 0.999), 1e-8
BLOCK = 2**16  # entries updated at once: what fits a core's cache
SAVE_EVERY = 100


@dataclass(frozen=True)
class Recipe:
    """Settings of one run."""

    penalty: float = 10.0
    """λ, of the mean of the soft mask"""
    seed: int = 0
    """of the order of the text"""
    steps: int = 1500
    """at most; the temperature ends where the paper's does after 15,000"""
    lr: float = 1e-3
    """the paper's is 5e-5, for ten times as many steps"""
    start: float = 0.0
    """m of every entry at first; 5.0 starts near the whole model"""
    batch: int = 4
    context: int = 128
    weight_decay: float = 0.01
    dtype: str = "float32"
    """of the products: float32, or bfloat16, which some CPUs do twice as fast"""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.context < 2:
            raise WrongUse("steps and batch must be at least 1, and context 2.")
        if self.penalty < 0 or self.lr <= 0:
            raise WrongUse(f"the penalty must not be negative and lr must be positive: {self.penalty}, {self.lr}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise WrongUse(f"dtype {self.dtype!r} is neither 'float32' nor 'bfloat16'.")

    @property
    def factor(self) -> float:
        """What τ is multiplied by after a step."""
        return PAPER_FACTOR ** (PAPER_STEPS / self.steps)


class SoftMask:
    """A copy of a model whose block weights are W ⊙ σ(τ m), all in one row each of W, m, M and their gradients.

    The update is one pass over that row, a cache's worth at a time: d/dm = (W ⊙ dL/d(W ⊙ M) + λ / |M|) τ M (1 - M), AdamW,
    the next τ, M and W ⊙ M.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.recipe, self.step = recipe, 0
        self.module = copy.deepcopy(model.module).requires_grad_(False).eval()
        if model.dtype in (torch.bfloat16, torch.float16):
            self.module.float()
        if hasattr(model.config, "use_cache"):
            self.module.config.use_cache = False  # type: ignore[union-attr]
        self.model = model.around(self.module, model.id)
        named = dict(self.module.named_parameters())
        self.parameters = {p.parameter: named[p.parameter] for p in places(model)}
        self.W = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        self.m = torch.full_like(self.W, recipe.start).masked_fill_(self.W == 0, NEVER)
        self.first, self.second = torch.zeros_like(self.W), torch.zeros_like(self.W)
        self.M, self.soft, self.grad = torch.sigmoid(self.m), torch.empty_like(self.W), torch.zeros_like(self.W)
        for p, weight, slope in zip(
            self.parameters.values(), self._split(self.soft), self._split(self.grad), strict=True
        ):
            p.data, p.grad = weight, slope
            p.requires_grad_(True)
        self.remade()

    def _split(self, row: Tensor) -> list[Tensor]:
        shapes = [p.shape for p in self.parameters.values()]
        return [t.view(s) for t, s in zip(row.split([s.numel() for s in shapes]), shapes, strict=True)]

    @torch.no_grad()
    def remade(self) -> None:
        """M and the weights from m and the step: at the beginning, and when a run goes on."""
        torch.sigmoid(self.recipe.factor**self.step * self.m, out=self.M)
        torch.mul(self.W, self.M, out=self.soft)

    def hard(self) -> dict[str, Tensor]:
        """1[m > 0] by parameter."""
        return {n: t.clone().cpu() for n, t in zip(self.parameters, self._split(self.m > 0), strict=True)}

    @torch.no_grad()
    def update(self) -> tuple[int, int, int]:
        """One step of AdamW from `grad`, which is then 0; how many masks are kept, high, undecided afterwards."""
        r, t, n = self.recipe, self.step + 1, len(self.W)
        tau, rise = r.factor**self.step, r.factor ** (self.step + 1)
        seen = torch.zeros(3, dtype=torch.long, device=self.W.device)
        block = BLOCK if self.W.device.type == "cpu" else n
        for i in range(0, n, block):
            at = slice(i, i + block)
            W, M, m, first, second = (x[at] for x in (self.W, self.M, self.m, self.first, self.second))
            g = (self.grad[at] * W).add_(r.penalty / n).mul_(tau).mul_(M).mul_(1 - M)
            first.lerp_(g, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            size = second.sqrt().div_((1 - BETAS[1] ** t) ** 0.5).add_(EPS)
            m.mul_(1 - r.lr * r.weight_decay).addcdiv_(first, size, value=-r.lr / (1 - BETAS[0] ** t))
            torch.sigmoid(torch.mul(m, rise, out=M), out=M)
            torch.mul(W, M, out=self.soft[at])
            high = (M > HIGH).sum()
            seen += torch.stack([(m > 0).sum(), high, len(M) - high - (M < LOW).sum()])
        self.grad.zero_()
        self.step += 1
        kept, high, undecided = seen.tolist()
        return kept, high, undecided

    def backward(self, ids: Int[Tensor, "batch pos"], target: Target) -> float:
        """The cross-entropy to the target, in nats a token; its gradient is left in `grad`."""
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            logits = logits_of(self.model, ids)
        loss = cross_entropy(logits, target(ids).to(device))
        loss.backward()
        return loss.item()

    # ------------------------------------------------------------ a run that goes on

    def save(self, path: Path) -> None:
        """All that the next step depends on."""
        save_tensors(path, {"m": self.m, "first": self.first, "second": self.second}, {"step": self.step})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Put back what `save` wrote. Raises `Failed` for a damaged file, or one of another model."""
        try:
            tensors, meta = load_tensors(path)
            for name in ("m", "first", "second"):
                getattr(self, name).copy_(tensors[name])
            self.step = int(meta["step"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise Failed(f"{path} cannot be gone on with: {error}. Delete the folder to begin again.") from error
        self.remade()


def cross_entropy(logits: Float[Tensor, "batch pos vocab"], p: Float[Tensor, "batch pos vocab_p"]) -> Float[Tensor, ""]:
    """-Σ_b p(b) log softmax(logits)_b, mean over positions; logits beyond the target's vocabulary have p = 0.

    Raises `WrongUse` for a target with more tokens than there are logits.
    """
    if p.shape[-1] > logits.shape[-1]:
        raise WrongUse(f"the target is of {p.shape[-1]} tokens, and the model has {logits.shape[-1]} logits.")
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    p = nn.functional.pad(p, (0, logits.shape[-1] - p.shape[-1])).flatten(0, 1)
    return nn.functional.cross_entropy(wide, p.to(wide))


def own_distribution(model: Model) -> Target:
    """The model's own p(· | prefix), for "optimal" subnetworks, which do what the whole model does."""

    @torch.no_grad()
    def target(ids: Tensor) -> Tensor:
        return logits_of(model, ids).float().softmax(-1)

    return target


# ---------------------------------------------------------------- a run


def train(
    model: Model,
    sequences: Sequence[Sequence[int]],
    target: Target,
    out: str | Path,
    recipe: Recipe = Recipe(),
    about: dict[str, Any] | None = None,
    resume: bool = False,
) -> Mask:
    """Train a mask on sequences of token ids and leave it in the folder `out`; with `resume`, go on with what is there.

    `target(ids)` gives p(· | x_≤t) at every position [batch, pos, vocab]: `Counts.distribution`, `own_distribution(model)`
    or any other function of the prefix. Sequences shorter than the recipe's context are left out; which are read at a
    step depends on (seed, step) alone, so an interrupted run ends in the same mask on the same machine and threads.
    Writes recipe.json, metrics.csv (a row a step: cross-entropy, entries kept, above .9, undecided) and at the end
    mask.safetensors. Stops when undecided < 1 % of those above .9. A finished run is not repeated. `about` is saved with the
    settings. Raises `WrongUse` for too little text, a model that is not causal, and a folder of another run.
    """
    from tqdm.auto import tqdm

    out = Path(out)
    settings = asdict(recipe) | {"about": about or {}}
    check_run(out, settings, resume)
    if (out / "mask.safetensors").exists():
        mask = Mask.load(out)
        mask.check(model)
        return mask
    check_causal(model)
    read = _windows(sequences, recipe.context)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", settings | {"model": model.id, "command": command_line(out)})
    soft, state, rows = SoftMask(model, recipe), out / "state.safetensors", []
    if state.exists():
        soft.load(state)
        rows = _rows(out / "metrics.csv", soft.step)
    bar = tqdm(range(soft.step, recipe.steps), initial=soft.step, total=recipe.steps, desc=out.name, mininterval=5)
    for step in bar:
        rng = np.random.default_rng([recipe.seed, step])
        loss = soft.backward(read[rng.integers(len(read), size=recipe.batch)], target)
        kept, high, undecided = soft.update()
        rows.append({"step": step, "loss": round(loss, 5), "kept": kept, "high": high, "undecided": undecided})
        bar.set_postfix(loss=f"{loss:.3f}", kept=kept, undecided=undecided, refresh=False)
        done = undecided < 0.01 * high or soft.step == recipe.steps
        if done or soft.step % SAVE_EVERY == 0:
            write_rows(out / "metrics.csv", rows)
            soft.save(state)
        if done:
            break
    return _finished(soft, model, out, rows, settings)


def _finished(soft: SoftMask, model: Model, out: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Mask:
    last, size = rows[-1], len(soft.W)
    ended = {
        "steps_done": len(rows),
        "stopped": last["undecided"] < 0.01 * last["high"],
        "undecided_share": last["undecided"] / size,
        "stable": stable([row["loss"] for row in rows]),
    }
    mask = Mask(soft.hard(), model.id, model_hash(model), settings | ended)
    mask.save(out / "mask.safetensors")
    (out / "state.safetensors").unlink()
    return mask


def stable(losses: Sequence[float]) -> bool:
    """Whether every spike is over: a loss above the mean of the 10 before it by 0.25 or a quarter; over when that mean is
    reached again, and not in the last 100 steps."""
    x = np.asarray(losses)
    for i in range(10, len(x)):
        before = x[i - 10 : i].mean()
        if x[i] > min(before + 0.25, 1.25 * before) and not (x[i : max(len(x) - 100, 0)] <= before).any():
            return False
    return True


def _windows(sequences: Iterable[Sequence[int]], context: int) -> Int[Tensor, "windows pos"]:
    whole = [ids for ids in sequences if len(ids) == context]
    if not whole:
        raise WrongUse(
            f"the text is shorter than one window of {context} tokens: give more text, or a smaller context."
        )
    return torch.tensor(whole)


def _rows(path: Path, step: int) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{k: float(v) if k == "loss" else int(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if row["step"] < step]
