"""sparsify's SparseCoder, a step at a time in the order of its Trainer. Run by benchmarks/train.py in .bench/sparsify.

Its Trainer reads a model, not rows, so the step is made here of the SparseCoder's own methods. Adam, which is one of its
optimisers, at the learning rate given; the first biases from the first batch; no AuxK, as shipped.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from training import Rebuild, Step, autocast, blocks, fuse, serve


def build(a: argparse.Namespace) -> tuple[Step, Rebuild]:
    torch.set_float32_matmul_precision("high")  # as its Trainer has it
    pair = a.kind == "transcoder"
    coder = SparseCoder(a.d, SparseCoderConfig(num_latents=a.m, k=a.k, skip_connection=pair, transcode=pair))
    adam = torch.optim.Adam(coder.parameters(), lr=a.lr)
    fuse(adam, a)
    silent, fresh = torch.zeros(a.m, dtype=torch.int64), [True]

    @torch.no_grad()
    def begin(x: Tensor, y: Tensor) -> None:
        if pair:
            coder.encoder.bias.copy_(-x.mean(0) @ coder.encoder.weight.T)
        coder.b_dec.copy_(y.mean(0))
        fresh.clear()

    def step(x: Tensor, y: Tensor) -> None:
        if fresh:
            begin(x, y)
        if not pair:
            coder.set_decoder_norm_to_unit_norm()
        with autocast(a):
            out = coder(x, y)
        out.fvu.backward()
        out.fvu.item()
        if not pair:
            coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        silent.add_(len(x))[out.latent_indices.flatten()] = 0

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        out = coder(x)
        return out.sae_out, out.latent_acts

    return step, rebuild


if __name__ == "__main__":
    serve(partial(blocks, build=build))
