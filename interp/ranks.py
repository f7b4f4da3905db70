"""Processes that `torchrun` started: who they are, and what they tell each other.

They may be laid out in a `DeviceMesh`; `within` a part of it everything here is about the processes of that part.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import math
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from interp.errors import Failed, WrongUse

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch.distributed.device_mesh import DeviceMesh

PATIENCE = timedelta(days=1)  # with a process that is busy; one that has ended is noticed at once
PARTING = timedelta(seconds=5)  # how long one that ends waits for the others to have heard it
_parts: list[DeviceMesh] = []  # the innermost `within` last
_met: list[dist.Store] = []  # where the processes met, while none is known to be lost


def ranks() -> int:
    """How many processes there are; 1 without `torchrun`."""
    return _parts[-1].size() if _parts else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return _parts[-1].get_local_rank() if _parts else int(os.environ.get("RANK", "0"))


def mesh(**sizes: int) -> DeviceMesh:
    """All processes in rows and columns: `mesh(dictionaries=2, latents=4)`, for eight. The last axis are neighbours.

    Raises `WrongUse` unless there are as many.
    """
    if math.prod(sizes.values()) != ranks():
        asked = " × ".join(f"{size} {name}" for name, size in sizes.items())
        raise WrongUse(f"{ranks()} processes cannot be laid out as {asked}: start as many (torchrun --nproc-per-node).")
    start()
    from torch.distributed.device_mesh import init_device_mesh

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    with speaking():
        return init_device_mesh(kind, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


@contextlib.contextmanager
def within(part: DeviceMesh) -> Iterator[None]:
    """Inside, the processes of this part of a mesh, one axis of it, are all that there are: `mesh["latents"]`."""
    _parts.append(part)
    try:
        yield
    finally:
        _parts.pop()


def _group() -> dist.ProcessGroup | None:
    return _parts[-1].get_group() if _parts else None


def start() -> None:
    """Connect the processes, once: gloo for tensors of CPUs, NCCL for those of GPUs, of which each process has one."""
    if ranks() > 1 and not dist.is_initialized():
        gpus = torch.cuda.is_available()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # first: its functions have the group as a default, and would keep the group and its threads beyond `stop`
        importlib.import_module("torch.distributed.nn.functional")
        with speaking():
            store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=number, world_size=count, timeout=PATIENCE
            )
        _met.append(store)
        atexit.register(stop)


def stop() -> None:
    """Part from the others, at the end of the process.

    They may still be reading what this one said last, which a closed connection would take from them; so it waits
    until all are here, or for `PARTING` where one of them is not to come. Then it ends the threads of the group:
    left to the end of the interpreter they may abort it.
    """
    if dist.is_initialized():
        if _met:
            with contextlib.suppress(RuntimeError):  # the store ends with rank 0, which waits for all
                store = _met.pop()
                store.set(f"parted/{rank()}", "")
                store.wait([f"parted/{number}" for number in range(ranks())], PARTING)
        dist.destroy_process_group()


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Raise `Failed` where another process cannot be reached: it was killed, or has ended."""
    try:
        yield
    except RuntimeError as error:
        _met.clear()
        raise Failed(
            f"Rank {rank()} of {ranks()} has lost the others: one of them has ended. Go on from the last checkpoint "
            f"or commit with the same command and --resume. ({str(error).split('. ')[0]})"
        ) from error


def told(what: Any) -> list[Any]:
    """What every rank says here, in their order; it should be small."""
    said = [what] * ranks()
    if ranks() > 1:
        with speaking():
            dist.all_gather_object(said, what, _group())
    return said


def same(what: dict[str, Any]) -> None:
    """Raise `WrongUse` on every rank unless all were given the same, naming what differs."""
    first, *others = told(what)
    for number, other in enumerate(others, 1):
        for key in first.keys() | other.keys():
            if other.get(key) != first.get(key):
                raise WrongUse(
                    f"Rank {number} was given {key}={other.get(key)}, rank 0 {first.get(key)}: all ranks take the same."
                )


def handed(mine: Sequence[Tensor], shapes: Sequence[tuple[Sequence[int], torch.dtype]], owner: int) -> Sequence[Tensor]:
    """On rank 0 the tensors of rank `owner`, of these shapes and dtypes, which sends its own; all on CPUs."""
    if owner and rank() in (0, owner):
        with speaking():
            if rank():
                for t in mine:
                    dist.send(t.contiguous(), group=_group(), group_dst=0)
            else:
                mine = [torch.empty(*shape, dtype=dtype) for shape, dtype in shapes]
                for t in mine:
                    dist.recv(t, group=_group(), group_src=owner)
    return mine


def wait() -> None:
    """Until every process is here."""
    if ranks() > 1:
        start()
        with speaking():
            dist.barrier(_group())


def share(names: Sequence[str]) -> list[str]:
    """Those of this rank: every so many-th."""
    return list(names)[rank() :: ranks()]


def reduced(t: Tensor, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The sum of every rank's t, or its least or greatest; t itself is left."""
    with speaking():
        t = t.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(t, how, _group())
    return t


def gathered(t: Tensor) -> list[Tensor]:
    """Every rank's t, of one shape."""
    with speaking():
        t = t.detach().contiguous()
        parts = [torch.empty_like(t) for _ in range(ranks())]
        dist.all_gather(parts, t, _group())
    return parts


class _Summed(torch.autograd.Function):
    """Σ over ranks. Every rank goes on to the same loss, so each part's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return reduced(part)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class _Shared(torch.autograd.Function):
    """t itself, which every rank uses for latents of its own: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return reduced(g)


def summed(part: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Σ_ranks part, for a loss that all ranks then compute alike."""
    return _Summed.apply(part)


def shared(t: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """A parameter that all ranks have, where each uses it for latents of its own."""
    return _Shared.apply(t)
