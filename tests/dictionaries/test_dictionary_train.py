"""The trainer: exact resumes, the last good checkpoint, configs that teach, and what a run leaves on disk."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.dictionaries import RowsSource, TopK, TrainConfig, load_dictionary, plan, read_config, train
from interp.dictionaries.trainer import Trainer
from interp.errors import Failed, WrongUse
from interp.files import load_tensors, save_tensors

SMALL = {"k": 3, "latents": 50, "batch": 32, "steps": 40, "lr": 1e-3, "log_every": 4, "save_every": 10}


def small(**change: Any) -> TrainConfig:
    """A run of 40 steps."""
    return TrainConfig.from_dict(SMALL | change)


@pytest.fixture
def x(rows: Tensor) -> Tensor:
    """400 rows of 9 numbers."""
    return rows.float()


# ------------------------------------------------------------ kills, a full disk, Ctrl-C


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/dictionaries/killed.py prints."""
    env = {**os.environ, "PYTHONPATH": str(Path(interp.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("killed"))]
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


SLOW = pytest.mark.slow("some thirty training runs, in a process that imports torch")


@SLOW
def test_killed_runs_end_in_the_same_bytes(told: dict[str, Any]) -> None:
    assert told["again"]
    killed = told["killed"]
    assert killed["differing"] == []
    assert killed["ends"].count(-9) >= 8
    assert len(set(killed["steps"])) >= 5  # kills in different places


@SLOW
def test_a_full_disk_is_named_and_the_last_checkpoint_intact(told: dict[str, Any]) -> None:
    starved = told["starved"]
    assert starved["status"] == 1
    assert (
        f"Failed: {starved['path']} could not be written: File too large. The checkpoint of step 14" in starved["said"]
    )
    assert starved["intact"]
    assert (starved["resumed"], starved["same"]) == (0, True)


@SLOW
def test_ctrl_c_says_how_to_go_on(told: dict[str, Any]) -> None:
    interrupted = told["interrupted"]
    assert interrupted["status"] == 130
    assert f"The checkpoint of step {interrupted['step']} in " in interrupted["said"]
    assert "Go on with the same command and --resume." in interrupted["said"]
    assert (interrupted["resumed"], interrupted["same"]) == (0, True)


@SLOW
def test_many_dictionaries_killed_end_in_the_same_bytes(told: dict[str, Any]) -> None:
    swept = told["swept"]
    assert (swept["status"], swept["same"]) == (0, True)
    assert any(len(set(steps)) > 1 for steps in swept["steps"])  # killed while they stood apart
    assert len({tuple(steps) for steps in swept["steps"]}) >= 4  # in different places


# ------------------------------------------------------------ what stops a run


def test_nan_is_named_by_site_and_step_and_the_checkpoint_kept(x: Tensor, tmp_path: Path) -> None:
    class Spoilt(RowsSource):
        def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
            for number, (a, b) in enumerate(super().batches(size, seed, start, stop), start):
                if number == 24:
                    b = b.clone()
                    b[5, 2] = float("nan")
                    b[9, 1] = float("inf")
                yield a, b

    with pytest.raises(
        Failed, match=r"at targets, step 25: 2 of 32 rows\. Training has stopped\. The checkpoint of step 24"
    ):
        train(small(), Spoilt(x, x.square()), tmp_path)
    assert load_tensors(tmp_path / "state.safetensors")[1]["step"] == 24
    assert torch.isfinite(load_dictionary(tmp_path).W_enc).all()
    # the same rows without the damage: as if nothing had happened
    resumed = train(small(), RowsSource(x, x.square()), tmp_path, resume=True)
    straight = train(small(), RowsSource(x, x.square()), tmp_path / "straight")
    assert torch.equal(resumed.W_enc, straight.W_enc)
    assert (tmp_path / "metrics.csv").read_bytes() == (tmp_path / "straight" / "metrics.csv").read_bytes()


def test_a_loss_that_blows_up_stops_the_run(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move = Trainer._move

    def spoil(trainer: Trainer) -> None:
        move(trainer)
        if trainer.step == 13:
            with torch.no_grad():
                trainer.dictionary.b_dec += float("inf")

    monkeypatch.setattr(Trainer, "_move", spoil)
    with pytest.raises(Failed, match=r"The loss is nan at step 14: lower lr=0.001\. The checkpoint of step 10"):
        train(small(), RowsSource(x), tmp_path)


def test_a_folder_that_holds_a_run_is_not_overwritten(x: Tensor, tmp_path: Path) -> None:
    train(small(), RowsSource(x), tmp_path)
    with pytest.raises(WrongUse, match="already holds a training run: go on with --resume"):
        train(small(), RowsSource(x), tmp_path)
    with pytest.raises(WrongUse, match=r"train lr=0.001, not 0.002"):
        train(small(lr=2e-3), RowsSource(x), tmp_path, resume=True)
    with pytest.raises(WrongUse, match="source d_in=9, not 8"):
        train(small(), RowsSource(x[:, :8]), tmp_path, resume=True)
    with pytest.raises(WrongUse, match="source rows=400, not 399"):
        train(small(), RowsSource(x[:399]), tmp_path, resume=True)
    before = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(before[:30])
    with pytest.raises(Failed, match=r"metrics.csv is shorter than at the checkpoint of step 40"):
        train(small(), RowsSource(x), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("lack", "add", "said"),
    [
        ("adam.exp_avg.b_enc", {}, r"state.safetensors lacks adam\.exp_avg\.b_enc"),
        ("", {"weights.b_in": (9,)}, r"has unknown weights\.b_in"),
        ("silent", {"silent": (49,)}, r"silent has shape \[49\], not \[50\]"),
    ],
)
def test_checkpoints_with_other_tensors(x: Tensor, tmp_path: Path, lack: str, add: dict[str, Any], said: str) -> None:
    train(small(), RowsSource(x), tmp_path)
    path = tmp_path / "state.safetensors"
    tensors, meta = load_tensors(path)
    tensors.pop(lack, None)
    save_tensors(path, tensors | {k: torch.zeros(s) for k, s in add.items()}, meta)
    with pytest.raises(Failed, match=said):
        train(small(), RowsSource(x), tmp_path, resume=True)
    save_tensors(path, tensors)
    with pytest.raises(Failed, match="is no checkpoint of a training run"):
        train(small(), RowsSource(x), tmp_path, resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Failed, match="is not a whole safetensors file"):
        train(small(), RowsSource(x), tmp_path, resume=True)


# ------------------------------------------------------------ what a run leaves


def test_files_of_a_run(x: Tensor, tmp_path: Path) -> None:
    trained = train(small(seed=3, lr=1e-2), RowsSource(x), tmp_path, command="interp train sae")
    found = {p.name for p in tmp_path.iterdir()}
    names = {"config.json", "weights.safetensors", "metrics.csv", "speed.csv", "state.safetensors", "run.json"}
    assert found == names
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == list(range(4, 41, 4))
    assert float(rows[-1]["fvu"]) < float(rows[0]["fvu"])
    assert all(0 <= float(r["l0"]) <= 3 for r in rows)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["dead_window"], run["seed"]) == (400, 3)
    assert {"command", "versions", "threads", "train", "source"} <= set(run)
    for name in ("weights.safetensors", "state.safetensors"):
        meta = load_tensors(tmp_path / name)[1]
        assert (meta["command"], meta["seed"]) == ("interp train sae", 3)
    loaded = load_dictionary(tmp_path)
    assert all(torch.equal(p, trained.get_parameter(name)) for name, p in loaded.named_parameters())
    assert torch.allclose(loaded.W_dec.norm(dim=1), torch.ones(50), atol=1e-6)


def test_the_dictionary_takes_raw_rows(x: Tensor, tmp_path: Path) -> None:
    """The FVU of the last metrics row is that of raw rows: scales of 1000 and 0.01 leave no trace."""
    y = x[:, :6].square() / 100
    trained = train(small(skip=True, batch=400, log_every=1), RowsSource(1000 * x, y), tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        last = float(list(csv.DictReader(file))[-1]["fvu"])
    with torch.no_grad():
        fvu = (y - trained(1000 * x)).square().sum() / (y - y.mean(0)).square().sum()
    assert fvu.item() == pytest.approx(last, rel=0.02)  # the last step's own update lies between
    assert last < 0.9


def test_seeds(x: Tensor, tmp_path: Path) -> None:
    a, b, c = (train(small(seed=s), RowsSource(x), tmp_path / n) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(a.W_enc, b.W_enc)
    assert not torch.allclose(a.W_enc, c.W_enc)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtypes(x: Tensor, tmp_path: Path, dtype: str) -> None:
    """Half-precision rows and products; weights stay float32, or are float64 throughout."""
    trained = train(small(dtype=dtype, latents=100), RowsSource(x.half()), tmp_path)
    assert trained.W_enc.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert load_dictionary(tmp_path).W_enc.dtype == trained.W_enc.dtype
    again = train(small(dtype=dtype, latents=100), RowsSource(x.half()), tmp_path / "again")
    assert torch.equal(trained.W_enc, again.W_enc)


def test_adam_restored_is_adam(x: Tensor, tmp_path: Path) -> None:
    """State out and in again, at every step: the same weights as without."""
    source = RowsSource(x)
    one, two = Trainer(small(), source), Trainer(small(), source)
    one.begin()
    two.begin()
    for a, _ in source.batches(32, 0, 0, 12):
        one.update(a, a)
        fresh = Trainer(small(), source)
        fresh.restore({k: t.clone() for k, t in two.state().items()}, two.step, two.scales)
        two = fresh
        two.update(a, a)
    for name, t in one.state().items():
        assert torch.equal(t, two.state()[name]), name


def test_plan(x: Tensor) -> None:
    told = plan(small(), RowsSource(x))
    assert told["rows"] == 400
    assert told["bytes"] == 4 * 4 * (2 * 9 * 50 + 50 + 9) + 8 * 50
    assert told["minutes"] >= 0


# ------------------------------------------------------------ configs


def test_schedule() -> None:
    c = small(steps=100, warmup=0.1, decay=0.2)
    shares = [c.schedule(step) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert shares[10:80] == [1.0] * 70
    assert shares[80:] == pytest.approx([(20 - i) / 20 for i in range(20)])
    assert small(warmup=0, decay=0).schedule(39) == 1.0


def test_learning_rate_from_width(x: Tensor) -> None:
    assert Trainer(small(lr=None, latents=2**12), RowsSource(x)).lr == pytest.approx(4e-4)


def test_config_files(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("k: 3\nlatents: 50\nlr: 1e-3\nskip: true\naux: 0\n")
    (tmp_path / "c.json").write_text(json.dumps({"k": 3, "latents": 50, "lr": 1e-3, "skip": True, "aux": 0.0}))
    a, b = (TrainConfig.from_dict(read_config(tmp_path / n)) for n in ("c.yaml", "c.json"))
    assert a == b == TrainConfig(TopK(k=3, aux=0.0), latents=50, lr=1e-3, skip=True)
    assert TrainConfig.from_dict(a.to_dict()) == a


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latent: 4", "no 'latent'. Did you mean 'latents'"),
        ("k: many", "k must be int; it is 'many'"),
        ("k: 2.5", "k must be int; it is 2.5"),
        ("k: true", "k must be int; it is True"),
        ("skip: 1", "skip must be bool; it is 1"),
        ("kind: topq", "no 'topq'. Did you mean 'topk'"),
        ("dtype: float31", "no 'float31'. Did you mean 'float"),
        ("steps: 0", "steps must be at least 1"),
        ("batch: 1", "batch must be at least 2"),
        ("k_aux: 0", "k_aux must be at least 1"),
        ("seed: -1", "seed must be at least 0"),
        ("lr: 0", "lr must be positive"),
        ("{k: 9, latents: 5}", "k=9 of latents=5"),
        ("average: 1", "average must be below 1"),
        ("sparsity_warmup: 2", "sparsity_warmup=2.0 is a share"),
        ("warmup: 0.9", "warmup=0.9 and decay=0.2"),
        ("- 1", "must hold keys and values"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_config_files_that_are_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(WrongUse, match=said):
        TrainConfig.from_dict(read_config(tmp_path / "c.yaml"))
