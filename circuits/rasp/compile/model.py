"""A transformer without norms: h ← h + attn(h), h ← h + mlp(h), ReLU; a first position of its own (BOS) before the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class Block(nn.Module):
    """One layer: heads W_Q, W_K [head, d_model, d_head], W_V, W_O, then an MLP W_in, b_in, W_out, b_out."""

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    W_in: nn.Parameter
    b_in: nn.Parameter
    W_out: nn.Parameter
    b_out: nn.Parameter

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))

    def forward(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """h + Σ_heads softmax(q kᵀ) v W_O, then + relu(h W_in + b_in) W_out + b_out."""
        q, k, v = (torch.einsum("bpd,hde->bhpe", h, w) for w in (self.W_Q, self.W_K, self.W_V))
        pattern = torch.softmax(q @ k.transpose(-1, -2), dim=-1)
        h = h + torch.einsum("bhpe,hed->bpd", pattern @ v, self.W_O)
        return h + torch.relu(h @ self.W_in + self.b_in) @ self.W_out + self.b_out


class CompiledTransformer(nn.Module):
    """Token ids 0 … V - 1 of the vocabulary, V the BOS; position 0 is the BOS's."""

    def __init__(self, embed: Tensor, positions: Tensor, blocks: list[dict[str, Tensor]], unembed: Tensor) -> None:
        super().__init__()
        self.W_E, self.W_pos, self.W_U = (nn.Parameter(w, requires_grad=False) for w in (embed, positions, unembed))
        self.blocks = nn.ModuleList(map(Block, blocks))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos out"]:
        """Logits over the values of the output, for each token."""
        bos = tokens.new_full((tokens.shape[0], 1), self.W_E.shape[0] - 1)
        h = self.W_E[torch.cat([bos, tokens], dim=1)] + self.W_pos[: tokens.shape[1] + 1]
        for block in self.blocks:
            h = block(h)
        return h[:, 1:] @ self.W_U

    def sizes(self) -> dict[str, int | list[int]]:
        """Width of the stream, layers, heads and neurons by layer, and elements of all tensors."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return {
            "d_model": self.W_E.shape[1],
            "layers": len(blocks),
            "heads_per_layer": [block.W_Q.shape[0] for block in blocks],
            "neurons_per_layer": [block.W_in.shape[1] for block in blocks],
            "parameters": sum(weight.numel() for weight in self.parameters()),
        }
