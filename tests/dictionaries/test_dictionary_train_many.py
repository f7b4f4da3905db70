"""Many dictionaries in one pass: each as if it were trained alone, and the rows are read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.dictionaries import KINDS, RowsSource, StoreSource, TrainConfig, load_dictionary, train, train_many
from interp.dictionaries.sources import together
from interp.errors import Failed, WrongUse
from interp.files import load_tensors, save_tensors
from interp.store import StoreWriter, open_store
from interp.store.reader import Store

FILES = ("weights.safetensors", "config.json", "state.safetensors", "metrics.csv")
SMALL: dict[str, Any] = {"latents": 40, "batch": 32, "steps": 30, "lr": 1e-3, "log_every": 4, "save_every": 10}
COMMAND = "interp train"


def config(kind: str = "topk", **change: Any) -> TrainConfig:
    """A run of 30 steps; the order of the rows is that of seed 0."""
    own = {"k": 3} if "k" in KINDS[kind].__dataclass_fields__ else {}
    return TrainConfig.from_dict({"kind": kind, **SMALL, **own, "data_seed": 0} | change)


@pytest.fixture(params=["float32", "bfloat16"])
def store(request: pytest.FixtureRequest, rows: Tensor, tmp_path: Path) -> Store:
    """400 rows of two sites, in three piles."""
    values = {"early": rows.float(), "late": rows[:, :6].float().square()}
    widths = {site: v.shape[1] for site, v in values.items()}
    with StoreWriter(
        tmp_path / "store", widths=widths, dtype=request.param, expected_rows=400, pile_bytes=14_000
    ) as writer:
        writer.append(values, documents=torch.arange(400))
    return open_store(tmp_path / "store")


def same(one: Path, two: Path) -> list[str]:
    """The files that differ."""
    return [name for name in FILES if (one / name).read_bytes() != (two / name).read_bytes()]


def test_each_ends_in_the_bytes_of_a_run_of_its_own(store: Store, tmp_path: Path) -> None:
    """Every kind, other seeds, other sites, a transcoder, a crosscoder, other lengths: bit for bit."""
    early, late = StoreSource(store, "early"), StoreSource(store, "late")
    members = {kind: (config(kind), early) for kind in KINDS}
    members |= {f"seed{s}": (config(seed=s), late) for s in (1, 2)}
    members["transcoder"] = (config(skip=True, steps=23), StoreSource(store, "early", "late"))
    members["crosscoder"] = (config("batchtopk", average=0.9), StoreSource(store, ["early", "late"]))
    configs = {name: c for name, (c, _) in members.items()}
    sources = {name: s for name, (_, s) in members.items()}
    made = train_many(configs, sources, tmp_path / "many", command=COMMAND)
    assert list(made) == list(members)
    for name, (c, source) in members.items():
        alone = train(c, source, tmp_path / "alone" / name, command=COMMAND)
        assert same(tmp_path / "many" / name, tmp_path / "alone" / name) == [], name
        assert torch.equal(made[name].W_dec, alone.W_dec), name
    assert not torch.equal(made["seed1"].W_dec, made["seed2"].W_dec)


def test_rows_are_read_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as the rows of both sites are read for one dictionary, whatever the number of dictionaries."""
    loaded: Counter[str] = Counter()
    load = Store._load
    monkeypatch.setattr(Store, "_load", lambda s, name, *out: (loaded.update([name]), load(s, name, *out))[1])
    train(config(), StoreSource(store, ["early", "late"]), tmp_path / "one")
    once, _ = Counter(loaded), loaded.clear()
    assert len(store.index.piles) > 1
    configs = {f"{site}{seed}": config(seed=seed) for site in ("early", "late") for seed in range(3)}
    train_many(configs, {n: StoreSource(store, n[:-1]) for n in configs}, tmp_path / "many")
    assert loaded == once


def test_rows_in_memory(rows: Tensor, tmp_path: Path) -> None:
    source = RowsSource(rows.float())
    configs = {"a": config(), "b": config("jumprelu", seed=5, dtype="float64")}
    train_many(configs, source, tmp_path / "many", command=COMMAND)
    for name, c in configs.items():
        train(c, source, tmp_path / name, command=COMMAND)
        assert same(tmp_path / "many" / name, tmp_path / name) == []


def test_the_order_of_rows_is_that_of_the_seed_unless_told(rows: Tensor, tmp_path: Path) -> None:
    """`data_seed: None` is what a config without it was; weights follow `seed`, batches `data_seed`."""
    assert [config(seed=7, data_seed=None).order, config(seed=7, data_seed=2).order] == [7, 2]
    for name, c in {"a": config(seed=7, data_seed=None), "b": config(seed=7, data_seed=7)}.items():
        train(c, RowsSource(rows.float()), tmp_path / name)
    one, two = (load_tensors(tmp_path / name / "state.safetensors")[0] for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)
    # a checkpoint from before the two were told apart
    path = tmp_path / "a" / "state.safetensors"
    tensors, meta = load_tensors(path)
    del meta["train"]["data_seed"]
    save_tensors(path, tensors, meta)
    train(config(seed=7, data_seed=None), RowsSource(rows.float()), tmp_path / "a", resume=True)


class Spoilt(RowsSource):
    """Rows of which one is not a number in batch 24, which rows of another width do not share."""

    def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (x, y) in enumerate(super().batches(size, seed, start, stop), start):
            if number == 24:
                y = y.clone()
                y[5, 2] = float("nan")
            yield x, y


