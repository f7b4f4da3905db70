"""SAELens' SAETrainer, a step at a time. Run by benchmarks/train.py in .bench/saelens.

Its settings as shipped, but for what makes losses comparable: the learning rate, decoder rows that start at length one,
and for JumpReLU the target-L0 loss at the other's scale of rows. It trains no transcoder.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from training import Rebuild, Step, blocks, fuse, serve


def autoencoder(a: argparse.Namespace) -> Any:
    shape: dict[str, Any] = {"d_in": a.d, "d_sae": a.m, "device": "cpu", "decoder_init_norm": 1.0}
    if a.kind == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**shape, k=a.k))
    if a.kind == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape, k=a.k))
    jump: dict[str, Any] = {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": a.k,
        "l0_coefficient": 1 / (2 * a.k),
    }
    jump |= {"jumprelu_init_threshold": 1e-3, "jumprelu_bandwidth": 1e-3}
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**shape, **jump))


def build(a: argparse.Namespace) -> tuple[Step, Rebuild]:
    sae = autoencoder(a)
    config = SAETrainerConfig(
        total_training_samples=a.blocks * a.steps * a.batch, train_batch_size_samples=a.batch, lr=a.lr, lr_end=a.lr,
        autocast=a.form == "bfloat16",
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(()))
    fuse(trainer.optimizer, a)
    scale = a.d**-0.5 if a.kind == "jumprelu" else 1.0

    def step(x: Tensor, _: Tensor) -> None:
        trainer.step(x * scale)
        trainer.n_training_steps += 1

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        f, _ = sae.encode_with_hidden_pre(x * scale)
        return sae.decode(f) / scale, f

    return step, rebuild


if __name__ == "__main__":
    serve(partial(blocks, build=build))
