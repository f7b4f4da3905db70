"""A decoder small enough to plant a bigram model in: heads and MLPs around a stream without norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """Causal attention of `heads` heads."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(z.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d, hidden, bias=False), nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Block(nn.Module):
    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.mlp = Heads(d, heads), MLP(d, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Decoder(nn.Module):
    """logits = W_U stream: the stream holds the token's one-hot in its first half, the logits in its second."""

    def __init__(self, P: Tensor, blocks: int = 2, heads: int = 2, noise: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        V = len(P)
        self.embed = nn.Embedding(V, 2 * V)
        self.embed.weight.data = torch.cat([torch.eye(V), torch.zeros(V, V)], 1)
        self.blocks = nn.ModuleList(Block(2 * V, heads, V) for _ in range(blocks))
        for p in self.blocks.parameters():
            nn.init.normal_(p, std=noise)
        self.head = nn.Linear(2 * V, V, bias=False)
        self.head.weight.data = torch.cat([torch.zeros(V, V), torch.eye(V)], 1)
        self.requires_grad_(False).eval()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def transitions(V: int, seed: int, sharp: float = 1.5) -> Tensor:
    """Rows of a random P [V, V], none of them zero."""
    return torch.randn(V, V, generator=torch.Generator().manual_seed(seed)).mul(sharp).softmax(1)


def tiers(V: int, seed: int) -> Tensor:
    """Rows with one probability of .7, one of .2 and the rest alike [V, V]."""
    generator, P = torch.Generator().manual_seed(seed), torch.full((V, V), 0.1 / (V - 2))
    for row in P:
        first, second = torch.randperm(V, generator=generator)[:2]
        row[first], row[second] = 0.7, 0.2
    return P


def sampled(P: Tensor, windows: int, length: int, seed: int) -> list[list[int]]:
    """Sequences of the Markov chain P."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(len(P), (windows,), generator=generator)]
    for _ in range(length - 1):
        columns.append(torch.multinomial(P[columns[-1]], 1, generator=generator)[:, 0])
    return torch.stack(columns, 1).tolist()
