"""Two processes against one: the same losses, gradients, selected sets, counters; kills, checkpoints, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import interp
from interp.cli import main
from interp.dictionaries import load_dictionary
from interp.files import load_tensors, save_tensors
from tests.dictionaries.ranked import KINDS

pytestmark = pytest.mark.slow("processes that import torch")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(interp.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/dictionaries/ranked.py prints."""
    command = [sys.executable, str(Path(__file__).with_name("ranked.py")), str(tmp_path_factory.mktemp("ranked"))]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
@pytest.mark.parametrize("name", KINDS)
def test_every_step_of_two_is_that_of_one(told: dict[str, Any], name: str, dtype: str, tolerance: float) -> None:
    """25 steps, AuxK at work where there is one; gradients are those after projection and clipping."""
    for rank in told[dtype][name]:
        value = rank["value"]
        assert max(value["errors"].values()) <= tolerance, value["errors"]
        assert value["errors"].keys() == {"total", "fvu", "sparsity", "aux", "gradients", "state", "finished"}
        assert (value["sets"], value["counters"]) == (True, True)
        assert (value["dead"] > 0) == ("dead_after" in KINDS[name])


def test_equal_values_go_to_the_latent_that_one_process_takes(told: dict[str, Any]) -> None:
    assert told["ties"] == [{"value": True}, {"value": True}]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the threads of a process are counted in /proc")
def test_no_thread_of_the_group_outlives_it(told: dict[str, Any]) -> None:
    """One that does may end with an abort of the interpreter, after all work is done."""
    assert told["parted"] == [{"value": 1}, {"value": 1}]


def test_a_killed_rank_stops_the_other_with_a_message_and_both_go_on(told: dict[str, Any]) -> None:
    killed = told["killed"]
    assert killed["said"]["Failed"].startswith("Rank 0 of 2 has lost the others: one of them has ended. Go on from")
    assert killed["seconds"] < 10
    assert killed["step"] == 20
    assert killed["again"] == [{"value": None}, {"value": None}]
    assert killed["same"]  # in the bytes of two that were not killed


def test_a_checkpoint_of_two_loads_in_one_and_the_other_way_round(told: dict[str, Any]) -> None:
    assert len(told["exchanged"]) == 4
    for case in told["exchanged"].values():
        assert {"Failed": "stopped"} in case["begun"]
        assert all(rank == {"value": None} for rank in case["ended"])
        assert case["far"] < 1e-10


def test_a_sweep_is_shared_out(told: dict[str, Any]) -> None:
    assert told["many"] == [{"value": ["a", "c"]}, {"value": ["b"]}]
    assert told["many_same"]


def test_a_mesh_has_rows_and_columns_of_processes(told: dict[str, Any]) -> None:
    """Process 2 of 4 is the second of its column, {0, 2}, and the first of its row, {2, 3}."""
    assert told["parts"][2]["value"] == [[1, 2, 5, [1, 4], ["b"]], [0, 2, 12, [4, 8], ["a", "c"]]]
    assert [rank["value"][0][2] for rank in told["parts"]] == [5, 10, 5, 10]


def test_a_sweep_of_dictionaries_each_over_two_processes(told: dict[str, Any]) -> None:
    assert told["together"] == [{"value": ["a", "c"]}] * 2 + [{"value": ["b"]}] * 2
    assert told["together_far"] < 1e-10


def test_what_is_refused_on_every_rank(told: dict[str, Any]) -> None:
    for case, said in {
        "different": "Rank 1 was given lr=0.002, rank 0 0.001",
        "unequal": "latents=25 cannot be shared equally by 2 processes",
        "too_few": "together=3: 2 processes cannot be shared out by so many",
        "other_kind": "topk, batchtopk, l1_april share their latents; jumprelu cannot",
    }.items():
        assert all(said in rank["WrongUse"] for rank in told[case]), told[case]


def test_the_commands_under_torchrun(
    rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dictionary of shared latents against one process (this one), through the real launcher."""
    save_tensors(tmp_path / "X.safetensors", {"x": rows.float()})
    words = ["train", "sae", "--rows", str(tmp_path / "X.safetensors"), "--k", "3", "--latents", "50"]
    words += ["--batch", "32", "--steps", "20", "--dtype", "float64", "--json", "-o"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    launcher += [str(Path(sys.executable).with_name("interp"))]
    done = subprocess.run(
        [*launcher, *words, str(tmp_path / "two")], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
    )
    monkeypatch.setattr(sys, "argv", ["interp", *words, str(tmp_path / "one")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    for said in (done.stdout, capsys.readouterr().out):
        assert json.loads(said)["steps"] == 20  # said once
    one, two = (load_dictionary(tmp_path / out) for out in ("one", "two"))
    assert (one.W_dec - two.W_dec).abs().max() < 1e-10
    assert (
        load_tensors(tmp_path / "two" / "state.safetensors")[0].keys()
        == load_tensors(tmp_path / "one" / "state.safetensors")[0].keys()
    )
