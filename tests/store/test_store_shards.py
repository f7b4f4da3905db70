"""Shards past the page cache: the same bytes as through it, whatever was committed, killed or left waiting on the way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.store import StoreWriter, check_store, open_store
from interp.store import shards as shards_module
from interp.store.disk import PART_BYTES, read, writes_direct
from interp.store.layout import IDS, Index
from interp.store.memory import BLOCK, memory, raw
from interp.store.shards import block_rows
from interp.store.waiting import Waiting

WIDTHS = {"wide": 384, "odd": 7}  # of bfloat16: rows of 768 and 14 bytes, so that 2048 rows fill blocks
ROWS, PILE_BYTES = 31_000, 13_000_000  # two piles


@pytest.fixture(scope="module")
def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {site: torch.randn(ROWS, width, generator=generator).bfloat16() for site, width in WIDTHS.items()}


@pytest.fixture
def past_the_cache(tmp_path: Path) -> None:
    if not writes_direct(tmp_path):
        pytest.skip("files in the temporary folder cannot be written past the page cache")


def _record(path: Path, rows: dict[str, torch.Tensor], step: int, commit: int = 0, kill: int = 0) -> list[int]:
    """Rows in appends of `step`, committed every `commit` rows, let go of and resumed every `kill` rows.

    Returns how many rows waited after each commit.
    """

    def opened() -> StoreWriter:
        return StoreWriter(path, widths=WIDTHS, expected_rows=ROWS, pile_bytes=PILE_BYTES, resume=True)

    writer, waited, killed = opened(), [], 0
    while (at := writer.rows) < ROWS:
        part = {site: x[at : at + step] for site, x in rows.items()}
        writer.append(part, documents=torch.arange(at, at + len(part["odd"])))
        if commit and writer.rows // commit > at // commit:
            writer.commit({"at": writer.rows})
            waited.append(int(writer._waiting.counts.sum()))
        if kill and writer.rows // kill > killed:
            killed += 1
            writer._release()
            writer = opened()
    writer.close()
    return waited


def _sums(path: Path) -> dict[str, str]:
    """Checksums of the shards; the index says the same, and its cursor besides."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("0*")}


@pytest.mark.usefixtures("past_the_cache")
@pytest.mark.parametrize(("step", "commit", "kill"), [(31_000, 0, 0), (1_700, 3_000, 0), (900, 2_000, 7_000)])
def test_the_bytes_are_those_written_through_the_cache(
    tmp_path: Path,
    rows: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    commit: int,
    kill: int,
) -> None:
    ways: list[bool] = []
    write = shards_module.write
    monkeypatch.setattr(
        shards_module, "write", lambda path, data, at, past: ways.append(past) or write(path, data, at, past)
    )
    waited = _record(tmp_path / "past", rows, step, commit, kill)
    assert ways.count(True) > 10
    assert not commit or max(waited) > 0  # rows that filled no block were committed, and others written over them
    monkeypatch.setattr("interp.store.writer.writes_direct", lambda folder: False)
    ways.clear()
    _record(tmp_path / "through", rows, 4_000)
    assert True not in ways
    assert _sums(tmp_path / "past") == _sums(tmp_path / "through")
    assert check_store(tmp_path / "past")["bad"] == []


