"""`interp train` and `interp eval`: from tensors, from a model, and what they say when asked for nonsense."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

import interp
from interp.cli import dictionaries as dictionaries_command
from interp.cli import eval as eval_command
from interp.cli.train import app
from interp.dictionaries import KINDS, load_dictionary
from interp.files import load_tensors, save_tensors

SMALL = ["--k", "3", "--latents", "50", "--batch", "32", "--steps", "20", "--lr", "1e-3", "--seed", "0"]


@pytest.fixture
def files(tmp_path: Path, rows: Tensor) -> dict[str, str]:
    """Rows and targets, and a file that holds two tensors."""
    x, y = rows.float(), rows[:, :6].float().square()
    save_tensors(tmp_path / "X.safetensors", {"anything": x.half()})
    save_tensors(tmp_path / "Y.safetensors", {"targets": y, "other": x})
    save_tensors(tmp_path / "two.safetensors", {"a": x, "b": y})
    return {n: str(tmp_path / f"{n}.safetensors") for n in ("X", "Y", "two")} | {"out": str(tmp_path / "out")}


def run(command: Typer, *words: str, status: int = 0) -> Any:
    """The one JSON object on standard output."""
    done = CliRunner().invoke(command, [*words, "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


def evaluate(*words: str, status: int = 0) -> Any:
    app = Typer()
    app.command()(eval_command.evaluate)
    return run(app, *words, status=status)


def test_autoencoder_of_rows(files: dict[str, str]) -> None:
    told = run(app, "sae", "--rows", files["X"], "--kind", "topk", *SMALL, "-o", files["out"])
    assert (told["path"], told["steps"], told["dead_window"], told["seed"]) == (files["out"], 20, 400, 0)
    assert 0 < told["fvu"] < 2
    assert load_dictionary(files["out"]).config.autoencoder
    measured = evaluate(files["out"], "--rows", files["X"])
    assert {"fvu", "l0", "dead", "cosine"} <= set(measured)
    assert measured["rows"] == 400
    # going on with what is finished changes nothing; starting over is refused
    before = Path(files["out"], "weights.safetensors").read_bytes()
    assert run(app, "sae", "--rows", files["X"], *SMALL, "-o", files["out"], "--resume") == told
    assert Path(files["out"], "weights.safetensors").read_bytes() == before
    assert "--resume" in run(app, "sae", "--rows", files["X"], *SMALL, "-o", files["out"], status=2)["error"]


def test_a_meta_dictionary_is_trained_on_a_decoder(files: dict[str, str], tmp_path: Path) -> None:
    """The rows are the decoder's (Leask et al. 2025): the FVU is that of W_dec."""
    run(app, "sae", "--rows", files["X"], *SMALL, "-o", files["out"])
    meta = str(tmp_path / "meta")
    told = run(
        app, "sae", "--rows", files["out"], "--kind", "batchtopk", *SMALL[:2], *SMALL[4:], "--latents", "20", "-o", meta
    )
    assert (told["kind"], told["dead_window"]) == ("batchtopk", 50)
    W, D = load_dictionary(files["out"]).W_dec.detach(), load_dictionary(meta)
    fvu = (W - D(W)).square().sum() / (W - W.mean(0)).square().sum()
    assert evaluate(meta, "--rows", files["out"])["fvu"] == pytest.approx(fvu.item(), rel=1e-5)


