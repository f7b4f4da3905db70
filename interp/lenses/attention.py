"""Attention lens: what each head writes, translated before the head of the model reads it.

t_h(r) = r + W_h z + b_h for a head's write r = z W_O^h, and logits = U(norm_f(t_h(r))); untrained it is the logit lens on
single heads. Loss: KL(p_model ‖ p_h). Source: Sakarvadia et al. 2023 (arXiv:2310.16270), who train a whole matrix from
head to vocabulary; here the unembedding is the model's own, as in the tuned lens, so that d_head · d numbers a head are learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import WrongUse
from interp.lenses.affine import AffineLens
from interp.lenses.lens import Lens
from interp.lenses.tuned import Descent, Recipe, descent
from interp.model.model import Model
from interp.sites import head_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class AttentionLens(AffineLens):
    """A map of each head's z to the stream. The last row is the stream after the last block: the model itself."""

    kind = "attention"

    def rows(self, sites: Sequence[str] | None) -> list[str]:
        """Every head of the stack that the model's head reads, or those named."""
        prefix = self.head.stack.prefix
        own = [n for n in self.model.sites() if n.startswith(f"{prefix}blocks.") and n.endswith(".attn.result")]
        if sites is None and not own:
            raise WrongUse(f"{self.model.id} has no heads whose writes are known: `interp sites` lists what it has.")
        found = Lens.readable(self, own if sites is None else sites)
        others = [row for row in found if head_of(row)[1] < 0]
        if others:
            raise WrongUse(f"the attention lens reads heads, blocks.*.attn.result, not {others[0]!r}.")
        return found

    def width(self, row: str) -> int:
        """d_head."""
        return self.model.width(_z(row))

    def split(self, row: str, x: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d_head"]]:
        """(The head's write, its z): they stand side by side."""
        return x[:, : -self.width(row)], x[:, -self.width(row) :]

    def states(
        self, inputs: dict[str, Any], names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch pos d"], dict[str, Float[Tensor, "batch pos m"]]]:
        """(The last stream, of each head its write and its z side by side)."""
        heads = [row for row in names if row != self.end]
        last, states = super().states(inputs, [*names, *map(_z, heads)])
        both = {row: torch.cat([states[row], states[_z(row)]], dim=-1) for row in heads}
        return last, {row: both.get(row, states[row]) for row in names}


def _z(row: str) -> str:
    site, head = head_of(row)
    return f"{site.removesuffix('result')}z.{head}"


def train_attention_lens(
    model: Model,
    texts: Iterable[str],
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
) -> AttentionLens:
    """Train an `AttentionLens`, save and resume it as `train_tuned_lens` does. Raises `WrongUse` if there is no text."""
    lens = AttentionLens(model)
    descent(Descent(lens, recipe or Recipe()), texts).run(out, resume)
    return lens