@pytest.mark.usefixtures("past_the_cache")
def test_a_store_begun_through_the_cache_goes_on_past_it_and_back(
    tmp_path: Path, rows: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ways in (("a", [False, True, False]), ("b", [True, True, True])):
        for part, way in zip((9_001, 11_003, 10_996), ways, strict=True):
            monkeypatch.setattr("interp.store.writer.writes_direct", lambda folder, way=way: way)
            writer = StoreWriter(tmp_path / name, widths=WIDTHS, expected_rows=ROWS, pile_bytes=PILE_BYTES, resume=True)
            at = writer.rows
            writer.append({s: x[at : at + part] for s, x in rows.items()}, documents=torch.arange(at, at + part))
            writer.commit({"at": writer.rows})
            writer.close() if writer.rows == ROWS else writer._release()
    assert _sums(tmp_path / "a") == _sums(tmp_path / "b")
    batch, ids = next(open_store(tmp_path / "a").batches(ROWS, with_ids=True))
    assert all(torch.equal(batch[site][ids.argsort()], x) for site, x in rows.items())


@pytest.mark.parametrize(
    ("widths", "dtype", "expected"),
    [({"a": 512}, "bfloat16", 256), ({"a": 13}, "int8", 4096), ({"a": 512}, "int8", 512), ({"a": 6}, "float32", 512)],
)
def test_rows_that_fill_blocks(widths: dict[str, int], dtype: str, expected: int) -> None:
    """4096 / gcd(4096, bytes of a row), of the column that needs most; ids (16 bytes) need 256."""
    index = Index(dtype, widths, 0, [0], {}, None, {})
    assert block_rows(index) == expected
    sizes = [width * kind.itemsize for width, kind in index.columns().values()]
    assert all(expected * size % BLOCK == 0 for size in sizes)
    assert any(expected // 2 * size % BLOCK for size in sizes)


def test_what_waits_keeps_its_order_over_regions() -> None:
    index = Index("float32", {"a": 1}, 0, [0, 0, 0], {}, None, {})
    waiting, generator = Waiting(index, room=12, block=4), torch.Generator().manual_seed(2)
    assert waiting.size == 12
    taken: dict[int, list[float]] = {0: [], 1: [], 2: []}
    thrown: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for turn in range(60):
        piles = torch.randint(3, (int(torch.randint(1, 60, (1,), generator=generator)),), generator=generator).numpy()
        values = torch.arange(100.0 * turn, 100.0 * turn + len(piles)).unsqueeze(1)
        for part in waiting.parts(piles):
            for pile in waiting.full(piles[part]):
                rows, region = waiting.take(pile)
                assert len(rows["a.rows"]) % 4 == 0
                assert raw(rows["a.rows"]).nbytes == 4 * len(rows[IDS])
                taken[pile] += rows["a.rows"].flatten().tolist()
                waiting.free(region)
            some = values[part]
            slots = waiting.slots(piles[part])
            waiting.put({"a.rows": some, IDS: some.long().expand(-1, 2).contiguous()}, slots)
            waiting.count(piles[part])
        for pile, value in zip(piles.tolist(), values.flatten().tolist(), strict=True):
            thrown[pile].append(value)
    for pile in thrown:
        assert taken[pile] + waiting.rows(pile)["a.rows"].flatten().tolist() == thrown[pile]
        assert len(taken[pile]) > 20


def test_memory_begins_at_a_block() -> None:
    for size in (0, 1, 4096, 1 << 22):
        made = memory(size)
        assert (made.data_ptr() % BLOCK if size else 0, len(made), made.dtype) == (0, size, torch.uint8)


@pytest.mark.parametrize("size", [0, 5, BLOCK, 3 * BLOCK + 1, PART_BYTES, PART_BYTES + BLOCK, 2 * PART_BYTES + 777])
@pytest.mark.parametrize("direct", [True, False])
def test_a_file_is_read_whole_in_parts(tmp_path: Path, size: int, direct: bool) -> None:
    data = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    (tmp_path / "file").write_bytes(data.numpy().tobytes())
    out = memory(size)
    parts = [bytes(part) for part in read(tmp_path / "file", out.numpy().data, direct)]
    assert b"".join(parts) == data.numpy().tobytes()
    assert torch.equal(out, data)


def test_where_files_are_not_read_past_the_cache_they_are_read_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse to open them so, some only to read them."""
    data = torch.arange(3 * BLOCK + 5).to(torch.uint8)
    (tmp_path / "file").write_bytes(data.numpy().tobytes())
    opened, preadv, past = os.open, os.preadv, set()

    def open_all(path: Path, flags: int, *rest: int) -> int:
        handle = opened(path, flags & ~os.O_DIRECT, *rest)
        past.add(handle) if flags & os.O_DIRECT else past.discard(handle)
        return handle

    def refuse(handle: int, *rest: Any) -> int:
        if handle in past:
            raise OSError(22, "Invalid argument")
        return preadv(handle, *rest)

    def open_some(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *rest)

    for patch in ({"open": open_all, "preadv": refuse}, {"open": open_some}):
        with monkeypatch.context() as m:
            for name, function in patch.items():
                m.setattr(os, name, function)
            out = memory(len(data))
            assert sum(len(part) for part in read(tmp_path / "file", out.numpy().data, True)) == len(data)
        assert torch.equal(out, data)


def test_a_folder_that_does_not_take_direct_writes_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.pwrite", lambda *_: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
    assert not writes_direct(tmp_path)
    assert not writes_direct(tmp_path / "missing")
