"""Our side of docs/coming_from.md runs, and does what its heading says; their side is Python; docs/sites.md is up to date."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.dictionaries import Dictionary, DictionaryConfig
from tests import sites

PAGE = Path(__file__).parent.parent / "docs" / "coming_from.md"
HEAD, *SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
BLOCK = re.compile(r"^```python(?P<ours> interp)?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def code(text: str, ours: bool) -> list[str]:
    return [m["code"] for m in BLOCK.finditer(text) if bool(m["ours"]) == ours]


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    """The names everything on the page starts from, and the model's own logits."""
    names: dict[str, Any] = {}
    for block in code(HEAD, ours=True):
        exec(block, names)
    with torch.no_grad():
        names["plain"] = {text: names["model"](text).logits for text in (names["prompt"], names["other"])}
    return names


def differs(names: dict[str, Any], text: str) -> bool:
    return not torch.equal(names["logits"], names["plain"][names[text]])


def cache_and_patch(n: dict[str, Any]) -> bool:
    return differs(n, "other") and float(n["sweep"].values.std()) > 0


def attribution(n: dict[str, Any]) -> bool:
    stream, heads = n["effect"]["blocks.2.resid_post"], n["effect"]["blocks.2.attn.z"]
    return heads.shape == (*stream.shape, 8) and bool(stream.any()) and bool(heads.any())


def spliced(n: dict[str, Any]) -> bool:
    return differs(n, "prompt") and not torch.equal(n["spliced"], n["logits"])


def hooked(n: dict[str, Any]) -> bool:
    return torch.equal(torch.nn.functional.silu(n["into"]), n["gates"]) and differs(n, "prompt")


def last_tokens(n: dict[str, Any]) -> bool:
    return torch.equal(n["last"][:, 0], n["cache"].at("blocks.2.resid_post", -1))


def lens(n: dict[str, Any]) -> bool:
    return torch.equal(n["logits"][:, -1], n["plain"][n["prompt"]][:, -1])  # the last layer's lens is the model itself


DOES = {
    "1.": cache_and_patch,
    "2.": attribution,
    "3.": lambda n: differs(n, "prompt"),
    "4.": lambda n: len(n["text"]) == 2,
    "5.": lambda n: n["found"].heads.shape == (1, 5, 8),
    "6.": lambda n: differs(n, "other"),
    "7.": spliced,
    "8.": hooked,
    "9.": last_tokens,
    "10.": lens,
}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.split(" ", 1)[0])
def test_our_side_runs_and_does_what_it_says(section, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = ("blocks.2.resid_post",)
    sae = Dictionary(DictionaryConfig(reads=site, writes=site, d_in=256, d_out=256, latents=20, k=20))
    with torch.no_grad():
        sae.W_enc.copy_(0.1 * torch.randn(20, 256, generator=torch.Generator().manual_seed(0)).T)
        sae.W_dec.copy_(sae.W_enc.T)
    sae.save("runs/sae")
    names = dict(start)
    blocks = code(section, ours=True)
    assert blocks
    with torch.no_grad():
        for block in blocks:
            exec(block, names)
    assert DOES[section.split(" ", 1)[0]](names)


def test_there_are_ten_tasks_and_every_peer_is_there():
    assert [s.split(" ", 1)[0] for s in SECTIONS] == list(DOES)
    text = PAGE.read_text(encoding="utf-8")
    for peer in ("TransformerLens:", "nnsight:", "pyvene:", "SAELens:"):
        assert f"\n{peer}\n" in text or f"\n{peer[:-1]}," in text


@pytest.mark.parametrize("section", [HEAD, *SECTIONS], ids=lambda s: s.split(" ", 1)[0])
def test_their_side_is_python(section):
    for block in code(section, ours=False):
        ast.parse(block)


def test_the_page_of_sites_is_up_to_date():
    assert sites.PAGE.read_text(encoding="utf-8") == sites.page(), "run `python -m tests.sites`"


def test_a_site_says_where_it_stands():
    assert "| `blocks.{i}.attn.q_raw` |" in sites.page()
    assert sites.row("blocks.{i}.attn.write").endswith("| `blocks.{i}.hook_attn_out` |\n")
