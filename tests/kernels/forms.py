"""Which forms of the ops a process can test: Triton's interpreter is decided on when kernels are imported."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FORMS = ["triton"] if INTERPRETED else ["reference", "cpu"]
