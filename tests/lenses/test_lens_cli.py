"""`interp lens`: the JSON, the page, and what is refused."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path

import pytest
import torch

import interp
from interp.cli.lens import KINDS, TRAINED, lens
from interp.cli.train_lens import train_lens


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_json_is_the_model(tiny_folder, capsys):
    """The last row is the softmax of Hugging Face's logits; every row has T tokens with their k likeliest."""
    lens(str(tiny_folder), "The class statement", k=3, token=["5"], as_json=True)
    told = said(capsys)
    model = interp.load(tiny_folder)
    with torch.no_grad():
        p = model("The class statement").logits[0].softmax(-1)
    assert told["kind"] == "logit"
    assert told["sites"] == ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post"]
    count = len(told["tokens"])
    for name in ("rank", "entropy", "kl_forward", "kl_backward", "cross_entropy", "agreement"):
        assert [len(row) for row in told[name]] == [count] * 3
    assert [[len(cell) for cell in row] for row in told["top"]] == [[3] * count] * 3
    best = p.topk(3)
    for cell, ids, values in zip(told["top"][-1], best.indices.tolist(), best.values.tolist(), strict=True):
        assert [t["id"] for t in cell] == ids
        assert [t["prob"] for t in cell] == pytest.approx(values, rel=1e-4)
        assert [t["token"] for t in cell] == [model.tokenizer.decode([i]) for i in ids]
    assert told["rank"][-1] == [1] * count
    assert told["cross_entropy"][0][-1] is None
    assert told["chosen"][0]["log_prob"][-1] == pytest.approx(p[:, 5].log().tolist(), rel=1e-4)
    ids = ",".join(map(str, model.tokens("The class statement").ids[0].tolist()))
    lens(str(tiny_folder), ids=ids, k=3, as_json=True)
    assert said(capsys)["top"] == told["top"]
    lens(str(tiny_folder), "The class statement", site=["blocks.*.attn.result"], as_json=True)
    assert len(said(capsys)["sites"]) == 8


def test_the_page_needs_nothing_and_escapes_tokens(tiny_folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    lens(str(tiny_folder), "<script>alert(1)</script> \u202e & <b>", out=page)
    assert "page:" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|https?:|url\(|@import|<link|<iframe|\u202e", html)
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)", "", html)
    assert html.count("<tr>") == 4
    cells = re.findall(r'<td class="a\d+( peak)?" title="([^"]*)"><bdi>', html)
    assert len(cells) == 3 * html.count('<th scope="col"')
    assert all(told.count("&#10;") == 5 and "rank of the model" in told for _, told in cells)
    assert all(peak for peak, _ in cells[: len(cells) // 3])  # the last site stands first, and is the model


def test_a_long_text_is_cut_on_the_page(tiny_folder, tmp_path):
    from interp.lenses import Lens
    from interp.reports.lens import LONGEST, write_lens

    seen = Lens(interp.load(tiny_folder))(torch.arange(3, 203)[None])
    write_lens(tmp_path / "p.html", seen, {})
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert html.count('<th scope="col"') == LONGEST
    assert ">200<" in html


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, "give a text or --ids"),
        ({"text": "a", "ids": "5"}, "give a text or --ids"),
        ({"text": "  "}, "a text is empty"),
        ({"ids": "5,x"}, "--ids takes numbers"),
        ({"ids": "5,99999"}, "ids run from 0 to 399"),
        ({"text": "a", "kind": "logits"}, "Did you mean 'logit'"),
        ({"text": "a", "kind": "tuned"}, "goes together"),
        ({"text": "a", "weights": Path("x")}, "holds no lens"),
        ({"text": "a", "weights": Path("x"), "kind": "logit"}, "goes together"),
        ({"text": "a", "kind": "future"}, "interp train lens MODEL --kind future"),
        ({"text": "a", "kind": "class"}, "no classifier of pictures"),
        ({"text": "a", "target": "b"}, "the logit lens takes no --target"),
        ({"text": "a", "kind": "backward", "target": " Netherfield"}, "name one"),
        ({"text": "a", "kind": "patchscope", "target": ""}, "is empty"),
        ({"text": "a", "dictionary": Path("x")}, "x"),
        ({"text": "a", "kind": "decoder"}, "no encoder with a decoder"),
        ({"text": "a", "of": "x"}, "interp lens audio FILE --model MODEL"),
        ({"text": "a", "site": ["blocks.9.resid_post"]}, "blocks.9.resid_post"),
        ({"text": "a", "site": ["blocks.0.mlp.post"]}, "cannot read 'blocks.0.mlp.post'"),
        ({"text": "a", "token": ["99999"]}, "ids run from 0 to 399"),
    ],
)
def test_wrong_use_is_said(tiny_folder, capsys, how, words):
    with pytest.raises(SystemExit) as stopped:
        lens(str(tiny_folder), **how, as_json=True)
    assert stopped.value.code == 2
    assert words in said(capsys)["error"]


