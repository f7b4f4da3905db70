"""A model small enough to know: blocks that are linear, x + A x, and a norm and a head after them."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.part = nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.part(x)


class Linear(nn.Module):
    """logits = head(norm(h_L)), h_{l+1} = h_l + A_l h_l + c_l: every h_L is affine in every h_l."""

    def __init__(self, d: int = 8, vocabulary: int = 11, layers: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        for p in self.head.parameters():
            nn.init.normal_(p)
        self.requires_grad_(False).eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
