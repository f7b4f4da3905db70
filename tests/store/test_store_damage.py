"""A damaged store is refused, and the damage is named: by the library, and by `interp store check`."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from interp.cli.store import app
from interp.errors import Failed, WrongUse
from interp.store import Store, StoreWriter, check_store, open_store
from interp.store.int8 import Coding
from interp.store.layout import _sha256

_CODING = Coding(torch.zeros(5), torch.zeros(3, 5, dtype=torch.float64)).as_json(1)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an index and give it the checksum that fits, as another program could."""
    body = json.loads((path / "index.json").read_text())
    body.pop("sha256")
    change(body)
    (path / "index.json").write_text(json.dumps({**body, "sha256": _sha256(body)}))


def _flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << at % 8
    file.write_bytes(data)


@pytest.mark.parametrize("column", ["embed.rows", "ids"])
@pytest.mark.parametrize("how", ["missing", "cut", "longer"])
def test_a_cut_shard_is_refused_on_opening(make: Callable[..., Store], column: str, how: str) -> None:
    store = make(300)
    shard = store.path / f"00002.{column}"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] if how == "cut" else data + b"x")
    if how == "missing":
        shard.unlink()
    with pytest.raises(Failed, match=f"00002.{column} is bad: it (is missing|has {len(data)} ?)?"):
        open_store(store.path)
    assert [bad["shard"] for bad in check_store(store.path)["bad"]] == [shard.name]
    with pytest.raises(Failed, match=f"00002.{column} is bad"):  # one that was open already
        list(store.batches(50, with_ids=True))


def test_a_flipped_bit_is_refused_when_its_pile_is_read(make: Callable[..., Store]) -> None:
    store = make(300)
    _flip(store.path / "00001.embed.rows", 77)
    store = open_store(store.path)
    with pytest.raises(Failed, match=r"00001.embed.rows is bad: it was altered: its crc32"):
        list(store.batches(50))
    assert sum(len(ids) for _, ids in store.batches(50, sites=[], with_ids=True)) == 300
    assert store.check()["bad"][0]["shard"] == "00001.embed.rows"
    _flip(store.path / "00000.ids", 5)
    with pytest.raises(Failed, match=r"00000.ids is bad"):
        print(store.documents)


def test_any_flipped_bit_of_any_file_is_found(make: Callable[..., Store], tmp_path: Path) -> None:
    store = make(60, pile_rows=25)
    chance = random.Random(0)
    for trial, name in enumerate(sorted(file.name for file in store.path.iterdir() if file.stat().st_size)):
        copy = tmp_path / f"copy{trial}"
        shutil.copytree(store.path, copy)
        for _ in range(20 if name == "index.json" else 3):
            at = chance.randrange((copy / name).stat().st_size)
            _flip(copy / name, at)
            bad = check_store(copy)["bad"]
            assert [b["shard"] for b in bad] == [name], (name, at)
            _flip(copy / name, at)
        assert check_store(copy)["bad"] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: body.update(version=3), "version 3; this interp-kit reads"),
        (lambda body: body.update(format="other"), "'other'"),
        (lambda body: body.update(sseed=1), "has no 'sseed'. Did you mean 'seed'"),
        (lambda body: body.pop("seed"), "has no 'seed'"),
        (lambda body: body.update(dtype="int7"), "has no 'int7'. Did you mean 'int8'"),
        (lambda body: body["shards"]["00000.ids"].pop("crc32"), "have no checksums"),
        (lambda body: body["piles"].append(3), "contradicts itself"),
        (lambda body: body["shards"].popitem(), "contradicts itself"),
        (
            lambda body: body.update(dtype="float32", int8={"embed": _CODING}),
            "its int8 codings are not those of its sites",
        ),
        (lambda body: body.pop("format"), "no index of an activation store"),
    ],
)
def test_an_index_of_another_kind(make: Callable[..., Store], change: Callable[..., Any], told: str) -> None:
    store = make(60)
    _rewrite(store.path, change)
    with pytest.raises(Failed, match=told):
        open_store(store.path)


def _as_version_1(body: dict[str, Any], path: Path) -> None:
    """What version 1 wrote: sha256 of every shard, and nothing about int8."""
    body["version"] = 1
    body.pop("int8")
    for name, shard in body["shards"].items():
        shard.pop("crc32")
        shard["sha256"] = hashlib.sha256((path / name).read_bytes()).hexdigest()


