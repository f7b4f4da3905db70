"""What training at scale takes, by arithmetic, and what a step of a shared dictionary hands to other processes, counted.

    python -m benchmarks.scale [--no-count]

Symbols: B rows a step, d width, m latents, k active, R processes. A step of a TopK dictionary takes 2Bdm + 8Bdk operations (the
encoder, then four products of the active latents alone) and moves 4Bm bytes of pre-activations, 8Bkd of gathers, and 52dm for
the weights (float32 weight and two moments read and written, the gradient's row used up in place, a bfloat16 copy written: 26 bytes
each of two matrices). Rates are assumptions, to be replaced by measured ones: G operations and W bytes a second of an H200, N bytes
a second between machines, P to the host. Nothing here was measured on a GPU.

The traffic is counted: two processes of gloo train a small dictionary, and every tensor handed to a collective is added up.
Data-parallel training would hand over the gradients instead, 2dm numbers and the biases.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

G, W, N, P = 790e12, 4.3e12, 50e9, 50e9
MEMORY = 141e9  # bytes of an H200
SHARE = 0.6  # of the floor that is planned with
STATE = 4 + 4 + 4 + 2  # bytes a weight: float32, two moments, the bfloat16 copy
STEPS = 5
SMALL = {"latents": 512, "k": 8, "batch": 64, "width": 32}


def step(B: int, d: int, m: int, k: int, R: int = 1) -> dict[str, float]:
    """Floor of one step on R GPUs that share the latents: seconds, tokens a second, bytes of state a GPU, bytes received."""
    operations = (2 * B * d * m + 8 * B * d * k) / R
    moved = (4 * B * m + 52 * d * m) / R + 8 * B * k * d
    received = 2 * 4 * B * d + 12 * B * k * (R - 1) if R > 1 else 0.0  # sums go round twice; candidates come from all
    seconds = operations / G + moved / W + received / N
    return {
        "seconds": seconds,
        "tokens_a_second": SHARE * B / seconds,
        "state_GB": 2 * d * m * STATE / R / 1e9,
        "received_GB": received / 1e9,
        "data_parallel_GB": 0.0 if R == 1 else 2 * d * m * 4 / 1e9,
    }


def traffic(B: int, d: int, k: int, R: int) -> float:
    """Bytes that one process hands to the others in a TopK step: reconstruction and its way back, candidates and their order."""
    return 0.0 if R == 1 else 4 * B * d + 12 * B * k + 4 * d


def needed(d: int, m: int) -> int:
    """GPUs whose memory holds the state of a dictionary, a third of it left for everything else."""
    return int(-(-2 * d * m * STATE // (MEMORY * 2 / 3)))


CASES = {  # B, d, m, k, GPUs
    "GPT-2, 24,576 latents": (4096, 768, 24576, 32, 1),
    "8 billion, one site, 131,072 latents": (16384, 4096, 131072, 64, 1),
    "the same on 8 GPUs": (16384, 4096, 131072, 64, 8),
    "one site, 2²⁰ latents, 8 GPUs": (16384, 4096, 2**20, 64, 8),
    "one site, 2²⁵ latents (a billion over 32 layers)": (65536, 4096, 2**25, 128, needed(4096, 2**25)),
    "one site, a billion latents": (65536, 4096, 10**9, 256, needed(4096, 10**9)),
}


def recorded(parameters: float, d: int, sites: int, bytes_a_number: int) -> dict[str, float]:
    """Of a forward pass: microseconds a token at G, to GPU memory, to the host, and what the host must take a second."""
    forward = 2 * parameters / G
    return {
        "forward_us": forward * 1e6,
        "gpu_us": sites * (2 + bytes_a_number) * d / W * 1e6,
        "host_us": sites * bytes_a_number * d / P * 1e6,
        "host_GB_a_second": sites * bytes_a_number * d / forward / 1e9,
    }


RECORDED = {
    "8 billion, one site, bfloat16": (8e9, 4096, 1, 2),
    "8 billion, 32 sites, bfloat16": (8e9, 4096, 32, 2),
    "8 billion, 32 sites, int8": (8e9, 4096, 32, 1),
    "70 billion, 80 sites, bfloat16": (70e9, 8192, 80, 2),
}


# ---------------------------------------------------------------- counted


def worker() -> None:
    """One of the processes: trains, and tells what it handed over in a step."""
    from interp import ranks
    from interp.dictionaries import RowsSource, TrainConfig
    from interp.dictionaries.sharded import ShardedTrainer

    torch.set_num_threads(1)
    ranks.start()
    rows = torch.randn(4096, SMALL["width"], generator=torch.Generator().manual_seed(0))
    asked = {"kind": "topk", "latents": SMALL["latents"], "k": SMALL["k"], "batch": SMALL["batch"], "steps": STEPS}
    trainer = ShardedTrainer(TrainConfig.from_dict(asked), RowsSource(rows))
    trainer.begin()
    handed, reduced, gathered = [0], ranks.reduced, ranks.gathered

    def counted(inner: Any) -> Any:
        def call(t: Tensor, *how: Any) -> Any:
            handed[0] += t.nbytes
            return inner(t, *how)

        return call

    ranks.reduced, ranks.gathered = counted(reduced), counted(gathered)
    for number in range(STEPS):
        batch = rows[number * SMALL["batch"] :][: SMALL["batch"]]
        trainer.update(batch, batch)
    ranks.reduced, ranks.gathered = reduced, gathered
    if not ranks.rank():
        print(json.dumps({"bytes_a_step": handed[0] / STEPS}))
    ranks.stop()


def count() -> dict[str, float]:
    """Bytes that a process hands over in a step, beside the formula and data-parallel training."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "benchmarks.scale", "--worker"], check=True, stdout=subprocess.PIPE, text=True
    )
    d, m = SMALL["width"], SMALL["latents"]
    return json.loads(done.stdout.splitlines()[-1]) | {
        "by_formula": traffic(SMALL["batch"], d, SMALL["k"], 2),
        "data_parallel": 4.0 * (2 * d * m + m + 2 * d),
    }


def main() -> None:
    """Print the tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-count", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        return worker()
    steps = {name: {"gpus": R} | step(B, d, m, k, R) for name, (B, d, m, k, R) in CASES.items()}
    print(
        f"{'a step':52}{'GPUs':>6}{'ms':>10}{'tokens/s':>12}{'state GB/GPU':>14}{'received GB':>13}{'data-parallel GB':>18}"
    )
    for name, r in steps.items():
        print(
            f"{name:52}{r['gpus']:6}{1e3 * r['seconds']:10.1f}{r['tokens_a_second']:12,.0f}{r['state_GB']:14.1f}",
            end="",
        )
        print(f"{r['received_GB']:13.3f}{r['data_parallel_GB']:18.1f}")
    passes = {name: recorded(*case) for name, case in RECORDED.items()}
    print(f"\n{'µs a token':52}{'forward':>10}{'to the GPU':>12}{'to the host':>13}{'host GB/s':>11}")
    for name, r in passes.items():
        print(f"{name:52}{r['forward_us']:10.1f}{r['gpu_us']:12.3f}{r['host_us']:13.2f}{r['host_GB_a_second']:11.1f}")
    told: dict[str, Any] = {"steps": steps, "recording": passes}
    if not a.no_count:
        told["counted"] = count()
        print(
            f"\nhanded over a step, two processes, {SMALL}: "
            + ", ".join(f"{k} {v:,.0f}" for k, v in told["counted"].items())
        )
    print(json.dumps(told))
    return None


if __name__ == "__main__":
    main()