def test_a_model_without_a_head_is_said(tmp_path, capsys):
    from tests.model.shapes import module

    module("gpt2").transformer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2Model"]}))
    with pytest.raises(SystemExit) as stopped:
        lens(str(tmp_path), ids="5,6", as_json=True)
    assert stopped.value.code == 2
    assert "has no head" in said(capsys)["error"]


STEPS = {"steps": 2, "tokens": 64, "context": 16}
SIZES = {"tuned": STEPS, "future": STEPS, "attention": STEPS}


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """A lens of each kind that is trained, by the command."""
    folder = tmp_path_factory.mktemp("lenses")
    text = folder / "text.txt"
    text.write_text("The class statement names a class. Blocks of code are indented. " * 40)
    for kind in TRAINED:
        train_lens(str(tiny_folder), folder / kind, kind=kind, text=str(text), **SIZES.get(kind, {"context": 32}))
    return folder


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("decoder", "class")])
def test_every_kind_prints_one_shape(kind, tiny_folder, trained, capsys):
    """`{kind, tokens[T], sites[L], top[L][T][k]: {token, prob}, rank, entropy, kl_forward, kl_backward}`."""
    weights = trained / kind if kind in TRAINED else None
    lens(str(tiny_folder), "The class statement", kind=kind, weights=weights, k=3, as_json=True)
    told = said(capsys)
    count, sites = len(told["tokens"]), len(told["sites"])
    assert told["kind"] == kind
    for name in ("rank", "entropy", "kl_forward", "kl_backward", "cross_entropy", "agreement"):
        assert [len(row) for row in told[name]] == [count] * sites
    assert [[len(cell) for cell in row] for row in told["top"]] == [[3] * count] * sites
    assert {"token", "prob"} <= told["top"][0][0][0].keys()
    if kind != "backward":  # a gradient is no prediction
        lens(str(tiny_folder), "The class statement", k=3, as_json=True)
        plain = said(capsys)
        ids = [[[t["id"] for t in cell] for cell in told_by["top"][-1]] for told_by in (told, plain)]
        assert ids[0] == ids[1]
        assert told["rank"][-1] == [1] * count


@pytest.mark.parametrize("kind", ["logit", "attention", "future"])
def test_the_table_fits_eighty_columns(kind, tiny_folder, trained, capsys, monkeypatch):
    """No word is cut: of a longer text the last tokens are shown, as many as there is room for."""
    monkeypatch.setenv("COLUMNS", "80")
    weights = trained / kind if kind in TRAINED else None
    text = "The class statement names a class and its attributes " * 4
    lens(str(tiny_folder), text, kind=kind, weights=weights)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    seen, count = re.search(r"the last (\d+) of (\d+) tokens", "".join(lines)).groups()
    assert 1 <= int(seen) < int(count)
    model = interp.load(tiny_folder)
    assert int(count) == model.tokens(text).ids.shape[1]


def test_a_lens_is_trained_and_read(tiny_folder, trained, tmp_path, capsys):
    text = str(trained / "text.txt")
    how = {"steps": 4, "tokens": 64, "context": 16, "text": text}
    train_lens(str(tiny_folder), tmp_path / "lens", **how, dry_run=True, as_json=True)
    plan = said(capsys)
    assert plan["rows"] == 4 * 64
    assert not (tmp_path / "lens").exists()
    train_lens(str(tiny_folder), tmp_path / "lens", **how, as_json=True)
    told = said(capsys)
    assert told["steps"] == 4
    assert plan["bytes"] == pytest.approx((tmp_path / "lens" / "weights.safetensors").stat().st_size, rel=0.1)
    assert list(told["kl"]) == told["sites"] == ["blocks.0.resid_pre", "blocks.0.resid_post"]
    lens(str(tiny_folder), "The class", kind="tuned", weights=tmp_path / "lens", as_json=True)
    tuned = said(capsys)
    lens(str(tiny_folder), "The class", weights=tmp_path / "lens", as_json=True)  # its own config says the kind
    assert said(capsys) == tuned
    lens(str(tiny_folder), "The class", as_json=True)
    plain = said(capsys)
    assert tuned["top"][-1] == plain["top"][-1]
    assert tuned["kl_forward"][0] != plain["kl_forward"][0]
    train_lens(str(tiny_folder), tmp_path / "lens", **how, resume=True)
    assert "4 steps" in capsys.readouterr().out


