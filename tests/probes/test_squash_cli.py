"""`interp squash`: one JSON object each, and clear errors."""

from __future__ import annotations

import json

import pytest

from probes.cli import squash


def told(capsys, command, *args, **options):
    command(*args, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def refused(capsys, command, *args, **options):
    with pytest.raises(SystemExit) as end:
        command(*args, **options)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_one_prompt(tiny_folder, capsys, tmp_path):
    model = str(tiny_folder)
    found = told(capsys, squash.jacobian, model, "The class", out=tmp_path / "figure.html")
    assert (tmp_path / "figure.html").stat().st_size > 1000
    assert set(found["norms"]) == {"blocks.0.resid_pre", "blocks.1.resid_pre", "blocks.1.resid_post"}
    assert len(found["norms"]["blocks.0.resid_pre"]) == len(found["ids"])
    found = told(capsys, squash.jacobian, model, ids="5,6,7", probes=8)
    assert len(found["errors"]["blocks.0.resid_pre"]) == 3
    found = told(capsys, squash.paths, model, ids="5,6,7")
    assert len(found["rows"]) == 9
    found = told(capsys, squash.paths, model, ids="5,6,7", bound=True)
    assert all(r["bound"] >= r["held"] * (1 - 1e-4) for r in found["rows"])
    assert len(found["constants"]) == 2
    found = told(capsys, squash.rotary, model, "The class")
    assert {"attention", "head", "pair", "frequency", "q", "k"} == set(found["rows"][0])
    assert found["rows"][0]["frequency"] == pytest.approx(1.0, rel=1e-3)
    assert told(capsys, squash.rewrite, model, "The class of things")["error"] < 1e-10


def test_collapse(tiny_folder, capsys):
    found = told(capsys, squash.collapse, str(tiny_folder), lengths="16,32,64", tokens="5,6,7", remedy=True)
    for curve in (found, found["remedy"]):
        assert curve["n"] == [16, 32, 64]
        assert {len(curve[k]) for k in ("l1", "l2", "linf")} == {3}
        assert set(curve["equal_at"]) == {"bf16", "fp16", "fp8"}
        assert curve["computed_in"] == "float32"
        assert curve["tokens"]["one"] == 5
    squash.collapse(str(tiny_folder), lengths="16,32", family="counting")
    assert "same bits from: bf16" in capsys.readouterr().out


def test_without_a_model(capsys):
    found = told(capsys, squash.schemes, lengths="16,64,256", draws=4)
    assert -1.3 < found["schemes"]["none"]["slope"] < -0.7
    found = told(capsys, squash.decay, at=30, furthest=40, draws=500)
    assert found["peak"] == 30
    squash.schemes(scheme=["none"], lengths="16,64", draws=2)
    squash.decay(furthest=120, draws=100)
    assert "largest logit at distance 100" in capsys.readouterr().out


def test_sinks(tiny_folder, capsys):
    found = told(capsys, squash.sinks, str(tiny_folder), windows=2, context=16)
    for way in ("with_bos", "without_bos"):
        assert len(found[way]["heads"]) == 8
        assert len(found[way]["spread"]) == 3


def test_source(tiny_folder, capsys):
    found = told(capsys, squash.source, "zoo:numbers", str(tiny_folder), text="digits: forty two", probes=4)
    assert [m["encoder"] for m in found["models"]] == [True, False]
    assert all(row["mass"] == 1 for row in found["models"][0]["rows"])
    squash.source("zoo:numbers", text="digits: forty two", probes=4)
    assert "encoder-decoder" in capsys.readouterr().out


def test_bad_requests_are_refused(tiny_folder, capsys, tmp_path):
    model = str(tiny_folder)
    assert "one of the two" in refused(capsys, squash.jacobian, model)
    assert "token 999 is not there" in refused(capsys, squash.jacobian, model, ids="5,999")
    assert "--lengths takes numbers" in refused(capsys, squash.collapse, model, lengths="16,x")
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    assert "fewer than the 65 of a window" in refused(capsys, squash.sinks, model, text=str(short))
    assert "leaves nothing" in refused(capsys, squash.rewrite, model, ids="5,6", source=2)
    assert "has an encoder" in refused(capsys, squash.collapse, "zoo:numbers")
