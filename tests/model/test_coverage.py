"""Model types beyond those of `shapes.py`, built by the data table's rules and proven; and the processes that do it."""

from __future__ import annotations

import time

import pytest

from interp.model.coverage import counts, cover, cover_all
from interp.model.tiny import tiny
from interp.reports.coverage import page
from tests.model.jobs import job

TYPES = [
    "mpt", "llama4_text", "phi", "olmo", "olmo3", "deepseek_v3", "recurrent_gemma", "distilbert", "electra", "modernbert-decoder",
    "mt5", "t5gemma", "mbart", "marian", "m2m_100", "pegasus", "dinov2", "siglip", "paligemma", "fnet",
]  # fmt: skip
NO_SOFTMAX = {"fnet"}
POOLED = {"siglip"}  # one attention more, in the head


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_is_proven(kind):
    row = cover(kind, limit=60)
    assert "error" not in row
    stated = {letter: proof["status"] for letter, proof in row["proofs"].items()}
    assert all(stated[letter] == "pass" for letter in "abdegh")
    assert stated["c"] == ("na" if kind in NO_SOFTMAX else "pass")
    assert row["blocks"] == row["solved"] >= 2
    assert row["named"] == row["attentions"] - (kind in POOLED)
    assert (row["softmaxes"] == 0) == (kind in NO_SOFTMAX)


def test_what_fails_says_at_which_stage_and_why():
    row = cover("timm_wrapper")
    assert row["stage"] == "build"
    assert "timm" in row["error"] or "PIL" in row["error"]
    assert "proofs" not in row


def test_a_model_without_a_stream_does_not_pass():
    row = cover("resnet", limit=60)
    assert row["proofs"]["b"]["status"] == "fail"
    assert row["repeated"]
    assert row["proofs"]["c"]["status"] == "na" and row["softmaxes"] == 0


def test_too_much_time_is_an_error_of_the_row(monkeypatch):
    def slow(kind):
        end = time.process_time() + 20
        while time.process_time() < end:
            pass
        return tiny(kind)

    monkeypatch.setattr("interp.model.coverage.tiny", slow)
    row = cover("llama", limit=0.3)
    assert "processor time" in row["error"]
    assert row["seconds"] < 5


def test_a_process_that_dies_or_hangs_costs_one_row():
    kinds = ["one", "dies", "hangs", "two", "three"]
    rows = {row["type"]: row for row in cover_all(kinds, workers=2, limit=0.1, job=job)}
    assert set(rows) == set(kinds)
    assert "died" in rows["dies"]["error"]
    assert "hung" in rows["hangs"]["error"]
    assert all("error" not in rows[kind] for kind in ("one", "two", "three"))


def test_the_page_counts_what_stands_in_it():
    proof = {"status": "pass", "error": 0.0, "reason": ""}
    good = {
        "type": "good", "class": "Good", "inputs": ["input_ids"], "softmaxes": 3, "attentions": 3, "repeated": {"layers": 3},
        "proofs": dict.fromkeys("abcdefgh", proof), "blocks": 3, "solved": 3, "named": 3,
    }  # fmt: skip
    fails = proof | {"status": "fail", "reason": "off by | 1 <b>"}
    bad = good | {"type": "bad", "proofs": good["proofs"] | {"b": fails, "c": proof | {"status": "na"}}}
    unbuilt = {"type": "unbuilt", "stage": "build", "error": "ImportError: no | package"}
    found = counts([good, bad, unbuilt])
    assert (found["types"], found["built"], found["ran"]) == (3, 2, 2)
    assert found["proofs"]["b"] == {"pass": 1, "fail": 1, "na": 0}
    assert found["proofs"]["c"] == {"pass": 1, "fail": 0, "na": 1}
    text = page([good, bad, unbuilt])
    assert "| b | 1 | 1 | 0 |" in text
    assert "1 pass both (b) and (d)" in text
    assert "off by \\| 1 &lt;b>" in text
    assert "| unbuilt | build | ImportError: no \\| package |" in text