def test_transcoder_of_rows_from_a_config_file(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("k: 3\nlatents: 50\nbatch: 32\nsteps: 20\nlr: 1e-3\nseed: 4\n")
    given = ["--rows", files["X"], "--targets", files["Y"], "--config", str(tmp_path / "c.yaml"), "--skip", "--k", "2"]
    told = run(app, "transcoder", *given, "-o", files["out"])
    assert told["seed"] == 4
    config = load_dictionary(files["out"]).config
    assert (config.d_in, config.d_out, config.k, config.skip) == (9, 6, 2, True)
    assert evaluate(files["out"], "--rows", files["X"], "--targets", files["Y"])["l0"] <= 2
    assert evaluate(files["out"], "--rows", files["X"], "--targets", files["Y"], "--dry-run")["bytes"] == 0
    assert "needs --targets" in evaluate(files["out"], "--rows", files["X"], status=2)["error"]
    assert (
        "maps 9 numbers to 6"
        in evaluate(files["out"], "--rows", files["X"], "--targets", files["X"], status=2)["error"]
    )
    (tmp_path / "c.yaml").write_text("latent: 50\n")
    assert "Did you mean 'latents'" in run(app, "transcoder", *given, "-o", files["out"], status=2)["error"]


def test_dry_run_writes_nothing(files: dict[str, str]) -> None:
    told = run(app, "sae", "--rows", files["X"], *SMALL, "-o", files["out"], "--dry-run")
    assert set(told) == {"rows", "bytes", "minutes"}
    assert told["rows"] == 400
    assert not Path(files["out"]).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sae"], "Give a MODEL and --site, --store"),
        (["sae", "zoo:books", "--rows", "X"], "Give a MODEL and --site, --store"),
        (["sae", "zoo:books"], "`interp sites MODEL` lists"),
        (["sae", "--rows", "X", "--site", "embed"], "--site needs a MODEL or a --store"),
        (["sae", "--rows", "X", "--targets", "Y"], "An autoencoder's target is its input"),
        (["sae", "--rows", "X", "--skip"], "An autoencoder's target is its input"),
        (["transcoder", "--rows", "X"], "needs --targets"),
        (["transcoder", "--rows", "X", "--targets", "Y", "--kind", "pursuit"], "pursuit takes one site: its search"),
        (["sae", "--rows", "X", "--kind", "l1", "--k", "3"], "(kind l1) has no 'k'"),
        (["crosscoder", "--rows", "X"], "A crosscoder reads several sites of a MODEL"),
        (["clt", "--rows", "X", "--skip"], "no target and no skip"),
        (["sae", "--rows", "X", "--sparsity", "3"], "(kind topk) has no 'sparsity'"),
        (["sae", "--rows", "two"], "holds a, b: it should hold one tensor, or one named 'x' or 'rows'"),
        (["sae", "--rows", "nowhere"], "nowhere does not exist"),
        (["sae", "--rows", "X", "--k", "51", "--latents", "50"], "k=51 of latents=50"),
        (["sae", "--rows", "X", "--kind", "topq"], "Did you mean 'topk'"),
        (["transcoder", "--rows", "X", "--targets", "Y", "--batch", "1"], "batch must be at least 2"),
    ],
)
def test_wrong_use(files: dict[str, str], words: list[str], said: str) -> None:
    words = [files.get(w, w) for w in words]
    assert said in run(app, *words, "-o", files["out"], status=2)["error"]
    assert not Path(files["out"]).exists()


def test_rows_of_a_damaged_file(files: dict[str, str]) -> None:
    path = Path(files["X"])
    path.write_bytes(path.read_bytes()[:-50])
    assert (
        "X.safetensors is not a whole" in run(app, "sae", "--rows", files["X"], "-o", files["out"], status=1)["error"]
    )


def test_nan_is_exit_status_1(files: dict[str, str], rows: Tensor) -> None:
    """One bad row of 400: found in the first pass, that is within 13 steps of 32."""
    x = rows.float()
    x[7, 1] = float("nan")
    save_tensors(files["X"], {"x": x})
    told = run(app, "sae", "--rows", files["X"], *SMALL, "-o", files["out"], status=1)
    found = re.search(r"NaN or infinite activations at rows, step (\d+): 1 of 32 rows", told["error"])
    assert found
    assert 1 <= int(found[1]) <= 13


def test_the_list_of_kinds_is_that_of_the_page() -> None:
    app = Typer()
    app.command()(dictionaries_command.dictionaries)
    names = CliRunner().invoke(app, ["--names"]).stdout.split()
    assert names == list(KINDS)
    assert [kind["name"] for kind in run(app)["kinds"]] == names
    page = Path(__file__).parents[2].joinpath("docs", "dictionaries.md").read_text(encoding="utf-8")
    assert dictionaries_command.table() in page, "docs/dictionaries.md holds what `interp dictionaries` prints"


# ------------------------------------------------------------ from a model


