"""Blocks of training steps on rows that lie on the disk: what benchmarks/train.py and the peers' scripts share.

Nothing but torch and numpy: each script runs it in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZES = ("d", "m", "k", "batch", "steps", "blocks")
Step = Callable[[Tensor, Tensor], Any]  # one step on rows x and targets y [batch, d]
Rebuild = Callable[
    [Tensor], tuple[Tensor, Tensor]
]  # (ŷ [rows, d], f [rows, m or k]) of rows x, selected as in training
Build = Callable[[argparse.Namespace], tuple[Step, Rebuild]]


def write_rows(folder: Path, a: argparse.Namespace, active: int = 24, noise: float = 0.1, seed: int = 0) -> None:
    """x.npy and y.npy: for every step a batch and one held out, at the end; E‖x‖² = E‖y‖² = d.

    x = Σ_j c_j u_j + noise, y = Σ_j c_j v_j + noise: `active` of m/2 random unit directions a row, c exponential. Seeds are
    far from those that contestants start with: of one stream of numbers, their first decoder and u can be the same part.
    """
    generator = torch.Generator().manual_seed(10**9 + seed)
    rows, planted = (a.blocks * a.steps + 1) * a.batch, max(2, a.m // 2)
    indices = torch.randint(planted, (rows, active), generator=generator)
    c = torch.empty(rows, active).exponential_(generator=generator)
    for name in ("x", "y"):
        u = torch.nn.functional.normalize(torch.randn(planted, a.d, generator=generator), dim=1)
        t = torch.nn.functional.embedding_bag(indices, u, per_sample_weights=c, mode="sum")
        t += noise * torch.randn(rows, a.d, generator=generator)
        t *= (a.d / t[: a.batch].square().sum(1).mean()).sqrt()
        np.save(folder / f"{name}.npy", t.numpy())


def clocks() -> tuple[float, float]:
    """(Wall, CPU of all threads), s."""
    return time.perf_counter(), time.process_time()


def blocks(a: argparse.Namespace, build: Build) -> Iterator[dict[str, float]]:
    """Of each block: seconds a step, and FVU and L0 of the held-out rows after it."""
    torch.manual_seed(0)
    x = np.load(a.folder / "x.npy", mmap_mode="r")
    y = np.load(a.folder / "y.npy", mmap_mode="r") if a.kind == "transcoder" else x
    step, rebuild = build(a)
    for block in range(a.blocks):
        pairs = [batch(x, y, block * a.steps + i, a.batch) for i in range(a.steps)]
        wall, cpu = clocks()
        for pair in pairs:
            step(*pair)
        after = clocks()
        told = {"wall": (after[0] - wall) / a.steps, "cpu": (after[1] - cpu) / a.steps}
        yield told | held_out(rebuild, *batch(x, y, a.blocks * a.steps, a.batch))


def batch(x: np.ndarray, y: np.ndarray, number: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows and targets of one step, in memory; they are one tensor if they are the same."""
    mine = slice(number * size, (number + 1) * size)
    rows = torch.from_numpy(x[mine].copy())
    return rows, rows if y is x else torch.from_numpy(y[mine].copy())


@torch.no_grad()
def held_out(rebuild: Rebuild, x: Tensor, y: Tensor) -> dict[str, float]:
    """FVU = ‖y − ŷ‖² / ‖y − ȳ‖², and active latents a row."""
    found, f = rebuild(x)
    fvu = (y - found).square().sum() / (y - y.mean(0)).square().sum()
    return {"fvu": fvu.item(), "l0": (f > 0).sum().item() / len(x)}


def autocast(a: argparse.Namespace) -> AbstractContextManager[Any]:
    """What a peer's step runs under: nothing, unless bfloat16 was asked for."""
    return torch.autocast("cpu", torch.bfloat16) if a.form == "bfloat16" else nullcontext()


def fuse(optimiser: torch.optim.Optimizer, a: argparse.Namespace) -> None:
    """Let Adam be the fused one, unless the peer is to be as shipped."""
    for group in optimiser.param_groups if a.form != "shipped" else []:
        group.update(fused=True, foreach=False)


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What a worker is told."""
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("kind", "form"):
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()


def serve(told: Callable[[argparse.Namespace], Iterator[dict[str, float]]]) -> None:
    """A process that makes a block for each line it reads, and answers in a line of JSON."""
    made = told(arguments(argparse.ArgumentParser()))
    for _ in sys.stdin:
        print(json.dumps(next(made)), flush=True)
