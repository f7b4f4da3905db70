"""Several processes record what one does: the bytes of every file, after kills too, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.cli import main
from interp.texts import default_text
from tests.store.ranked import CASES, sums

pytestmark = pytest.mark.slow("processes that import torch")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(interp.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Any]:
    """What tests/store/ranked.py prints."""
    script, folder = Path(__file__).with_name("ranked.py"), tmp_path_factory.mktemp("ranked")
    command = [sys.executable, str(script), str(folder), str(tiny_folder)]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_several_processes_write_the_bytes_of_one(told: dict[str, Any], name: str) -> None:
    case, count = told["equal"][name], CASES[name].get("ranks", 2)
    one, many = case["rows"]
    assert case["same"]
    assert many == one * count, many
    assert one[0]["value"] == CASES[name].get("tokens", one[0]["value"])
    assert (one[0]["value"] > 0) == (name != "none")


def test_a_killed_process_stops_the_other_with_a_message_and_any_number_go_on(told: dict[str, Any]) -> None:
    for case, rank in zip(told["killed"], (0, 1, 0, 0), strict=True):
        assert case["said"]["Failed"].startswith(
            f"Rank {rank} of 2 has lost the others: one of them has ended. Go on from"
        )
        assert case["seconds"] < 10
        assert 0 < case["kept"] < case["rows"][0]["value"]
        assert case["same"]


def test_what_is_refused(told: dict[str, Any]) -> None:
    refused = told["refused"]
    assert all("Rank 1 was given tokens=101, rank 0 100" in rank["WrongUse"] for rank in refused["tokens"])
    for name in ("text", "shorter"):
        assert all("Rank 1 was given text=of checksum" in rank["WrongUse"] for rank in refused[name])
    first, other = refused["there"]
    assert "holds a complete store of" in first["WrongUse"]
    assert "has lost the others" in other["Failed"]
    assert refused["complete"][0] == refused["complete"][1]
    assert refused["complete"][0]["value"] > 0


@pytest.mark.parametrize("command", ["record", "train sae"])
def test_the_commands_under_torchrun(
    tiny_folder: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store of two processes has the bytes of that of one (this one), and the answer is given once."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(default_text())[:20_000])
    words = ["interp", *command.split(), str(tiny_folder)]
    words += ["--site", "blocks.1.resid_post", "--text", str(text), "--tokens", "3000", "--context", "32", "--json"]
    words += ["--k", "3", "--latents", "50", "--batch", "32", "--steps", "5"] if command == "train sae" else []
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr(sys, "argv", [*words, "-o", str(one)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["path"] == str(one)
    whole = [*LAUNCHER, str(Path(sys.executable).with_name("interp")), *words[1:], "-o", str(two)]
    done = subprocess.run(whole, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout)["path"] == str(two)
    inside = "" if command == "record" else "activations"
    assert sums(one / inside) == sums(two / inside)
