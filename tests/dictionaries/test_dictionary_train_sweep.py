"""`interp train sweep`: what a file says, what is trained, and the table and the picture of it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from interp.cli.train import app
from interp.dictionaries import StoreSource, TopK, TrainConfig, evaluate, load_dictionary, train
from interp.dictionaries.kinds import JumpReLU, Matryoshka
from interp.dictionaries.sources import RowsSource
from interp.dictionaries.sweep import compared, crossed, held, read_sweep
from interp.errors import WrongUse
from interp.reports.pareto import Pareto, Point, charts
from interp.store import StoreWriter, open_store

SMALL = "latents: 40\nbatch: 32\nsteps: 20\nlr: 1e-3\nlog_every: 5\nsave_every: 10\n"


@pytest.fixture
def store(rows: Tensor, tmp_path: Path) -> str:
    """800 rows of three sites; a training of 20 steps sees 640 of them."""
    x = torch.cat([rows, rows.flip(0) ** 2]).float()
    values = {"blocks.0.resid_post": x, "blocks.1.resid_post": x[:, :6].square(), "blocks.1.mlp.in": x[:, 2:5]}
    widths = {site: v.shape[1] for site, v in values.items()}
    with StoreWriter(tmp_path / "store", widths=widths, dtype="float32", expected_rows=800) as writer:
        writer.append(values, documents=torch.arange(800))
    return str(tmp_path / "store")


def run(*words: str, status: int = 0) -> Any:
    """The one JSON object on standard output."""
    done = CliRunner().invoke(app, ["sweep", *words, "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "sweep.yaml").write_text(text)
    return str(tmp_path / "sweep.yaml")


# ------------------------------------------------------------ what a file says


def test_lists_are_crossed() -> None:
    given = {"kinds": ["topk", {"jumprelu": {"bandwidth": 0.5}}], "k": [2, 3], "sparsity": 1e-3, "seeds": [0, 7]}
    made = crossed(given | {"latents": 40, "lr": "1e-4"}, "x.yaml")
    assert list(made) == [
        *("topk-k2-seed0", "topk-k2-seed7", "topk-k3-seed0", "topk-k3-seed7"),
        *("jumprelu-seed0", "jumprelu-seed7"),
    ]
    wanted = TrainConfig(TopK(3), latents=40, lr=1e-4, seed=7, data_seed=0)
    assert made["topk-k3-seed7"] == wanted
    assert made["jumprelu-seed0"].kind == JumpReLU(sparsity=1e-3, bandwidth=0.5)


def test_a_kinds_own_settings_win_and_a_tuple_is_one_value() -> None:
    kinds = {"topk": None, "matryoshka": {"k": [4, 5], "groups": [10, 40], "latents": 40}}
    made = crossed({"kinds": kinds, "k": 2, "latents": 60, "data_seed": 3}, "x.yaml")
    assert list(made) == ["topk-seed0", "matryoshka-k4-seed0", "matryoshka-k5-seed0"]
    assert made["topk-seed0"].kind == TopK(2)
    assert made["matryoshka-k5-seed0"].kind == Matryoshka(5, groups=(10, 40))
    assert {c.latents for c in made.values()} == {40, 60}
    assert {c.order for c in made.values()} == {3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kinds: [topk]\nstore: S", "must list sites"),
        ("sites: [a]\nstore: S", "must list kinds, such as"),
        ("sites: [a]\nkinds: [topk]", "A sweep needs rows"),
        ("sites: [a]\nkinds: [topk]\nstore: S\ntokens: 5", "leave them out"),
        ("sites: [a]\nkinds: [topk]\nstore: S\nstream: true", "leave them out"),
        ("sites: [a]\nkinds: [topk]\nstore: S\ntext: T", "are for a `model`, and none is given"),
        ("sites: [a]\nkinds: [topk]\nstore: S\nlatent: 5", "has no 'latent'. Did you mean 'latents'"),
        ("sites: [a]\nkinds: [topk]\nstore: S\nseed: 5", "has no 'seed'. Did you mean 'seeds'"),
        ("sites: [a]\nkinds: [topk]\nstore: S\nsparsity: 5", "has no 'sparsity'"),
        ("sites: [a]\nkinds: {topk: {sparsity: 5}}\nstore: S", r"\(kind topk\) has no 'sparsity'"),
        ("sites: [a]\nkinds: {topk: 5}\nstore: S", "must list kinds"),
        ("sites: [a]\nkinds: [topq]\nstore: S", "no 'topq'. Did you mean 'topk'"),
        ("sites: [a]\nkinds: [topk]\nk: [3, 3]\nstore: S", "says topk-k3-seed0 twice"),
        ("sites: [a]\nkinds: [topk]\nk: [3, many]\nstore: S", "topk-kmany-seed0: k must be int; it is 'many'"),
        ("sites: [a]\nkinds: [topk]\nstore: S\ncontext: long", "context must be int; it is 'long'"),
        ("sites: [a]\nkinds: [topk]\nstore: S\nend_to_end: true", "not a sweep"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        read_sweep(written(tmp_path, text))


# ------------------------------------------------------------ what is trained


def test_a_sweep_of_a_store(store: str, tmp_path: Path) -> None:
    """Two sites, two kinds, two k, two seeds: sixteen folders, each what its config gives alone; measured on unseen rows."""
    text = f"store: {store}\nsites: ['blocks.*.resid_post']\nkinds: [topk, batchtopk]\nk: [2, 3]\nseeds: [0, 4]\n"
    out = tmp_path / "out"
    told = run(written(tmp_path, text + SMALL), "-o", str(out))["dictionaries"]
    assert len(told) == 16
    names = [row["name"] for row in told]
    assert names[5] == "blocks.0.resid_post-batchtopk-k2-seed4"
    with open(out / "sweep.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == names
    assert all(float(a["fvu"]) == b["fvu"] and float(a["dead"]) == b["dead"] for a, b in zip(table, told, strict=True))

    row = told[13]
    config = TrainConfig.from_dict(
        {"kind": row["kind"], "k": row["k"], "seed": row["seed"], "data_seed": 0, "latents": 40}
        | {"batch": 32, "steps": 20, "lr": 1e-3, "log_every": 5, "save_every": 10}
    )
    source = StoreSource(open_store(store), row["reads"])
    alone = train(config, source, tmp_path / "alone")
    assert torch.equal(load_dictionary(out / row["name"]).W_dec, alone.W_dec)
    after = [x for x, _ in source.batches(32, 0, 20, 25)]  # a pass has 25 batches; the rest is of the second
    (there,) = held([source], config, rows=5 * 32)
    assert torch.equal(there.x, torch.cat(after))
    whole = held([source], config)[0]
    assert (row["l0"], row["fvu"]) == (evaluate(alone, whole).l0, evaluate(alone, whole).fvu)

    page = (out / "pareto.html").read_text()
    for name in names:
        assert len(re.findall(rf"<title>{re.escape(name)}\n", page)) == 1
    assert "http:" not in page and "https:" not in page
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert run(str(tmp_path / "sweep.yaml"), "-o", str(out), "--resume")["dictionaries"] == told
    assert before == {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert "already holds a training run" in run(str(tmp_path / "sweep.yaml"), "-o", str(out), status=2)["error"]


def test_one_that_stops_stands_in_the_table_and_the_command_fails(store: str, tmp_path: Path) -> None:
    text = f"store: {store}\nsites: [blocks.1.mlp.in]\nkinds: [l1]\nclip: 1e30\n" + SMALL.replace(
        "1e-3", "[1e-3, 1e30]"
    )
    told = run(written(tmp_path, text), "-o", str(tmp_path / "out"), status=1)
    assert (
        "1 of 2 dictionaries stopped, the others are trained. blocks.1.mlp.in-l1-lr1e30-seed0: The loss"
        in told["error"]
    )
    with open(tmp_path / "out" / "sweep.csv", newline="") as file:
        good, bad = csv.DictReader(file)
    assert (good["stopped"], bad["fvu"]) == ("", "")
    assert int(bad["stopped"]) < 20
    assert "Stopped at step" in (tmp_path / "out" / "pareto.html").read_text()


def test_dry_run_and_shapes(store: str, tmp_path: Path) -> None:
    text = f"store: {store}\nsites: ['blocks.*.resid_post']\nshape: crosscoder\nkinds: [l1_april]\nsparsity: [1, 2]\n"
    out = tmp_path / "out"
    planned = run(written(tmp_path, text + SMALL), "-o", str(out), "--dry-run")
    assert (planned["rows"], planned["dictionaries"]) == (800, 2)
    assert not out.exists()
    assert len(run(str(tmp_path / "sweep.yaml"), "-o", str(out))["dictionaries"]) == 2
    assert load_dictionary(out / "blocks.all.resid_post-l1_april-sparsity2-seed0").config.widths_in == (9, 6)
    for shape, said in (("transcoder", "blocks.1.mlp.write"), ("sea", "Did you mean 'sae'")):
        other = text.replace("crosscoder", shape).replace("blocks.*.resid_post", "blocks.1.mlp")
        assert said in run(written(tmp_path, other + SMALL), "-o", str(tmp_path / "no"), status=2)["error"]
    tied = text.replace("l1_april", "pursuit").replace("sparsity: [1, 2]", "k: 2")
    assert "pursuit takes one site" in run(written(tmp_path, tied + SMALL), "-o", str(out), status=2)["error"]


def test_what_is_read_and_written_apart_is_compared_apart(rows: Tensor, tmp_path: Path) -> None:
    """A transcoder's rows keep their targets when they are held."""
    x = rows.float()
    source = RowsSource(x, x[:, :2].square())
    config = TrainConfig(TopK(3), latents=40, batch=32, steps=4, lr=1e-3)
    train(config, source, tmp_path / "a")
    (row,) = compared(tmp_path, {"a": config}, {"a": source})
    assert (row["reads"], row["writes"]) == ("rows", "targets")
    assert row["fvu"] == evaluate(load_dictionary(tmp_path / "a"), held([source], config)[0]).fvu


