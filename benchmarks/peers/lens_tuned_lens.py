"""tuned-lens' LogitLens and PredictionTrajectory, built as its `from_lens_and_model` does, of a few tokens at a time.

Entropy, forward KL, cross-entropy, largest probability. Left out: its rank, which sorts the vocabulary twice for every
token. It has no backward KL. Run by benchmarks/lens.py in .bench/tuned_lens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tuned_lens.nn.lenses import LogitLens
from tuned_lens.plotting import PredictionTrajectory

sys.path.insert(0, str(Path(__file__).parent))
from lensing import given, network, serve


def build(a: argparse.Namespace) -> Callable[[], list[Any]]:
    """The statistics that it shares with ours."""
    lens, (states, following) = LogitLens.from_model(network(a, layers=1)), given(a)

    def one(h: Tensor, next_token: Tensor) -> list[Any]:
        read = [lens.forward(x, i).log_softmax(dim=-1).detach().cpu().numpy() for i, x in enumerate(h)]
        ids = next_token.numpy()
        seen = PredictionTrajectory(np.stack(read, axis=-3), input_ids=ids, targets=ids)
        return [s.stats for s in (seen.entropy(), seen.forward_kl(), seen.cross_entropy(), seen.max_probability())]

    return lambda: [
        one(states[:, i : i + a.piece], following[i : i + a.piece]) for i in range(0, a.tokens, a.piece)
    ]  # fmt: skip


if __name__ == "__main__":
    serve(build)
