"""Text to rows: what is recorded, in which order, and what happens when it is interrupted."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from interp import Failed, WrongUse
from interp.model import load
from interp.store.recording import padded, plan, record_text, windows
from interp.texts import default_text, read_texts

SITE = "blocks.1.resid_post"
TEXTS = ["War and peace.\n\nIt was the best of times, 1859.", "Call me Ishmael. " * 20, "x"]


@pytest.fixture(scope="session")
def model(tiny_folder):
    return load(tiny_folder, dtype="float32")


def test_windows_cover_every_token_once_and_never_span_two_texts(model):
    made = list(windows(model, TEXTS, context=16))
    for number, text in enumerate(TEXTS):
        ids = [i for n, w in made if n == number for i in w[1:]]
        assert ids == model.tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
    assert all(w[0] == model.tokenizer.bos_token_id and len(w) <= 16 for _, w in made)


def test_rows_are_the_models_activations_without_the_start_token(model, tmp_path):
    store = record_text(model, [SITE, "blocks.0.mlp.post"], TEXTS, tmp_path / "s", dtype="float32", context=16, batch=4)
    got = {
        int(i): (row, d)
        for rows, ids in store.batches(7, with_ids=True)
        for i, row, d in zip(ids, rows[SITE], store.documents[ids], strict=True)
    }
    expected = []
    for number, ids in windows(model, TEXTS, 16):
        expected += [(row, number) for row in model.record(torch.tensor([ids]), SITE)[SITE][0, 1:]]
    assert store.rows == len(expected) == len(got)
    for i, (row, document) in enumerate(expected):
        assert int(got[i][1]) == document
        assert (got[i][0] - row).abs().max() < 1e-4  # padded to the batch's longest window: other matrix shapes


def test_the_number_of_rows_is_kept(model, tmp_path):
    assert record_text(model, [SITE], TEXTS, tmp_path / "s", tokens=37, context=16, batch=4).rows == 37
    assert plan(model, [SITE], TEXTS, tokens=37, dtype="bfloat16", batch=4, context=16).bytes == 37 * (32 * 2 + 16)


def test_a_model_without_start_token_loses_no_row(model):
    tokens, keep = padded(model, [[5, 6, 7], [8]])
    assert torch.equal(keep, tokens.mask)


def test_nan_is_named_and_what_was_committed_stays(model, tmp_path):
    from interp import Replace

    class Broken:
        def __getattr__(self, name):
            return getattr(model, name)

        def record(self, x, names):
            edits = [Replace(SITE, float("nan") * torch.ones(32), pos=3)] if int(x.ids[0, 1]) == 77 else []
            return model.record(x, names, edits=edits)

    texts = ["ab " * 400, model.tokenizer.decode([77]) * 5]
    with pytest.raises(Failed, match=SITE):
        record_text(Broken(), [SITE], texts, tmp_path / "s", context=16, batch=1)
    good = record_text(model, [SITE], texts, tmp_path / "s", context=16, batch=1, resume=True)
    assert good.rows > 100


@pytest.mark.slow("starts processes that are killed at random moments: imports of torch dominate")
def test_a_killed_recording_resumes_to_the_same_bytes(tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(default_text())[:60_000])
    command = [
        sys.executable,
        "-m",
        "interp",
        "record",
        str(tiny_folder),
        "--site",
        "blocks.*.resid_post",
        "--text",
        str(text),
    ]
    command += ["--context", "32", "--batch", "4", "--seed", "3", "--tokens", "20000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "-o", str(tmp_path / "a")], check=True, capture_output=True, env=environment)
    for delay in (0.2, 0.9):
        run = subprocess.Popen(
            [*command, "--resume", "-o", str(tmp_path / "b")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        until = time.time() + 60
        while time.time() < until and not list((tmp_path / "b").glob("**/journal.json")):
            time.sleep(0.02)
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
    subprocess.run([*command, "--resume", "-o", str(tmp_path / "b")], check=True, capture_output=True, env=environment)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_texts(tmp_path):
    for name, data, words in (
        ("empty.txt", b" \n", "is empty"),
        ("picture.txt", b"\x89PNG\xff\x00", "not UTF-8"),
        ("zero.txt", b"abc\x00def", "zero bytes"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WrongUse, match=words):
            list(read_texts(tmp_path / name))
    with pytest.raises(WrongUse, match="no text file"):
        list(read_texts(tmp_path / "missing.txt"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(WrongUse, match=r"no \.txt"):
        list(read_texts(tmp_path / "nothing"))
    with pytest.raises(WrongUse, match="not both"):
        list(read_texts("a", "b"))
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "b.txt").write_text("zwei")
    (tmp_path / "good" / "a.md").write_text("eins\r\n")
    assert list(read_texts(tmp_path / "good")) == ["eins\n", "zwei"]


def test_a_data_set_of_the_hub_is_read_through_its_own_loader(tmp_path):
    """A local folder goes through the same call as a hub id."""
    pytest.importorskip("datasets")
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(read_texts(dataset=str(tmp_path))) == ["one", "two"]
    with pytest.raises(Failed, match="could not be read"):
        list(read_texts(dataset=str(tmp_path / "nowhere")))


def test_default_text_has_no_paragraph_twice():
    paragraphs = [p for d in default_text() for p in d.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 1000
