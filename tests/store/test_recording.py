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
from interp.cli import main
from interp.files import save_tensors
from interp.model import load
from interp.store import StoreWriter
from interp.store.layout import row_bytes
from interp.store.recording import padded, plan, read_data, read_inputs, record_text, windows
from interp.texts import default_text, read_texts
from tests.model.shapes import module

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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_of_a_gpu_come_over_while_the_model_runs_on(model, tmp_path, monkeypatch, dtype):
    """The way from a GPU, taken on a CPU: a batch is sent, then the one before it appended, and the bytes are the same.

    int8 rows are sent from the second batch on, when the first has said around what they are coded.
    """
    wanted = record_text(model, [SITE], TEXTS, tmp_path / "here", dtype=dtype, tokens=61, context=8, batch=4)
    done, before = [], {"send": StoreWriter.send, "append": StoreWriter.append}
    for name, inner in before.items():
        monkeypatch.setattr(StoreWriter, name, lambda *args, name=name, inner=inner: done.append(name) or inner(*args))
    passes = model.record
    monkeypatch.setattr(type(model), "record", lambda self, *args: done.append("pass") or passes(*args))
    monkeypatch.setattr("interp.store.writer.elsewhere", lambda values: True)
    found = record_text(model, [SITE], TEXTS, tmp_path / "sent", dtype=dtype, tokens=61, context=8, batch=4)
    assert found.rows == wanted.rows == 61
    assert digests(tmp_path / "sent") == digests(tmp_path / "here")
    first = ["pass", "send"] + ["append"] * (dtype == "int8")
    rest = ["pass", "send", "append"] * (done.count("pass") - 1 - (dtype == "int8"))
    assert done == first + ["pass", "send"] * (dtype == "int8") + rest + ["append"]
    assert done.count("pass") >= 3


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sent_rows_are_cut_and_refused_as_others(tmp_path, monkeypatch, dtype):
    """Appends of more rows than a region of memory holds, with and without rows left out; NaN is named, and nothing kept."""
    x, kept = torch.randn(500, 40) * 3 + 7, torch.randperm(500)[:300]
    found = []
    for name in ("here", "sent"):
        with StoreWriter(tmp_path / name, widths={"a": 40}, dtype=dtype, expected_rows=800, pile_bytes=20_000) as store:
            store.append({"a": x}, torch.arange(500))
            store.append(store.send({"a": x}, kept), torch.arange(300), kept)
            bad = x.clone()
            bad[kept[7], 3] = torch.nan
            with pytest.raises(Failed, match="NaN or inf at a, in 1 of 300 rows, first in row 807"):
                store.append(store.send({"a": bad}, kept), torch.arange(300), kept)
            store.append(store.send({"a": x}), torch.arange(500))
            sums = [coding.sums for coding in store._codings.values()]
        found.append(({k: v for k, v in digests(tmp_path / name).items() if k != "index.json"}, sums))
        monkeypatch.setattr("interp.store.writer.elsewhere", lambda values: True)
    assert found[0][0] == found[1][0]
    for here, sent in zip(found[0][1], found[1][1], strict=True):  # added up in another order
        torch.testing.assert_close(here, sent, rtol=1e-12, atol=1e-9)


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
def test_a_killed_recording_resumes_to_the_same_bytes(tiny_folder, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(default_text())[:60_000])
    words = ["record", str(tiny_folder), "--site", "blocks.*.resid_post", "--text", str(text)]
    words += ["--context", "32", "--batch", "4", "--seed", "3", "--tokens", "20000"]
    killed = [str(Path(sys.executable).with_name("interp")), *words, "--resume", "-o", str(tmp_path / "b")]

    def here(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["interp", *words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)

    here("-o", str(tmp_path / "a"))
    for delay in (0.2, 0.9):
        run = subprocess.Popen(
            killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        until = time.time() + 60
        while time.time() < until and not list((tmp_path / "b").glob("**/journal.json")):
            time.sleep(0.02)
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
    here("--resume", "-o", str(tmp_path / "b"))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# ---------------------------------------------------------------- ready inputs


def pixels(n=7):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_pictures_are_recorded_from_ready_inputs(tmp_path):
    """Every position of every picture is a row: the same rows as one pass over all of them, in another order."""
    model = load(module("vit"))
    save_tensors(tmp_path / "x.safetensors", {"pixel_values": pixels()})
    inputs = read_inputs(tmp_path / "x.safetensors", model)
    store = record_text(model, [SITE], inputs, tmp_path / "s", dtype="float32", batch=3)
    whole = model.record({"pixel_values": pixels()}, SITE)[SITE]
    found = next(store.batches(store.rows))[SITE]
    assert store.rows == 7 * 5  # four patches and a class token
    assert torch.allclose(found.sort(0).values, whole.flatten(0, 1).sort(0).values, atol=1e-5)
    cost = plan(model, [SITE], inputs, tokens=None, dtype="float32", batch=3, context=512)
    assert (cost.windows, cost.rows) == (9, 35)
    assert cost.bytes == 35 * row_bytes({SITE: 32}, "float32")
    assert record_text(model, [SITE], inputs, tmp_path / "t", tokens=11, batch=3).rows == 11


def test_a_recording_of_inputs_is_resumed(tmp_path):
    model = load(module("vit"))

    class Broken:
        def __init__(self):
            self.calls = 0

        def __getattr__(self, name):
            return getattr(model, name)

        def record(self, *args, **how):
            self.calls += 1
            if self.calls == 20:
                raise RuntimeError("power cut")
            return model.record(*args, **how)

    inputs, same = {"pixel_values": pixels(50)}, dict(dtype="float32", batch=2)
    with pytest.raises(RuntimeError, match="power cut"):
        record_text(Broken(), [SITE], inputs, tmp_path / "a", **same)
    record_text(model, [SITE], inputs, tmp_path / "a", resume=True, **same)
    record_text(model, [SITE], inputs, tmp_path / "b", **same)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_each_side_of_an_encoder_and_decoder_has_its_own_mask(tmp_path):
    model = load(module("t5"))
    ids = torch.randint(3, 60, (4, 6), generator=torch.Generator().manual_seed(1))
    mask, decoder = torch.ones(4, 6).long(), torch.ones(4, 6).long()
    mask[0, 3:], decoder[1, 2:], decoder[2, 5:] = 0, 0, 0
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": ids.flip(1),
        "decoder_attention_mask": decoder,
    }
    for site, keep in (
        ("encoder.blocks.1.resid_post", mask),
        ("decoder.blocks.1.cross_attn.write", decoder),
        ("decoder.blocks.1.cross_attn.k", mask),
    ):
        store = record_text(model, [site], inputs, tmp_path / site, dtype="float32", batch=3)
        whole = model.record(inputs, site)[site].flatten(2)[keep.bool()]
        assert torch.allclose(next(store.batches(store.rows))[site].sort(0).values, whole.sort(0).values, atol=1e-5)
    both = ["encoder.blocks.1.resid_post", "decoder.blocks.1.resid_post"]
    with pytest.raises(WrongUse, match="have other positions: record each into a store of its own"):
        record_text(model, both, inputs, tmp_path / "both")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"pixel_value": torch.zeros(2, 3, 16, 16)}, "has no 'pixel_value'. Did you mean 'pixel_values'"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16), "labels": torch.zeros(3)}, r"as many inputs each.*'labels': 3"),
        ({}, "as many inputs each, one or more; it holds nothing"),
        (None, "there is no file"),
        ("cut", "not a whole safetensors file"),
    ],
)
def test_bad_inputs(tmp_path, tensors, words):
    path = tmp_path / "x.safetensors"
    if isinstance(tensors, dict):
        save_tensors(path, tensors)
    elif tensors:
        path.write_text(tensors)
    with pytest.raises(WrongUse, match=words):
        read_inputs(path, load(module("vit")))


