"""The example scripts run as a newcomer runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow("each is a process that imports torch, loads the bundled model and works for some seconds")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda p: p.name)
def test_example(script):
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