@pytest.mark.slow("records, trains and measures thirteen times")
def test_every_kind_of_a_model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`for k in $(interp dictionaries --names)`: train and eval succeed, in a model that is loaded once."""
    loaded: Any = cache(interp.model.load)
    monkeypatch.setattr(interp.model, "load", loaded)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the {i}th of {i * 7} words, and so on {i % 13}" for i in range(60)))
    for name in KINDS:
        given = ["--site", "blocks.1.resid_post", "--kind", name, "--steps", "3", "--batch", "32", "--latents", "50"]
        source = [str(tiny_folder), "--text", str(text), "--tokens", "200", "--context", "32"]
        told = run(app, "sae", *source, *given, "-o", str(tmp_path / name))
        assert (told["kind"], told["steps"]) == (name, 3)
        measured = evaluate(str(tmp_path / name), *source)
        assert measured["rows"] >= 200
        assert measured["fvu"] > 0 and measured["kl"]["replaced"] > 0


@pytest.mark.slow("loads a model five times")
def test_from_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    """Recorded, trained, measured, resumed; and the transcoder's sites from the name of the MLP."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the {i}th of {i * 7} words, and so on {i % 13}" for i in range(300)))
    given = [str(tiny_folder), "--text", str(text), "--tokens", "600", "--context", "32", *SMALL]
    out = tmp_path / "sae"
    planned = run(app, "sae", *given, "--site", "blocks.1.resid_post", "-o", str(out), "--dry-run")
    assert planned["rows"] == 600
    assert not out.exists()
    told = run(app, "sae", *given, "--site", "blocks.1.resid_post", "-o", str(out))
    assert told["dead_window"] == 600
    assert load_dictionary(out).config.reads == ("blocks.1.resid_post",)
    assert run(app, "sae", *given, "--site", "blocks.1.resid_post", "-o", str(out), "--resume") == told
    command = (str(out), str(tiny_folder), "--text", str(text), "--tokens", "300", "--context", "32")
    planned = evaluate(*command, "--dry-run")
    assert planned["rows"] >= 300 and planned["bytes"] == 0 < planned["minutes"] + 1
    measured = evaluate(*command)
    half = evaluate(*command, "--dtype", "bfloat16")
    assert 0 < abs(half["cross_entropy"]["clean"] - measured["cross_entropy"]["clean"]) < 0.1
    assert {"fvu", "l0", "dead", "cosine", "cross_entropy", "kl", "loss_recovered"} <= set(measured)
    assert set(measured["cross_entropy"]) == {"clean", "zero", "mean", "replaced"}

    run(app, "transcoder", *given, "--site", "blocks.1.mlp", "-o", str(tmp_path / "tc"))
    config = load_dictionary(tmp_path / "tc").config
    assert (config.reads, config.writes) == (("blocks.1.mlp.in",), ("blocks.1.mlp.write",))
    assert load_tensors(tmp_path / "tc" / "weights.safetensors")[1]["seed"] == 0
    wrong = run(app, "sae", *given, "--site", "blocks.1.resid_pots", "-o", str(tmp_path / "no"), status=2)
    assert "resid_post" in wrong["error"]
    several = run(app, "sae", *given, "--site", "blocks.*.resid_post", "-o", str(tmp_path / "no"), status=2)
    assert "a dictionary of this shape reads one" in several["error"]


@pytest.mark.slow("records and trains twice")
def test_several_sites_of_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    """A crosscoder of both blocks and a cross-layer transcoder of both MLPs: recorded, trained, measured in the model."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the {i}th of {i * 7} words, and so on {i % 13}" for i in range(60)))
    source = [str(tiny_folder), "--text", str(text), "--tokens", "200", "--context", "32"]
    for shape, site, kind in (("crosscoder", "resid_post", "l1_april"), ("clt", "mlp", "jumprelu_tanh")):
        given = ["--site", f"blocks.*.{site}", "--kind", kind, *SMALL[2:], "-o", str(tmp_path / shape)]
        assert run(app, shape, *source, *given, "--dry-run")["rows"] == 200
        run(app, shape, *source, *given)
        config = load_dictionary(tmp_path / shape).config
        assert (len(config.reads), config.widths_out, config.cross_layer) == (2, (32, 32), shape == "clt")
        measured = evaluate(str(tmp_path / shape), *source)
        assert measured["fvu"] > 0 and measured["kl"]["replaced"] > 0
        one = run(app, shape, *source, "--site", f"blocks.1.{site}", "-o", str(tmp_path / "no"), status=2)
        assert f"a {shape} reads several, such as blocks.*." in one["error"]
