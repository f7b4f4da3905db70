"""dictionary_learning's trainers, a step at a time. Run by benchmarks/train.py in .bench/dictionary_learning.

Their settings as shipped, but for the learning rate and its warm-up. JumpReLU reads rows of length one, as its
`normalize_activations` has it. It trains no TopK transcoder.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from training import Rebuild, Step, autocast, blocks, fuse, serve


def build(a: argparse.Namespace) -> tuple[Step, Rebuild]:
    shape: dict[str, Any] = {"steps": a.blocks * a.steps, "activation_dim": a.d, "dict_size": a.m, "layer": 0}
    shape |= {"lm_name": "", "device": "cpu", "seed": 0, "lr": a.lr, "warmup_steps": 0}
    jump = a.kind == "jumprelu"
    if jump:
        trainer: Any = JumpReluTrainer(**shape, target_l0=a.k, sparsity_warmup_steps=None)
    else:
        trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[a.kind](**shape, k=a.k)
    fuse(trainer.optimizer, a)
    scale, number = a.d**-0.5 if jump else 1.0, iter(range(a.blocks * a.steps))

    def step(x: Tensor, _: Tensor) -> None:
        with autocast(a):
            trainer.update(next(number), x * scale)

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        f = trainer.ae.encode(x * scale) if jump else trainer.ae.encode(x, use_threshold=False)
        return trainer.ae.decode(f) / scale, f

    return step, rebuild


if __name__ == "__main__":
    serve(partial(blocks, build=build))
