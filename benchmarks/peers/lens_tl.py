"""TransformerLens' final norm and unembedding; it has no statistics, so torch makes them of all logits of a few tokens.

Run by benchmarks/lens.py in .bench/tl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

sys.path.insert(0, str(Path(__file__).parent))
from lensing import given, serve


def build(a: argparse.Namespace) -> Callable[[], list[tuple[Tensor, ...]]]:
    """All statistics that ours returns."""
    config = HookedTransformerConfig(
        n_layers=1, d_model=a.d, n_heads=max(1, a.d // 64), d_head=min(a.d, 64), d_vocab=a.vocabulary, n_ctx=8,
        act_fn="gelu_new", normalization_type="LN", device="cpu", seed=0,
    )  # fmt: skip
    model, (states, following) = HookedTransformer(config).eval(), given(a)

    def one(h: Tensor, next_token: Tensor) -> tuple[Tensor, ...]:
        logits = model.unembed(model.ln_final(h))
        log_p = logits.log_softmax(-1)
        p, log_q = log_p.exp(), log_p[-1]
        wanted = torch.stack([log_q.argmax(-1), next_token], dim=-1).expand(len(h), -1, -1)
        asked = logits.gather(-1, wanted)
        return (
            *log_p.topk(5),
            -(p * log_p).sum(-1),
            (log_q.exp() * (log_q - log_p)).sum(-1),
            (p * (log_p - log_q)).sum(-1),
            log_p.gather(-1, wanted),
            1 + (logits[..., None, :] > asked[..., None]).sum(-1),
        )

    return lambda: [
        one(states[:, i : i + a.piece], following[i : i + a.piece]) for i in range(0, a.tokens, a.piece)
    ]  # fmt: skip


if __name__ == "__main__":
    serve(build)
