"""The statistics of a lens at all layers: time over the bare projections, extra memory, and tuned-lens and TransformerLens.

    python -m benchmarks.lens [--layers 12 --d 768 --vocabulary 50257 --tokens 4096 --rounds 5 --no-peers]

Random states of GPT-2's shape, float32; nothing of the model but final norm and head is run. "bare" is one matrix product
for each layer, 1024 tokens at a time into memory that is there; "ours" is what `Lens` calls, and gives top-5, entropy, both
divergences, log-probabilities and ranks of two tokens. The peers get `--peer-tokens`, `--piece` at a time, since they hold
layers × tokens × vocabulary; what they compute is told in benchmarks/peers/lens_*.py. Every contestant lives in a process of
its own, `make bench-peers` builds the peers'; they alternate, a round each, after one that warms up.

Ratios are of seconds a token over those of "bare" in the same round: median and 95 % bootstrap interval over rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.peers.lensing import SIZES, given, network, serve
from benchmarks.record import interval, machine
from benchmarks.train import ROOT, answers

AT_ONCE = 1024
PEERS = ("tl", "tuned_lens")


def ours(a: argparse.Namespace) -> Callable[[], Any]:
    """The lens's own way from states to statistics."""
    from interp import load
    from interp.lenses import Lens
    from interp.lenses.statistics import statistics

    lens, (states, following) = Lens(load(network(a, layers=1))), given(a)
    assert lens.head.linear is not None
    return lambda: statistics(lens.head, list(states), lambda _, x: x, states[-1], following[:, None], 5)


def bare(a: argparse.Namespace) -> Callable[[], Any]:
    """Nothing but the products."""
    states, W = given(a)[0], torch.randn(a.vocabulary, a.d)
    room = torch.zeros(min(AT_ONCE, a.tokens), a.vocabulary)

    def work() -> None:
        for h in states:
            for part in h.split(AT_ONCE):
                torch.mm(part, W.T, out=room[: len(part)])

    return work


WORK = {"bare": bare, "ours": ours}


def contestants(a: argparse.Namespace) -> dict[str, Iterator[dict[str, float]]]:
    """A process for each."""
    runs = {}
    for who in (*WORK, *(() if a.no_peers else PEERS)):
        peer = who in PEERS
        python = str(ROOT / ".bench" / who / "bin" / "python") if peer else sys.executable
        script = [f"benchmarks/peers/lens_{who}.py"] if peer else ["-m", "benchmarks.lens", "--worker", who]
        asked = {name: getattr(a, name) for name in SIZES} | ({"tokens": a.peer_tokens} if peer else {})
        runs[who] = answers(
            [python, "-W", "ignore", *script, *(p for k, v in asked.items() for p in (f"--{k}", str(v)))], who
        )
    return runs


def raced(runs: dict[str, Iterator[dict[str, float]]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """All of them, alternating; the first round is dropped."""
    told: dict[str, list[dict[str, float]]] = {who: [] for who in runs}
    for i in range(rounds + 1):
        for who, run in runs.items():
            told[who].append(next(run))
        print(f"round {i} of {rounds}", file=sys.stderr)
    return {who: rows[1:] for who, rows in told.items()}


def summary(told: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Of each: seconds a token, ratios to bare, extra bytes."""
    rows = {}
    for who, rounds in told.items():
        pairs = {
            c: np.array([(b[c], r[c]) for b, r in zip(told["bare"], rounds, strict=True)]) for c in ("wall", "cpu")
        }
        rows[who] = {c: interval(p, "ratio", 1) for c, p in pairs.items()} | {
            "us_a_token": float(np.median(pairs["wall"][:, 1])) * 1e6,
            "extra": max(r["extra"] for r in rounds),
        }
    return rows


def show(rows: dict[str, Any]) -> None:
    """The table, ratios first."""
    print(f"{'':14}{'over bare, wall':>26}{'CPU time':>10}{'µs a token':>12}{'extra memory':>14}")
    for who, row in rows.items():
        x = row["wall"]
        told = f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}]"
        print(f"{who:14}{told:>26}{row['cpu']['value']:10.2f}{row['us_a_token']:12.0f}{row['extra'] / 2**20:10.0f} MiB")


def main() -> None:
    """Print one JSON object and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in zip(SIZES, (12, 768, 50257, 4096, 128), strict=True):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peer-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    a = parser.parse_args()
    runs = contestants(a)
    told = raced(runs, a.rounds)
    for run in runs.values():
        run.close()  # type: ignore[attr-defined]
    rows = summary(told)
    print(json.dumps({"lens": rows, "rounds": told, "machine": machine("cpu"), "asked": vars(a)}, indent=1))
    show(rows)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        who = sys.argv.pop(at := sys.argv.index("--worker") + 1)
        sys.argv.pop(at - 1)
        serve(WORK[who])
    else:
        main()