def test_a_store_of_version_1_is_read_and_checked(make: Callable[..., Store]) -> None:
    store = make(300)
    whole = list(store.batches(50, with_ids=True))
    _rewrite(store.path, lambda body: _as_version_1(body, store.path))
    old = open_store(store.path)
    for (rows, ids), (old_rows, old_ids) in zip(whole, old.batches(50, with_ids=True), strict=True):
        assert torch.equal(ids, old_ids)
        assert all(torch.equal(rows[site], old_rows[site]) for site in rows)
    assert old.check()["bad"] == []
    _flip(store.path / "00001.embed.rows", 77)
    with pytest.raises(Failed, match=r"00001.embed.rows is bad: it was altered: its sha256"):
        list(old.batches(50))
    assert [bad["shard"] for bad in check_store(store.path)["bad"]] == ["00001.embed.rows"]


@pytest.mark.parametrize("how", ["whole", "altered"])
def test_a_store_begun_by_version_1_goes_on(tmp_path: Path, how: str) -> None:
    """The journal of version 1 is verified by its own checksums, and the store ends as one of version 2."""

    def writer(name: str) -> StoreWriter:
        return StoreWriter(tmp_path / name, widths={"a": 3}, dtype="float32", expected_rows=100, resume=True)

    def append(to: StoreWriter, value: float) -> None:
        to.append({"a": torch.full((10, 3), value)}, documents=torch.zeros(10, dtype=torch.int64))

    for name in ("old", "new"):
        begun = writer(name)
        append(begun, 1.0)
        begun.commit({"at": 1})
        begun._release()
    (tmp_path / "old" / "journal.json").rename(tmp_path / "old" / "index.json")
    _rewrite(tmp_path / "old", lambda body: _as_version_1(body, tmp_path / "old"))
    (tmp_path / "old" / "index.json").rename(tmp_path / "old" / "journal.json")
    if how == "altered":
        _flip(tmp_path / "old" / "00000.a.rows", 9)
        with pytest.raises(Failed, match="altered since it was committed: its sha256 differs"):
            writer("old")
        return
    for name in ("old", "new"):
        with writer(name) as resumed:
            append(resumed, 2.0)
    assert (tmp_path / "old" / "index.json").read_bytes() == (tmp_path / "new" / "index.json").read_bytes()


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00", '{"format": "interp activation store"}'])
def test_an_index_that_is_none(make: Callable[..., Store], text: str) -> None:
    store = make(10)
    (store.path / "index.json").write_text(text)
    with pytest.raises(Failed, match=r"index.json is damaged"):
        open_store(store.path)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(WrongUse, match="is no activation store"):
            open_store(path)


def _run(*args: object) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, json.loads(result.stdout) if "--json" in args else result.stdout


def test_interp_store_check(make: Callable[..., Store], tmp_path: Path) -> None:
    store = make(300)
    shards = len(store.index.shards)
    assert _run("check", store.path, "--json") == (0, {"rows": 300, "shards": shards, "bad": []})
    assert _run("check", store.path) == (0, f"300 rows in {shards} shards, 0 bad\n")
    _flip(store.path / "00001.embed.rows", 3)
    (store.path / "00000.ids").unlink()
    status, told = _run("check", store.path, "--json")
    assert status == 1
    assert [bad["shard"] for bad in told["bad"]] == ["00000.ids", "00001.embed.rows"]
    assert told["bad"][0]["why"] == "it is missing"
    assert "00001.embed.rows: it was altered" in _run("check", store.path)[1]
    (store.path / "index.json").rename(store.path / "journal.json")
    status, told = _run("check", store.path, "--json")
    assert status == 1
    assert "is not complete: 300 rows so far" in told["bad"][0]["why"]
    assert _run("check", tmp_path, "--json")[0] == 2


def test_interp_store_info(make: Callable[..., Store]) -> None:
    store = make(300, meta={"command": ["interp", "record"]})
    status, told = _run("info", store.path, "--json")
    assert (status, told["rows"], told["widths"], told["dtype"]) == (0, 300, store.widths, "float32")
    assert told["meta"] == {"command": ["interp", "record"]}
    assert told["bytes"] == store.index.bytes
    assert "rows" in _run("info", store.path)[1]
    (store.path / "00000.ids").unlink()
    assert _run("info", store.path, "--json")[0] == 1
