"""Every format holds what it says it holds and refuses the rest by name; every pair of formats leads to equal numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.dictionaries import Dictionary, load_dictionary
from interp.errors import Failed, WrongUse
from interp.interop import formats
from interp.interop.parts import hook_of, placed, site_of
from interp.sites import ALIASES
from tests.interop.conftest import KINDS, close, rows

Made = Callable[..., Dictionary]
TRANSCODERS = {f"{a} {shape}" for a in ("relu", "jumprelu") for shape in ("transcoder", "skip")}
HOLDS = {
    "interp": set(KINDS),
    "saelens": {"relu", "heads", "topk", "jumprelu", "pursuit", "wide transcoder"} | TRANSCODERS,
    "dictionary_learning": {"relu", "heads", "topk", "jumprelu"},
    "sparsify": {"topk", "topk transcoder", "topk skip"},
    "gemma_scope": {"relu", "heads", "jumprelu", "relu transcoder", "jumprelu transcoder", "wide transcoder"},
    "circuit_tracer": TRANSCODERS | {"relu across", "jumprelu across"},
}
PAIRS = [(a, b, kind) for a, b in itertools.permutations(HOLDS, 2) for kind in sorted(HOLDS[a] & HOLDS[b])]


def same(D: Dictionary, again: Dictionary, tolerance: float) -> None:
    """Equal latents and equal reconstructions."""
    x = rows(D.config.d_in, dtype=D.b_dec.dtype)
    close(D.encode(x), again.encode(x), tolerance)
    close(D(x), again(x), tolerance)


def test_the_table_names_every_format() -> None:
    assert formats.FORMATS.keys() == HOLDS.keys()
    assert len(PAIRS) > 40


@pytest.mark.parametrize(("a", "b", "kind"), PAIRS)
def test_every_pair_leads_to_equal_numbers(made: Made, tmp_path: Path, a: str, b: str, kind: str) -> None:
    D = made(kind)
    formats.write(D, tmp_path / "a", a, {"format": "test", "config": {}})
    first = formats.read(tmp_path / "a")
    told = placed(first.dictionary, D.config.reads[0], D.config.writes[0]) if a == "gemma_scope" else first.dictionary
    formats.write(told, tmp_path / "b", b, first.about)
    second = load_dictionary(tmp_path / "b")
    assert a == formats.detect(tmp_path / "a").NAME
    same(D, first.dictionary, 1e-6)
    same(D, second, 1e-6)
    if b != "gemma_scope":  # whose file has no place for sites
        assert (second.config.reads, second.config.writes) == (D.config.reads, D.config.writes)


@pytest.mark.parametrize(("to", "kind"), [(f, kind) for f in HOLDS for kind in KINDS])
def test_what_a_format_cannot_hold_is_refused(made: Made, tmp_path: Path, to: str, kind: str) -> None:
    if kind in HOLDS[to]:
        formats.write(made(kind), tmp_path / "out", to)
        same(made(kind), load_dictionary(tmp_path / "out"), 1e-6)
        return
    with pytest.raises(WrongUse, match=f"cannot be written as {to}"):
        formats.write(made(kind), tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", HOLDS)
def test_float64_stays_float64(made: Made, tmp_path: Path, to: str) -> None:
    D = made(sorted(HOLDS[to])[0], torch.float64)
    formats.write(D, tmp_path, to)
    again = load_dictionary(tmp_path)
    assert again.b_dec.dtype == torch.float64
    same(D, again, 1e-14)


def test_a_file_of_a_folder_stands_for_it(made: Made, tmp_path: Path) -> None:
    for to in ("saelens", "dictionary_learning", "sparsify"):
        formats.write(made("topk"), tmp_path / to, to)
        same(made("topk"), load_dictionary(tmp_path / to / formats.FORMATS[to].WEIGHTS), 1e-6)


def test_what_is_lost_is_said(made: Made, tmp_path: Path) -> None:
    lost = formats.write(made("jumprelu"), tmp_path, "gemma_scope", {"format": "interp", "config": {"seed": 1}})
    assert lost == ["the sites: it reads blocks.2.resid_post and writes blocks.2.resid_post", "how it was made"]
    for to in ("saelens", "dictionary_learning", "sparsify"):
        about = {"format": "interp", "config": {"seed": 7}}
        assert formats.write(made("topk"), tmp_path / to, to, about) == []
        assert '"seed": 7' in (tmp_path / to / formats.FORMATS[to].CONFIG).read_text()


def test_unknown_formats_and_folders_that_are_none(made: Made, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"no format 'saelense'\. Did you mean 'saelens'.*circuit_tracer"):
        formats.write(made("relu"), tmp_path, "saelense")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WrongUse, match=r"it holds model.safetensors\. Formats are saelens: cfg.json and sae_weights"):
        load_dictionary(tmp_path)
    with pytest.raises(WrongUse, match="does not exist"):
        load_dictionary(tmp_path / "nowhere")


@pytest.mark.parametrize(("to", "file"), [
    ("saelens", "sae_weights.safetensors"),
    ("sparsify", "sae.safetensors"),
    ("dictionary_learning", "ae.pt"),
    ("gemma_scope", "params.npz"),
    ("circuit_tracer", "layer_2.safetensors"),
])  # fmt: skip
def test_files_cut_short_are_named(made: Made, tmp_path: Path, to: str, file: str) -> None:
    formats.write(made(sorted(HOLDS[to])[-1]), tmp_path, to)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Failed, match=file.replace(".", r"\.")):
        load_dictionary(tmp_path)


def test_hooks_and_sites_name_each_other() -> None:
    for hook in ALIASES:
        name = hook if ALIASES[hook] in ("embed", "pos_embed", "final_norm.scale") else f"blocks.3.{hook}"
        assert hook_of(site_of(name)) == name
    assert site_of("blocks.1.ln2.hook_normalized") == site_of("blocks.1.mlp.hook_in") == "blocks.1.mlp.in"
    assert site_of("blocks.1.mlp.hook_out") == "blocks.1.mlp.out"
    for site in ("blocks.1.mlp.in", "module:model.layers.0", "decoder.blocks.3.cross_attn.z", "blocks.0.mlp.out"):
        assert site_of(hook_of(site)) == site


def test_an_autoencoder_said_to_be_a_transcoder_computes_the_same(made: Made) -> None:
    D = made("jumprelu", torch.float64)
    T = placed(D, "a", "b")
    assert not T.config.autoencoder
    same(D, T, 1e-14)
    same(D, placed(T, "c", "c"), 1e-14)
    assert placed(made("pursuit"), "c").config.reads == placed(made("pursuit"), "c").config.writes == ("c",)
    assert placed(T, "c").config.writes == ("b",)
    assert placed(D, None) is D
