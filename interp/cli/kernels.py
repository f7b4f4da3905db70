"""`interp kernels`: the ops that have more than one form, and which form runs where."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from interp.cli import answer, guarded


@guarded
def kernels(as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False) -> None:
    """List the ops, their forms, and the form that runs by default on a CPU, with CUDA and with MPS.

    INTERP_KERNELS=reference|cpu|triton|cuda forces a form wherever an op has it.
    """
    from interp.kernels import OPS
    from interp.kernels.registry import forced

    forced()
    answer([op.told() for _, op in sorted(OPS.items())], as_json, _show)


def _show(ops: list[dict[str, Any]]) -> None:
    print(f"{'op':24}{'forms':34}{'cpu':12}{'cuda':12}{'mps':12}crossover")
    for op in ops:
        default = "".join(f"{form:12}" for form in op["default"].values())
        print(f"{op['op']:24}{', '.join(op['implementations']):34}{default}{op['crossover'] or ''}")
