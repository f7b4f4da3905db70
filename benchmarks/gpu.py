"""Every op on a GPU, in one script: checked against float64 on the CPU, timed against eager torch and the floor.

    python -m benchmarks.gpu [--out gpu.json] [--minutes 10]
    python -m benchmarks.gpu --device cpu          # the checks alone, of two small sizes in float32, of the forms that run there

Sizes are those of benchmarks/kernels.py, and `LARGE`. Checked are the numbers that an op returns or writes (relative to the
norm of the float64 reference, `BARS`; where dtypes are part of a size, of the reference in these) and, of whole numbers, the
share that is the same: near a tie others may be right.
Timed by CUDA events, median of as many runs as fit in 0.2 s. Floor: multiplications at the rate of a product of the same
width by torch, bytes at that of a copy. Without a GPU it says so and exits 1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
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
SAME, SMALL = 0.999, 2  # of whole numbers; sizes on a CPU
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


def checked(op: str, case: Case, dtype: torch.dtype, device: str) -> dict[str, float]:
    """The largest relative error of numbers, and the least share of whole numbers that are the same."""
    args = case.arguments("cpu")
    if case.typed:
        want, got = results(OPS[op].forms["reference"], args, "cpu"), results(OPS[op], args, device)
    else:
        args = cast(args, "cpu", dtype)  # the reference sees what was rounded to the dtype
        want = results(OPS[op].forms["reference"], cast(args, "cpu", torch.float64), "cpu")
        got = results(OPS[op], args, device)
    error, same = 0.0, 1.0
    for a, b in zip(got, want, strict=True):
        if a.is_floating_point():
            error = max(error, float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)))
        else:
            same = min(same, float((a == b).double().mean()))
    return {"error": error, "same": same}


def results(form: Callable[..., Any], args: tuple[Any, ...], device: str) -> list[Tensor]:
    """What a form returns, and its arguments, of which it may have written some."""
    args = tuple(a.to(device, copy=True) if isinstance(a, Tensor) else a for a in args)
    made = form(*args)
    made = (made,) if isinstance(made, Tensor) else made or ()
    return [t.cpu() for t in (*made, *args) if isinstance(t, Tensor)]


@torch.no_grad()
def row(op: str, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Times of one size."""
    args, (n, d, m) = case.arguments("cuda"), case.product
    args = args if case.typed else cast(args, "cuda", dtype)
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
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; the CPU's table is python -m benchmarks.kernels")
    end, rows = time.monotonic() + 60 * a.minutes, []
    about = machine(a.device) | {"cuda": torch.version.cuda, "date": date.today().isoformat()}
    for told in told_of(a.device):
        rows.append(told)
        print(json.dumps(told), flush=True)
        a.out.write_text(json.dumps({"gpu": rows, "machine": about}, indent=1), encoding="utf-8")
        if time.monotonic() > end:
            raise Failed(f"{a.minutes} minutes were too few: {len(rows)} rows are in {a.out}")
    wrong = [r for r in rows if not r.get("passed", True)]
    raise SystemExit(f"{len(wrong)} of {len(rows)} rows failed" if wrong else None)


def told_of(device: str) -> Iterator[dict[str, Any]]:
    """A row for each op, size and dtype: checked, and on a GPU timed."""
    for op, cases in CASES.items():
        for case in [*cases, *LARGE.get(op, [])] if device == "cuda" else cases[:SMALL]:
            for dtype in (
                [torch.float32] if case.typed or device == "cpu" else BARS
            ):  # a CPU rounds products to bfloat16
                told: dict[str, Any] = {"op": op, "size": case.size, "dtype": str(dtype)[6:]}
                if case in cases:
                    told |= checked(op, case, dtype, device)
                    told["passed"] = told["error"] <= BARS[dtype] and (dtype != torch.float32 or told["same"] >= SAME)
                yield told | row(op, case, dtype) if device == "cuda" else told


if __name__ == "__main__":
    main()
