"""What a recording will take, and what there is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import Failed, WrongUse
from interp.model.binding import Site

if TYPE_CHECKING:
    import pandas as pd

SMALL = 2**24  # bytes: what a process needs to breathe anyway; less is not compared with what is free
UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Plan:
    """The bytes a recording will hold, by site; what two sites share is counted at the first."""

    by_site: dict[str, int]

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.by_site.values())

    def to_frame(self) -> pd.DataFrame:
        """One row a site: bytes, and its share of all."""
        import pandas as pd

        rows = [[name, size, size / max(self.bytes, 1)] for name, size in self.by_site.items()]
        return pd.DataFrame(rows, columns=["site", "bytes", "share"])


def available(device: torch.device) -> int | None:
    """Bytes free on a device: CUDA's own count, or the least of MemAvailable and what the cgroup leaves. None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found += [
            int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")
        ]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip().isdigit():
        found.append(int(limit.read_text()) - int(used.read_text()))
    return min(found, default=None)


def numbers(shape: tuple[int | str, ...], batch: int, length: int, positions: int) -> int:
    """How many a site of this shape holds for [batch, length] tokens of which `positions` a prompt are kept; 0: unknown shape."""
    sizes = {"batch": batch, "pos": positions, "query": positions, "key": length}
    return math.prod(sizes[size] if isinstance(size, str) else size for size in shape) if shape else 0


def growth(name: str, site: Site, t: Tensor, small: Mapping[str, int], large: Mapping[str, int]) -> float:
    """How many times larger a site's tensor becomes when the run's lengths grow from `small` to `large`.

    Lengths: "batch", "pos", "decoder". A site whose shape is not known beforehand (`module:`) is read by its sizes.
    """
    mine = "decoder" if name.startswith("decoder.") else "pos"
    crossed = "cross_attn" in name
    pos = "pos" if crossed and name.rsplit(".", 1)[-1] in ("k", "v", "k_raw") else mine
    kinds = {"batch": "batch", "pos": pos, "query": mine, "key": "pos" if crossed else mine}
    shape: list[int | str] = list(site.shape)
    if not shape:
        shape = [*t.shape]
        shape[:2] = ["batch", "pos"][: t.ndim]
        if t.ndim == 4 and t.shape[2] == t.shape[3] == small["pos"]:
            shape[1:] = [t.shape[1], "query", "key"]
        elif t.ndim == 2 and t.shape[0] == small["batch"] * small["pos"]:
            return large["batch"] * large["pos"] / (small["batch"] * small["pos"])
    ratio = 1.0
    for size, kind in zip(t.shape, shape, strict=False):
        length = kinds.get(kind) if isinstance(kind, str) else None
        if length is not None and size == small[length]:
            ratio *= large[length] / small[length]
    return ratio


def held(values: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of the storages that these tensors keep alive; a shared storage counts at the first."""
    seen: set[int] = set()
    costs = {}
    for name, t in values.items():
        storage = t.untyped_storage()
        costs[name] = 0 if storage.data_ptr() in seen else storage.nbytes()
        seen.add(storage.data_ptr())
    return costs


ADVICE = "Record fewer sites or positions (pos=), a smaller dtype (dtype=torch.bfloat16), or smaller batches."


def check_plan(costs: Mapping[str, int], free: int | None, share: float = 0.9, advice: str = ADVICE) -> int:
    """Total bytes; raises `Failed` with the costliest sites if they do not fit in nine tenths of what is free."""
    total = sum(costs.values())
    if free is not None and total > share * free:
        worst = sorted(costs.items(), key=lambda c: -c[1])[:3]
        named = ", ".join(f"{name} ({told(size)})" for name, size in worst)
        limit = f"{told(free)} are free" if share < 1 else f"only {told(free)} may be used"
        raise Failed(f"recording would take {told(total)} and {limit}. The costliest: {named}. {advice}")
    return total


def told(size: float) -> str:
    """A size in a unit that suits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} bytes"


def in_bytes(text: str) -> int:
    """ "1MB", "1.5 GiB" or "4096" as bytes. Raises `WrongUse` for anything else."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?I?B)?\s*", text.upper())
    try:
        return int(float(found.group(1)) * UNITS[found.group(2) or "B"])  # type: ignore[union-attr]
    except (AttributeError, KeyError, ValueError) as error:
        raise WrongUse(f"{text!r} is no size: write 500kB, 1MB, 2.5GiB or a number of bytes.") from error


def cut(inputs: Mapping[str, Any], lengths: Mapping[str, int], batch: int) -> dict[str, Any]:
    """The same inputs with `batch` rows and few tokens; pictures and sound keep their size."""

    def part(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        value = value[:1].expand(batch, *value.shape[1:])
        text = any(
            word in name for word in ("input_ids", "attention_mask", "inputs_embeds", "token_type", "position_ids")
        )
        length = lengths["decoder" if name.startswith("decoder_") else "pos"]
        return value[:, :length] if text and value.ndim > 1 else value

    return {name: part(name, value) for name, value in inputs.items()}
