"""Every Triton kernel compiled for sm_80 and sm_90, no GPU needed: registers and spills of a thread, shared bytes of a block.

    python -m benchmarks.compiled

Shapes and dtypes are those in `COMPILED` of each interp/kernels/*_triton.py, by the name of the row.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import interp.kernels

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
    return (
        {"sm": architecture, "warps": options["num_warps"]} | used(made.asm["cubin"]) | {"shared": made.metadata.shared}
    )


def used(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack (spilled registers) of a thread, as NVIDIA's reader (it comes with Triton) tells them."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "kernel.cubin")).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", told)}
    return {"registers": numbers["REG"], "spilled": numbers["STACK"]}


def table() -> list[dict[str, Any]]:
    """A row for each kernel, shape and architecture."""
    rows = []
    for file in sorted(Path(interp.kernels.__file__).parent.glob("*_triton.py")):
        for name, (kernel, arguments) in import_module(f"interp.kernels.{file.stem}").COMPILED.items():
            rows += [{"kernel": name} | compiled(kernel, arguments, a) for a in ARCHITECTURES]
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
