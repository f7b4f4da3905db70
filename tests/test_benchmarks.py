"""Benchmarks run at their smallest size and tell what they promise; no timing decides here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import kernels, lens, planted, record, train
from benchmarks.peers import lensing, recording, training
from interp.dictionaries import KINDS
from interp.kernels import OPS


def test_recording_tells_its_ratios_with_intervals_and_its_bytes(monkeypatch, tmp_path, capsys):
    small = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 60, "n_positions": 16}
    monkeypatch.setattr(recording, "SHAPES", {"tiny": small, "small": small})
    monkeypatch.setattr(recording, "WARM", 0)
    monkeypatch.setattr(recording, "TOKENS", {"tiny": (1, 8), "small": (2, 16)})

    def here(recorder, folder, a, shape, groups, rounds):
        told = recording.measured(record.build, recorder, folder, shape, groups, rounds, a.device, a.dtype)
        return {"groups": told, "about": {}}

    monkeypatch.setattr(record, "process", here)
    a = argparse.Namespace(
        model="small",
        rounds=2,
        passes=2,
        repeats=1,
        groups=record.GROUPS,
        device="cpu",
        dtype="float32",
        no_bytes=False,
    )
    result = record.compared(["ours", "hooks"], Path(tmp_path), a)
    for kind in ("us_a_site", "ratio"):
        for rows in result[kind].values():
            assert list(rows) == ["residuals", "outputs", "everything"]
            for row in rows.values():
                assert row[kind]["low"] <= row[kind]["value"] <= row[kind]["high"]
                assert row[kind] == row["cpu"]
    assert [row["sites"] for row in result["ratio"]["hooks"].values()][:2] == [2, 6]
    for row in result["bytes"]["ours"].values():
        assert row["allocated"] <= 1.1 * row["asked"], row  # exact: the allocator's own count
    record.show(result)
    assert "recorded / bare pass" in capsys.readouterr().out.splitlines()[0]


def test_intervals_hold_the_statistic_and_shrink_to_it():
    """Pairs that all say the same: 3 ms bare, 4 ms recorded, 10 sites."""
    pairs = np.tile([3e-3, 4e-3], (7, 1))
    assert record.interval(pairs, "ratio", 10) == pytest.approx({"value": 4 / 3, "low": 4 / 3, "high": 4 / 3})
    assert record.interval(pairs, "us_a_site", 10) == pytest.approx({"value": 100.0, "low": 100.0, "high": 100.0})
    spread = record.interval(np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]), "ratio", 1)
    assert (spread["low"], spread["value"], spread["high"]) == (1.0, 2.0, 3.0)


def test_the_peak_counts_what_is_held_at_once():
    def work():
        a = torch.zeros(1000, dtype=torch.float64)
        del a
        return [torch.zeros(300, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)]

    most, held = recording.peak(work)
    assert most == 8000
    assert recording.distinct([*held, held[0], held[0][:100]]) == 8 * (300 + 200 + 100)


def test_planted_features_are_scored_line_by_line_and_none_twice(monkeypatch, tmp_path, capsys):
    """Every task at its smallest: lines in a file, a run that goes on where it stopped, claims with their verdict."""
    monkeypatch.setattr(planted, "ROWS", 600)
    monkeypatch.setattr(planted, "HELD_OUT", 200)
    monkeypatch.setattr(planted, "RUN", planted.RUN | {"steps": 3, "batch": 32, "save_every": 3})
    out = tmp_path / "planted.jsonl"
    words = ["planted", "--kinds", "topk", "l1", "l1_april", "codebook", "--out", str(out), "--seeds"]
    monkeypatch.setattr(sys, "argv", [*words, "0"])
    planted.main()
    lines = out.read_text().splitlines()
    keys = [(row["task"], row["kind"], row["seed"]) for row in map(json.loads, lines)]
    four = [(task, kind, 0) for task in list(planted.TASKS)[:4] for kind in ("l1", "l1_april", "topk", "codebook")]
    rest = [("shrinkage", "l1", 0), ("crosscoder", "l1_april", 0), ("states", "codebook", 0), ("meta", "topk", 0)]
    assert keys == four + rest
    told = capsys.readouterr().out
    assert told.count("| `l1` |") == 2
    assert "FAILED" in told  # three steps find nothing

    out.write_text("\n".join(lines[:5]) + "\n")
    made: list[str] = []
    monkeypatch.setitem(
        planted.TASKS, "zipf", (lambda kind, seed: made.append(kind) or {"recovered": 0.5}, tuple(KINDS))
    )
    monkeypatch.setattr(sys, "argv", [*words, "0", "1", "--tasks", "superposed", "zipf"])
    planted.main()
    assert made == ["l1_april", "topk", "codebook", "l1", "l1_april", "topk", "codebook"]
    assert out.read_text().splitlines()[:5] == lines[:5]


def test_a_claim_passes_only_with_its_whole_interval():
    claim = planted.Claim("", "", "", "", 0.95, 1.05)
    assert claim.bound() == "≥ 0.95, ≤ 1.05"
    assert claim.verdict(planted.Interval(1.0, 0.05)) == "passed"
    assert claim.verdict(planted.Interval(1.0, 0.06)) == "FAILED"
    assert claim.verdict(planted.Interval(0.94, float("nan"))) == "FAILED"


def test_the_page_of_planted_features_has_every_kind_and_claim():
    page = (planted.ROOT / "docs" / "ground_truth.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert page.count(f"| `{kind}` |") == len(planted.TABLES), kind
    for claim in planted.CLAIMS:
        assert f"| {claim.text} | {claim.bound()} |" in page
    for task in planted.TASKS:
        assert f"`{task}`" in page


def test_training_is_compared_on_the_same_rows_and_told_with_its_loss(monkeypatch, tmp_path, capsys):
    """Every kind at its smallest, in this process, with one peer that is our float32 form under another name."""

    def here(who, form, kind, folder, a, lr):
        told = argparse.Namespace(**vars(a) | {"kind": kind, "folder": folder, "form": form or "float32", "lr": lr})
        if who == "machine":
            return train.rates(told)
        return training.blocks(told, train.build)

    monkeypatch.setattr(train, "process", here)
    monkeypatch.setattr(train, "PEERS", dict.fromkeys(train.PEERS, ("peer",)))
    monkeypatch.setattr(train, "COPIED", 2**10)
    sizes = {"d": 16, "m": 64, "k": 4, "batch": 64, "steps": 4, "blocks": 3}
    a = argparse.Namespace(
        **sizes, lrs=[1e-2, 1e-9], rates=[], ours=["float32", "bfloat16"], theirs=["float32"], peers=["peer"]
    )
    training.write_rows(tmp_path, a)
    x, y = (np.load(tmp_path / f"{name}.npy") for name in "xy")
    assert x.shape == y.shape == ((3 * 4 + 1) * 64, 16)
    assert np.square(x).sum(1).mean() == pytest.approx(16, rel=0.1)
    result = {"kinds": {}}
    for kind in train.PEERS:
        lrs = train.tuned(kind, tmp_path, a)
        assert lrs["ours"] == lrs["peer"]
        if kind != "jumprelu":  # whose L0 twelve steps do not bring down
            assert lrs["ours"] == 1e-2  # the other one learns nothing
        lrs = dict.fromkeys(lrs, 1e-2)
        told = train.raced(kind, tmp_path, a, lrs)
        first, last = (told["ours float32"][i]["fvu"] for i in (0, -1))
        assert last < first  # it learns
        assert told["peer float32"][-1]["fvu"] == last  # the same steps on the same rows
        rows = result["kinds"][kind] = train.summary(kind, told, a, lrs)
        x = rows["peer float32"]["over ours float32"]["wall"]
        assert x["low"] <= x["value"] <= x["high"]
        assert rows["ours bfloat16"]["share_of_floor"] > 0
    assert result["kinds"]["topk"]["ours float32"]["l0"] <= 4
    train.show(result)
    shown = capsys.readouterr().out
    assert shown.count("peer float32, its best") == 4
    assert "of floor" in shown
    assert "0.01" in shown


def test_a_learning_rate_is_chosen_by_what_is_minimised():
    assert train.loss("topk", {"fvu": 0.5, "l0": 99.0}, 4) == 0.5
    assert train.loss("jumprelu", {"fvu": 0.5, "l0": 8.0}, 4) == 1.5
    one = argparse.Namespace(lrs=[1e-3], rates=[])
    assert train.tuned("topk", Path(), one) == dict.fromkeys(
        ("ours", "saelens", "dictionary_learning", "sparsify"), 1e-3
    )
    given = argparse.Namespace(lrs=[1e-3, 1e-2], rates=["ours=0.5", "saelens=2"], peers=["saelens"])
    assert train.tuned("topk", Path(), given) == {"ours": 0.5, "saelens": 2.0}
    assert train.edge(3e-3, {"asked": {"lrs": [1e-3, 3e-3]}}) == "*"
    assert train.edge(1e-3, {"asked": {"lrs": [3e-4, 1e-3, 3e-3]}}) == ""


def test_the_floor_of_a_step_is_its_products_and_its_bytes():
    """B=2, d=3, m=5, k=1 at one operation and one byte a second."""
    a = argparse.Namespace(batch=2, d=3, m=5, k=1)
    told = {"machine": [{"float32": 1.0, "bfloat16": 1.0, "bytes": 1.0}]}
    assert train.floor("topk", "float32", told, a) == 60 + 8 * 10 + 16 * 6 + 26 * 30
    assert train.floor("topk", "bfloat16", told, a) == 60 + 4 * 10 + 16 * 6 + 26 * 30
    assert train.floor("transcoder", "float32", told, a) == 60 + 4 * 18 + 8 * 10 + 16 * 6 + 26 * 30
    assert train.floor("jumprelu", "float32", told, a) == train.floor("topk", "float32", told, a)


def test_the_lens_tells_its_ratio_and_memory(monkeypatch, capsys):
    """In this process, without peers: ours returns what the op returns, over all tokens and layers."""
    a = argparse.Namespace(layers=3, d=64, vocabulary=300, tokens=40, piece=8, peer_tokens=16, no_peers=True)
    found = lens.ours(a)()
    assert found.entropy.shape == (3, 40)
    assert found.rank.shape == (3, 40, 2)

    def here(command, name):
        work = lens.WORK[name](a)
        while True:
            yield lensing.measured(work, a.tokens)

    monkeypatch.setattr(lens, "answers", here)
    rows = lens.summary(lens.raced(lens.contestants(a), 2))
    assert rows["bare"]["wall"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert rows["ours"]["us_a_token"] > 0
    lens.show(rows)
    assert capsys.readouterr().out.splitlines()[-1].startswith("ours")


def test_the_eager_lens_is_the_op_where_nothing_is_special():
    (case,) = (c for c in kernels.CASES["lens_statistics"] if c.size.startswith("ragged"))
    args = case.arguments("cpu")
    best, *want = OPS["lens_statistics"](*args)
    log_probs, tops, *others = case.eager(*args)
    for got, wanted in zip((tops, log_probs, *others), want, strict=True):
        assert torch.allclose(got.double(), wanted.double(), atol=1e-4)
    assert torch.equal(best, (args[1] @ args[2].T).argmax(-1))


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_six_sizes_and_a_row(op, monkeypatch):
    assert len(kernels.CASES[op]) >= 6
    monkeypatch.setattr(kernels, "seconds", lambda works, rounds: {name: (w(), 2.0)[1] for name, w in works.items()})
    row = kernels.row(op, kernels.CASES[op][0], 1)
    assert row["ratios"]["plain/ours"] == row["ratios"]["eager/ours"] == 1.0
    assert row["seconds"]["floor"] >= 2.0
