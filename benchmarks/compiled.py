"""Every kernel compiled for sm_80 and sm_90, no GPU needed: registers and spills of a thread, shared bytes of a block.

    python -m benchmarks.compiled

Shapes and dtypes of Triton's are those in `COMPILED` of each interp/kernels/*_triton.py, by the name of the row. Where nvcc is,
the CUDA C++ form is compiled too; of its kernels, one for each pair of dtypes, the largest numbers are told.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import interp.kernels
from interp.kernels import record_rows_cuda

ARCHITECTURES = (80, 90)


def compiled(kernel: Any, arguments: dict[str, Any], architecture: int) -> dict[str, int]:
    """What the compilers say of a kernel; `arguments`: type of each ("*fp32", "i32", …), or the value of a constant."""
    arguments = dict(arguments)
    options = {name: arguments.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in arguments}
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: t if isinstance(t, str) else "constexpr" for name, t in arguments.items()}
    constants = {(kernel.arg_names.index(n),): v for n, v in arguments.items() if not isinstance(v, str)}
    aligned = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n, t in types.items() if t.startswith("*")}
    made = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    about = {"sm": architecture, "warps": options["num_warps"]}
    return about | used(made.asm["cubin"]) | {"shared": made.metadata.shared}


def compiled_by_nvcc(architecture: int) -> dict[str, int]:
    """What nvcc makes of record_rows.cu, to PTX and to a program for the card."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("ptx", "cubin"):
            to = ["-arch", f"sm_{architecture}", f"-{kind}", "-o", f"{folder}/{kind}"]
            subprocess.run(["nvcc", *record_rows_cuda.STRICT, *to, str(record_rows_cuda.SOURCE)], check=True)
        return {"sm": architecture, "warps": 4} | used(Path(folder, "cubin").read_bytes())


def used(cubin: bytes) -> dict[str, int]:
    """Registers, bytes of stack (spilled registers) and shared bytes, the most of any kernel in it, as NVIDIA's reader tells them,
    which comes with Triton.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "kernel.cubin")).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = dict.fromkeys(("REG", "STACK", "SHARED"), 0)
    for name, n in re.findall(r"(REG|STACK|SHARED):(\d+)", told):
        numbers[name] = max(numbers[name], int(n))
    return {"registers": numbers["REG"], "spilled": numbers["STACK"], "shared": numbers["SHARED"]}


def table() -> list[dict[str, Any]]:
    """A row for each kernel, shape and architecture."""
    rows = []
    for file in sorted(Path(interp.kernels.__file__).parent.glob("*_triton.py")):
        for name, (kernel, arguments) in import_module(f"interp.kernels.{file.stem}").COMPILED.items():
            rows += [{"kernel": name} | compiled(kernel, arguments, a) for a in ARCHITECTURES]
    if shutil.which("nvcc"):
        rows += [{"kernel": "record_rows.cu, all dtypes"} | compiled_by_nvcc(a) for a in ARCHITECTURES]
    return rows


def main() -> None:
    """Print one JSON object and a table."""
    rows = table()
    print(json.dumps({"kernels": rows}))
    print(f"{'kernel':44}{'sm':>4}{'warps':>7}{'registers':>11}{'spilled bytes':>15}{'shared bytes':>14}")
    for r in rows:
        print(f"{r['kernel']:44}{r['sm']:4}{r['warps']:7}{r['registers']:11}{r['spilled']:15}{r['shared']:14}")


if __name__ == "__main__":
    main()
