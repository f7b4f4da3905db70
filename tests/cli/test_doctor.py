"""`interp doctor`: a damaged wiring fails the proof that sees it."""

from __future__ import annotations

import json

import pytest
import typer

from interp.cli.model import doctor


def exit_of(capsys, *args, **options):
    """(exit status, what was printed as JSON)."""
    status = 0
    try:
        doctor(*args, as_json=True, **options)
    except typer.Exit as stopped:
        status = stopped.exit_code
    except SystemExit as stopped:
        status = stopped.code
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.slow("the doctor runs three times")
def test_a_wiring_that_was_exported_proves_and_a_damaged_one_fails_by_name(tiny_folder, tmp_path, capsys):
    file = tmp_path / "wiring.json"
    status, told = exit_of(capsys, str(tiny_folder), export_wiring=file)
    assert status == 0 and set(told) == {"model", "proofs"}
    assert all({"status", "error", "tolerance", "reason"} <= set(p) for p in told["proofs"].values())
    status, told = exit_of(capsys, str(tiny_folder), wiring=file)
    assert status == 0 and {p["status"] for p in told["proofs"].values()} == {"pass"}
    wiring = json.loads(file.read_text())
    sites = wiring["stacks"][0]["blocks"][1]["sites"]
    sites["attn.write"], sites["mlp.write"] = sites["mlp.write"], sites["attn.write"]
    file.write_text(json.dumps(wiring))
    status, told = exit_of(capsys, str(tiny_folder), wiring=file)
    assert status == 1
    failed = {letter: p["reason"] for letter, p in told["proofs"].items() if p["status"] == "fail"}
    assert set(failed) == {"b", "d"}
    assert "layers.1: resid_mid is off by" in failed["b"] and "blocks.*.resid_mid" in failed["d"]


@pytest.mark.parametrize(("content", "words"), [("[]", "no wiring"), ("{", "JSON"), (None, "no file")])
def test_a_file_that_holds_no_wiring_is_wrong_use(tiny_folder, tmp_path, capsys, content, words):
    file = tmp_path / "wiring.json"
    if content is not None:
        file.write_text(content)
    status, told = exit_of(capsys, str(tiny_folder), wiring=file)
    assert status == 2 and words in told["error"]
