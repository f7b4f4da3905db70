"""Jobs for coverage workers that go wrong."""

from __future__ import annotations

import os
import time


def job(kind: str, limit: float) -> dict[str, str]:
    """Die, hang, or answer."""
    if kind == "dies":
        os._exit(1)
    if kind == "hangs":
        time.sleep(600)
    return {"type": kind, "by": str(os.getpid())}
