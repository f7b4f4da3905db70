"""Dictionaries of pictures, encoders, cross-attention, heads and neurons, trained from ready inputs on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from interp.cli.train import app
from interp.dictionaries import KINDS, load_dictionary
from interp.files import save_tensors
from interp.model import load
from tests.model.shapes import module

IDS = torch.randint(3, 60, (30, 6), generator=torch.Generator().manual_seed(1))
INPUTS = {
    "vit": {"pixel_values": torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
    "t5": {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)},
    "bert": {"input_ids": IDS},
    "llama": {"input_ids": IDS},
}
PLACES = [
    ("vit", "blocks.1.resid_post"),
    ("t5", "decoder.blocks.1.cross_attn.write"),
    ("t5", "encoder.blocks.1.resid_post"),
    ("bert", "blocks.1.mlp.post"),
    ("llama", "blocks.1.attn.z"),
    ("llama", "blocks.1.attn.result"),
]
SMALL = ["--latents", "40", "--batch", "32", "--steps", "6", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a file of inputs for each model."""
    folder = tmp_path_factory.mktemp("models")
    for name, inputs in INPUTS.items():
        module(name).save_pretrained(folder / name)  # type: ignore[operator]
        save_tensors(folder / f"{name}.safetensors", inputs)
    return folder


def train(folders: Path, name: str, *words: str, status: int = 0) -> Any:
    given = ["sae", str(folders / name), *SMALL, "--inputs", str(folders / f"{name}.safetensors"), "--json", *words]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_every_kind_of_model_and_site(folders: Path, tmp_path: Path, name: str, site: str) -> None:
    """What is trained reads the rows of that site, and its latents there are its own."""
    told = train(folders, name, "--site", site, "--kind", "topk", "--k", "3", "-o", str(tmp_path))
    assert told["l0"] == 3
    model, D = load(module(name)), load_dictionary(tmp_path)
    whole = model.record(INPUTS[name], site)[site].flatten(2)
    with model.attach(D):
        found = model.record(INPUTS[name], [f"{site}.latents", f"{site}.error"])
    assert torch.equal(found[f"{site}.latents"], D.encode(whole))
    left = found[f"{site}.error"].flatten(2).square().sum() / (whole - whole.mean((0, 1))).square().sum()
    assert left < 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_pictures(folders: Path, tmp_path: Path, kind: str) -> None:
    few = ["--k", "3"] if "k" in KINDS[kind].__dataclass_fields__ else []
    told = train(folders, "vit", "--site", "blocks.1.resid_post", "--kind", kind, *few, "-o", str(tmp_path))
    assert (told["kind"], told["steps"]) == (kind, 6)
    assert load_dictionary(tmp_path).config.reads == ("blocks.1.resid_post",)


def test_a_plan_and_what_makes_no_sense(folders: Path, tmp_path: Path) -> None:
    site = ["--site", "blocks.1.resid_post", "-o", str(tmp_path / "out")]
    assert train(folders, "vit", *site, "--k", "3", "--dry-run")["rows"] == 40 * 5
    assert "--stream reads text" in train(folders, "vit", *site, "--k", "3", "--stream", status=2)["error"]
    assert "not both" in train(folders, "vit", *site, "--k", "3", "--text", "x.txt", status=2)["error"]
    assert not (tmp_path / "out" / "weights.safetensors").exists()
