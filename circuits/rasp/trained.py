"""Models whose weights are learnt, to do what a compiled one does: test beds that look like models nobody made by hand.

    mimic        random weights trained on the outputs and on the attention: no basis is known, the behaviour is
    compressed   the same, with h' ≈ h W besides, W [d, d'] learnt, d' < d: directions share dimensions (tracr,
                 Lindner et al. 2023, §5, trains W alone)

    loss = cross-entropy of the compiled model's choices + c Σ_layers KL(compiled pattern ‖ pattern) + Σ_layers mean (h' - h W)²

The compiled heads' patterns are the program's own selectors, a row over its sum, the BOS where nothing is selected (Weiss et al.
2021 train so, on the mean square of the difference, whose gradient vanishes where a head is sure of a wrong key; that of
KL by a score is pattern - target). Inputs are random, of every length and from all tokens alike to all different: a model that
only sees the longest, or uniform ones, is wrong on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import trange

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import Block, CompiledTransformer
from circuits.rasp.variants import check_plain
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

BATCH = 128  # inputs of a step, all of one length


def mimic(
    compiled: Compiled,
    d_model: int = 64,
    weight: float = 1.0,
    steps: int = 2000,
    lr: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> Compiled:
    """A model with as many layers and heads, random weights trained on the compiled one's choices and patterns; c is `weight`.

    Heads have d_model/4 dimensions, every layer 4 d_model neurons.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _drawn(compiled.model, d_model, max(d_model // 4, 1), 4 * d_model, generator)
    _train(compiled, model, None, weight, steps, lr, generator, progress)
    return replace(compiled, model=model.requires_grad_(False), variant="mimic", basis=None)


def compressed(
    compiled: Compiled, d_model: int, steps: int = 4000, lr: float = 1e-2, seed: int = 0, progress: bool = True
) -> Compiled:
    """A model whose stream h' has `d_model` dimensions for more directions, h' ≈ h W: only the stream is narrow.

    Heads are as wide as the compiled stream, and every layer has four times as many neurons. Raises `WrongUse` for no fewer
    dimensions.
    """
    d = compiled.model.unembed.in_features
    if not 0 < d_model < d:
        raise WrongUse(f"{d_model} dimensions are asked for, and the stream has {d}: ask for fewer, at least 1")
    generator = torch.Generator().manual_seed(seed)
    model = _drawn(compiled.model, d_model, d, 4 * d, generator)
    w = nn.Parameter(F.normalize(torch.randn(d, d_model, generator=generator), dim=1))
    _train(compiled, model, w, 1.0, steps, lr, generator, progress)
    return replace(compiled, model=model.requires_grad_(False), variant="compressed", basis=w.detach())


def _train(
    compiled: Compiled,
    model: CompiledTransformer,
    w: nn.Parameter | None,
    weight: float,
    steps: int,
    lr: float,
    generator: torch.Generator,
    progress: bool,
) -> None:
    check_plain(compiled)
    weights = [*model.parameters(), *([] if w is None else [w])]
    optimiser = torch.optim.Adam(weights, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in trange(steps, desc="training", disable=not progress):
        ids = random_ids(compiled, BATCH, generator)
        loss = torch.zeros(())
        for (wanted, h), (scores, small) in zip(_layers(compiled.model, ids), _layers(model, ids), strict=True):
            if wanted is not None and scores is not None:
                loss = loss + weight * divergence(wanted.softmax(-1), scores)
            if w is not None:
                loss = loss + F.mse_loss(small, h @ w)
        loss = loss + _cross_entropy(compiled, model.logits(small), compiled.model.logits(h))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _layers(
    model: CompiledTransformer, ids: Int[Tensor, "batch pos"]
) -> Iterator[tuple[Float[Tensor, "batch head query key"] | None, Float[Tensor, "batch pos d_model"]]]:
    """The stream at the entrance, then each layer's scores at the tokens and the stream after it: the BOS may look where it likes."""
    h = model.stream(ids)
    yield None, h
    for block in model.blocks:
        assert isinstance(block, Block)
        scores, h = block.scores(h), block(h)
        yield None if scores is None else scores[:, :, 1:], h


def divergence(wanted: Float[Tensor, "... key"], scores: Float[Tensor, "... key"]) -> Float[Tensor, ""]:
    """The mean over rows of KL(wanted ‖ softmax(scores)), in nats."""
    log = scores.log_softmax(-1).clamp(min=-1e4)  # -∞ where a causal head may not look, times 0
    return (torch.special.xlogy(wanted, wanted) - wanted * log).sum(-1).mean()


def _cross_entropy(compiled: Compiled, logits: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """The mean over variables and positions of -log p(the compiled model's choice)."""
    sizes = [len(values) for values in compiled.outputs.values()]
    parts = zip(logits[:, 1:].split(sizes, -1), wanted[:, 1:].split(sizes, -1), strict=True)
    return torch.stack([F.cross_entropy(a.flatten(0, 1), b.argmax(-1).flatten()) for a, b in parts]).mean()


def _drawn(
    model: CompiledTransformer, d: int, narrow: int, neurons: int, generator: torch.Generator
) -> CompiledTransformer:
    """Random weights N(0, 1/fan-in), so that the stream and the scores q kᵀ have entries about 1; biases 0; all can be trained."""

    def normal(*shape: int, fan: int) -> Tensor:
        return torch.randn(shape, generator=generator) / fan**0.5

    blocks = []
    for block in model.blocks:
        assert isinstance(block, Block)
        heads = block.attn.heads if block.attn else 0
        weights = {name: normal(heads, d, narrow, fan=d) for name in ("W_Q", "W_K", "W_V")} if heads else {}
        weights |= {name: weights[name] / narrow**0.25 for name in ("W_Q", "W_K") if heads}
        weights |= {"W_O": normal(heads, narrow, d, fan=heads * narrow)} if heads else {}
        weights |= {"W_in": normal(d, neurons, fan=d), "b_in": torch.zeros(neurons)}
        blocks.append(weights | {"W_out": normal(neurons, d, fan=neurons), "b_out": torch.zeros(d)})
    embed, positions = (normal(len(table.weight), d, fan=2) for table in (model.embed, model.pos_embed))
    unembed = normal(d, model.unembed.out_features, fan=d)
    return CompiledTransformer(embed, positions, blocks, unembed, model.causal).requires_grad_(True)


UNEVEN = 4.0  # so that an input is of one token now and then, and every count occurs


def random_ids(compiled: Compiled, count: int, generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Inputs of one length, the BOS first. The length is the greater of two that are drawn uniformly.

    The tokens of an input are drawn by a softmax of u n, n normal numbers and u uniform in 0 … `UNEVEN`, both its own: from evenly
    to nearly all alike.
    """
    size = len(compiled.vocabulary)
    length = int(torch.randint(1, compiled.length + 1, (2,), generator=generator).max())
    uneven = UNEVEN * torch.rand(count, 1, generator=generator) * torch.randn(count, size, generator=generator)
    tokens = torch.multinomial(uneven.softmax(-1), length, replacement=True, generator=generator)
    return torch.cat([torch.full((count, 1), size), tokens], 1)


@torch.no_grad()
def attention_off(compiled: Compiled, variant: Compiled, seed: int = 0) -> dict[str, float]:
    """½ Σ |difference| of a row of the attention to the compiled model's: the mean and the greatest, over 4,096 random inputs."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(4096 // BATCH):
        ids = random_ids(compiled, BATCH, generator)
        for (wanted, _), (scores, _) in zip(_layers(compiled.model, ids), _layers(variant.model, ids), strict=True):
            if wanted is not None and scores is not None:
                found.append((wanted.softmax(-1) - scores.softmax(-1)).abs().sum(-1).flatten() / 2)
    rows = torch.cat(found) if found else torch.zeros(1)
    return {"mean": rows.mean().item(), "greatest": rows.max().item()}