def test_fits_say_what_they_explain_of_held_out_windows(tiny_folder, trained, tmp_path, capsys):
    text = str(trained / "text.txt")
    for kind in ("shortcut", "jacobian"):
        train_lens(str(tiny_folder), tmp_path / kind, kind=kind, context=32, text=text, as_json=True)
        told = said(capsys)
        assert list(told["r2"]) == list(told["identity"]) == told["sites"]
        assert ("truncation" in told) == (kind == "jacobian")
    for site, left in told["truncation"].items():
        assert left == pytest.approx(1 - told["r2"][site])
    train_lens(str(tiny_folder), tmp_path / "again", kind="jacobian", context=32, text=text)
    assert "truncation" in capsys.readouterr().out
    short = tmp_path / "short.txt"
    short.write_text("A word or two.")
    train_lens(str(tiny_folder), tmp_path / "one", kind="shortcut", text=str(short), as_json=True)
    assert said(capsys)["r2"] is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"kind": "short"}, "Did you mean 'shortcut'"),
        ({"kind": "logit"}, "no lens of the kind 'logit' to train"),
        ({"kind": "shortcut", "steps": 3}, "--steps means nothing"),
        ({"kind": "jacobian", "bias_only": True}, "--bias-only means nothing"),
        ({"optimizer": "lion"}, "neither 'sgd' nor 'adam'"),
        ({"text": "none.txt"}, "no text file none.txt"),
    ],
)
def test_wrong_training_is_said(tiny_folder, tmp_path, capsys, how, words):
    with pytest.raises(SystemExit) as stopped:
        train_lens(str(tiny_folder), tmp_path / "x", **how, as_json=True)
    assert stopped.value.code == 2
    assert words in said(capsys)["error"]


def test_lenses_that_do_not_belong_are_refused(tiny_folder, trained, tmp_path, capsys):
    for call, words in (
        (
            lambda: lens(str(tiny_folder), "a", kind="tuned", weights=trained / "shortcut", as_json=True),
            "no tuned lens",
        ),
        (lambda: lens("zoo:books", "The class", weights=trained / "tuned", as_json=True), "trained for another model"),
        (
            lambda: lens("zoo:books", "The class", weights=trained / "attention", as_json=True),
            "trained for another model",
        ),
        (
            lambda: lens(
                str(tiny_folder), "a", weights=trained / "future", site=["blocks.0.resid_post+7"], as_json=True
            ),
            "+3",
        ),
        (
            lambda: train_lens(str(tiny_folder), trained / "tuned", text=str(trained / "text.txt"), as_json=True),
            "--resume",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            call()
        assert stopped.value.code == 2
        assert words in said(capsys)["error"]


def test_latents_of_a_dictionary_are_read(tiny_folder, tmp_path, capsys):
    """The row is the head of f W_dec + b_dec, by hand."""
    from interp.dictionaries import Dictionary, DictionaryConfig

    site = "blocks.0.resid_post"
    D = Dictionary(DictionaryConfig((site,), (site,), 32, 32, 24, 3))
    with torch.no_grad():
        for p in D.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    D.save(tmp_path)
    lens(
        str(tiny_folder), "The class", dictionary=tmp_path, site=[f"{site}.latents", f"{site}.error"], k=2, as_json=True
    )
    told = said(capsys)
    assert told["sites"] == [f"{site}.latents", f"{site}.error"]
    model = interp.load(tiny_folder)
    x = model.record("The class", site)[site][0]
    with torch.no_grad():
        made = D.encode(x) @ D.W_dec + D.b_dec
        for row, state in enumerate((made, x - made)):
            best = interp.Lens(model).head(state).softmax(-1).topk(2)
            assert [[t["id"] for t in cell] for cell in told["top"][row]] == best.indices.tolist()
    lens(str(tiny_folder), "The class", site=["blocks.1.attn.result.2"], as_json=True)
    assert said(capsys)["sites"] == ["blocks.1.attn.result.2"]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_is_made_to_read_a_target(name, tmp_path, capsys):
    """Teacher forcing: the last row is Hugging Face's own distribution over each token of the target."""
    from tests.model.shapes import module

    folder = tmp_path / name
    module(name).save_pretrained(folder)
    lens(str(folder), ids="5,9,11", kind="decoder", target="8,4,30", token=["8"], as_json=True)
    told = said(capsys)
    model = module(name)
    labels = torch.tensor([[8, 4, 30]])
    given = torch.cat([model.prepare_decoder_input_ids_from_labels(labels=labels)[:, :1], labels], dim=1)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[5, 9, 11]]), decoder_input_ids=given).logits[0].log_softmax(-1)
    assert told["cross_entropy"][-1][:3] == pytest.approx((-p[[0, 1, 2], [8, 4, 30]]).tolist(), abs=1e-4)
    assert told["chosen"][0]["log_prob"][-1] == pytest.approx(p[:, 8].tolist(), abs=1e-4)
    assert len(told["layers"]) == len(told["sites"])


