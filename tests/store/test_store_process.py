"""What needs processes of its own: kills, a full disk, two writers, few file handles, and the memory they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import interp

pytestmark = pytest.mark.slow("a hundred recordings are killed, and 400 MB written, in a process that imports torch")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/store/recorder.py prints."""
    env = {**os.environ, "PYTHONPATH": str(Path(interp.__file__).parents[1])}
    script = Path(__file__).with_name("recorder.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("recorder"))]
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def test_killed_recordings_end_in_the_same_bytes(told: dict[str, Any]) -> None:
    assert told["killed"]["differing"] == []
    assert told["killed"]["by_clock"] == []
    assert set(told["killed"]["states"]) == {"nothing", "begun", "renaming", "closing", "complete"}  # kills everywhere


def test_a_full_disk_is_named_and_the_last_commit_intact(told: dict[str, Any]) -> None:
    *full, enough = told["full"]
    for trial in full:
        assert trial["status"] == 1
        assert trial["told"].startswith(f"Failed: {trial['path']}/")
        assert f"File too large. The last commit, of {trial['rows']} rows, is intact" in trial["told"]
        assert trial["same"]
    assert len({trial["rows"] for trial in full}) >= 3
    assert enough["status"] == 0


def test_two_writers(told: dict[str, Any]) -> None:
    (status, text), alone = told["second"]
    assert status == 1
    assert text.startswith("Failed: Another process is writing into ")
    assert alone == [0, 0]


def test_file_handles_are_few(told: dict[str, Any]) -> None:
    status, shards = told["handles"]
    assert status == 0, shards
    assert shards > 200


@pytest.mark.parametrize("what", ["write", "read", "sample"])
def test_memory_stays_below_one_pile_and_200_mb(told: dict[str, Any], what: str) -> None:
    memory = told["memory"]
    status, used = memory[what]
    assert status == 0, used
    assert used < memory["pile"] + 200_000_000 < memory["bytes"] - 100_000_000
