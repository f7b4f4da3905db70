"""`interp lens memories`, `updates`, `exits`, `embedding`: the JSON, the pages, and what is refused."""

from __future__ import annotations

import json
import re
import sys

import pytest

import interp
from interp.cli import main
from interp.cli.lenses import app
from interp.cli.memories import embedding, exits, memories, updates
from interp.lenses import EmbeddingSpace, Memories, find_triggers, sub_updates
from interp.texts import read_texts

FEW = {"tokens": 600, "context": 24}
HOSTILE = "<script>alert(1)</script> ‮ & <b> "


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_memories_are_told_as_json(tiny_folder, capsys):
    memories(str(tiny_folder), memory=["blocks.1.mlp.11", "blocks.0.mlp.3"], k=4, top=3, as_json=True, **FEW)
    told = said(capsys)
    found = Memories(interp.load(tiny_folder))
    triggers = find_triggers(found, read_texts(), top=3, **FEW)
    assert told["tokens"] == triggers.tokens
    assert [row["layer"] for row in told["layers"]] == ["blocks.0.mlp", "blocks.1.mlp"]
    table = triggers.agreement()
    for row, (_, wanted) in zip(told["layers"], table.iterrows(), strict=True):
        assert row["agreement"] == pytest.approx(wanted["agreement"])
        assert row["residual"] + row["both"] + row["ffn"] + row["composition"] == pytest.approx(1)
    first = told["memories"][0]
    assert (first["layer"], first["memory"]) == ("blocks.1.mlp", 11)
    ids, p = found.read("blocks.1.mlp", [11], 4)
    assert [s["id"] for s in first["says"]] == ids[0].tolist()
    assert [s["prob"] for s in first["says"]] == pytest.approx(p[0].tolist())
    wanted = triggers.of("blocks.1.mlp", 11)
    assert [(tuple(t["prefix"]), t["target"]) for t in first["triggers"]] == [(t.tokens, t.target) for t in wanted]
    memories(str(tiny_folder), layer=["blocks.1.mlp"], draw=2, seed=1, top=2, negative=True, as_json=True, **FEW)
    other = said(capsys)
    assert len(other["memories"]) == 2
    assert all(t["coefficient"] < 0 for m in other["memories"] for t in m["triggers"])


