"""Writing: durable, killable, exact about what it refuses, and the same bytes whatever happened on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import Failed, WrongUse
from interp.store import Store, StoreWriter, open_store


def _sums(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def _writer(path: Path, **settings: Any) -> StoreWriter:
    return StoreWriter(path, **{"widths": {"a": 3}, "dtype": "float32", "expected_rows": 100, **settings})


def _append(writer: StoreWriter, rows: torch.Tensor, document: int = 0) -> None:
    writer.append({"a": rows}, documents=torch.full((len(rows),), document))


def _read(path: Path) -> torch.Tensor:
    """All rows of site a, in the order they were appended."""
    rows, ids = next(open_store(path).batches(10_000, with_ids=True))
    return rows["a"][ids.argsort()]


# -- the same bytes ------------------------------------------------------------------------------------------------


def test_files_do_not_depend_on_appends_and_commits(tmp_path: Path, source: Any) -> None:
    values, documents = source(700)
    widths = {site: x.shape[1] for site, x in values.items()}

    def record(name: str, steps: list[int], commits: int) -> dict[str, str]:
        writer = StoreWriter(tmp_path / name, widths=widths, expected_rows=700, pile_bytes=5000)
        at = 0
        while at < 700:
            step = steps[at % len(steps)]
            writer.append({s: v[at : at + step] for s, v in values.items()}, documents=documents[at : at + step])
            at += step
            if at % commits == 0:
                writer.commit({"at": at})
        writer.commit({"at": 700})
        writer.close()
        return _sums(tmp_path / name)

    assert record("a", [700], 700) == record("b", [1, 90, 13], 5) == record("c", [50], 1)


# -- going on ------------------------------------------------------------------------------------------------------


def test_resume_goes_on_from_the_cursor(tmp_path: Path) -> None:
    writer = _writer(tmp_path, resume=True)
    assert (writer.rows, writer.cursor) == (0, None)
    _append(writer, torch.ones(10, 3))
    writer.commit({"file": "x.txt", "at": [3, None]})
    _append(writer, torch.full((5, 3), 2.0))
    assert writer.rows == 15
    del writer
    writer = _writer(tmp_path, resume=True, meta={"other": 1})
    assert (writer.rows, writer.cursor, writer.complete) == (10, {"file": "x.txt", "at": [3, None]}, False)
    _append(writer, torch.full((5, 3), 3.0))
    writer.close()
    assert torch.equal(_read(tmp_path)[:, 0], torch.tensor([1.0] * 10 + [3.0] * 5))
    assert open_store(tmp_path).meta == {}  # that of the first run


def test_resuming_a_complete_store_has_nothing_to_do(tmp_path: Path) -> None:
    with _writer(tmp_path) as writer:
        _append(writer, torch.ones(10, 3))
        writer.commit({"at": 10})
    before = _sums(tmp_path)
    writer = _writer(tmp_path, resume=True)
    assert (writer.rows, writer.cursor, writer.complete) == (10, {"at": 10}, True)
    writer.commit({"at": 10})
    with pytest.raises(WrongUse, match="is complete with 10 rows"):
        _append(writer, torch.ones(1, 3))
    writer.close()
    writer.close()
    assert _sums(tmp_path) == before


def test_an_error_inside_with_leaves_a_store_to_resume(tmp_path: Path) -> None:
    def record(writer: StoreWriter) -> None:
        with writer:
            _append(writer, torch.ones(10, 3))
            writer.commit({"at": 1})
            raise KeyboardInterrupt

    writer = _writer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        record(writer)
    with pytest.raises(Failed, match=r"is not complete: 10 rows so far.*--resume"):
        open_store(tmp_path)
    with pytest.raises(Failed, match="broken off"):
        _append(writer, torch.ones(10, 3))
    assert _writer(tmp_path, resume=True).rows == 10


def _count_up(writer: StoreWriter) -> None:
    for at in range(writer.rows, 100, 10):
        _append(writer, torch.arange(30.0).view(10, 3) + at, document=at)
        if at % 20 == 10:
            writer.commit({"at": at})
    writer.close()


def test_a_broken_off_write_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _count_up(_writer(tmp_path / "whole", pile_bytes=600))
    extend, calls = StoreWriter._extend, iter(range(10**6))

    def interrupted(self: StoreWriter, *args: Any) -> None:
        if next(calls) == 30:
            raise KeyboardInterrupt
        extend(self, *args)

    monkeypatch.setattr(StoreWriter, "_extend", interrupted)
    writer = _writer(tmp_path / "cut", pile_bytes=600)
    with pytest.raises(KeyboardInterrupt):
        _count_up(writer)
    for again in (lambda: writer.commit({"at": 99}), writer.close, lambda: _append(writer, torch.ones(1, 3))):
        with pytest.raises(Failed, match=r"broken off. The last commit, of [24]0 rows, is intact"):
            again()
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    _count_up(_writer(tmp_path / "cut", pile_bytes=600, resume=True))
    assert _sums(tmp_path / "cut") == _sums(tmp_path / "whole")


def test_a_commit_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _writer(tmp_path, widths={"a": 3}, pile_bytes=600)
    _append(writer, torch.ones(50, 3))
    done: list[str] = []
    name = lambda handle: os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: E731
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(name(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(f"→ {new.name}"), replace(old, new)))
    writer.commit({})
    *shards, folder, temporary, renamed, folder_again = done
    assert sorted(shards) == sorted(file.name for file in tmp_path.glob("0*"))
    assert folder == folder_again == tmp_path.name
    assert temporary.startswith(".journal.json")
    assert renamed == "→ journal.json"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"widths": {"a": 4}}, "widths {'a': 3}"),
        ({"widths": {"b": 3}}, "widths"),
        ({"dtype": "bfloat16"}, "dtype 'float32'"),
        ({"seed": 1}, "seed 0"),
        ({"expected_rows": 10**9}, "with 1 piles; this expected_rows"),
    ],
)
def test_resuming_another_store(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    _writer(tmp_path)
    with pytest.raises(WrongUse, match=told):
        _writer(tmp_path, resume=True, **change)
    assert _writer(tmp_path, resume=True).rows == 0  # the refused one does not hold the folder


def test_a_folder_in_use(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "store")
    writer.commit({})
    del writer
    with pytest.raises(WrongUse, match=r"an unfinished store of 0 rows.*resume=True"):
        _writer(tmp_path / "store")
    _writer(tmp_path / "store", resume=True).close()
    with pytest.raises(WrongUse, match=r"a complete store of 0 rows.*empty folder"):
        _writer(tmp_path / "store")
    for resume in (False, True):
        with pytest.raises(WrongUse, match="is not empty, and holds no store"):
            _writer(tmp_path, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="file: File exists"):
        _writer(tmp_path / "file")


@pytest.mark.parametrize("how", ["cut", "altered", "gone"])
def test_resuming_a_damaged_store(make: Callable[..., Store], tmp_path: Path, how: str) -> None:
    writer = _writer(tmp_path / "s")
    _append(writer, torch.ones(10, 3))
    writer.commit({})
    del writer
    shard = tmp_path / "s" / "00000.a.rows"
    data = shard.read_bytes()
    shard.write_bytes({"cut": data[:-1], "altered": data[:-1] + b"!", "gone": b""}[how])
    if how == "gone":
        shard.unlink()
    with pytest.raises(Failed, match="altered since it was committed" if how == "altered" else "is cut: "):
        _writer(tmp_path / "s", resume=True)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_and_inf_are_named_and_not_kept(tmp_path: Path, value: float, dtype: str) -> None:
    writer = StoreWriter(tmp_path, widths={"good": 2, "blocks.1.mlp_out": 3}, dtype=dtype, expected_rows=100)
    good, bad = torch.ones(20, 2), torch.ones(20, 3)
    documents = torch.zeros(20, dtype=torch.int64)
    writer.append({"good": good, "blocks.1.mlp_out": bad}, documents)
    bad[7, 1] = bad[9, 0] = bad[9, 1] = value
    with pytest.raises(Failed, match=r"NaN or inf at blocks.1.mlp_out, in 2 of 20 rows, first in row 27"):
        writer.append({"good": good, "blocks.1.mlp_out": bad}, documents)
    assert writer.rows == 20
    writer.append({"good": good * 2, "blocks.1.mlp_out": bad.nan_to_num(0, 0, 0)}, documents)
    writer.close()
    assert open_store(tmp_path).rows == 40


@pytest.mark.parametrize(
    ("dtype", "value", "fits"), [("float16", 65520.0, 65519.0), ("bfloat16", 3.4e38, 3.39e38), ("float32", 1e39, 3e38)]
)
def test_a_number_too_large_for_the_dtype(tmp_path: Path, dtype: str, value: float, fits: float) -> None:
    writer = _writer(tmp_path, dtype=dtype)
    rows = torch.ones(4, 3, dtype=torch.float64)
    rows[2, 2] = -value
    with pytest.raises(Failed, match=f"too large for {dtype} at a, in 1 of 4 rows, first in row 2"):
        _append(writer, rows)
    rows[2, 2] = fits
    _append(writer, rows)
    writer.close()
    assert torch.equal(_read(tmp_path), rows.to(getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_rounded_as_torch_rounds_and_kept_as_they_are(tmp_path: Path, dtype: str) -> None:
    words = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    every = words.view(torch.float16 if dtype == "float16" else torch.bfloat16)
    finite = every[every.isfinite()]
    finite = finite[: len(finite) // 3 * 3].view(-1, 3)  # signed zeros and subnormals among them
    with _writer(tmp_path, dtype=dtype, expected_rows=len(finite)) as writer:
        _append(writer, finite)
    rows, ids = next(open_store(tmp_path).batches(10**6, with_ids=True))
    back, word = rows["a"][ids.argsort()], torch.int32 if dtype == "float32" else torch.int16
    assert torch.equal(back.view(word), finite.to(back.dtype).view(word))


def test_odd_but_lawful_input(tmp_path: Path) -> None:
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    writer = _writer(tmp_path, pile_bytes=700)
    writer.append({"a": x.T}, documents=torch.arange(40, dtype=torch.int32)[::2])
    writer.append({"a": x.T[:0]}, documents=torch.empty(0, dtype=torch.int64))
    kept = x.detach().T.float()
    reused = kept.clone()
    _append(writer, reused)
    reused.zero_()  # the writer must have a copy
    _append(writer, torch.ones(1, 3).expand(5, 3))
    writer.close()
    assert torch.equal(_read(tmp_path), torch.cat([kept, kept, torch.ones(5, 3)]))
    assert open_store(tmp_path).documents[:20].tolist() == list(range(0, 40, 2))


@pytest.mark.parametrize(
    ("rows", "documents", "told"),
    [
        ({"b": torch.ones(2, 3)}, torch.zeros(2, dtype=torch.int64), "has no 'b'"),
        ({}, torch.zeros(2, dtype=torch.int64), "This append has no 'a'"),
        ({"a": torch.ones(2, 4)}, torch.zeros(2, dtype=torch.int64), r"\(2, 3\), not torch.float32 \(2, 4\)"),
        ({"a": torch.ones(3, 3)}, torch.zeros(2, dtype=torch.int64), r"\(2, 3\), not"),
        ({"a": torch.ones(2, 3, dtype=torch.int64)}, torch.zeros(2, dtype=torch.int64), "not torch.int64"),
        ({"a": torch.ones(2, 3)}, torch.zeros(2), "documents must be whole numbers"),
        ({"a": torch.ones(2, 3)}, torch.zeros(2, 1, dtype=torch.int64), "documents must be whole numbers"),
    ],
)
def test_wrong_appends(tmp_path: Path, rows: dict[str, torch.Tensor], documents: torch.Tensor, told: str) -> None:
    writer = _writer(tmp_path)
    with pytest.raises(WrongUse, match=told):
        writer.append(rows, documents)
    assert writer.rows == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dtype": "int4"}, "'int4' cannot be stored"),
        ({"widths": {}}, "at least one site"),
        ({"widths": {"a": 0}}, "at least 1 wide"),
        ({"seed": -1}, "seed=-1"),
        ({"expected_rows": -1}, "expected_rows=-1"),
        ({"meta": {"x": {1}}}, "meta must be made of what JSON knows"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(WrongUse, match=told):
        _writer(tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()


def test_a_cursor_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="cursor must be made of what JSON knows"):
        _writer(tmp_path).commit({"at": float("nan")})


def test_a_torch_dtype_is_as_good_as_its_name(tmp_path: Path) -> None:
    _writer(tmp_path, dtype=torch.float16).close()
    assert open_store(tmp_path).dtype == torch.float16