def test_one_that_diverges_stops_alone(rows: Tensor, tmp_path: Path) -> None:
    """A learning rate of 1e30 overflows at once; the other dictionary is what it would have been."""
    source = RowsSource(rows.float())
    configs = {"good": config(), "bad": config("l1", lr=1e30, clip=1e30)}
    with pytest.raises(Failed, match=r"1 of 2 dictionaries stopped, the others are trained\. bad: The loss is \w+ at"):
        train_many(configs, source, tmp_path / "many", command=COMMAND)
    train(configs["good"], source, tmp_path / "alone", command=COMMAND)
    assert same(tmp_path / "many" / "good", tmp_path / "alone") == []
    assert not (tmp_path / "many" / "bad" / "weights.safetensors").exists()


def test_rows_that_are_not_numbers_stop_all_who_read_them(rows: Tensor, tmp_path: Path) -> None:
    x, y = rows.float(), rows[:, :6].float()
    configs = {"a": config(), "b": config(seed=1)}
    with pytest.raises(Failed, match=r"2 of 2 .* a: NaN .* at targets, step 25: 1 of 32 rows\. .* b: NaN .* step 25"):
        train_many(configs, Spoilt(x, y), tmp_path)
    assert load_tensors(tmp_path / "b" / "state.safetensors")[1]["step"] == 24
    made = train_many(configs, RowsSource(x, y), tmp_path, resume=True)
    straight = train(configs["b"], RowsSource(x, y), tmp_path / "straight")
    assert torch.equal(made["b"].W_dec, straight.W_dec)


def test_going_on_with_what_is_finished_changes_nothing(rows: Tensor, tmp_path: Path) -> None:
    """And a dictionary that is added to them is trained as if it had been there."""
    source, configs = RowsSource(rows.float()), {"a": config(), "b": config(seed=1)}
    train_many(configs, source, tmp_path, command=COMMAND)
    before = {name: (tmp_path / name / "state.safetensors").read_bytes() for name in configs}
    with pytest.raises(WrongUse, match="a already holds a training run"):
        train_many(configs, source, tmp_path)
    train_many(configs | {"c": config(seed=2)}, source, tmp_path, resume=True, command=COMMAND)
    assert before == {name: (tmp_path / name / "state.safetensors").read_bytes() for name in configs}
    train(config(seed=2), source, tmp_path / "alone", command=COMMAND)
    assert same(tmp_path / "c", tmp_path / "alone") == []


def test_what_cannot_be_trained_together(store: Store, rows: Tensor, tmp_path: Path) -> None:
    source = RowsSource(rows.float())
    with pytest.raises(WrongUse, match=r"share batch and data_seed .* a has .*32.*b .*16"):
        train_many({"a": config(), "b": config(batch=16)}, source, tmp_path)
    with pytest.raises(WrongUse, match=r"'data_seed': 0}, b .*'data_seed': 3}"):
        train_many({"a": config(), "b": config(data_seed=3)}, source, tmp_path)
    with pytest.raises(WrongUse, match="'a/b' cannot be the name of a folder"):
        train_many({"a/b": config()}, source, tmp_path)
    with pytest.raises(WrongUse, match="nothing to train"):
        train_many({}, source, tmp_path)
    apart = [source, RowsSource(rows.float())], [StoreSource(store, "early"), source]
    apart = *apart, [StoreSource(store, "early"), StoreSource(open_store(store.path), "early")]
    for sources in apart:
        with pytest.raises(WrongUse, match="one stream: the same rows, or sites of the same store"):
            next(together(sources, 32, 0, 0, 1))


def test_a_site_that_is_not_the_checkpoints_is_refused(store: Store, tmp_path: Path) -> None:
    """By name, by width, and as a target; the checkpoint stays as it was."""
    train_many({"a": config()}, StoreSource(store, "early"), tmp_path)
    before = (tmp_path / "a" / "state.safetensors").read_bytes()
    for source in (
        StoreSource(store, "late"),
        StoreSource(store, ["early", "late"]),
        StoreSource(store, "early", "late"),
    ):
        with pytest.raises(WrongUse, match=r"a was trained with source (reads|writes)=\['early'\], not"):
            train_many({"a": config()}, source, tmp_path, resume=True)
    assert (tmp_path / "a" / "state.safetensors").read_bytes() == before


def test_a_store_of_another_width_is_refused(store: Store, tmp_path: Path) -> None:
    """The same site of another model; the checkpoint and the metrics stay as they were."""
    train_many({"a": config()}, StoreSource(store, "early"), tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    with StoreWriter(tmp_path / "other", widths={"early": 4}, expected_rows=64) as writer:
        writer.append({"early": torch.randn(store.rows, 4)}, documents=torch.arange(store.rows))
    with pytest.raises(WrongUse, match=rf"a was trained with source d_in={store.widths['early']}, not 4"):
        train_many({"a": config()}, StoreSource(open_store(tmp_path / "other"), "early"), tmp_path, resume=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before


def test_together_gives_each_its_own_sites(store: Store) -> None:
    views = [StoreSource(store, "early"), StoreSource(store, "late", "early"), StoreSource(store, "early")]
    for number, pairs in enumerate(together(views, 32, 4, 3, 15), 3):
        for view, (x, y) in zip(views, pairs, strict=True):
            wanted = next(view.batches(32, 4, number, number + 1))
            assert torch.equal(x, wanted[0])
            assert torch.equal(y, wanted[1])
            assert (x is y) == (view.reads == view.writes)
    assert number == 14


def test_settings_of_one_do_not_reach_the_next(rows: Tensor, tmp_path: Path) -> None:
    configs = {"a": config(), "b": replace(config(), latents=24)}
    train_many(configs, RowsSource(rows.float()), tmp_path)
    assert [load_dictionary(tmp_path / name).config.latents for name in configs] == [40, 24]
