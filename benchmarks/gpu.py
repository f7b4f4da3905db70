"""Every op on a GPU, in one script: checked against float64 on the CPU, timed against eager torch and the floor.

    python -m benchmarks.gpu [--out gpu.json] [--minutes 10]

Sizes are those of benchmarks/kernels.py, and `LARGE`. Checked are the numbers of results (relative to the norm of the
float64 reference, `BARS`) and, of results that are places, the share that is the same: near a tie others may be right.
Timed by CUDA events, median of as many runs as fit in 0.2 s. Floor: multiplications at the rate of a product of the same
width by torch, bytes at that of a copy. Without a GPU it says so and exits 1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels import CASES, Case, _lens
from benchmarks.record import machine
from interp.errors import Failed
from interp.kernels import OPS

BARS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SAME = 0.999  # of places
LARGE: dict[str, list[Case]] = {
    "lens_statistics": [
        _lens("GPT-2, all tokens", 12, 4096, 768, 50257),
        _lens("8 billion", 32, 512, 4096, 128256),
    ]
}


def seconds(work: Callable[[], Any]) -> float:
    """Median over runs of 0.2 s together, at least three."""
    work()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.2 and len(times) < 100):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return float(np.median(times))


def cast(args: tuple[Any, ...], device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments elsewhere, numbers in another dtype."""
    return tuple(
        a.to(device, dtype if a.is_floating_point() else a.dtype) if isinstance(a, Tensor) else a for a in args
    )


def checked(op: str, case: Case, dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error of numbers, and the least share of places that are the same."""
    args = cast(case.arguments("cpu"), "cpu", dtype)  # the reference sees what was rounded to the dtype
    want = OPS[op].forms["reference"](*cast(args, "cpu", torch.float64))
    got = OPS[op](*cast(args, "cuda", dtype))
    error, same = 0.0, 1.0
    got, want = ((t,) if isinstance(t, Tensor) else t for t in (got, want))
    for a, b in zip((t.cpu() for t in got), want, strict=True):
        if a.is_floating_point():
            error = max(error, float((a.double() - b).norm() / b.norm().clamp(min=1e-12)))
        else:
            same = min(same, float((a == b).double().mean()))
    return {"error": error, "same": same}


@torch.no_grad()
def row(op: str, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Times of one size."""
    args, (n, d, m) = cast(case.arguments("cuda"), "cuda", dtype), case.product
    x, W, there = (torch.randn(*s, device="cuda", dtype=dtype) for s in ((min(n, 8192), d), (d, m), (2**26,)))
    product = seconds(lambda: x @ W) * n / len(x)
    floor = product + case.bytes * seconds(lambda: there.clone()) / (2 * there.nbytes)
    ours = seconds(lambda: OPS[op](*args))
    told = {
        "form": OPS[op].chosen("cuda", *args),
        "ms": ours * 1e3,
        "floor_ms": floor * 1e3,
        "over_floor": ours / floor,
    }
    try:
        told["eager_over_ours"] = seconds(lambda: case.eager(*args)) / ours
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # all scores at once do not fit
    return told


def main() -> None:
    """Check all, then time all, as far as the minutes go; write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=10)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; the CPU's table is python -m benchmarks.kernels")
    end, rows = time.monotonic() + 60 * a.minutes, []
    about = machine("cuda") | {"cuda": torch.version.cuda, "date": date.today().isoformat()}
    for op, cases in CASES.items():
        for case in [*cases, *LARGE.get(op, [])]:
            for dtype in BARS:
                if time.monotonic() > end:
                    raise Failed(f"{a.minutes} minutes were too few: {len(rows)} rows are in {a.out}")
                told = {"op": op, "size": case.size, "dtype": str(dtype)[6:]}
                if case in cases:
                    told |= checked(op, case, dtype)
                    told["passed"] = told["error"] <= BARS[dtype] and (dtype != torch.float32 or told["same"] >= SAME)
                rows.append(told | row(op, case, dtype))
                print(json.dumps(rows[-1]), flush=True)
                a.out.write_text(json.dumps({"gpu": rows, "machine": about}, indent=1), encoding="utf-8")
    wrong = [r for r in rows if not r.get("passed", True)]
    raise SystemExit(f"{len(wrong)} of {len(rows)} rows failed" if wrong else None)


if __name__ == "__main__":
    main()