def saved(tmp_path, name: str, processor) -> str:
    from tests.model.shapes import module

    module(name).save_pretrained(tmp_path / name)
    processor.save_pretrained(tmp_path / name)
    return str(tmp_path / name)


def test_a_sound_is_read_layer_by_layer(tmp_path, capsys):
    """The last layer's text is what Hugging Face generates from the same file."""
    import numpy as np
    from transformers import WhisperFeatureExtractor

    # 40 frames: twice the encoder's 20 positions
    folder = saved(
        tmp_path, "whisper", WhisperFeatureExtractor(feature_size=8, hop_length=160, chunk_length=0.4, n_fft=400)
    )
    with wave.open(str(tmp_path / "t.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(6400) / 9)).astype("<i2").tobytes())
    lens("audio", str(tmp_path / "t.wav"), of=folder, as_json=True)
    told = said(capsys)
    assert [row["layer"] for row in told["layers"]] == [0, 1, 2, 3]
    assert told["layers"][-1]["error_rate"] == 0.0
    assert told["kl_forward"][-1] == [0.0] * len(told["tokens"])
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    for file, words in (("bad.wav", "no WAV file"), ("none.wav", "no file")):
        with pytest.raises(SystemExit):
            lens("audio", str(tmp_path / file), of=folder, as_json=True)
        assert words in said(capsys)["error"]


@pytest.mark.slow("loads the image processors of transformers")
def test_a_picture_is_read_token_by_token(tmp_path, capsys):
    """The class token's last row is Hugging Face's answer."""
    Image = pytest.importorskip("PIL.Image")
    from transformers import AutoImageProcessor, ViTImageProcessor

    folder = saved(tmp_path, "vit", ViTImageProcessor(size={"height": 16, "width": 16}))
    Image.effect_noise((20, 20), 60).save(tmp_path / "p.png")
    lens("image", str(tmp_path / "p.png"), of=folder, k=2, as_json=True)
    told = said(capsys)
    model = interp.load(folder)
    picture = AutoImageProcessor.from_pretrained(folder)(
        Image.open(tmp_path / "p.png").convert("RGB"), return_tensors="pt"
    )
    with torch.no_grad():
        p = model.module(**picture).logits[0].softmax(-1)
    assert told["kind"] == "class"
    assert told["picture"] == {"first": 1, "rows": 2, "columns": 2}
    assert told["label"] == model.config.id2label[int(p.argmax())]
    assert told["identifiability"][-1][0] == 1.0
    assert [t["prob"] for t in told["top"][-1][0]] == pytest.approx(p.topk(2).values.tolist(), rel=1e-4)
    assert told["top"][-1][0][0]["token"] == model.config.id2label[int(p.argmax())]
    assert len(told["tokens"]) == 5
    lens("image", str(tmp_path / "p.png"), of=folder, target="LABEL_1", out=tmp_path / "p.html")
    out = capsys.readouterr().out
    assert "identifiability of 'LABEL_1'" in out
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert html.count('<table class="picture">') == 5  # four sites, and the importance
    assert not re.search(r"<script|https?:|url\(|@import", html)
