"""`interp generate` and `interp record --max-memory`."""

from __future__ import annotations

import json

import pytest

from interp import Steer, Zero
from interp.cli.generate import generate
from interp.cli.record import record


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_text_is_continued_and_edits_say_how_often_they_fired(tiny_folder, tmp_path, capsys):
    import torch

    file = tmp_path / "edits.json"
    edits = [Steer("blocks.1.resid_post", torch.ones(32), 9.0, pos="generated"), Zero("blocks.*.mlp.write", pos=0)]
    file.write_text(json.dumps([e.to_json() for e in edits]))
    generate(str(tiny_folder), "War and", max_new_tokens=6, as_json=True)
    plain = said(capsys)
    generate(str(tiny_folder), "War and", edits=file, max_new_tokens=6, as_json=True)
    edited = said(capsys)
    assert plain["text"].startswith("War and") and plain["seed"] is None
    assert edited["text"] != plain["text"]
    assert edited["edits"] == [
        {"edit": "Steer", "site": "blocks.1.resid_post", "fired": 5},
        {"edit": "Zero", "site": "blocks.*.mlp.write", "fired": 2},
    ]
    texts = []
    for seed in (1, 1, 2):
        generate(str(tiny_folder), "War and", max_new_tokens=6, temperature=3.0, seed=seed, as_json=True)
        texts.append(said(capsys)["text"])
    assert texts[0] == texts[1] != texts[2]
    generate(str(tiny_folder), "War and", edits=file, max_new_tokens=3)
    assert "Steer(blocks.1.resid_post) fired 2 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no file"), ("[", "no JSON"), ('{"edit": "Zer", "site": "embed"}', "'Zero'"), ("[1]", "an edit is")],
)
def test_bad_files_are_wrong_use(tiny_folder, tmp_path, capsys, content, words):
    file = tmp_path / "edits.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        generate(str(tiny_folder), "War", edits=file, as_json=True)
    assert stopped.value.code == 2
    assert words in said(capsys)["error"]


def test_a_recording_beyond_max_memory_fails_naming_the_three_costliest(tiny_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        record(str(tiny_folder), ["blocks.*"], tmp_path / "s", context=64, max_memory="1MB", as_json=True, dry_run=True)
    assert stopped.value.code == 1
    error = said(capsys)["error"]
    assert "only 976.56 KiB may be used" in error and error.count(" MiB)") == 3
    assert "--batch" in error and "torch" not in error
    assert not (tmp_path / "s").exists()
    record(str(tiny_folder), ["embed"], tmp_path / "s", context=64, tokens=50, max_memory="1MB", as_json=True)
    assert said(capsys)["rows"] == 50
