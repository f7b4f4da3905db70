"""Models that compute what a compiled one does, with less that meets the eye: test beds for circuit finders, probes, dictionaries.

Each has a `basis`: the row of a direction of the compiled model says where it lies in the variant's stream, so that what is
known of the compiled model (labels, variables, edges) is known of the variant.

    rotated          h' = h Qᵀ, Q a random rotation: the same function, no direction is an axis
    with_layer_norm  every part reads LayerNorm(h'), which is close to a multiple of h': see there

Those whose weights are learnt are in `trained.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import Block, CompiledTransformer, Stack
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

READS, WRITES = ("W_Q", "W_K", "W_V", "W_in"), ("W_O", "W_out", "b_out")


def check_plain(compiled: Compiled) -> None:
    """Raises `WrongUse` for a variant: variants are made of the compiled model itself."""
    if compiled.variant:
        raise WrongUse(f"this is a variant ({compiled.variant}): give the compiled program itself")


def rotated(compiled: Compiled, seed: int = 0) -> Compiled:
    """The same function in a stream turned by a random rotation Q: what is read is Q W, what is written W Qᵀ."""
    check_plain(compiled)
    d = compiled.model.embed.embedding_dim
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    basis = (q * r.diagonal().sign()).T.contiguous()  # uniform over rotations (Mezzadri 2007)
    return replace(compiled, model=mapped(compiled.model, basis.T, basis), variant="rotated", basis=basis.float())


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


LAYER_NORM = "layer-norm"
LOUD = 1000.0  # the two constant entries of the stream with LayerNorm


class Normed(Block):
    """A block whose attention and MLP read LayerNorm of the stream."""

    def __init__(self, block: Block, gain: float) -> None:
        nn.Module.__init__(self)
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

    def scores(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head query key"] | None:
        """Those of its heads, of the normed stream."""
        return None if self.norm1 is None else super().scores(self.norm1(h))


class NormedTransformer(CompiledTransformer):
    """A compiled model with pre-norm blocks and a norm before the unembedding."""

    def __init__(self, model: CompiledTransformer, gain: float) -> None:
        blocks = (Normed(block, gain) for block in model.blocks if isinstance(block, Block))
        Stack.__init__(self, model.embed, model.pos_embed, blocks, model.unembed, model.causal)
        self.norm = _norm(model.embed.embedding_dim, gain)

    def logits(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos out"]:
        """What the norm of the last stream says."""
        return self.unembed(self.norm(h))


def _norm(d: int, gain: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(d, eps=0.0)
    nn.init.constant_(norm.weight, gain)
    return norm.requires_grad_(False)


def with_layer_norm(compiled: Compiled) -> Compiled:
    """A model with LayerNorm before every part that computes the same.

    h' = (h, -h, M, -M) has mean 0 (Chiang & Cholak 2022 double a stream so) and variance (2M² + 2|h|²)/d'. With
    M = `LOUD`, LayerNorm with the gain √(2M²/d') is h' (1 - |h|²/2M² …): for |h|² of some tens, h' to five digits.
    """
    check_plain(compiled)
    d = compiled.model.embed.embedding_dim
    eye = torch.eye(d)
    write = torch.cat([eye, -eye, torch.zeros(d, 2)], 1)
    read = torch.cat([eye, torch.zeros(d + 2, d)])
    doubled = mapped(compiled.model, read, write)
    doubled.embed.weight[:, -2:] = torch.tensor([LOUD, -LOUD])
    model = NormedTransformer(doubled, (2 * LOUD**2 / (2 * d + 2)) ** 0.5)
    return replace(compiled, model=model, variant=LAYER_NORM, basis=write)
