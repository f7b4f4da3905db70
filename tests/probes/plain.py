"""A model small enough to know: blocks of one attention, x + P x W_V W_O, no norms, no MLP; uniform where queries are zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.model import Model, load
from interp.model.twin import randomise


class Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(z.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(d, heads)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class Plain(nn.Module):
    def __init__(self, d: int = 16, heads: int = 2, layers: int = 3, vocabulary: int = 23) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@torch.no_grad()
def plain(heads: int = 2, layers: int = 3, uniform: bool = False, seed: int = 4) -> Model:
    """Wrapped, in float64, drawn at random. `uniform`: queries are zero, and W_V W_O is the identity of one head."""
    net = Plain(heads=1 if uniform else heads, layers=layers)
    randomise(net, seed)
    wrapped = load(net.double().eval().requires_grad_(False))
    _ = wrapped.weights["blocks.0.attn.W_V"]  # all that is found by matching numbers is found while they are random
    if uniform:
        for block in net.blocks:
            block.attn.q.weight.zero_()
            block.attn.v.weight.copy_(torch.eye(16))
            block.attn.o.weight.copy_(torch.eye(16))
    return wrapped
