"""What a recording will take, and what there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from interp.errors import Failed
from interp.model.binding import Site


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


def site_bytes(site: Site, batch: int, length: int, positions: int, dtype: torch.dtype) -> int:
    """Bytes a recorded site takes for [batch, length] tokens of which `positions` a prompt are kept."""
    sizes = {"batch": batch, "pos": positions, "query": positions, "key": length}
    total = dtype.itemsize
    for size in site.shape:
        total *= sizes[size] if isinstance(size, str) else size
    return total


def check_plan(costs: Mapping[str, int], free: int | None) -> int:
    """Total bytes; raises `Failed` with the costliest sites if they do not fit in nine tenths of what is free."""
    total = sum(costs.values())
    if free is not None and total > 0.9 * free:
        worst = sorted(costs.items(), key=lambda c: -c[1])[:3]
        named = ", ".join(f"{name} ({size / 2**30:.2f} GiB)" for name, size in worst)
        raise Failed(
            f"recording would take {total / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free. The costliest: {named}. "
            "Record fewer sites or positions (pos=), a smaller dtype (dtype=torch.bfloat16), or smaller batches."
        )
    return total
