"""Dictionary folders: what is written is read back to the bit, and anything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.dictionaries import Dictionary, DictionaryConfig, load_dictionary
from interp.errors import Failed, WrongUse
from interp.files import load_tensors, save_tensors

Make = Callable[..., Dictionary]


ACTIVATIONS = [
    {"activation": "relu", "k": None, "d_out": 6, "skip": True},
    {"activation": "jumprelu", "k": None},
    {"activation": "pursuit"},
    {"activation": "codebook"},
]


@pytest.mark.parametrize("kind", [{}, {"d_out": 6}, {"d_out": 6, "skip": True}, *ACTIVATIONS])
def test_round_trip(make: Make, tmp_path: Path, kind: dict[str, int]) -> None:
    D = make(**kind)
    D.save(tmp_path, {"command": "interp train", "seed": 3})
    again = load_dictionary(tmp_path)
    assert again.config == D.config
    assert again.b_dec.dtype == torch.float64
    assert again.tensors().keys() == D.tensors().keys() == load_tensors(tmp_path / "weights.safetensors")[0].keys()
    for name, p in D.tensors().items():
        assert torch.equal(again.tensors()[name], p)
    assert load_tensors(tmp_path / "weights.safetensors")[1] == {"command": "interp train", "seed": 3}
    assert json.loads((tmp_path / "config.json").read_text())["made"]["seed"] == 3
    assert load_dictionary(tmp_path, dtype=torch.float32).W_dec.dtype == torch.float32
    if "W_enc" in D.tensors():  # latent by latent in memory, before and after
        assert D.W_enc.T.is_contiguous()
        assert again.W_enc.T.is_contiguous()


def test_folders_written_before_there_were_other_kinds_load(make: Make, tmp_path: Path) -> None:
    D = make(d_out=6, skip=True)
    D.save(tmp_path)
    old = {
        "reads": ["in"],
        "writes": ["out"],
        "d_in": 9,
        "d_out": 6,
        "latents": 120,
        "k": 5,
        "activation": "topk",
        "skip": True,
    }
    text = json.dumps({"format": "interp.dictionary", "version": 1, "dictionary": old, "made": {}})
    (tmp_path / "config.json").write_text(text)
    assert load_dictionary(tmp_path).config == D.config


def test_equal_dictionaries_give_equal_bytes(make: Make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make().save(tmp_path / name, {"seed": 1})
    for file in ("config.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lack": ["b_enc"]}, "lacks b_enc; it should hold W_enc"),
        ({"add": {"W_skip": (6, 9)}}, "has unknown W_skip"),
        ({"lack": ["W_dec"], "add": {"W_deck": (1,)}}, "lacks W_dec and has unknown W_deck"),
        ({"add": {"W_dec": (120, 7)}}, r"W_dec has shape \[120, 7\], not \[120, 6\]"),
    ],
)
def test_missing_extra_and_misshapen_tensors(make: Make, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    make(d_out=6).save(tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = {k: t for k, t in load_tensors(path)[0].items() if k not in change.get("lack", [])}
    save_tensors(path, tensors | {k: torch.zeros(s) for k, s in change.get("add", {}).items()})
    with pytest.raises(Failed, match=said) as error:
        load_dictionary(tmp_path)
    assert str(path) in str(error.value)


def test_a_cut_file_is_named(make: Make, tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Failed, match=r"weights\.safetensors is not a whole safetensors file"):
        load_dictionary(tmp_path)
    path.unlink()
    with pytest.raises(Failed, match="no weights"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no dictionary: it holds nothing"),
        ("{", "is no JSON file"),
        (
            '{"model_type": "llama"}',
            'it holds config.json. Formats are .* config.json that says "format": "interp.dictionary"',
        ),
        ("[]", "is no dictionary: it holds config.json"),
        ('{"format": "interp.dictionary", "version": 99}', "version 99; this release reads version 1"),
        ('{"format": "interp.dictionary", "version": 1}', "needs reads, writes, d_in, d_out, latents"),
    ],
)
def test_folders_that_are_no_dictionary(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(WrongUse, match=said):
        load_dictionary(tmp_path)


def test_config_names_the_nearest_field(make: Make) -> None:
    config = asdict(make().config)
    assert DictionaryConfig.from_dict(config) == make().config
    with pytest.raises(WrongUse, match=r"no 'latent'\. Did you mean 'latents'"):
        DictionaryConfig.from_dict(config | {"latent": 3})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "k must be between 1 and latents=120"),
        ({"k": 121}, "k must be between 1 and latents=120"),
        ({"k": None}, "k must be between 1 and latents=120"),
        ({"activation": "relu"}, "k=5 is for topk and pursuit and codebook: relu fixes no number"),
        ({"heads": 3}, "heads=3 must divide d=9 and latents=120 of a codebook"),
        ({"activation": "codebook", "heads": 2}, "heads=2 must divide d=9"),
        ({"activation": "pursuit", "writes": ("out",)}, "pursuit has no transcoder"),
        ({"tolerance": 0.1}, "tolerance and distinct are for pursuit: topk has no steps"),
        ({"activation": "topq"}, "no 'topq'. Did you mean 'topk'"),
        ({"d_out": 8}, "reads what it writes"),
        ({"skip": True}, "for transcoders"),
        ({"d_in": 0, "d_out": 0}, "must be positive"),
    ],
)
def test_configs_that_make_no_sense(make: Make, change: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        DictionaryConfig(**(asdict(make().config) | change))
