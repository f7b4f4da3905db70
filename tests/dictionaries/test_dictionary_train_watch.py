"""TensorBoard and Weights & Biases are shown what metrics.csv holds, are imported when asked for, and named when missing."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

from interp.cli.train import app
from interp.dictionaries import RowsSource, TopK, TrainConfig, train, train_many
from interp.dictionaries import watch as watching
from interp.errors import Failed
from interp.files import save_tensors

CONFIG = TrainConfig(TopK(3), latents=40, batch=32, steps=20, lr=1e-3, log_every=5, save_every=10)


class Shown:
    """Stands in for both clients: keeps what it was given."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.rows: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.closed: list[str] = []

    def wandb(self) -> ModuleType:
        """A module with the part of wandb that is used."""
        shown = self

        class Run:
            def __init__(self, **given: Any):
                shown.begun.append(given)
                self.name = given["name"]

            def log(self, row: dict[str, float], step: int) -> None:
                shown.rows.setdefault(self.name, []).append((step, row))

            def finish(self) -> None:
                shown.closed.append(self.name)

        module: Any = ModuleType("wandb")
        module.init = Run
        return module

    def tensorboard(self) -> ModuleType:
        """A module with the part of torch.utils.tensorboard that is used."""
        shown = self

        class SummaryWriter:
            def __init__(self, folder: str, purge_step: int | None):
                self.name = Path(folder).parent.name
                shown.begun.append({"folder": folder, "purge_step": purge_step})

            def add_text(self, name: str, text: str, step: int) -> None:
                assert json.loads(text.strip("`\n"))["train"]["kind"] == "topk"

            def add_scalar(self, name: str, value: float, step: int) -> None:
                rows = shown.rows.setdefault(self.name, [])
                if not rows or rows[-1][0] != step:
                    rows.append((step, {}))
                rows[-1][1][name] = value

            def close(self) -> None:
                shown.closed.append(self.name)

        module: Any = ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = SummaryWriter
        return module


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Fakes of both, which this process then imports."""
    fake = Shown()
    monkeypatch.setitem(sys.modules, "wandb", fake.wandb())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake.tensorboard())
    return fake


def in_file(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of metrics.csv, by step."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [(int(row.pop("step")), row) for row in rows]


def check(rows: list[tuple[int, dict[str, float]]], folder: Path) -> None:
    """Seven digits stand in the file."""
    wanted = in_file(folder)
    assert [step for step, _ in rows] == [step for step, _ in wanted] == [5, 10, 15, 20]
    assert all(row == pytest.approx(there, rel=1e-6) for (_, row), (_, there) in zip(rows, wanted, strict=True))


@pytest.mark.parametrize("who", ["wandb", "tensorboard"])
def test_each_run_of_many_is_shown_what_its_file_holds(shown: Shown, rows: Tensor, tmp_path: Path, who: str) -> None:
    watch = watching.wandb("project") if who == "wandb" else watching.tensorboard()
    configs = {"a": CONFIG, "b": CONFIG}
    train_many(configs, RowsSource(rows.float()), tmp_path / "sweep", watch=[watch])
    for name in configs:
        check(shown.rows[name], tmp_path / "sweep" / name)
    assert sorted(shown.closed) == ["a", "b"]
    if who == "wandb":
        assert [b["group"] for b in shown.begun] == ["sweep", "sweep"]
        assert shown.begun[0]["config"]["train"] == CONFIG.to_dict()
        assert (shown.begun[0]["project"], shown.begun[0]["reinit"]) == ("project", "create_new")
    else:
        assert shown.begun[0] == {"folder": str(tmp_path / "sweep" / "a" / "tensorboard"), "purge_step": None}


def test_a_resumed_run_goes_on_where_it_was(shown: Shown, rows: Tensor, tmp_path: Path) -> None:
    """The same id; TensorBoard hides what came after the checkpoint; a run that failed is closed too."""
    x = rows.float()
    bad = x.clone()
    bad[:, 0] = float("nan")

    class Cut(RowsSource):
        def batches(self, size: int, seed: int, start: int, stop: int) -> Any:
            for number, (x, y) in enumerate(super().batches(size, seed, start, stop), start):
                yield (x, y) if number < 13 else (bad[:size], bad[:size])

    watch = [watching.wandb("project"), watching.tensorboard()]
    with pytest.raises(Failed, match="step 14"):
        train(CONFIG, Cut(x), tmp_path / "run", watch=watch)
    assert shown.closed == ["run", "run"]
    train(CONFIG, RowsSource(x), tmp_path / "run", watch=watch, resume=True)
    first, _, second, purged = shown.begun
    assert first["id"] == second["id"]
    assert purged["purge_step"] == 14
    train(CONFIG, RowsSource(x), tmp_path / "other", watch=watch)
    assert shown.begun[-2]["id"] != first["id"]


def test_the_command(shown: Shown, rows: Tensor, tmp_path: Path) -> None:
    save_tensors(tmp_path / "X.safetensors", {"x": rows.float()})
    words = ["sae", "--rows", str(tmp_path / "X.safetensors"), "--k", "3", "--latents", "40", "--batch", "32"]
    words += ["--steps", "20", "-o", str(tmp_path / "run"), "--json", "--tensorboard", "--wandb", "mine"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [len(shown.begun), shown.begun[0].get("project", shown.begun[1].get("project"))] == [2, "mine"]


@pytest.mark.parametrize(("flag", "module"), [("--tensorboard", "torch.utils.tensorboard"), ("--wandb", "wandb")])
def test_what_is_missing_is_named_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, rows: Tensor, tmp_path: Path, flag: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    save_tensors(tmp_path / "X.safetensors", {"x": rows.float()})
    words = ["sae", "--rows", str(tmp_path / "X.safetensors"), "-o", str(tmp_path / "run"), "--json", flag]
    done = CliRunner().invoke(app, [*words, *(["p"] * (flag == "--wandb"))])
    name = flag.removeprefix("--")
    assert done.exit_code == 2
    assert f"{flag} needs the package {name}: pip install 'interp-kit[{name}]'." in json.loads(done.stdout)["error"]
    assert not (tmp_path / "run").exists()


def test_neither_is_imported_unasked(monkeypatch: pytest.MonkeyPatch, rows: Tensor, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(CONFIG, RowsSource(rows.float()), tmp_path)
    assert {p.name for p in tmp_path.iterdir()}.isdisjoint({"tensorboard", "wandb.json"})


def test_the_real_tensorboard_reads_it(rows: Tensor, tmp_path: Path) -> None:
    """Where tensorboard is installed its own reader gives the rows back; where not, the error says what to install."""
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(watching.WrongUse, match="pip install 'interp-kit"):
            watching.tensorboard()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(CONFIG, RowsSource(rows.float()), tmp_path, watch=[watching.tensorboard()])
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {name: [(s.step, s.value) for s in read.Scalars(name)] for name in read.Tags()["scalars"]}
    rows_of = {name: [(step, row[name]) for step, row in in_file(tmp_path)] for name in found}
    assert set(found) == {"loss", "fvu", "l0", "dead", "sparsity", "aux", "lr"}
    for name, pairs in found.items():
        assert [v for p in pairs for v in p] == pytest.approx([v for p in rows_of[name] for v in p], rel=1e-6)
