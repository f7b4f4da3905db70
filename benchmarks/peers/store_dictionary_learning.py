"""dictionary_learning's ActivationBuffer fed ready rows. Prints JSON.

Run by `benchmarks/store.py` with the Python of .bench/dictionary_learning. Its own code throughout; where it asks a model
for hidden states, it gets a tensor. It keeps no rows on the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version

import torch
from dictionary_learning.buffer import ActivationBuffer

CONTEXT, PROMPTS = 256, 32


class Saved:
    """A value that a trace has saved."""

    def __init__(self, value: object) -> None:
        self.value = value

    def save(self) -> Saved:
        return self

    def stop(self) -> None:
        """The real one would stop the model here."""


class Ready:
    """Model and submodule in one: every trace "computes" the next 32 prompts of ready rows."""

    def __init__(self, x: torch.Tensor) -> None:
        self.dtype = x.dtype
        self.parts = itertools.cycle(x.view(-1, CONTEXT, x.shape[1]).split(PROMPTS))
        self.inputs = Saved(((), {"attention_mask": torch.ones(PROMPTS, CONTEXT)}))

    @contextlib.contextmanager
    def trace(self, *_: object, **__: object) -> Iterator[None]:
        self.output = Saved(next(self.parts))
        yield


def main() -> None:
    d, batch, buffer = map(int, sys.argv[1:4])
    model = Ready(torch.randn(1 << 16, d).bfloat16())
    batches = ActivationBuffer(
        itertools.repeat(""), model, model, d_submodule=d, n_ctxs=buffer // CONTEXT, ctx_len=CONTEXT,
        refresh_batch_size=PROMPTS, out_batch_size=batch,
    )  # fmt: skip
    each = buffer // 2 // batch  # batches between two refills
    for _ in range(each):
        next(batches)
    begin = time.perf_counter()
    for _ in range(6 * each):
        next(batches)
    told = {"buffer": 6 * each * batch / (time.perf_counter() - begin)}
    print(json.dumps({"rows_a_second": told, "version": version("dictionary-learning"), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
