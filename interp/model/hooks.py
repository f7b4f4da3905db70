"""Forward hooks of many modules, put in place and taken away together, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from torch import nn
from torch.utils.hooks import RemovableHandle

Way = dict[
    str, tuple["ref[nn.Module]", str, "ref[nn.Module]"]
]  # path so far -> module, name of a part of it, that part


class Hooks:
    """Hooks at the inputs ("in", called with args and kwargs) and outputs ("out") of modules below `root`.

    What `register_forward_pre_hook(with_kwargs=True)` and `register_forward_hook` do, without a new handle each time,
    which takes longer than most hooks run. Modules are looked up by path once, and again once a module on the way to
    one of them is another; a module that is exchanged is not kept alive.
    """

    def __init__(self, root: nn.Module, wanted: Sequence[tuple[str, str, Callable[..., Any]]]) -> None:
        self.root, self.wanted = root, wanted
        self.slots: list[tuple[dict[int, Any], int, Any]] = []  # dict of a module's hooks, key, what stands there
        self.way: Way = {}

    def put(self) -> None:
        """Every hook in place, behind those that are there. Raises `KeyError` for a path that leads nowhere."""
        if not self.slots or not all(_leads(*step) for step in self.way.values()):
            self._look_up()
        for holder, key, value in self.slots:
            holder[key] = value

    def remove(self) -> None:
        """Every hook away; it does no harm twice."""
        for holder, key, _ in self.slots:
            holder.pop(key, None)

    def _look_up(self) -> None:
        way: Way = {}
        slots: list[tuple[dict[int, Any], int, Any]] = []
        for path, side, hook in self.wanted:
            module = submodule(self.root, path, way)
            holder = module._forward_hooks if side == "out" else module._forward_pre_hooks
            key = RemovableHandle(holder).id  # a number that no other hook has
            slots.append((holder, key, hook))
            if side == "in":
                slots.append((module._forward_pre_hooks_with_kwargs, key, True))
        self.slots, self.way = slots, way


def _leads(module: ref[nn.Module], name: str, part: ref[nn.Module]) -> bool:
    """Whether that part of a module is still the one it was."""
    there = module()
    return there is not None and (found := there._modules.get(name)) is not None and found is part()


def submodule(module: nn.Module, path: str, way: Way | None = None) -> nn.Module:
    """The module at a dotted path, as `named_modules` names it; raises `KeyError` if there is none.

    `way` is told each step.
    """
    so_far = ""
    for name in path.split(".") if path else ():
        part: nn.Module = module._modules[name]  # type: ignore[assignment]
        if way is not None:
            so_far = f"{so_far}.{name}"
            way[so_far] = ref(module), name, ref(part)
        module = part
    return module
