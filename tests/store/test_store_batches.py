"""Reading: every row once, bit for bit, in an order that resumes and that forgets the documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import WrongUse
from interp.store import Store, StoreWriter, open_store, row_bytes
from interp.store.shuffle import pile_order, piles_of, row_order


def _ids(batches: Any) -> list[list[int]]:
    return [ids.tolist() for _, ids in batches]


def _all(batches: Any) -> list[int]:
    return [i for ids in _ids(batches) for i in ids]


def _same(a: Any, b: Any) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(i, j) and all(torch.equal(x[site], y[site]) for site in x)
        for (x, i), (y, j) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 64, 101, 1000])
def test_every_row_once_and_bit_for_bit(make: Callable[..., Store], source: Any, dtype: str, size: int) -> None:
    store = make(901, dtype=dtype)
    values, documents = source(901)
    seen = torch.zeros(901, dtype=torch.int64)
    for rows, ids in store.batches(size, seed=5, with_ids=True):
        seen[ids] += 1
        assert list(rows) == list(values)
        for site, x in rows.items():
            assert x.dtype == store.dtype == getattr(torch, dtype)
            assert torch.equal(x, values[site][ids].to(store.dtype))
    assert (seen == 1).all()
    assert torch.equal(store.documents, documents)


def test_a_store_tells_what_it_is(make: Callable[..., Store], tmp_path: Path, source: Any) -> None:
    store = make(901, meta={"command": ["interp", "record"]}, dtype="bfloat16")
    widths = {site: x.shape[1] for site, x in source(1)[0].items()}
    assert (store.rows, store.sites, store.widths) == (901, list(widths), widths)
    assert store.meta == {"command": ["interp", "record"]}
    assert store.index.bytes == 901 * row_bytes(widths, "bfloat16") == 901 * (2 * 12 + 16)
    assert len(store.index.piles) > 5
    assert "901 rows" in repr(store)
    assert store.index.bytes == sum(f.stat().st_size for f in (tmp_path / "store").glob("0*"))


def test_batches_cross_piles_and_only_the_last_is_smaller(make: Callable[..., Store]) -> None:
    store = make(901)
    assert [len(b) for b in _ids(store.batches(200, with_ids=True))] == [200, 200, 200, 200, 101]
    assert [len(b) for b in _ids(store.batches(200, with_ids=True, drop_last=True))] == [200] * 4
    assert [len(b) for b in _ids(store.batches(5000, with_ids=True))] == [901]
    assert list(store.batches(5000, drop_last=True)) == []
    whole = _ids(store.batches(901, with_ids=True))
    assert _all(store.batches(200, with_ids=True)) == whole[0]


@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_at_any_batch_gives_the_rest(make: Callable[..., Store], drop_last: bool) -> None:
    store = make(500)
    settings: dict[str, Any] = {"seed": 2, "with_ids": True, "epochs": 2, "drop_last": drop_last}
    whole = list(store.batches(61, **settings))
    assert len(whole) == (16 if drop_last else 18)
    for start in range(len(whole) + 2):
        assert _same(open_store(store.path).batches(61, start=start, **settings), whole[start:])


def test_resuming_reads_no_pile_before(make: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(500)
    loaded: list[str] = []
    load = Store._load
    monkeypatch.setattr(Store, "_load", lambda self, name, *into: loaded.append(name) or load(self, name, *into))
    next(store.batches(43, with_ids=True, sites=[], start=11))
    assert loaded
    assert len(loaded) <= 3 < len(store.index.piles)  # a batch may need two, and one is loaded ahead


def test_the_order_is_the_documented_one(make: Callable[..., Store]) -> None:
    store = make(500)
    pile = piles_of(3, 0, 500, len(store.index.piles))
    for epoch, served in enumerate(_ids(store.batches(500, seed=9, with_ids=True, epochs=2))):
        parts = []
        for p in pile_order(9, epoch, len(store.index.piles)):
            members = np.flatnonzero(pile == p)
            parts.append(members[row_order(9, epoch, p, len(members))])
        assert served == np.concatenate(parts).tolist()


def test_seeds_and_epochs_give_other_orders_of_the_same_rows(make: Callable[..., Store]) -> None:
    store = make(500)
    first, second = _ids(store.batches(500, seed=1, with_ids=True, epochs=2))
    other = _ids(store.batches(500, seed=4, with_ids=True))[0]
    assert sorted(first) == sorted(second) == sorted(other) == list(range(500))
    assert first != second != other != first
    assert list(store.batches(500, epochs=0)) == []


def test_batches_are_the_callers_to_keep(make: Callable[..., Store]) -> None:
    batches = list(make(500).batches(43))
    assert len({x.data_ptr() for rows in batches for x in rows.values()}) == len(batches) * 3


def test_some_sites_or_only_the_ids(make: Callable[..., Store]) -> None:
    store = make(300)
    for (all_rows, ids), rows, (none, same) in zip(
        store.batches(70, with_ids=True),
        store.batches(70, sites=["embed"]),
        store.batches(70, sites=[], with_ids=True),
        strict=True,
    ):
        assert list(rows) == ["embed"]
        assert torch.equal(rows["embed"], all_rows["embed"])
        assert none == {}
        assert torch.equal(ids, same)


@pytest.mark.parametrize(("rows", "pile_rows"), [(0, 70), (1, 70), (1, 1), (5, 1)])
def test_tiny_stores(make: Callable[..., Store], rows: int, pile_rows: int) -> None:
    store = make(rows, pile_rows=pile_rows)
    assert sorted(_all(store.batches(2, with_ids=True, epochs=2))) == sorted([*range(rows)] * 2)
    assert len(store.documents) == rows
    assert store.check() == {"rows": rows, "shards": len(list(store.path.glob("0*"))), "bad": []}


def test_more_or_fewer_rows_than_expected(tmp_path: Path) -> None:
    for expected in (1, 10_000):
        path = tmp_path / str(expected)
        with StoreWriter(path, widths={"a": 1}, expected_rows=expected, pile_bytes=4000) as writer:
            writer.append({"a": torch.arange(300.0).unsqueeze(1)}, documents=torch.zeros(300, dtype=torch.int32))
        assert sorted(_all(open_store(path).batches(64, with_ids=True))) == list(range(300))


@pytest.mark.check("store U3", formula="|c − mean|/σ of neighbours from one document, over permutations", tolerance=4.0)
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbours_share_a_document_as_often_as_by_chance(
    make: Callable[..., Store], lag: int, measured: Callable[[float], None]
) -> None:
    store = make(20_000, pile_rows=2_500, step=700, widths={"a": 1})
    served = torch.cat([ids for _, ids in store.batches(512, seed=8, with_ids=True)])
    documents = store.documents[served].numpy()
    chance = np.random.default_rng(0)
    orders = [chance.permutation(documents) for _ in range(400)]
    drawn = np.array([(order[lag:] == order[:-lag]).sum() for order in orders])
    found = (documents[lag:] == documents[:-lag]).sum()
    assert drawn.mean() > 20  # so that the test has something to see
    measured(abs(found - drawn.mean()) / drawn.std())


def test_sample_draws_rows_without_replacement(make: Callable[..., Store], source: Any) -> None:
    store = make(500, widths={"a": 1})
    numbers = source(500, {"a": 1})[0]["a"].flatten().tolist()
    drawn = store.sample(120, seed=1)["a"]
    assert drawn.shape == (120, 1)
    assert len(set(drawn.flatten().tolist()) & set(numbers)) == 120
    assert torch.equal(drawn, store.sample(120, seed=1, sites=["a"])["a"])
    assert not torch.equal(drawn, store.sample(120, seed=2)["a"])
    assert not torch.equal(drawn, next(store.batches(120, seed=1))["a"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"sites": ["embd"]}, "Did you mean 'embed'"),
        ({"size": 0}, "size is 0"),
        ({"start": -1}, "start is -1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"seed": 2**64}, "seed is"),
    ],
)
def test_wrong_use_is_told_at_once(make: Callable[..., Store], arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(WrongUse, match=told):
        make(10).batches(**{"size": 5, **arguments})


def test_sample_of_too_many(make: Callable[..., Store]) -> None:
    with pytest.raises(WrongUse, match="11 rows asked of the 10"):
        make(10).sample(11, seed=0)
