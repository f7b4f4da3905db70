"""nnsight's `trace` with `save`. Run by benchmarks/record.py in .bench/nnsight."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from recording import Recorder, serve


def build(net: nn.Module, ids: Tensor, folder: Path, recorder: str) -> Recorder:
    model: Any = NNsight(net)
    layers = range(net.config.n_layer)

    def residuals() -> list[Tensor]:
        kept = []
        with torch.no_grad(), model.trace(ids, use_cache=False):
            for i in layers:
                kept.append(model.transformer.h[i].output.save())
        return kept

    def outputs() -> list[Tensor]:
        kept = []
        with torch.no_grad(), model.trace(ids, use_cache=False):
            for i in layers:
                kept.append(model.transformer.h[i].attn.output[0].save())
                kept.append(model.transformer.h[i].mlp.output.save())
                kept.append(model.transformer.h[i].output.save())
        return kept

    return {"residuals": residuals, "outputs": outputs}


if __name__ == "__main__":
    serve(build, {"nnsight": version("nnsight"), "transformers": version("transformers")})
