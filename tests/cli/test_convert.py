"""`interp convert`: formats are found, losses are said, nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.cli.convert import convert
from interp.dictionaries import RowsSource, TopK, TrainConfig, load_dictionary, train
from tests.interop.conftest import close
from tests.interop.layouts import circuit_tracer, gemma_scope

X = torch.randn(512, 6, generator=torch.Generator().manual_seed(2)) + 0.3


def told(capsys: pytest.CaptureFixture[str], *args: Any, status: int = 0, **options: Any) -> dict[str, Any]:
    """What it printed as JSON."""
    if status:
        with pytest.raises(SystemExit) as stopped:
            convert(*args, as_json=True, **options)
        assert stopped.value.code == status
    else:
        convert(*args, as_json=True, **options)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == 0 or "error" in said
    return said


@pytest.mark.slow("the first optimiser of a process imports torch's compiler")
@pytest.mark.parametrize("to", ["saelens", "dictionary_learning", "sparsify"])
def test_a_run_of_ours_goes_out_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    run = tmp_path / "run"
    train(TrainConfig(TopK(k=4), latents=40, steps=3, batch=64), RowsSource(X), run)
    said = told(capsys, str(run), tmp_path / "out", to=to)
    assert (said["from"], said["to"], said["k"], said["lost"]) == ("interp", to, 4, [])
    assert told(capsys, str(tmp_path / "out"), tmp_path / "back", to="interp")["from"] == to
    ours, back = load_dictionary(run), load_dictionary(tmp_path / "back")
    close(ours(X), back(X), 1e-6)
    assert ours.config == back.config
    assert "command" in (tmp_path / "back" / "config.json").read_text()  # how it was made came along


def test_a_file_without_sites_is_told_its_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, y = gemma_scope(tmp_path / "in", X)
    error = told(capsys, str(tmp_path / "in"), tmp_path / "out", to="circuit-tracer", status=2)["error"]
    assert "it is an autoencoder, and that format has only transcoders" in error
    sites = {"site": "blocks.2.mlp.in", "target": "blocks.2.mlp.write"}
    assert told(capsys, str(tmp_path / "in"), tmp_path / "out", to="circuit-tracer", **sites)["from"] == "gemma_scope"
    close(y, load_dictionary(tmp_path / "out")(X), 2e-6)
    assert "--target, the site written, goes with --site" in told(
        capsys, str(tmp_path / "in"), tmp_path / "b", to="saelens", target="embed", status=2
    )["error"]  # fmt: skip
    convert(str(tmp_path / "out"), tmp_path / "npz", to="gemma_scope")
    assert "not kept     the sites: it reads blocks.2.mlp.in" in capsys.readouterr().out


def test_layers_gather_in_one_folder_and_nothing_else_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layer in (2, 3):
        circuit_tracer(tmp_path / f"in{layer}", X, True, True)
        sites = {"site": f"blocks.{layer}.mlp.in", "target": f"blocks.{layer}.mlp.write"}
        told(capsys, str(tmp_path / f"in{layer}"), tmp_path / "set", to="circuit_tracer", **sites)
    assert {p.name for p in (tmp_path / "set").iterdir()} == {
        "config.yaml",
        "layer_2.safetensors",
        "layer_3.safetensors",
    }
    other = {"site": "blocks.1.resid_mid", "target": "blocks.1.mlp.write"}
    error = told(capsys, str(tmp_path / "in2"), tmp_path / "set", to="circuit_tracer", status=2, **other)["error"]
    assert "holds transcoders of other hooks" in error
    error = told(capsys, str(tmp_path / "in2"), tmp_path / "in3", to="saelens", status=2)["error"]
    assert "already holds a dictionary (circuit_tracer)" in error
    told(capsys, str(tmp_path / "in2"), tmp_path / "out", to="saelens")
    assert "already holds" in told(capsys, str(tmp_path / "in2"), tmp_path / "out", to="saelens", status=2)["error"]


def test_a_skip_without_a_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit_tracer(tmp_path / "in", X, True, True)
    error = told(capsys, str(tmp_path / "in"), tmp_path / "out", to="gemma_scope", status=2)["error"]
    assert "it has a skip, and an npz file has no place for it" in error
    assert not (tmp_path / "out").exists()
