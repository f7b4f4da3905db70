"""What every recorder is measured by, in whatever environment it lives: one model, alternating passes, bytes.

A recorder is a dict: the name of a group of sites -> a function that runs one whole pass and returns the tensors recorded
(logits not among them, though every pass makes them). Imports nothing but torch and transformers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

GROUPS = ("residuals", "outputs", "everything")  # outputs: residuals, and what attention and MLPs return
WARM = 2  # pairs before the first that counts
Recorder = dict[str, Callable[[], list[Tensor]]]
Build = Callable[[nn.Module, Tensor, Path, str], Recorder]  # of a model, its tokens, its checkpoint's folder, a name
GPT2 = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 6, "n_embd": 64, "n_head": 4, "vocab_size": 1000, "n_positions": 64},
    "small": {"n_layer": 6, "n_embd": 512, "n_head": 8, "vocab_size": 8192, "n_positions": 256},
    "1b": {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 1024},
}  # fmt: skip
TOKENS = {"tiny": (1, 8), "small": (8, 256), "1b": (8, 1024)}


def network(shape: str, device: str = "cpu", dtype: str = "float32") -> tuple[nn.Module, Tensor]:
    """A random model and its token ids, the same wherever it is made."""
    torch.manual_seed(0)
    if shape == "1b":
        config: Any = transformers.LlamaConfig(**SHAPES[shape])
    else:
        config = transformers.GPT2Config(**SHAPES[shape] | GPT2)
    with torch.device(device):
        net = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    ids = torch.randint(config.vocab_size, TOKENS[shape], generator=torch.Generator().manual_seed(1))
    return net, ids.to(device)


def bare(net: nn.Module, ids: Tensor) -> Callable[[], Any]:
    """One forward pass and nothing else."""

    def run() -> Any:
        with torch.no_grad():
            return net(input_ids=ids, use_cache=False)

    return run


def blocks(net: Any) -> list[nn.Module]:
    """The repeated layers."""
    return list(net.transformer.h if hasattr(net, "transformer") else net.model.layers)


def hooked(net: nn.Module, ids: Tensor, modules: list[nn.Module], clone: bool = False) -> list[Tensor]:
    """What modules return, by one hook each, put in place for this pass."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        if isinstance(first, Tensor):
            kept.append(first.clone() if clone else first)

    handles = [m.register_forward_hook(keep) for m in modules]
    bare(net, ids)()
    for handle in handles:
        handle.remove()
    return kept


def clocks() -> tuple[float, float]:
    """(Wall, CPU of all threads), s; a GPU has then done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def took(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, the freeing of its result included."""
    wall, cpu = clocks()
    work()
    after = clocks()
    return after[0] - wall, after[1] - cpu


def pairs(plain: Callable[[], Any], work: Callable[[], Any], rounds: int) -> list[list[float]]:
    """[wall of plain, CPU of plain, wall of work, CPU of work] of alternating calls; every other pair begins with work."""
    told = []
    for turn in range(WARM + rounds):
        if turn % 2:
            second, first = took(work), took(plain)
        else:
            first, second = took(plain), took(work)
        told.append([*first, *second])
    return told[WARM:]


# ---------------------------------------------------------------- bytes


def distinct(tensors: list[Tensor]) -> int:
    """Bytes asked for: each value once, however many sites share it."""
    return sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())


def peak(work: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that torch's allocator held at once above what it held before, and what `work` returned."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work()
        return torch.cuda.max_memory_allocated() - before, result
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, result


def resident(work: Callable[[], Any]) -> int:
    """How far the process grew at most while `work` ran: the second opinion; 0 where the kernel cannot say."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    reset.write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found.group(1)) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(plain: Callable[[], Any], work: Callable[[], list[Tensor]]) -> dict[str, int]:
    """Bytes above a bare pass: what was asked for, the allocator's peak, and the process' peak."""
    plain()
    grown = [(resident(plain), resident(work)) for _ in range(3)]
    base = peak(plain)[0]
    most, tensors = peak(work)
    more = statistics.median(recorded - passed for passed, recorded in grown)
    return {"asked": distinct(tensors), "allocated": most - base, "resident": int(more)}


# ---------------------------------------------------------------- a process


def measured(
    build: Build, recorder: str, folder: Path, shape: str, groups: str, rounds: int, device: str, dtype: str
) -> dict[str, dict[str, Any]]:
    """By group: how many sites, and the pairs of `rounds` alternations, or bytes if there are none."""
    net, ids = network(shape, device, dtype)
    plain, record, told = bare(net, ids), build(net, ids, folder, recorder), {}
    for mine, theirs in zip(hooked(net, ids, blocks(net)), record["residuals"](), strict=True):
        assert torch.allclose(mine, theirs.to(mine), atol=1e-4 if dtype == "float32" else 1e-1)
    for group in (g for g in groups.split(",") if g in record):
        sites = len(record[group]())
        told[group] = {"sites": sites} | (
            {"pairs": pairs(plain, record[group], rounds)} if rounds else memory(plain, record[group])
        )
    return told


def serve(build: Build, about: dict[str, str]) -> None:
    """A process that measures one recorder; JSON on the last line."""
    parser = argparse.ArgumentParser()
    for name in ("shape", "recorder", "folder", "groups", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=0, help="0: measure bytes")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    told = measured(build, a.recorder, Path(a.folder), a.shape, a.groups, a.rounds, a.device, a.dtype)
    print(json.dumps({"groups": told, "about": about | {"torch": torch.__version__}}))
