"""What lenses that are trained say of `zoo:books` on text that nothing was trained on: `python -m benchmarks.lens_quality`.

Tables, in nats: KL(model ‖ lens) of tuned lens, linear shortcut and Jacobian lens beside the logit lens; of the attention
lens head by head; and the future lens beside a bigram and beside itself on states of other places. Text: Python's help
texts, of which every tenth paragraph is held out, as it was from the model. Name tables to see those alone.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import interp
from interp.lenses import (
    AttentionLens,
    Averages,
    FutureLens,
    Lens,
    Recipe,
    TunedLens,
    bigram,
    explained,
    fit_jacobian,
    fit_shortcut,
    train_tuned_lens,
)
from interp.lenses.future import FromLeastSquares
from interp.lenses.tuned import Descent, descent
from interp.store.recording import batches, windows
from interp.zoo.corpus import topics

CONTEXT = 128
TOKENS = 6000  # of held-out text
TUNED = Recipe(steps=60, tokens=2048, context=CONTEXT)
FUTURE = Recipe(steps=24, tokens=1024, context=CONTEXT, optimizer="adam", lr=3e-3)
HEADS = Recipe(steps=16, tokens=512, context=CONTEXT)
JACOBIAN = 2048  # tokens: each batch costs d_model backward passes

model, split = interp.load("zoo:books"), topics()
train, held = [split.train], [split.held_out]


def over(lens: Lens, sites: list[str] | None = None, tokens: int = TOKENS) -> Averages:
    """Means on the held-out text."""
    return lens.over(held, sites, context=CONTEXT, tokens=tokens)


def against(lens: TunedLens | AttentionLens, tokens: int = TOKENS) -> None:
    """KL of a lens and of the logit lens, row by row, with the 95 % band of the difference."""
    ours, plain = over(lens, tokens=tokens), over(Lens(model), [*lens.sites, lens.end], tokens)
    mean, (low, high) = ours.less(plain, "kl_forward")
    print(f"{'':24} {'logit':>7} {lens.kind:>9} {'difference':>11} {'95 % band':>17}")
    rows = zip(ours.sites, plain.mean("kl_forward"), ours.mean("kl_forward"), mean, low, high, strict=True)
    for row, *v in rows:
        print(f"{row:24} {v[0]:7.3f} {v[1]:9.3f} {v[2]:11.3f} {f'[{v[3]:.3f}, {v[4]:.3f}]':>17}")


def tuned() -> None:
    """The tuned lens."""
    against(train_tuned_lens(model, train, recipe=TUNED))


def shortcut() -> None:
    """Least squares: KL, and R² beside the identity's."""
    lens = fit_shortcut(model, train, context=CONTEXT)
    against(lens)
    _explained(lens)


def jacobian() -> None:
    """First order: KL, and R²; what is left of 1 is the error of truncating after it."""
    lens = fit_jacobian(model, train, context=CONTEXT, tokens=JACOBIAN)
    against(lens)
    _explained(lens)


def _explained(lens: TunedLens) -> None:
    found = explained(lens, held, context=CONTEXT, tokens=TOKENS)
    print(f"{'R² of the last stream':24} {lens.kind:>9} {'identity':>9}")
    for row, *v in zip(lens.sites, found[lens.kind], found["identity"], strict=True):
        print(f"{row:24} {v[0]:9.3f} {v[1]:9.3f}")


def attention() -> None:
    """The heads of block 3."""
    lens = AttentionLens(model, ["blocks.3.attn.result"])
    descent(Descent(lens, HEADS), train).run()
    against(lens, tokens=2000)


class Shuffled(FutureLens):
    """The same lens on states of other places of the same windows."""

    def states(self, inputs: Any, names: Any) -> Any:
        """In another order."""
        last, states = super().states(inputs, names)
        order = torch.randperm(last.shape[1], generator=torch.Generator().manual_seed(0))
        return last, {row: x[:, order] for row, x in states.items()}


def future() -> None:
    """Cross-entropy of the token 1, 2 and 3 ahead, and how often it is the likeliest."""
    sites = [
        f"{site}+{n}"
        for n in (3, 2, 1)
        for site in ("blocks.0.resid_post", "blocks.3.resid_post", "blocks.4.resid_post")
    ]
    lens = FutureLens(model, sites)
    descent(FromLeastSquares(lens, FUTURE), train).run()
    other = Shuffled(model, lens.sites)
    other.W, other.b = lens.W, lens.b
    ours, shuffled = _foresight(lens), _foresight(other)
    print(f"{'':26} {'+1':>13} {'+2':>15} {'+3':>15}   (nats, share that is right)")
    for site in (s.removesuffix("+3") for s in sites if s.endswith("+3")):
        print(f"{site:24} " + " ".join(ours[f"{site}+{n}"] for n in (1, 2, 3)))
    print(f"{'block 3, shuffled':24} " + " ".join(shuffled[f"blocks.3.resid_post+{n}"] for n in (1, 2, 3)))
    cells = []
    for n in (1, 2, 3):
        p, some, left = bigram(model, train, n, context=CONTEXT), [], TOKENS
        for _, ids in windows(model, held, CONTEXT):
            a, b = torch.tensor(ids[:-n]), torch.tensor(ids[n:])
            some.append(torch.stack([-p[a, b].log(), (p[a].argmax(1) == b).float()]))
            left -= len(ids)
            if left <= 0:
                break
        loss, right = torch.cat(some, dim=1).mean(1).tolist()
        cells.append(f"{loss:8.3f} {right:6.3f}")
    print(f"{'bigram':24} " + " ".join(cells))


def _foresight(lens: FutureLens) -> dict[str, str]:
    """Of every row: mean cross-entropy of the token meant, and the share of tokens for which it is the likeliest."""
    loss, right, left = [], [], TOKENS
    for _, group in batches(model, held, CONTEXT, 8):
        seen = lens(model.pad(group), k=1)
        loss.append(seen.cross_entropy)
        right.append(torch.where(seen.next_rank > 0, (seen.next_rank == 1).float(), torch.nan))
        left -= len(seen.pos)
        if left <= 0:
            break
    means = [torch.cat(parts, dim=1).double().nanmean(1).tolist() for parts in (loss, right)]
    return {row: f"{a:8.3f} {b:6.3f}" for row, a, b in zip(seen.sites, *means, strict=True)}


TABLES = {f.__name__: f for f in (tuned, shortcut, jacobian, attention, future)}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        print(f"== {name}", flush=True)
        TABLES[name]()
