"""One training step of a TopK autoencoder: ours against the plain dense formulation, alternating in one run.

    python -m benchmarks.sae_step [--d 512 --m 8192 --k 32 --batch 4096 --rounds 7]

Floor, FLOPs a step: dense 10 B d m; sparse 2 B d m (the encoder) + 8 B k d (decoder and all gradients).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from interp.dictionaries import RowsSource, TopK, TrainConfig
from interp.dictionaries.trainer import Trainer


def dense_step(d: int, m: int, k: int, x: torch.Tensor) -> Callable[[], None]:
    """The textbook step: dense codes, autograd, gradient projection, clipping, Adam, renormalised decoder."""
    W_dec = torch.nn.functional.normalize(torch.randn(m, d), dim=1).requires_grad_()
    W_enc = W_dec.detach().T.clone().requires_grad_()
    b_enc, b_dec = torch.zeros(m, requires_grad=True), torch.zeros(d, requires_grad=True)
    weights = [W_enc, W_dec, b_enc, b_dec]
    adam = torch.optim.Adam(weights, lr=1e-4, eps=6.25e-10, fused=True)

    def step() -> None:
        z = torch.relu((x - b_dec) @ W_enc + b_enc)
        top = z.topk(k, dim=1)
        f = torch.zeros_like(z).scatter(1, top.indices, top.values)
        loss = (x - f @ W_dec - b_dec).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            adam.zero_grad()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return step


def main() -> None:
    """Print the ratio of medians, both medians, and tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("d", 512), ("m", 8192), ("k", 32), ("batch", 4096), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    x = torch.randn(a.batch, a.d, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(TrainConfig(TopK(a.k), latents=a.m, batch=a.batch, steps=10**6), RowsSource(x))
    trainer.begin()
    steps = {"ours": lambda: trainer.update(x, x), "dense": dense_step(a.d, a.m, a.k, x)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(a.rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    result = {
        "dense_over_ours": median["dense"] / median["ours"],
        "seconds": median,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result | {"tokens_per_second": {n: a.batch / s for n, s in median.items()}, **vars(a)}, indent=1))


if __name__ == "__main__":
    main()