def test_the_page_of_memories_escapes_every_token(tiny_folder, tmp_path, capsys):
    text, page = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_text(HOSTILE * 40, encoding="utf-8")
    memories(str(tiny_folder), text=str(text), out=page, draw=3, **FEW)
    assert f"page: {page}" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|https?:|url\(|@import|<link|<iframe|‮", html)
    assert html.count("<h3>blocks.") == 6
    assert "<b>" not in html.replace('<b class="strength">', "")
    assert html.count("→") >= 6


def test_updates_are_told_as_json(tiny_folder, capsys):
    updates(str(tiny_folder), "The class statement", k=2, as_json=True)
    told = said(capsys)
    found = sub_updates(Memories(interp.load(tiny_folder)), "The class statement")
    assert told["tokens"] == found.tokens
    assert len(told["dominant"]) == 2 * 2 * len(found.tokens)
    assert max(told["off"].values()) < 1e-5
    assert told["dominant"][0]["memory"] == int(found.dominant("blocks.0.mlp", 1)[0][0])
    assert "generated" not in told
    updates(str(tiny_folder), "The class statement", clamp=["blocks.1.mlp.3=1e5"], new_tokens=3, as_json=True)
    told = said(capsys)["generated"]
    best = Memories(interp.load(tiny_folder), norm=True).read("blocks.1.mlp", [3], 1)[0][0].tolist()
    assert told["clamped"].endswith(interp.load(tiny_folder).tokenizer.decode(best * 3))
    assert told["plain"] != told["clamped"]


def test_exits_are_told_as_json(tiny_folder, capsys):
    exits(str(tiny_folder), examples=30, clusters=5, seed=[3, 4], context=24, as_json=True)
    told = said(capsys)
    assert told["examples"] == 30
    assert sum(told["saturated"].values()) == 30
    assert [run["seed"] for run in told["runs"]] == [3, 4]
    assert [row["how"] for row in told["runs"][0]["how"]] == ["rule", "always after 0", "always after 1"]
    assert told["runs"][0]["how"][-1] | {"accuracy": 1.0, "saved": 0.0} == told["runs"][0]["how"][-1]


@pytest.mark.parametrize("inverse", ["pinv", "transpose"])
def test_embedding_is_told_as_json(tiny_folder, tmp_path, capsys, inverse):
    page = tmp_path / "page.html"
    asked = {"weight": ["blocks.*.mlp.W_out", "blocks.1.attn.W_O"], "circuit": ["blocks.1.attn.QK.3"]}
    embedding(str(tiny_folder), **asked, vector=[2, 5], k=3, inverse=inverse, out=page, as_json=True)
    told = said(capsys)
    space = EmbeddingSpace(interp.load(tiny_folder), inverse)
    assert [w["weight"] for w in told["weights"]] == [
        "blocks.0.mlp.W_out",
        "blocks.1.mlp.W_out",
        "blocks.1.attn.W_O",
    ]
    assert [len(w["vectors"]) for w in told["weights"]] == [2, 2, 8]
    found = space.read("blocks.1.attn.W_O", 3)
    last = told["weights"][2]["vectors"][-1]
    assert (last["head"], last["vector"]) == (3, 5)
    assert last["ids"] == found.ids[3, 5].tolist()
    assert last["scores"] == pytest.approx(found.scores[3, 5].tolist())
    pairs = space.pairs("blocks.1.attn.QK", 3, 3)
    assert [p["value"] for p in told["circuits"][0]["pairs"]] == pytest.approx(pairs.values.tolist())
    assert list(told["circuits"][0]["pairs"][0]) == ["query", "key", "value"]
    html = page.read_text(encoding="utf-8")
    assert html.count("<table>") == 4
    assert not re.search(r"<script|https?:", html)
    embedding(str(tiny_folder), weight=["blocks.*.mlp.W_out"], align=str(tiny_folder), fold=True, as_json=True)
    assert len(said(capsys)["aligned"][0]["pairs"]) == 4


def test_a_model_is_read_where_no_other_command_is_named(tiny_folder, capsys, monkeypatch):
    """`interp lens MODEL TEXT` and `interp lens memories MODEL`, as they are typed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["interp", "lens", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return json.loads(capsys.readouterr().out)

    assert run(str(tiny_folder), "The class statement", "--json")["kind"] == "logit"
    assert run("memories", str(tiny_folder), "--tokens", "200", "--draw", "1", "--json")["sign"] == 1


def test_help_names_the_other_commands():
    from typer.testing import CliRunner

    told = CliRunner().invoke(app, ["--help"]).output
    assert "--kind" in told
    assert all(name in told for name in ("over", "memories", "updates", "exits", "embedding"))


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda f: memories(f, memory=["blocks.1.mlp"]), "names no memory"),
        (lambda f: memories(f, memory=["blocks.1.mlp.99"]), "memory 99 is outside 0 to 47"),
        (lambda f: memories(f, layer=["blocks.0.mlp"], memory=["blocks.1.mlp.9"]), "in none of the layers"),
        (lambda f: memories(f, layer=["blocks.0.attn"]), "no layer of memories"),
        (lambda f: memories(f, text="nowhere.txt"), "no text file"),
        (lambda f: updates(f, "The class", clamp=["blocks.0.mlp.3"]), "sets nothing"),
        (lambda f: updates(f, " " * 0), "is empty"),
        (lambda f: embedding(f), "name what to show"),
        (lambda f: embedding(f, circuit=["blocks.0.attn.OV"]), "names no head"),
        (lambda f: embedding(f, circuit=["blocks.0.attn.OV.4"]), "head 4 is outside"),
        (lambda f: embedding(f, weight=["blocks.0.mlp.W_out"], vector=[48]), "vector 48 is outside"),
        (lambda f: embedding(f, weight=["blocks.0.mlp.W_out"], inverse="left"), "none of pinv, transpose"),
        (lambda f: embedding(f, circuit=["blocks.0.attn.OV.1"], align=f), "--align compares the layers"),
    ],
)
def test_bad_requests_exit_with_2(tiny_folder, capsys, call, why):
    with pytest.raises(SystemExit) as stop:
        call(str(tiny_folder))
    assert stop.value.code == 2
    assert why in capsys.readouterr().err
