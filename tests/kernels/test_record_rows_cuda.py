"""record_rows.cu: on a CPU, a thread for each of a GPU's (threads.h), against the reference; and compiled where nvcc is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.compiled import ARCHITECTURES, compiled_by_nvcc
from interp.kernels import record_rows
from interp.kernels.record_rows_cuda import built, launched


@pytest.fixture(scope="module")
def on_threads():
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    here = str(Path(__file__).parent)
    return built(["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-pthread", f"-I{here}", "-x", "c++"])


@pytest.mark.slow("128 threads take turns")
@pytest.mark.parametrize("read", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrote", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("n", "r", "width"), [(7, 5, 130), (80, 70, 33)])
def test_it_says_what_the_reference_says(on_threads, read, wrote, n, r, width):
    """Rows and scales bit for bit, a row with NaN and one with infinity among them; norms and sums to rounding."""
    torch.manual_seed(n)
    x = (torch.randn(n, width) * torch.logspace(-2, 1, width) + 3).to(read)
    kept, slots = torch.randperm(n)[:r], torch.randperm(n + 3)[:r]
    bad = kept[:2]
    found = []
    for form in (record_rows.forms["reference"], None):
        ring, about = torch.full((n + 3, width), 99.0).to(wrote), [None, None]
        if wrote == torch.int8:
            about = [torch.full((n + 3, -(-width // 128)), torch.nan).bfloat16(), torch.full((width,), 3.0)]
        sums = torch.ones(3, width, dtype=torch.float64)
        given = x, kept, slots, ring, *about, sums
        norms = form(*given) if form else launched(on_threads, *given, 0)
        found.append((norms, ring, about[0], sums))
    (norms, ring, scales, sums), (norms_, ring_, scales_, sums_) = found
    assert torch.equal(ring, ring_)
    assert scales is None or torch.equal(scales.view(torch.int16), scales_.view(torch.int16))
    assert torch.allclose(norms, norms_, rtol=1e-6)
    assert torch.allclose(sums, sums_, rtol=1e-5, atol=1e-5)
    x[bad[0], 0], x[bad[1], width - 1] = torch.nan, torch.inf
    norms = launched(on_threads, x, kept, slots, ring, scales, about[1], None, 0)
    assert torch.isfinite(norms).tolist() == [False, False] + [True] * (r - 2)


@pytest.mark.slow("compiles")
@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_compiles_without_a_gpu(architecture):
    told = compiled_by_nvcc(architecture)
    assert 16 <= told["registers"] <= 128
    assert told["spilled"] == 0
    assert told["shared"] <= 48 * 1024
