"""One contract for every op: plain torch says what is computed, the other forms compute the same faster.

    lens_statistics = Op("lens_statistics(Tensor states, …, int k) -> (Tensor, …)", reference, fake=…, cpu=…, triton=…)

Forms take and return the same: dtypes, shapes, and of equal values the one with the lowest index first.

    reference   plain torch, nothing clever; runs in float64 and on every device
    cpu         blocked torch, only where it was measured to win
    triton      "module:function", imported when it is first called
    cuda        likewise, CUDA C++ that nvcc builds then; never the default

An op is a torch custom op `torch.ops.interp.NAME`: `fake` gives its shapes (meta tensors, torch.compile), `gradient` its
backward. Where nothing looks on (`unwatched`) its form is called without the 25 to 50 µs that torch takes for any such op.
INTERP_KERNELS=reference|cpu|triton|cuda forces a form wherever an op has it; an op without it keeps to the reference.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from interp.errors import WrongUse, nearest

FORMS = ("reference", "cpu", "triton", "cuda")
NUMBA = find_spec("numba") is not None  # looked for once: where it is missing, that takes longer than a small op
VALUES = {int, float, bool, type(None)}  # of arguments that are no tensors
OPS: dict[str, Op] = {}
_counts: list[Counter[tuple[str, str]]] = []

Form = Callable[..., Any]


class Op:
    """An op with up to four forms; calling it calls the torch op, or where that would be the same, the form itself.

    `schema`: name, arguments and results in torch's schema language, `Tensor(a!)` for what is written to. `gradient`:
    (backward, setup_context) as `torch.library.register_autograd` takes them. `plain`: whether for these arguments, on a CPU,
    the reference is the faster form; its docstring is the rule that `interp kernels` shows.

    Raises, when called: `WrongUse` for an INTERP_KERNELS that is no form, or a form that cannot run where the tensors are.
    """

    def __init__(
        self,
        schema: str,
        reference: Form,
        *,
        fake: Form,
        cpu: Form | None = None,
        triton: str | None = None,
        cuda: str | None = None,
        gradient: tuple[Form, Form] | None = None,
        plain: Callable[..., bool] | None = None,
    ) -> None:
        self.name, self.plain = schema.partition("(")[0], plain
        written_elsewhere = {"triton": triton, "cuda": cuda}
        given = {"reference": reference, "cpu": cpu} | {n: w and _when_called(w) for n, w in written_elsewhere.items()}
        self.forms: dict[str, Form] = {name: form for name, form in given.items() if form}
        written = re.findall(r"!\)\S* (\w+)", schema)
        self._op = torch.library.custom_op(
            f"interp::{self.name}", self._run, mutates_args=written, schema=schema.removeprefix(self.name)
        )
        named = [a.name for a in self._op._opoverload._schema.arguments]
        self._written = [named.index(name) for name in written]
        self._op.register_fake(fake)
        if gradient:
            self._op.register_autograd(gradient[0], setup_context=gradient[1])
        OPS[self.name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        device = None if kwargs else unwatched(args)
        if device is None:
            return self._op(*args, **kwargs)
        made = self._on(device, args)
        for i in self._written:
            if i < len(args) and args[i] is not None and not args[i].is_inference():
                torch.autograd.graph.increment_version(args[i])
        return made

    def _run(self, *args: Any) -> Any:
        return self._on(next(a.device.type for a in args if isinstance(a, Tensor)), args)

    def _on(self, device: str, args: tuple[Any, ...]) -> Any:
        form = self.chosen(device, *args)
        for count in _counts:
            count[self.name, form] += 1
        return self.forms[form](*args)

    def chosen(self, device: str, *args: Any) -> str:
        """The form that runs on tensors of a device."""
        asked = forced()
        if asked:
            _check(asked, device)
            return asked if asked in self.forms else "reference"
        form = self.default(device)
        if device == "cpu" and form == "cpu" and self.plain and self.plain(*args):
            return "reference"
        if "triton" in self.forms and device != "cpu":
            why = _without_triton(device)
            if why:
                _notice(f"the kernels' plain torch form runs on {device}: {why}.")
                return "reference"
        return form

    def default(self, device: str) -> str:
        """The form that runs on "cpu", "cuda" or "mps" where nothing is forced and Triton is installed."""
        form = {"cpu": "cpu", "cuda": "triton"}.get(device, "reference")
        return form if form in self.forms else "reference"

    def told(self) -> dict[str, Any]:
        """What `interp kernels` says of it."""
        return {
            "op": self.name,
            "implementations": list(self.forms),
            "default": {device: self.default(device) for device in ("cpu", "cuda", "mps")},
            "crossover": (self.plain.__doc__ or "").strip() if self.plain else None,
        }


@contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """How often each (op, form) ran inside the block."""
    count: Counter[tuple[str, str]] = Counter()
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)


def unwatched(args: tuple[Any, ...]) -> str | None:
    """The device of tensors with which a call of an op is a call of its form; None where somebody must see the op.

    Who must: torch.compile and export, torch.jit.trace, torch.func, modes that see what torch calls, subclasses of tensors,
    tensors without numbers, and gradients.
    """
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    graded, device = torch.is_grad_enabled(), None
    for a in args:
        kind = type(a)
        if kind is Tensor or kind is Parameter:
            if graded and a.requires_grad:
                return None
            device = device or ("cpu" if a.is_cpu else a.device.type)
        elif kind not in VALUES:
            return None
    return None if device == "meta" else device


def forced() -> str | None:
    """The form that INTERP_KERNELS asks for. Raises `WrongUse` if that is none."""
    asked = os.environ.get("INTERP_KERNELS", "")
    if asked and asked not in FORMS:
        raise WrongUse(f"INTERP_KERNELS={asked} is no form.{nearest(asked, FORMS)} It may be: {', '.join(FORMS)}.")
    return asked or None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU: decided when they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check(asked: str, device: str) -> None:
    if asked == "triton" and not (interpreted() if device == "cpu" else device == "cuda"):
        raise WrongUse(
            f"INTERP_KERNELS=triton, but the tensors are on {device}: Triton's kernels run on a GPU ('cuda'), or with "
            "TRITON_INTERPRET=1 very slowly on a CPU. Leave INTERP_KERNELS out for the form that is fastest here."
        )
    if asked == "cpu" and device != "cpu":
        raise WrongUse(
            f"INTERP_KERNELS=cpu, but the tensors are on {device}: leave it out, or ask for 'reference', which runs on all."
        )
    if asked == "cuda" and not (device == "cuda" and shutil.which("nvcc")):
        raise WrongUse(
            f"INTERP_KERNELS=cuda, but the tensors are on {device}: it takes an NVIDIA GPU."
            if device != "cuda"
            else "INTERP_KERNELS=cuda, but there is no nvcc on the PATH to build it: install the CUDA toolkit."
        )
    if asked == "triton" and not find_spec("triton"):
        raise WrongUse("INTERP_KERNELS=triton, but Triton is not installed: pip install 'interp-kit[triton]'.")


def _without_triton(device: str) -> str | None:
    if device != "cuda":
        return "the Triton forms are written for NVIDIA"
    if torch.version.hip:
        return "the Triton forms were never run on ROCm (INTERP_KERNELS=triton tries them)"
    return None if find_spec("triton") else "Triton is not installed (pip install 'interp-kit[triton]')"


@cache
def _notice(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def _when_called(where: str) -> Form:
    module, _, name = where.partition(":")
    return lambda *args: getattr(import_module(module), name)(*args)
