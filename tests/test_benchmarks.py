"""Benchmarks run at their smallest size and tell what they promise; no timing decides here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import planted, record
from benchmarks.peers import recording
from interp.dictionaries import KINDS


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