@pytest.mark.slow("loads a model, records and trains")
def test_a_sweep_of_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    """Recorded once for both sites; what the model loses stands in the table and in a chart of its own."""
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"the {i}th of {i * 7} words, and so on {i % 13}" for i in range(300))
    )
    text = f"model: {tiny_folder}\ntext: {tmp_path}/text.txt\ntokens: 800\ncontext: 32\neval_tokens: 100\n"
    text += "sites: ['blocks.*.mlp']\nshape: transcoder\nkinds: [topk]\nk: [2, 4]\n"
    out = tmp_path / "out"
    planned = run(written(tmp_path, text + SMALL), "-o", str(out), "--dry-run")
    assert (planned["rows"], planned["dictionaries"]) == (800, 4)
    told = run(str(tmp_path / "sweep.yaml"), "-o", str(out))["dictionaries"]
    assert [(r["reads"], r["writes"]) for r in told[:1]] == [("blocks.0.mlp.in", "blocks.0.mlp.write")]
    assert all(r["kl"] > 0 and abs(r["loss_recovered"]) < 10 for r in told)  # a random model may lose by being right
    assert set(open_store(out / "activations").sites) == {
        f"blocks.{i}.mlp.{end}" for i in (0, 1) for end in ("in", "write")
    }
    assert (out / "pareto.html").read_text().count("Loss recovered against L0") >= 2


