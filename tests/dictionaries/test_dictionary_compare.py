"""Several dictionaries: groups by their config, intervals over seeds, one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from interp.cli import eval as eval_command
from interp.dictionaries import KINDS, RowsSource, TrainConfig, train
from interp.dictionaries.compare import Comparison, Measured
from interp.dictionaries.seeds import interval
from interp.files import save_tensors
from interp.reports.evaluation import write_evaluation


def run(path: str, seed: int | None, fvu: float | None, **config: Any) -> Measured:
    return Measured(path, seed, config, {"fvu": fvu, "kl.zero": 2.0})


def test_groups_are_runs_that_differ_in_their_seed_alone() -> None:
    compared = Comparison(
        (
            run("a", 0, 0.3, kind="topk", k=8, lr=1e-3),
            run("b", 1, 0.5, kind="topk", k=8, lr=1e-3),
            run("c", 0, 0.2, kind="topk", k=16, lr=1e-3),
            run("d", 0, 0.9, kind="l1", sparsity=5.0, lr=1e-3),
            run("e", 1, None, kind="l1", sparsity=5.0, lr=1e-3),
        )
    )
    assert {name: [r.path for r in runs] for name, runs in compared.groups().items()} == {
        "topk k=8": ["a", "b"],
        "topk k=16": ["c"],
        "l1": ["d", "e"],
    }
    found = compared.over_seeds()
    assert found["topk k=8"]["fvu"] == interval([0.3, 0.5])
    assert found["topk k=8"]["kl.zero"] == (2.0, 0.0)
    told = compared.to_dict()
    assert told["groups"]["topk k=16"] == {
        "runs": 1,
        "fvu": {"mean": 0.2, "half": None},
        "kl.zero": {"mean": 2.0, "half": None},
    }
    assert told["groups"]["l1"]["fvu"] == {"mean": None, "half": None}  # one of its runs has no such measure
    json.dumps(told, allow_nan=False)
    frame = compared.to_frame()
    assert list(frame.columns) == ["path", "group", "seed", "fvu", "kl.zero"]
    assert frame["group"].tolist() == ["topk k=8"] * 2 + ["topk k=16"] + ["l1"] * 2


def test_what_nothing_is_known_of_goes_by_its_path(tmp_path: Path) -> None:
    one, two = (Measured.of(tmp_path / name, {"fvu": 0.5, "kl": {"zero": 1.0}}) for name in ("one", "two"))
    assert one.measures == {"fvu": 0.5, "kl.zero": 1.0}
    assert list(Comparison((one, two)).groups()) == [str(tmp_path / "one"), str(tmp_path / "two")]


def test_the_page_is_text_and_nothing_else(tmp_path: Path) -> None:
    """Names are escaped; measures that do not exist are dashes; runs on other numbers of rows share a chart."""
    evil = "<script>alert(1)</script>"
    entropies = {f"cross_entropy.{name}": 1.0 for name in ("clean", "replaced", "mean", "zero")}
    runs = tuple(Measured(f"r{i}", i, {"kind": evil}, {"fvu": 0.25 + i, "bias": None, **entropies}) for i in range(2))
    counts = pd.DataFrame({"low": [0.0, 0.1, 0.3], "high": [0.0, 0.3, 1.0], "latents": [5, 7, 12345]})
    write_evaluation(tmp_path / "p.html", Comparison(runs), {evil: counts}, {"Command": evil})
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "12,345" in html
    assert "0.750 ± 6.353" in html  # t_{.975, 1} · s/√2 = 12.706 · 0.5
    assert html.count("<svg") == 2
    assert "http:" not in html and "https:" not in html


@pytest.mark.slow("trains four times and runs the command three times, a second each on an idle core")
def test_the_command_takes_several_runs(tmp_path: Path) -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "X.safetensors", {"x": x})
    folders = []
    for kind, seed in (("topk", 0), ("topk", 1), ("l1", 0)):
        own = {"k": 2} if hasattr(KINDS[kind], "k") else {}
        config = TrainConfig.from_dict({"kind": kind, "latents": 12, "steps": 5, "batch": 50, "seed": seed} | own)
        train(config, RowsSource(x), tmp_path / f"{kind}{seed}")
        folders.append(str(tmp_path / f"{kind}{seed}"))
    app = Typer()
    app.command()(eval_command.evaluate)
    page = tmp_path / "page.html"
    words = [*folders, "--rows", str(tmp_path / "X.safetensors"), "--out", str(page)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {name: group["runs"] for name, group in told["groups"].items()} == {"topk": 2, "l1": 1}
    values = [r["fvu"] for r in told["runs"][:2]]
    assert told["groups"]["topk"]["fvu"]["mean"] == pytest.approx(sum(values) / 2)
    assert told["groups"]["topk"]["fvu"]["half"] > 0
    assert "How often latents fire" in page.read_text(encoding="utf-8")
    printed = CliRunner().invoke(app, words)
    assert "topk: 2 runs" in printed.stdout
    wrong = CliRunner().invoke(app, [folders[0]])
    assert wrong.exit_code == 2
    assert "a MODEL after the dictionaries" in wrong.stderr
