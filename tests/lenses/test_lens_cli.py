"""`interp lens`: the JSON, the page, and what is refused."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path

import pytest
import torch

import interp
from interp.cli.lens import lens, train_lens


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
        ({"text": "a", "weights": Path("x")}, "goes together"),
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


def test_a_lens_is_trained_and_read(tiny_folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The class statement names a class. " * 40)
    how = {"steps": 4, "tokens": 64, "context": 16, "text": str(text)}
    train_lens(str(tiny_folder), tmp_path / "lens", **how, as_json=True)
    told = said(capsys)
    assert told["steps"] == 4
    assert list(told["kl"]) == told["sites"] == ["blocks.0.resid_pre", "blocks.0.resid_post"]
    lens(str(tiny_folder), "The class", kind="tuned", weights=tmp_path / "lens", as_json=True)
    tuned = said(capsys)
    lens(str(tiny_folder), "The class", as_json=True)
    plain = said(capsys)
    assert tuned["kind"] == "tuned"
    assert tuned["top"][-1] == plain["top"][-1]
    assert tuned["kl_forward"][0] != plain["kl_forward"][0]
    train_lens(str(tiny_folder), tmp_path / "lens", **how)
    assert "4 steps" in capsys.readouterr().out
    train_lens(str(tiny_folder), tmp_path / "short", kind="shortcut", **how, as_json=True)
    assert said(capsys)["sites"] == told["sites"]
    lens(str(tiny_folder), "The class", kind="shortcut", weights=tmp_path / "short", as_json=True)
    assert said(capsys)["kind"] == "shortcut"
    for call in (
        lambda: train_lens(str(tiny_folder), tmp_path / "x", kind="short", as_json=True),
        lambda: lens(str(tiny_folder), "a", kind="tuned", weights=tmp_path / "short", as_json=True),
    ):
        with pytest.raises(SystemExit):
            call()
        assert re.search("Did you mean 'shortcut'|holds no tuned lens", said(capsys)["error"])
    with pytest.raises(SystemExit) as stopped:
        lens("zoo:books", "The class", kind="tuned", weights=tmp_path / "lens", as_json=True)
    assert stopped.value.code == 2
    assert "trained for another model" in said(capsys)["error"]


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
    lens("audio", str(tmp_path / "t.wav"), of=folder, kind="decoder", as_json=True)
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
    assert [t["prob"] for t in told["top"][-1][0]] == pytest.approx(p.topk(2).values.tolist(), rel=1e-4)
    assert told["top"][-1][0][0]["token"] == model.config.id2label[int(p.argmax())]
    assert len(told["tokens"]) == 5
