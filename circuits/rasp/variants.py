"""Models that compute what a compiled one does, with less that meets the eye: test beds for circuit finders, probes, dictionaries.

Each has a `basis`: the row of a direction of the compiled model says where it lies in the variant's stream, so that what is
known of the compiled model (labels, variables, edges) is known of the variant.

    rotated          h' = h Qᵀ, Q a random rotation: the same function, no direction is an axis
    with_layer_norm  every part reads LayerNorm(h'), which is close to a multiple of h': see there
    compressed       h' = h W, W [d, d'] trained, d' < d: directions share dimensions (tracr, Lindner et al. 2023, §5)
    mimic            random weights trained to do the same, its attention too: no basis is known, the behaviour is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import trange

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import Block, CompiledTransformer, Stack
from circuits.rasp.truth import Alignment, true_alignment
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

READS, WRITES = ("W_Q", "W_K", "W_V", "W_in"), ("W_O", "W_out", "b_out")


@dataclass
class Variant:
    """A model, and the place of each direction of the compiled one in its stream [d, d']; None where it is not known."""

    model: nn.Module
    basis: Float[Tensor, "d d_new"] | None

    def alignment(self, compiled: Compiled, variable: str) -> Alignment:
        """Where the variant holds a variable: an orthonormal basis of the span of its directions' rows."""
        if self.basis is None:
            raise WrongUse("where a trained model holds its variables is not known: that is for you to find")
        there = true_alignment(compiled, variable)
        rows = there.basis @ self.basis
        return Alignment(there.site, torch.linalg.qr(rows.T).Q.T)


def rotated(compiled: Compiled, seed: int = 0) -> Variant:
    """The same function in a stream turned by a random rotation Q: what is read is Q W, what is written W Qᵀ."""
    d = compiled.model.embed.embedding_dim
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    basis = (q * r.diagonal().sign()).T.contiguous()  # uniform over rotations (Mezzadri 2007)
    return Variant(mapped(compiled.model, basis.T, basis), basis.float())


def mapped(
    model: CompiledTransformer, read: Float[Tensor, "d_new d"], write: Float[Tensor, "d d_new"]
) -> CompiledTransformer:
    """The model whose parts read h' `read` and write through `write`."""
    to, fro = write.double(), read.double()
    blocks = []
    for block in model.blocks:
        assert isinstance(block, Block)
        weights = {name: weight.double() for name, weight in block.weights().items()}
        weights |= {name: fro @ weights[name] for name in READS if name in weights}
        weights |= {name: weights[name] @ to for name in WRITES if name in weights}
        blocks.append({name: weight.float() for name, weight in weights.items()})
    embed, positions = ((table.weight.double() @ to).float() for table in (model.embed, model.pos_embed))
    return CompiledTransformer(
        embed, positions, blocks, (fro @ model.unembed.weight.t().double()).float(), model.causal
    )


SOFTER = 0.1  # times SHARP: a selected key still has e^12.8 times the weight
LOUD = 1000.0  # the two constant entries of the stream with LayerNorm


class Normed(nn.Module):
    """A block whose attention and MLP read LayerNorm of the stream."""

    def __init__(self, block: Block, gain: float) -> None:
        super().__init__()
        d = next(p.shape[-1] for n, p in block.named_parameters() if n.endswith(("q.weight", "into.weight")))
        self.attn, self.mlp = block.attn, block.mlp
        self.norm1, self.norm2 = (_norm(d, gain) if part is not None else None for part in (self.attn, self.mlp))

    def forward(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """h + attn(h), then + mlp of that; a missing part adds nothing."""
        if self.attn is not None and self.norm1 is not None:
            h = h + self.attn(self.norm1(h))
        if self.mlp is not None and self.norm2 is not None:
            h = h + self.mlp(self.norm2(h))
        return h


class NormedTransformer(Stack):
    """A compiled model with pre-norm blocks and a norm before the unembedding."""

    def __init__(self, model: CompiledTransformer, gain: float) -> None:
        blocks = (Normed(block, gain) for block in model.blocks if isinstance(block, Block))
        super().__init__(model.embed, model.pos_embed, blocks, model.unembed, model.causal)
        self.norm = _norm(model.embed.embedding_dim, gain)

    def logits(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos out"]:
        """What the norm of the last stream says."""
        return self.unembed(self.norm(h))


def _norm(d: int, gain: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(d, eps=0.0)
    nn.init.constant_(norm.weight, gain)
    return norm.requires_grad_(False)


def with_layer_norm(compiled: Compiled) -> Variant:
    """A model with LayerNorm before every part that computes the same.

    h' = (h, -h, M, -M) has mean 0 (Chiang & Cholak 2022 double a stream so) and variance (2M² + 2|h|²)/d'. With
    M = `LOUD`, LayerNorm with the gain √(2M²/d') is h' (1 - |h|²/2M² …): for |h|² of some tens, h' to five digits.
    """
    d = compiled.model.embed.embedding_dim
    eye = torch.eye(d)
    write = torch.cat([eye, -eye, torch.zeros(d, 2)], 1)
    read = torch.cat([eye, torch.zeros(d + 2, d)])
    doubled = mapped(compiled.model, read, write)
    doubled.embed.weight[:, -2:] = torch.tensor([LOUD, -LOUD])
    return Variant(NormedTransformer(doubled, (2 * LOUD**2 / (2 * d + 2)) ** 0.5), write)


def compressed(
    compiled: Compiled, d_model: int, steps: int = 2000, lr: float = 3e-3, seed: int = 0, progress: bool = True
) -> Variant:
    """A model whose stream h' has `d_model` dimensions for more directions: h' ≈ h W, W [d, d_model], everything trained.

    Starts as the compiled weights that read h' Wᵀ and write through W, the first right singular vectors of h, and with
    softer selectors (`SOFTER`), since a score's error is an exponent. Adam then takes the cross-entropy of the right outputs
    plus the mean square of h' - h W after each layer, on random inputs of the greatest length. tracr trains W alone.
    Raises `WrongUse` for no fewer dimensions.
    """
    d = compiled.model.embed.embedding_dim
    if not 0 < d_model < d:
        raise WrongUse(f"{d_model} dimensions are asked for, and the stream has {d}: ask for fewer, at least 1")
    generator = torch.Generator().manual_seed(seed)
    moments = _moments(compiled, random_ids(compiled, 512, generator))
    w = nn.Parameter(torch.linalg.svd(moments).Vh[:d_model].T.float().contiguous())
    model = mapped(compiled.model, w.detach().T, w.detach())
    for block in model.blocks:
        if isinstance(block, Block) and block.attn is not None:
            block.attn.q.weight.mul_(SOFTER)
    optimiser = torch.optim.Adam([w, *model.requires_grad_(True).parameters()], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in trange(steps, desc="compressing", disable=not progress):
        loss = _compression_loss(compiled, model, w, random_ids(compiled, 128, generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Variant(model.requires_grad_(False), w.detach())


@torch.no_grad()
def _moments(compiled: Compiled, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "d d"]:
    """Σ h hᵀ over the stream before the first layer and after each."""
    found = [compiled.model.embed(ids) + compiled.model.pos_embed(torch.arange(ids.shape[1]))]
    for block in compiled.model.blocks:
        found.append(block(found[-1]))
    rows = torch.cat(found).flatten(0, 1).double()
    return rows.T @ rows


def _compression_loss(
    compiled: Compiled, model: CompiledTransformer, w: Float[Tensor, "d d_new"], ids: Int[Tensor, "batch pos"]
) -> Tensor:
    loss = torch.zeros(())
    h, small = (each.embed(ids) + each.pos_embed(torch.arange(ids.shape[1])) for each in (compiled.model, model))
    for block, smaller in zip(compiled.model.blocks, model.blocks, strict=True):
        h, small = block(h), smaller(small)
        loss = loss + F.mse_loss(small, h @ w)
    return loss + _cross_entropies(compiled, model.unembed(small), compiled.model.unembed(h))


def mimic(
    compiled: Compiled,
    d_model: int = 64,
    weight: float = 1.0,
    steps: int = 2000,
    lr: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> Variant:
    """A model with as many layers and heads, with random weights trained on the program's outputs and on its selectors.

    loss = cross-entropy + `weight` · mean square of pattern - target, where the target rows are the compiled heads' own: a
    selector's rows over their sums, the BOS where nothing is selected (Weiss et al. 2021 train real models so). Heads have
    d_model/4 dimensions, every layer 4 d_model neurons. Training is on random inputs of the greatest length.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _drawn(compiled.model, d_model, generator)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in trange(steps, desc="mimicking", disable=not progress):
        ids = random_ids(compiled, 128, generator)
        with torch.no_grad():
            wanted, targets = _with_patterns(compiled.model, ids)
        logits, patterns = _with_patterns(model, ids)
        attention = sum((F.mse_loss(a, b) for a, b in zip(patterns, targets, strict=True)), torch.zeros(()))
        loss = _cross_entropies(compiled, logits, wanted) + weight * attention
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Variant(model.requires_grad_(False), None)


def _drawn(model: CompiledTransformer, d: int, generator: torch.Generator) -> CompiledTransformer:
    """Random weights N(0, 1/fan-in), embeddings N(0, 1), biases 0; all of it can be trained."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-2] ** 0.5

    blocks = []
    for block in model.blocks:
        assert isinstance(block, Block)
        heads, narrow = block.attn.heads if block.attn else 0, max(d // 4, 1)
        weights = {name: normal(heads, d, narrow) for name in ("W_Q", "W_K", "W_V")} if heads else {}
        weights |= {"W_O": normal(heads, narrow, d)} if heads else {}
        weights |= {"W_in": normal(d, 4 * d), "b_in": torch.zeros(4 * d)}
        blocks.append(weights | {"W_out": normal(4 * d, d), "b_out": torch.zeros(d)})
    embed, positions = (
        torch.randn(len(table.weight), d, generator=generator) for table in (model.embed, model.pos_embed)
    )
    drawn = CompiledTransformer(embed, positions, blocks, normal(d, model.unembed.out_features), model.causal)
    return drawn.requires_grad_(True)


def random_ids(compiled: Compiled, count: int, generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Uniform inputs of the greatest length, the BOS first."""
    size = len(compiled.vocabulary)
    tokens = torch.randint(size, (count, compiled.length), generator=generator)
    return torch.cat([torch.full((count, 1), size), tokens], 1)


def _cross_entropies(compiled: Compiled, logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean over variables and positions of -log p(the compiled model's choice)."""
    sizes = [len(values) for values in compiled.outputs.values()]
    parts = zip(logits[:, 1:].split(sizes, -1), wanted[:, 1:].split(sizes, -1), strict=True)
    return torch.stack([F.cross_entropy(a.flatten(0, 1), b.argmax(-1).flatten()) for a, b in parts]).mean()


def _with_patterns(model: CompiledTransformer, ids: Int[Tensor, "batch pos"]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and each layer's patterns [batch, head, query, key] at the tokens: what the BOS looks at is nobody's business."""
    h = model.embed(ids) + model.pos_embed(torch.arange(ids.shape[1]))
    patterns = []
    for block in model.blocks:
        assert isinstance(block, Block)
        if block.attn is not None:
            patterns.append(block.attn.pattern(h)[:, :, 1:])
        h = block(h)
    return model.unembed(h), patterns


@torch.no_grad()
def agreement(compiled: Compiled, model: nn.Module, inputs: list[Any]) -> float:
    """The share of positions where a model's choice is the compiled model's, on inputs of one length."""
    ids, sizes = compiled.ids(inputs), [len(values) for values in compiled.outputs.values()]
    parts = zip(model(ids)[:, 1:].split(sizes, -1), compiled.model(ids)[:, 1:].split(sizes, -1), strict=True)
    return torch.stack([(a.argmax(-1) == b.argmax(-1)).double().mean() for a, b in parts]).mean().item()
