"""A step of mask training against the published trainer's formulation, in one run: ratio of time, and the same loss.

    python -m benchmarks.bigram [--model zoo:books --batch 4 --context 128 --rounds 12 --steps 3 --dtypes float32 bfloat16]

"Published" is the formulation of the released trainer (NeuroSurgeon's continuous sparsification, as Chang & Bergen 2025 use
it), written out again in plain torch: every layer makes its mask σ(τ m) in the forward pass and multiplies its weight by
it, the penalty makes every mask once more, autograd goes back through both, and torch.optim.AdamW updates a tensor a layer.
"Ours" is `circuits.bigram.training.SoftMask`: one row of weights, one blocked pass that makes gradient, AdamW and the next
weights together. Both read the same windows and the same targets, of n-gram counts of the text, and start at m = 0.

Contestants alternate, --steps steps each a round; the first round warms up. Processor time of one thread. Ratio: published
over ours, median over rounds and its 95 % bootstrap interval; the same for what is not the model's forward and backward pass
("update": masks, penalty, optimiser), which is timed apart. Losses of the last step are compared: 1e-4 in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits import bigram
from circuits.bigram.places import places
from circuits.bigram.training import Recipe, SoftMask, cross_entropy
from interp.model import Model, load
from interp.store.recording import windows
from interp.texts import read_texts

Target = Callable[[Tensor], Tensor]


class Published:
    """The formulation of the released trainer around a copy of the model."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.recipe, self.model, self.tau = recipe, model, 1.0
        named = dict(model.module.named_parameters())
        self.W = {p.parameter: named[p.parameter].detach() for p in places(model)}
        self.m = {n: torch.zeros_like(w).masked_fill_(w == 0, -1e6).requires_grad_() for n, w in self.W.items()}
        self.size = sum(w.numel() for w in self.W.values())
        self.optimiser = torch.optim.AdamW(self.m.values(), lr=recipe.lr, weight_decay=recipe.weight_decay)

    def step(self, ids: Tensor, target: Target) -> float:
        """One step; the cross-entropy before it."""
        soft = {n: w * torch.sigmoid(self.tau * self.m[n]) for n, w in self.W.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            out = torch.func.functional_call(
                self.model.module, soft, (), {**self.model.inputs(ids), "use_cache": False}
            )
        loss = cross_entropy(out.logits, target(ids))
        penalty = sum(torch.sigmoid(self.tau * m).sum() for m in self.m.values()) / self.size
        self.optimiser.zero_grad()
        (loss + self.recipe.penalty * penalty).backward()
        self.optimiser.step()
        self.tau *= self.recipe.factor
        return loss.item()


class Ours:
    """The trainer of the toolkit, a step at a time."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.soft = SoftMask(model, recipe)

    def step(self, ids: Tensor, target: Target) -> float:
        """One step; the cross-entropy before it."""
        loss = self.soft.backward(ids, target)
        self.soft.update()
        return loss


def bare(model: Model, dtype: str) -> Callable[[Tensor, Target], float]:
    """The model's own forward and backward pass, with gradients of the same matrices: what no trainer can leave out."""
    soft = SoftMask(model, Recipe(dtype=dtype))

    def run(ids: Tensor, target: Target) -> float:
        return soft.backward(ids, target)

    return run


def race(model: Model, ids: Tensor, target: Target, dtype: str, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds a step by contestant and round, and the last losses."""
    recipe = Recipe(dtype=dtype, lr=1e-3, batch=1, context=ids.shape[-1])
    runs = {
        "published": Published(model, recipe).step,
        "ours": Ours(model, recipe).step,
        "model alone": bare(model, dtype),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            for i in range(steps):
                losses[name] = run(ids[(turn * steps + i) % len(ids)], target)
            if turn:
                times[name].append((time.process_time() - start) / steps)
    return {"seconds": times, "losses": {name: losses[name] for name in ("published", "ours")}}


def ratio(top: Sequence[float], bottom: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """Median over rounds of top / bottom, with its 95 % bootstrap interval."""
    values = np.array(top) / np.array(bottom)
    medians = np.median(values[np.random.default_rng(0).integers(len(values), size=(draws, len(values)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"value": float(np.median(values)), "low": float(low), "high": float(high)}


def summary(told: dict[str, Any]) -> dict[str, Any]:
    """Medians and ratios."""
    seconds = told["seconds"]
    update = {
        n: [max(t - b, 1e-9) for t, b in zip(seconds[n], seconds["model alone"], strict=True)]
        for n in ("published", "ours")
    }
    return {
        "ms_a_step": {name: round(1e3 * float(np.median(values)), 1) for name, values in seconds.items()},
        "published_over_ours": ratio(seconds["published"], seconds["ours"]),
        "update_published_over_ours": ratio(update["published"], update["ours"]),
        "losses": told["losses"],
    }


def main() -> None:
    """Race in each dtype and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:books")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    a = parser.parse_args()
    torch.set_num_threads(1)
    model = load(a.model)
    read = [ids for _, ids in windows(model, read_texts(), a.context) if len(ids) == a.context]
    counts = bigram.count(read, len(model.tokenizer))
    size = len(read) // a.batch * a.batch
    ids = torch.tensor(read[:size]).view(-1, a.batch, a.context)
    for dtype in a.dtypes:
        told = summary(race(model, ids, counts.distribution, dtype, a.rounds, a.steps))
        if dtype == "float32":
            assert abs(told["losses"]["published"] - told["losses"]["ours"]) < 1e-4, told["losses"]
        print(
            json.dumps({"dtype": dtype, "torch": torch.__version__, "tokens_a_step": a.batch * a.context} | told),
            flush=True,
        )


if __name__ == "__main__":
    main()
