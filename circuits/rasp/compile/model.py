"""A transformer without norms: h ← h + attn(h), h ← h + mlp(h), with ReLU neurons; position 0 is a BOS's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class Attention(nn.Module):
    """Σ_heads softmax(q kᵀ) v W_O, without a scale; a causal one looks at no later position."""

    def __init__(self, weights: dict[str, Tensor], causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = len(weights["W_Q"]), causal
        self.q, self.k, self.v = (linear(weights[n].transpose(0, 1).flatten(1)) for n in ("W_Q", "W_K", "W_V"))
        self.o = linear(weights["W_O"].flatten(0, 1))

    def forward(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write together."""
        return self.o(self.z(h))

    def z(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos width"]:
        """What each head takes from where it looks, side by side."""
        z = self.pattern(h) @ self._split(self.v(h))
        return z.transpose(1, 2).flatten(2)

    def pattern(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head query key"]:
        """Who attends to whom."""
        return torch.softmax(self.scores(h), dim=-1)

    def scores(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head query key"]:
        """q kᵀ, and -∞ where a causal head may not look."""
        scores = self._split(self.q(h)) @ self._split(self.k(h)).transpose(-1, -2)
        if not self.causal:
            return scores
        later = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).triu(1)
        return scores.masked_fill(later, -torch.inf)

    def _split(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch head pos d_head"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """relu(h W_in + b_in) W_out + b_out."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.into = linear(weights["W_in"], weights["b_in"])
        self.out = linear(weights["W_out"], weights["b_out"])

    def forward(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.out(torch.relu(self.into(h)))


class Block(nn.Module):
    """A layer: heads (W_Q, W_K, W_V [head, d_model, d_head], W_O) and neurons (W_in, b_in, W_out, b_out); either may be missing."""

    def __init__(self, weights: dict[str, Tensor], causal: bool, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.attn = attention(weights, causal) if len(weights.get("W_Q", ())) else None
        self.mlp = MLP(weights) if len(weights.get("b_in", ())) or weights.get("b_out", torch.zeros(1)).any() else None

    def forward(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """h + attn(h), then + mlp of that; a missing part adds nothing."""
        if self.attn is not None:
            h = h + self.attn(h)
        if self.mlp is not None:
            h = h + self.mlp(h)
        return h

    def scores(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head query key"] | None:
        """What its heads put into the softmax where the block receives h; None where it has none."""
        return None if self.attn is None else self.attn.scores(h)

    def weights(self) -> dict[str, Tensor]:
        """The weights as they were given, without those of a part that is missing."""
        return _parts(self.state_dict(), "", self.attn.heads if self.attn else 0)


class Stack(nn.Module):
    """Embeddings of ids and positions, blocks (all of them `loops` times over), an unembedding.

    Of a program: token ids are 0 … V - 1 of the vocabulary; V, the BOS, stands first.
    """

    main_input_name = "input_ids"

    def __init__(
        self,
        embed: nn.Module,
        pos_embed: nn.Module | None,
        blocks: Iterable[nn.Module],
        unembed: nn.Linear,
        causal: bool,
        loops: int = 1,
    ) -> None:
        super().__init__()
        self.causal, self.loops = causal, loops
        if isinstance(pos_embed, nn.Embedding):
            self.longest_input = pos_embed.num_embeddings
        self.embed, self.pos_embed, self.unembed = embed, pos_embed, unembed
        self.blocks = nn.ModuleList(blocks)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding, as Hugging Face models name it."""
        return self.embed

    def forward(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos out"]:
        """Logits over the values of the output, for each token."""
        h = self.stream(input_ids)
        for _ in range(self.loops):
            h = self.loop(h)
        return self.logits(h)

    def stream(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What the first block receives."""
        h = self.embed(input_ids)
        if self.pos_embed is None:
            return h
        return h + self.pos_embed(torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0))

    def loop(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The stream after all blocks."""
        for block in self.blocks:
            h = block(h)
        return h

    def logits(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos out"]:
        """What the last stream says."""
        return self.unembed(h)

    def sizes(self) -> dict[str, int | list[int]]:
        """Width of the stream, layers, heads and neurons by layer, and elements of all tensors."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return {
            "d_model": self.unembed.in_features,
            "layers": len(blocks),
            "heads_per_layer": [block.attn.heads if block.attn else 0 for block in blocks],
            "neurons_per_layer": [block.mlp.into.out_features if block.mlp else 0 for block in blocks],
            "parameters": sum(weight.numel() for weight in self.parameters()),
        }


class CompiledTransformer(Stack):
    """The weights of a program."""

    embed: nn.Embedding
    pos_embed: nn.Embedding

    def __init__(
        self, embed: Tensor, positions: Tensor, blocks: list[dict[str, Tensor]], unembed: Tensor, causal: bool
    ) -> None:
        tokens, places = (nn.Embedding.from_pretrained(table, freeze=True) for table in (embed, positions))
        super().__init__(tokens, places, (Block(block, causal) for block in blocks), linear(unembed), causal)

    @classmethod
    def of(cls, weights: dict[str, Tensor], heads: list[int], causal: bool) -> CompiledTransformer:
        """The model with this state dict, and so many heads in each block."""
        blocks = [_parts(weights, f"blocks.{i}.", count) for i, count in enumerate(heads)]
        return cls(weights["embed.weight"], weights["pos_embed.weight"], blocks, weights["unembed.weight"].T, causal)


def _parts(weights: dict[str, Tensor], prefix: str, heads: int) -> dict[str, Tensor]:
    """A block's weights as `Block` takes them, from a state dict."""
    names = {"W_Q": "attn.q.weight", "W_K": "attn.k.weight", "W_V": "attn.v.weight", "W_O": "attn.o.weight"}
    names |= {"W_in": "mlp.into.weight", "b_in": "mlp.into.bias", "W_out": "mlp.out.weight", "b_out": "mlp.out.bias"}
    found = {n: weights[prefix + name].t() for n, name in names.items() if prefix + name in weights}
    split = {n: found[n].unflatten(1, (heads, -1)).transpose(0, 1) for n in ("W_Q", "W_K", "W_V") if n in found}
    return found | split | ({"W_O": found["W_O"].unflatten(0, (heads, -1))} if "W_O" in found else {})


def linear(weight: Float[Tensor, "in out"], bias: Float[Tensor, "out"] | None = None) -> nn.Linear:
    """x W + b of set weights, that no gradient moves."""
    size_in, size_out = weight.shape
    made = nn.Linear(size_in, size_out, bias is not None, device="meta")  # no weights that are drawn and thrown away
    made.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
