"""What every op must answer as a torch op, and what the Triton forms must: in the interpreter, and to the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.compiled import ARCHITECTURES, compiled
from interp.kernels import OPS, registry

FOLDER = Path(registry.__file__).parent


def arguments(op):
    """Small ones, for each op."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    asked = torch.randint(50, (4, 2), generator=generator)
    return {
        "above": (draw(5, 90).bfloat16(), draw(90), draw(90), 60),
        "largest": (draw(5, 90).bfloat16(), draw(90), 4),
        "lens_statistics": (draw(2, 4, 6), draw(4, 6), draw(50, 6), draw(50), 0.5, 3.0, asked, 3),
        "attention_statistics": (draw(2, 4, 5, 6), draw(2, 2, 5, 6), draw(2, 1, 5, 5), torch.tensor([1, 0]), True, 0.4),
        "record_rows": (
            draw(6, 140),
            torch.tensor([5, 2]),
            torch.tensor([3, 1]),
            torch.zeros(5, 140, dtype=torch.int8),
            torch.zeros(5, 2).bfloat16(),
            draw(140),
            torch.zeros(3, 140, dtype=torch.float64),
        ),
        "sddmm": (draw(4, 6), draw(50, 6), asked),
        "unpack_rows": (
            torch.arange(-70, 70, dtype=torch.int8).expand(5, -1).contiguous(),
            draw(5, 2).bfloat16(),
            draw(140),
            torch.zeros(5, 140),
        ),
        "weight_gradient": (draw(4, 2), asked, draw(4, 6), 50),
    }[op]


def results(made):
    """Of an op: one, several, or none."""
    return (made or ()) if not isinstance(made, torch.Tensor) else (made,) if isinstance(made, torch.Tensor) else made


@pytest.mark.slow("compiles")
@pytest.mark.parametrize("name", OPS)
def test_it_is_a_torch_op(name):
    """Schema, shapes and gradient are what they say; it runs inside one graph, and on tensors that hold nothing."""
    op, args = getattr(torch.ops.interp, name).default, arguments(name)
    torch.library.opcheck(op, args)
    made = torch.compile(lambda *a: OPS[name](*a), fullgraph=True, backend="aot_eager")(*args)
    empty = op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
    for graph, plain, shape in zip(*map(results, (made, op(*args), empty)), strict=True):
        assert torch.equal(graph, plain)
        assert (shape.shape, shape.dtype) == (plain.shape, plain.dtype)


def test_every_triton_form_is_compiled_and_interpreted():
    """A new form has its rows in `COMPILED` and its cases in a file that the interpreter runs."""
    for op in OPS.values():
        if "triton" in op.forms:
            assert import_module(f"interp.kernels.{op.name}_triton").COMPILED
            assert "FORMS" in (Path(__file__).parent / f"test_{op.name}.py").read_text(encoding="utf-8")


@pytest.mark.slow("Triton's interpreter runs a program at a time, in Python")
@pytest.mark.parametrize("file", sorted(f.stem.removesuffix("_triton") for f in FOLDER.glob("*_triton.py")))
def test_the_triton_form_in_the_interpreter(file):
    """In a process of its own, since kernels decide on it when they are imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name(f"test_{file}.py"))]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.slow("two compilers, for each architecture")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", sorted(f.stem for f in FOLDER.glob("*_triton.py")))
def test_it_compiles_without_a_gpu(file, architecture):
    """To a program for the card, with few registers spilled."""
    pytest.importorskip("triton")
    for name, (kernel, given) in import_module(f"interp.kernels.{file}").COMPILED.items():
        told = compiled(kernel, given, architecture)
        assert 16 <= told["registers"] <= 255, name
        assert told["spilled"] <= 128, name
        assert told["shared"] <= 163 * 1024, name


def test_the_script_for_a_gpu_checks_every_op():
    """On a CPU, the same code: what each op returns and writes, of two small sizes."""
    told = list(gpu.told_of("cpu"))
    assert {t["op"] for t in told} == set(OPS)
    assert all(t["passed"] for t in told), [t for t in told if not t["passed"]]
