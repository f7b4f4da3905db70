"""The tuned lens: one affine map a layer, trained so that the head reads from it what the model will say.

t_l(h) = h + W_l h + b_l,  logits_l = U(norm_f(t_l(h))),  loss_l = KL(p_model ‖ softmax(logits_l)), W_l and b_l zero at first.
Source: Belrose et al. 2023 (arXiv:2303.08112); the recipe is that of the authors' code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import WrongUse
from interp.lenses.affine import AffineLens
from interp.lenses.fitting import WIDE, Job, shifted
from interp.lenses.statistics import chunks, statistics
from interp.model.model import Model, Tokens
from interp.store.recording import windows

if TYPE_CHECKING:
    from jaxtyping import Float


class TunedLens(AffineLens):
    """A translator t_l for each of `sites`, by default the stream before the first block and after each but the last."""

    kind = "tuned"


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """The authors' defaults. lr None: 0.1 for "sgd" (Nesterov momentum 0.9), 1e-3 for "adam", falling linearly to 0."""

    steps: int = 250
    tokens: int = 2**18
    """tokens a step"""
    context: int = 2048
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-3
    clip: float = 1.0
    """largest norm of the gradient of all translators together"""
    bias_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam"):
            raise WrongUse(f"optimizer={self.optimizer!r} is neither 'sgd' nor 'adam'.")
        if self.steps < 1 or self.tokens < 1 or self.context < 2:
            raise WrongUse("steps and tokens must be at least 1, and context 2.")

    def rate(self, step: int) -> float:
        """The factor of the learning rate: 1 - step / steps, for Adam after a warm-up of min(1000, steps / 5)."""
        warm = min(1000, self.steps // 5) if self.optimizer == "adam" else 0
        return (step + 1) / warm if step < warm else (self.steps - step) / (self.steps - warm)

    def made(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The optimiser."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.lr or 1e-3, weight_decay=self.weight_decay)
        decay = {"weight_decay": self.weight_decay, "nesterov": self.momentum > 0, "momentum": self.momentum}
        return torch.optim.SGD(parameters, self.lr or 1 - self.momentum, **decay)  # type: ignore[arg-type]


class Descent:
    """Steps of gradient descent on KL(p_model ‖ p_row), each row's loss for itself, averaged over the tokens of a step."""

    def __init__(self, lens: AffineLens, recipe: Recipe) -> None:
        self.lens, self.recipe = lens, recipe
        self.trained = [*([] if recipe.bias_only else lens.W), *lens.b]
        self.optimiser = recipe.made([t.requires_grad_() for t in self.trained])
        self.lr, self.done = self.optimiser.param_groups[0]["lr"], 0

    def step(self, group: list[Tokens]) -> dict[str, float]:
        """One step; the loss of each row before it."""
        self.optimiser.zero_grad()
        losses = self.backward(group)
        nn.utils.clip_grad_norm_(self.trained, self.recipe.clip)
        self.optimiser.param_groups[0]["lr"] = self.lr * self.recipe.rate(self.done)
        self.optimiser.step()
        self.done += 1
        return dict(zip(self.lens.sites, losses, strict=True))

    def backward(self, group: Sequence[Tokens]) -> list[float]:
        """The mean loss of each row, with its gradient: ∂KL(p_f ‖ p)/∂z = p - p_f, fed back through head and map."""
        lens, sums = self.lens, dict.fromkeys(self.lens.sites, 0.0)
        lengths = torch.cat([t.mask.sum(1) for t in group])
        for tokens in group:
            last, states = lens.states(lens.model.inputs(tokens), lens.sites)
            for ahead in dict.fromkeys(map(lens.ahead, lens.sites)):
                now, then = shifted(tokens.mask.to(last.device), ahead)
                total, rows = (
                    float((lengths - ahead).clamp(min=0).sum()),
                    [r for r in lens.sites if lens.ahead(r) == ahead],
                )
                for part in chunks(int(now.sum()), 5 * lens.head.width, last):
                    with torch.no_grad():
                        p_final = lens.head(last[then][part]).log_softmax(1)
                    for row in rows:
                        sums[row] += self._row(row, states[row][now][part], p_final, total)
        return list(sums.values())

    def _row(self, row: str, x: Tensor, p_final: Float[Tensor, "n vocabulary"], total: float) -> float:
        """A row's part of the loss, a few tokens of `total`."""
        i = self.lens.sites.index(row)
        with torch.enable_grad():
            z = self.lens.logits(row, x)
        p = z.detach().log_softmax(1)
        inputs = [t for t in self.trained if t is self.lens.W[i] or t is self.lens.b[i]]
        z.backward((p.exp() - p_final.exp()) / total, inputs=inputs)
        return float((p_final.exp() * (p_final - p)).sum()) / total

    def state(self) -> dict[str, Tensor]:
        """The maps, and what the optimiser remembers of them."""
        found = {f"{i}": t for i, t in enumerate(self.trained)}
        for i, t in enumerate(self.trained):
            kept = self.optimiser.state[t].items()
            found |= {f"{i}.{name}": v.reshape(1) if v.ndim == 0 else v for name, v in kept if isinstance(v, Tensor)}
        return found | {"done": torch.tensor([self.done])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Other ones; the learning rate follows."""
        for i, t in enumerate(self.trained):
            t.data.copy_(state[str(i)])
            kept = {name.split(".")[1]: v for name, v in state.items() if name.startswith(f"{i}.")}
            self.optimiser.state[t] = {n: v.reshape(()) if n == "step" else v.to(t.device) for n, v in kept.items()}
        self.done = int(state["done"])

    def finish(self) -> None:
        """No more gradients."""
        for t in self.trained:
            t.requires_grad_(False)


def train_tuned_lens(
    model: Model,
    texts: Iterable[str],
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
) -> TunedLens:
    """Train a `TunedLens` on texts; with `out`, save it there, beside recipe.json and metrics.csv (written as it goes).

    Windows of text come in an order drawn by the seed, again from the start when they are used up. Interrupted, it goes on
    with `resume=True`, to the same lens. Raises `WrongUse` if there is no text.
    """
    lens = TunedLens(model)
    descent(Descent(lens, recipe or Recipe()), texts).run(out, resume)
    return lens


def descent(fitting: Descent, texts: Iterable[str]) -> Job:
    """All steps of a recipe."""
    about = {"kind": fitting.lens.kind} | asdict(fitting.recipe)
    return Job(fitting, drawn(fitting.lens.model, texts, fitting.recipe), about)


def drawn(model: Model, texts: Iterable[str], recipe: Recipe) -> Iterator[list[Tokens]]:
    """The windows of each of the recipe's steps, in batches of at most 8192 tokens."""
    wanted = recipe.steps * recipe.tokens
    found: list[list[int]] = []
    for _, ids in windows(model, texts, recipe.context):
        found.append(ids)
        wanted -= len(ids)
        if wanted <= 0:
            break
    if not found:
        return
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = (found[i] for _ in itertools.count() for i in torch.randperm(len(found), generator=generator).tolist())
    for _ in range(recipe.steps):
        step, count = [], 0
        while count < recipe.tokens:
            step.append(next(stream)[: recipe.tokens - count])
            count += len(step[-1])
        size = max(1, WIDE // recipe.context)
        yield [model.pad(step[i : i + size]) for i in range(0, len(step), size)]


# ---------------------------------------------------------------- layers that read each other


@torch.no_grad()
def transfer(lens: AffineLens, x: Any) -> dict[str, Float[Tensor, "translator layer"]]:
    """What each translator makes of each layer: mean cross-entropy of the next token ("cross_entropy"), and mean
    KL(lens_j ‖ t_i(h_j)), how far it is from that layer's own translator ("kl"), over the tokens of `x`.
    """
    cache = lens.model.record(lens.model.inputs(x), [*lens.sites, lens.head.last])
    ids, mask = lens.places(lens.model.inputs(x), cache[lens.head.last])
    asked, n = lens.asked(ids, mask, ()), len(lens.sites)
    found = {name: torch.zeros(n, n, dtype=torch.float64) for name in ("cross_entropy", "kl")}
    known = int((asked[:, 0] >= 0).sum())
    for j, site in enumerate(lens.sites):
        x = cache[site][mask]
        seen = statistics(lens.head, [x] * n, lens.translated, lens.translated(j, x), asked, 1)
        found["cross_entropy"][:, j] = -seen.log_prob[..., 1].double().nansum(1).cpu() / max(known, 1)
        found["kl"][:, j] = seen.kl_forward.double().mean(1).cpu()
    return found
