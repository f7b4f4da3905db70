"""`record_rows` in CUDA C++ (`INTERP_KERNELS=cuda`): record_rows.cu, built by nvcc when it is first asked for."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from interp.errors import Failed
from interp.kernels.record_rows import GROUP, reference

SOURCE = Path(__file__).with_name("record_rows.cu")
ROWS = 64  # of a block
KNOWN = {torch.float32: 4, torch.bfloat16: 2}
STRICT = ["-O3", "-fmad=false", "-std=c++17"]  # products and sums are rounded each


def record_rows(
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None = None,
    pivot: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """See `interp.kernels.record_rows`; other dtypes than float32, bfloat16 and int8 codes are left to the reference."""
    coded = scales is not None and pivot is not None and pivot.dtype == torch.float32
    if x.dtype not in KNOWN or not (coded or rows.dtype in KNOWN) or not rows.is_contiguous() or not len(slots):
        return reference(x, kept, slots, rows, scales, pivot, sums)
    major, minor = torch.cuda.get_device_capability(x.device)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        return launched(library(f"sm_{major}{minor}"), x, kept, slots, rows, scales, pivot, sums, stream)


def launched(
    made: ctypes.CDLL,
    x: Tensor,
    kept: Tensor | None,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None,
    pivot: Tensor | None,
    sums: Tensor | None,
    stream: int,
) -> Tensor:
    """By a library that was built. Raises `Failed` with CUDA's number of the error."""
    n, width = len(slots), x.shape[1]
    groups, x = -(-width // GROUP), x.contiguous()
    squares = x.new_empty(groups, n, dtype=torch.float32)
    parts = None if sums is None else x.new_empty(-(-n // ROWS), 3, width, dtype=torch.float64)
    (x_, kept_, slots_, rows_), (scales_, pivot_, squares_, parts_) = (
        [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in some]
        for some in ((x, kept, slots, rows), (scales, pivot, squares, parts))
    )
    sizes = map(ctypes.c_int, (n, width, groups))
    failed = made.record_rows(
        x_,
        x.itemsize,
        kept_,
        slots_,
        rows_,
        rows.itemsize,
        scales_,
        pivot_,
        squares_,
        parts_,
        *sizes,
        ctypes.c_void_p(stream),
    )
    if failed:
        raise Failed(f"record_rows.cu did not run: CUDA error {failed}. INTERP_KERNELS=triton, or leave it out.")
    if sums is not None and parts is not None:
        sums += parts.sum(0)
    return squares.sum(0).sqrt()


@cache
def library(architecture: str) -> ctypes.CDLL:
    """Built for one architecture, once a process. Raises `Failed` with what nvcc says."""
    return built(["nvcc", *STRICT, f"-arch={architecture}", "-Xcompiler", "-fPIC"])


def built(compiler: list[str]) -> ctypes.CDLL:
    """The source as a library. Raises `Failed` with what the compiler says."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "record_rows.so")
        done = subprocess.run([*compiler, "-shared", str(SOURCE), "-o", str(to)], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{compiler[0]} could not build {SOURCE.name}: {done.stderr[-2000:]}")
        return ctypes.CDLL(str(to))
