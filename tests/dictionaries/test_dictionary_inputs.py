"""Dictionaries of pictures, encoders, cross-attention, heads and neurons, trained from ready inputs on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import BertForMaskedLM
from typer.testing import CliRunner

from interp.cli.convert import convert
from interp.cli.eval import evaluate as eval_command
from interp.cli.train import app
from interp.dictionaries import KINDS, Dictionary, DictionaryConfig, evaluate_model, load_dictionary
from interp.errors import WrongUse
from interp.files import save_tensors
from interp.model import Replace, load
from tests.model.shapes import module, tiny

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
    ("llama", "blocks.1.attn.result.2"),
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


def said(command: Any, *words: str) -> Any:
    """What a command prints with --json."""
    alone = typer.Typer()
    alone.command()(command)
    done = CliRunner().invoke(alone, [*words, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_every_kind_of_model_and_site(folders: Path, tmp_path: Path, name: str, site: str) -> None:
    """What is trained reads the rows of that site, and its latents there are its own."""
    told = train(folders, name, "--site", site, "--kind", "topk", "--k", "3", "-o", str(tmp_path))
    assert told["l0"] == 3
    model, D = load(module(name)), load_dictionary(tmp_path)
    whole = model.record(INPUTS[name], site)[site].flatten(2)
    again = ["sae", "--store", str(tmp_path / "activations"), "--site", site, *SMALL, "--k", "3", "--dry-run", "--json"]
    done = CliRunner().invoke(app, [*again, "-o", str(tmp_path / "again")])
    assert json.loads(done.stdout)["rows"] == whole[..., 0].numel()
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
    D = load_dictionary(tmp_path)
    assert D.config.reads == ("blocks.1.resid_post",)
    found = said(eval_command, str(tmp_path), str(folders / "vit"), "--inputs", str(folders / "vit.safetensors"))
    assert found["tokens"] == 40  # one prediction a picture
    assert found["kl"]["replaced"] > 0
    assert found["cross_entropy"]["clean"] is None
    to = "interp" if kind == "codebook" else "saelens"
    said(convert, str(tmp_path), str(tmp_path / "other"), "--to", to)
    assert load_dictionary(tmp_path / "other").config.latents == D.config.latents


@pytest.mark.parametrize("name", ["vit", "bert", "llama"])
def test_eval_of_inputs_is_the_kl_of_what_is_predicted(folders: Path, name: str) -> None:
    """Written out with hooks of torch: one prediction a picture, one a token of an encoder; ready inputs have no next token."""
    model = load(module(name))
    inputs = {n: t[:5] for n, t in INPUTS[name].items()}
    D = Dictionary(DictionaryConfig(("blocks.1.resid_post",), ("blocks.1.resid_post",), 32, 32, 24, 3))
    with torch.no_grad():
        for p in D.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    found = evaluate_model(D, model, inputs, batch=2)
    with torch.no_grad():
        clean = model(inputs).logits.log_softmax(-1)
        with model.edit(Replace("blocks.1.resid_post", lambda x: D(x))):
            edited = model(inputs).logits.log_softmax(-1)
    kl = (clean.exp() * (clean - edited)).sum(-1)
    assert found.tokens == kl.numel() == (5 if name == "vit" else 30)
    assert found.kl["replaced"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert found.kl["replaced"] > 1e-4
    assert found.cross_entropy["clean"] != found.cross_entropy["clean"]


def test_an_encoder_over_text_has_no_next_token(tiny_folder: Path) -> None:
    """A causal model has cross-entropies; the same text through a model that looks ahead has not."""
    causal = load(str(tiny_folder))
    D = Dictionary(DictionaryConfig(("blocks.0.resid_post",), ("blocks.0.resid_post",), 32, 32, 24, 3))
    texts = ["It was late, and no one came.", "Mr. Darcy bowed."]
    assert evaluate_model(D, causal, texts, context=16).cross_entropy["clean"] > 0
    encoder = load(tiny(BertForMaskedLM, 400, 32, 1, initializer_range=0.3), tokenizer=causal.tokenizer)
    found = evaluate_model(D, encoder, texts, context=16)
    assert found.cross_entropy["clean"] != found.cross_entropy["clean"]
    assert found.kl["zero"] > 0


def test_a_model_without_logits_is_named(folders: Path) -> None:
    model = load(module("bert").bert)
    D = Dictionary(DictionaryConfig(("blocks.1.resid_post",), ("blocks.1.resid_post",), 32, 32, 24, 3))
    with pytest.raises(WrongUse, match="has no logits"):
        evaluate_model(D, model, {"input_ids": IDS})


def test_a_plan_and_what_makes_no_sense(folders: Path, tmp_path: Path) -> None:
    site = ["--site", "blocks.1.resid_post", "-o", str(tmp_path / "out")]
    assert train(folders, "vit", *site, "--k", "3", "--dry-run")["rows"] == 40 * 5
    assert "--stream reads text" in train(folders, "vit", *site, "--k", "3", "--stream", status=2)["error"]
    assert "not both" in train(folders, "vit", *site, "--k", "3", "--text", "x.txt", status=2)["error"]
    assert not (tmp_path / "out" / "weights.safetensors").exists()
