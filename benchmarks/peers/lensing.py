"""Rounds of reading states through a head: what benchmarks/lens.py and the peers' scripts share.

Nothing but torch and transformers: each script runs it in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = ("layers", "d", "vocabulary", "tokens", "piece")
Build = Callable[[argparse.Namespace], Callable[[], Any]]  # the work of one round


def network(a: argparse.Namespace, layers: int | None = None) -> Any:
    """A random GPT-2 of the shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_layer": layers or a.layers, "n_embd": a.d, "n_head": max(1, a.d // 64), "vocab_size": a.vocabulary}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()


def given(a: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """States [layers, tokens, d], the last of the stream at the end, and the tokens that come next."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(a.layers, a.tokens, a.d, generator=generator)
    return states, torch.randint(a.vocabulary, (a.tokens,), generator=generator)


def memory(name: str) -> int:
    """Bytes of this process by a name of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


@torch.no_grad()
def measured(work: Callable[[], Any], tokens: int) -> dict[str, float]:
    """Seconds a token, wall and CPU of all threads, and the most bytes held beyond those before."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    work()
    told = {"wall": (time.perf_counter() - wall) / tokens, "cpu": (time.process_time() - cpu) / tokens}
    return told | {"extra": memory("VmHWM") - before}


def serve(build: Build) -> None:
    """A process that works a round for each line it reads, and answers in a line of JSON."""
    parser = argparse.ArgumentParser()
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    work = build(a)
    for _ in sys.stdin:
        print(json.dumps(measured(work, a.tokens)), flush=True)