def test_text_where_rows_are_no_tokens_of_it(tmp_path, model):
    with pytest.raises(WrongUse, match=r"no tokenizer.*or ready inputs"):
        record_text(load(module("vit")), [SITE], TEXTS, tmp_path / "s")
    with pytest.raises(WrongUse, match="give text or --inputs, not both"):
        read_data(model, "text", None, tmp_path)
    t5 = load(module("t5"), tokenizer=lambda text, **how: {"input_ids": [5, 7, 9]})
    t5.tokenizer.bos_token_id = None
    site = "decoder.blocks.1.cross_attn.write"
    with pytest.raises(WrongUse, match=r"has 1 positions for windows of .* record it from ready inputs"):
        record_text(t5, [site], ["x"], tmp_path / "t", context=8)


def test_a_row_of_a_site_with_heads_is_all_of_them(tmp_path, model):
    """attn.z, and each head's result: [batch, pos, head, d] as one row of head · d numbers."""
    assert (model.width("blocks.1.attn.z"), model.width("blocks.1.attn.result")) == (32, 4 * 32)
    site = "blocks.1.attn.z"
    store = record_text(
        model, [site, "blocks.1.mlp.post"], ["Call me Ishmael."], tmp_path / "s", dtype="float32", context=16
    )
    ids = list(windows(model, ["Call me Ishmael."], 16))
    whole = torch.cat([model.record(torch.tensor([w]), site)[site][0, 1:] for _, w in ids]).flatten(1)
    assert torch.allclose(next(store.batches(store.rows))[site].sort(0).values, whole.sort(0).values, atol=1e-5)


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
    (tmp_path / "data.jsonl").write_text('{"words": "one"}\n')
    with pytest.raises(WrongUse, match=r"has no 'text': its split 'train' should have a column 'text'"):
        list(read_texts(dataset=str(tmp_path)))


def test_a_saved_data_set_is_read_from_its_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "split")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "test")
    assert list(read_texts(dataset=str(tmp_path / "one"))) == ["one", "two"]
    assert list(read_texts(dataset=str(tmp_path / "split"))) == ["one", "two"]
    with pytest.raises(WrongUse, match="has no 'train'"):
        list(read_texts(dataset=str(tmp_path / "test")))


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Failed, match="pip install datasets"):
        list(read_texts(dataset=str(tmp_path)))


def test_default_text_has_no_paragraph_twice():
    paragraphs = [p for d in default_text() for p in d.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 1000
