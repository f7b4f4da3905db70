"""Our files opened by the other libraries' own loaders and theirs by ours: equal latents and outputs, 1e-5.

Each library lives in an environment of its own (`make bench-peers`); where it is not built, these are skipped, and
test_interop_layouts.py reads files laid out as documented.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.dictionaries import Dictionary, load_dictionary
from interp.errors import WrongUse
from interp.files import load_tensors
from interp.interop import formats
from tests.interop.conftest import close, peer, rows
from tests.interop.test_interop_formats import HOLDS

PEERS = ["saelens", "dictionary_learning", "sparsify", "circuit_tracer"]
CANNOT = {"saelens": {"temporal"}}  # of what they have: refused here, by name
KNOWN = {"saelens": {"temporal"}}  # whose own constructor or run may fail at these widths


def exchanged(name: str, kinds: set[str], made: Callable[..., Dictionary], folder: Path) -> dict[str, str]:
    """Files of ours in FOLDER/ours, of theirs in FOLDER/theirs, each with what the library computes from it."""
    for kind in sorted(kinds):
        to = "gemma_scope" if kind.startswith("gemma") else name
        formats.write(made(kind.removeprefix("gemma ")), folder / "ours" / kind, to)
    peer(name, folder)
    failed: dict[str, str] = json.loads((folder / "told.json").read_text())["failed"]
    return failed


def compare(D: Dictionary, out: Path, signed: bool = False) -> None:
    """Latents and outputs of a file, ours against the library's."""
    theirs, x = load_tensors(out)[0], rows(6)
    x = torch.cat([*torch.stack(rows(18).split(6, 1))], -1) if D.config.d_in == 18 else x
    f = D.encode(x)
    close(theirs["f"], f[:, :40] - f[:, 40:] if signed else f, 1e-5)
    close(theirs["y"], D(x), 1e-5)


@pytest.mark.slow("starts another Python with another library, which imports for seconds")
@pytest.mark.parametrize("name", PEERS)
def test_ours_by_them_and_theirs_by_us(name: str, made: Callable[..., Dictionary], tmp_path: Path) -> None:
    kinds = HOLDS[name] | ({"gemma jumprelu transcoder"} if name == "circuit_tracer" else set())
    failed = exchanged(name, kinds, made, tmp_path)
    for kind in sorted(kinds):
        out = tmp_path / "ours" / f"{kind}.out"
        assert out.is_file(), f"{name} did not open our {kind}"
        D = made(kind.removeprefix("gemma "))
        theirs, again = load_tensors(out)[0], load_dictionary(tmp_path / "ours" / kind)
        folds = name == "dictionary_learning" and D.config.activation == "relu"  # its loader makes rows of length one
        norm = D.W_dec.norm(dim=1) if folds else 1
        x = torch.cat([*torch.stack(rows(18).split(6, 1))], -1) if D.config.d_in == 18 else rows(6)
        for ours in (D, again):
            close(theirs["f"], ours.encode(x) * norm, 1e-5)
            close(theirs["y"], ours(x), 1e-5)
    assert failed.keys() <= KNOWN.get(name, set()), failed
    read = 0
    for folder in sorted(p for p in (tmp_path / "theirs").iterdir() if p.is_dir()):
        if folder.name in CANNOT.get(name, set()):
            with pytest.raises(WrongUse, match=folder.name):
                load_dictionary(folder)
            continue
        compare(load_dictionary(folder), folder.with_name(f"{folder.name}.out"), folder.name == "abstopk")
        read += 1
    assert read >= 3
