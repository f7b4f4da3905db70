"""Layers beside those of a compiled program: norms after each sum, logits times log n, attention without a softmax, a graph's heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from circuits.rasp.compile.model import Attention, Block

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class LogAttention(Attention):
    """softmax(log n · q kᵀ), n the number of positions (Chiang & Cholak 2022): exp(s) becomes n^s."""

    def scores(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head query key"]:
        return super().scores(h) * math.log(h.shape[1])


class PostNorm(Block):
    """h ← LN(h + attn(h)), h ← LN(h + mlp(h)), LN(x) = (x - mean x)/√(var x + ε); a missing part adds nothing and has no norm."""

    def __init__(self, weights: dict[str, Tensor], d_model: int, eps: float, attention: type[Attention]) -> None:
        super().__init__(weights, False, attention)
        self.norm1, self.norm2 = (
            nn.LayerNorm(d_model, eps).requires_grad_(False) if part is not None else None
            for part in (self.attn, self.mlp)
        )

    def forward(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The stream after both norms."""
        if self.attn is not None and self.norm1 is not None:
            h = self.norm1(h + self.attn(h))
        if self.mlp is not None and self.norm2 is not None:
            h = self.norm2(h + self.mlp(h))
        return h


class LinearAttention(Attention):
    """Σ_heads (q kᵀ) v W_O: the scores themselves are the pattern, which is the output of the module `weights`."""

    def __init__(self, weights: dict[str, Tensor], causal: bool) -> None:
        super().__init__(weights, causal)
        self.weights = nn.Identity()

    def pattern(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head query key"]:
        """How much of each value every query takes."""
        return self.weights(self.scores(h))


class GraphAttention(Attention):
    """Gᵀ · (softmax(q kᵀ) v) W_O: what heads find at node i goes to node j times the graph's entry G_ij.

    The extra heads of de Luca & Fountoulakis 2024: the graph is an input of the model, not a weight.
    """

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "batch pos d_model"], graph: Float[Tensor, "batch pos pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write together."""
        return self.o(graph.mT @ self.z(h))


class GraphBlock(Block):
    """A layer whose heads read the graph."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__(weights, False, GraphAttention)

    def forward(  # type: ignore[override]
        self, h: Float[Tensor, "batch pos d_model"], graph: Float[Tensor, "batch pos pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """h + attn(h, graph), then + mlp of that; a missing part adds nothing."""
        if self.attn is not None:
            h = h + self.attn(h, graph)
        return h if self.mlp is None else h + self.mlp(h)


class Places(nn.Module):
    """Numbers of the positions 0 … n - 1, by name, each written into its direction of the stream."""

    table: Tensor

    def __init__(self, names: dict[str, int], d_model: int) -> None:
        super().__init__()
        self.names = list(names)
        table = torch.zeros(len(names), d_model)
        table[range(len(names)), list(names.values())] = 1.0
        self.register_buffer("table", table)

    def forward(self, positions: Int[Tensor, "... pos"]) -> Float[Tensor, "... pos d_model"]:
        """What the stream gets of each position, which may depend on how many there are."""
        i = positions.to(self.table.dtype)
        n = positions.shape[-1]
        known = {
            "fraction": i / n,
            "even": 1.0 - 2.0 * (i % 2),
            "rest": (1.0 - (i / n) ** 2).sqrt(),
            "first": (i == 1).to(i),
            "later": (i != 1).to(i),
            "index": i,
            "square": i**2,
            "one": torch.ones_like(i),
        }
        return torch.stack([known[name] for name in self.names], dim=-1) @ self.table
