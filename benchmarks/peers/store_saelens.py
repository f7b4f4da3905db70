"""SAELens fed ready rows: its cache on the disk, its reading of that cache, and its mixing buffer alone. Prints JSON.

Run by `benchmarks/store.py` with the Python of .bench/saelens. Its own code throughout, but for the model: rows come from
a tensor. Its cache holds float32 (Arrow has no bfloat16).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Array2D, Features, Sequence, Value
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.config import CacheActivationsRunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.mixing_buffer import mixing_buffer

CONTEXT, HOOK, PROMPTS = 256, "blocks.0.hook_resid_post", 32


class Ready:
    """What the runner asks of an activations store: a batch of rows of 32 prompts."""

    def __init__(self, x: torch.Tensor) -> None:
        self.parts = itertools.cycle(x.split(PROMPTS * CONTEXT))
        self.ids = torch.zeros(PROMPTS * CONTEXT, dtype=torch.int64)

    def get_raw_llm_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        return next(self.parts), self.ids


def runner(x: torch.Tensor, rows: int, folder: Path) -> CacheActivationsRunner:
    """As its `__init__` makes it, without a model."""
    made = CacheActivationsRunner.__new__(CacheActivationsRunner)
    made.cfg = CacheActivationsRunnerConfig(
        dataset_path="ready", model_name="ready", model_batch_size=PROMPTS, hook_name=HOOK, d_in=x.shape[1],
        training_tokens=rows, context_size=CONTEXT, device="cpu", new_cached_activations_path=str(folder),
        buffer_size_gb=0.25,
    )  # fmt: skip
    made.activations_store, made.context_size = Ready(x), CONTEXT
    kinds = {HOOK: Array2D(shape=(CONTEXT, x.shape[1]), dtype="float32")}
    made.features = Features(kinds | {"token_ids": Sequence(Value(dtype="int32"), length=CONTEXT)})
    return made


def on_the_disk(folder: Path, drop: bool) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
                if drop:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def steady(batches: object, batch: int, buffer: int, refills: int) -> float:
    """Rows a second after the first batch, over whole refills of half a buffer."""
    each = max(1, buffer // 2 // batch)
    for _ in range(each):
        next(batches)
    begin = time.perf_counter()
    for _ in range(refills * each):
        next(batches)
    return refills * each * batch / (time.perf_counter() - begin)


def main() -> None:
    d, rows, batch, buffer, folder = *map(int, sys.argv[1:5]), Path(sys.argv[5])
    x = torch.randn(1 << 16, d)
    folder.mkdir(parents=True)
    begin = time.perf_counter()
    rows = len(runner(x, rows, folder).run()) * CONTEXT
    on_the_disk(folder, drop=False)
    told = {"write": rows / (time.perf_counter() - begin)}
    on_the_disk(folder, drop=True)
    store = ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name=HOOK, hook_head_index=None, context_size=CONTEXT, d_in=d,
        n_batches_in_buffer=buffer // CONTEXT, total_training_tokens=rows, store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=batch, prepend_bos=False, normalize_activations="none", device=torch.device("cpu"),
        dtype="float32", cached_activations_path=str(folder),
    )  # fmt: skip
    told["read"] = steady(iter(store), batch, buffer, 2 * (rows - buffer) // buffer)
    ready = itertools.cycle(x.split(PROMPTS * CONTEXT))
    told["buffer"] = steady(mixing_buffer(buffer, batch, ready), batch, buffer, 6)
    print(json.dumps({"rows_a_second": told, "version": version("sae-lens"), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
