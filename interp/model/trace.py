"""One forward pass, every module call written down: what went in, what came out, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from interp.model.tap import Attention, Tap

EXACT = 1e-9  # relative difference below which float64 tensors count as the same
Key = int | str | None  # where a tensor sits in a call's arguments or result; None: it is the result itself


def tensors_in(value: Any) -> Iterator[tuple[Key, Tensor]]:
    """The tensors one level inside a call's result or arguments, with their places."""
    if isinstance(value, Tensor):
        yield None, value
    elif isinstance(value, Mapping):
        yield from ((k, v) for k, v in value.items() if isinstance(v, Tensor))
    elif isinstance(value, (tuple, list)):
        yield from ((i, v) for i, v in enumerate(value) if isinstance(v, Tensor))


def first_in(args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """The first floating-point tensor among a call's arguments."""
    return next(t for _, t in [*tensors_in(args), *tensors_in(kwargs)] if t.is_floating_point())


def replace_in(value: Any, key: Key, tensor: Tensor) -> Any:
    """`value` with the tensor at `key` replaced."""
    if key is None:
        return tensor
    if isinstance(value, tuple):
        changed = [tensor if i == key else v for i, v in enumerate(value)]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    value[key] = tensor
    return value


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal values in the same order, whatever the batch and position axes look like (some blocks flatten them)."""
    return a is not None and b is not None and a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def near(a: Tensor, b: Tensor) -> bool:
    """The same up to rounding."""
    return a.numel() == b.numel() and bool((a.flatten() - b.flatten()).norm() <= EXACT * b.norm())


@dataclass(eq=False)
class Call:
    """One call of a module. Values are copies: later in-place changes do not reach them."""

    path: str
    module: nn.Module
    number: int  # among the calls of this module
    start: int
    end: int = -1
    inputs: dict[Key, Tensor] = field(default_factory=dict)
    outputs: dict[Key, Tensor] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    products: int = 0  # products run before it was entered
    until: str = ""  # a group of calls that no module makes as one (see `Trace.span`): its last module

    @property
    def out(self) -> Tensor | None:
        """The first tensor it returned."""
        return next(iter(self.outputs.values()), None)

    @property
    def into(self) -> Tensor | None:
        """The first floating-point tensor it received."""
        return next((t for t in self.inputs.values() if t.is_floating_point()), None)

    def key_in(self) -> Key:
        """Where that tensor sits: a position or a keyword."""
        return next(k for k, t in self.inputs.items() if t.is_floating_point())


def rerun(call: Call, tensor: Tensor) -> Tensor:
    """The module's first output when its first tensor argument is `tensor`."""
    key = call.key_in()
    args = replace_in(call.args, key, tensor) if isinstance(key, int) else call.args
    kwargs = call.kwargs | {key: tensor} if isinstance(key, str) else call.kwargs
    return next(t for _, t in tensors_in(call.module(*args, **kwargs)))


@dataclass
class Trace:
    """Calls in order of entry, and the attention computations with the module that made each."""

    calls: list[Call]
    attentions: list[tuple[Call, Attention]]
    output: Any
    batch: int
    softmaxes: int = 0  # calls of softmax and of fused attention, followed by a product or not

    @cached_property
    def by_path(self) -> dict[str, list[Call]]:
        """Every module's calls."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    @property
    def root(self) -> nn.Module:
        """The model that ran."""
        return self.calls[0].module

    def of(self, path: str) -> list[Call]:
        """All calls of the module at `path`."""
        return self.by_path.get(path, [])

    def span(self, path: str, number: int = 0, until: str = "") -> Call:
        """The `number`-th call of a module; with `until`, a stand-in for all calls from that one to the last module's next.

        The stand-in receives what the first of them receives and returns what the last returns; to run it again is to run
        the model.
        """
        first = self.of(path)[number]
        if not until:
            return first
        last, root = next(c for c in self.of(until) if c.start >= first.start), self.calls[0]
        group = Call(path, root.module, number, first.start - 1, last.end + 1, args=root.args, kwargs=root.kwargs)
        group.inputs, group.outputs, group.until = {first.key_in(): first.into}, last.outputs, until  # type: ignore[dict-item]
        return group

    def inside(self, call: Call) -> list[Call]:
        """All calls made during another."""
        return [c for c in self.calls if call.start < c.start and c.end < call.end]

    def cores(self, call: Call) -> list[tuple[Call, Attention]]:
        """The attentions computed during a call, each with the call that computed it."""
        return [(c, a) for c, a in self.attentions if call.start <= c.start and c.end <= call.end]


@torch.no_grad()
def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run `model(**inputs)` and write down every call."""
    calls: list[Call] = []
    stack: list[Call] = []
    clock = iter(range(10**9))
    attentions: list[tuple[Call, Attention]] = []
    numbers: Counter[str] = Counter()
    batch = next((t.shape[0] for t in inputs.values() if isinstance(t, Tensor)), 1)

    def enter(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(path, module, numbers[path], next(clock), args=args, kwargs=kwargs, products=tap.products)
        call.inputs = {k: t.clone() for k, t in [*tensors_in(args), *tensors_in(kwargs)]}
        numbers[path] += 1
        calls.append(call)
        stack.append(call)

    def leave(output: Any) -> None:
        call = stack.pop()
        call.end = next(clock)
        call.outputs = {k: t.clone() for k, t in tensors_in(output) if t.is_floating_point()}

    def done(attention: Attention) -> None:
        around = [
            c for c in stack[-2:] if c.products <= attention.product or attention.product < 0
        ]  # products may be modules
        owner = around[-1] if around else stack[-1]
        attention.product -= owner.products if attention.product >= 0 else 0
        attentions.append((owner, attention))

    tap, handles = Tap(done=done, batch=batch), []
    for path, module in model.named_modules():
        pre = lambda m, a, k, path=path: enter(path, m, a, k)  # noqa: E731
        handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
        handles.append(module.register_forward_hook(lambda m, a, o: leave(o)))
    try:
        with tap:
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(calls, attentions, output, batch, tap.softmaxes)