# ------------------------------------------------------------ the picture


def test_pareto_points_lie_where_they_say() -> None:
    """x logarithmic, y linear and upward; the line goes through means over seeds; names are escaped."""
    points = [
        Point(1.0, 0.8, "a", "<one>"),
        Point(10.0, 0.4, "b", "two"),
        Point(100.0, 0.3, "c", "x"),
        Point(100.0, 0.1, "c", "y"),
    ]
    svg = Pareto("FVU", "L0", {"topk": points}).svg()
    at = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert at[1][0] - at[0][0] == pytest.approx(at[2][0] - at[1][0], abs=0.11)
    assert (at[1][1] - at[0][1]) / (at[3][1] - at[1][1]) == pytest.approx(0.4 / 0.3, abs=0.01)
    assert at[0][1] < at[1][1]
    line = re.search(r'points="([^"]+)"', svg)
    assert line
    last = [float(v) for v in line[1].split()[-1].split(",")]
    assert last == pytest.approx([at[2][0], (at[2][1] + at[3][1]) / 2], abs=0.11)
    assert "<title>&lt;one&gt;</title>" in svg


def test_pareto_of_one_point_and_of_none() -> None:
    row = {"name": "s-topk-seed0", "reads": "s", "writes": "s", "kind": "topk", "l0": 3.0, "fvu": 0.25}
    (chart,) = charts([row, {"name": "t", "stopped": 4}])
    assert chart.svg().count("<circle") == 1
    assert charts([row | {"l0": 0.0}]) == []
