"""Training steps against SAELens, dictionary_learning and sparsify: ratio of time, loss after equal tokens, share of the floor.

    python -m benchmarks.train [--d 512 --m 8192 --k 32 --batch 4096 --steps 2 --blocks 8 --kinds topk … --peers sparsify …
                                --lrs 3e-4 1e-3 3e-3 --rates ours=3e-4 …]

Every contestant lives in a process of its own and sees the same rows in the same order: planted features, written once.
Processes alternate, a block of steps each; the first block warms up. Ratios are theirs over ours within a round: median
and 95 % bootstrap interval over rounds. FVU and L0 are of the same held-out rows after the same number of tokens, codes
selected as in training; the JSON has them after every block. Weights start at random, decoder rows of length one.

Learning rates are constant, and each library has its own: of `--lrs` the one with which it ends at the least loss after as many
steps on rows of another seed, found before anything is timed, in ours' first form and theirs' last. The loss is the FVU held
out; of jumprelu FVU + (L0/k − 1)², which is what it minimises. One rate given is that of all; `--rates` gives those found
before, such as by a run with smaller batches. A library whose choice is the first or the last of the list could gain by a
longer one: the table says so.

Peers: "shipped", in float32; "fused", with Adam fused; "bfloat16", that under autocast. The best of a peer is the fastest
form that ran. Ours: float32 weights, the encoder's product in float32 or bfloat16. Kinds: topk; batchtopk; jumprelu, about
a target L0 of k; transcoder, TopK with a skip. A peer is missing where it trains no such kind. Peers live in environments
of their own: `make bench-peers`.

Floor of a step (kernels that cannot overlap, each bound by products or by memory; s: bytes of a number in the product):
    2Bdm / G_s  +  (2sBm + 4·4Bkd + 26·2dm) / W      pre-activations written and read once, four gathers of active rows,
                                                     Adam's update in one pass; for the skip 4Bd² / G_s more
G_s and W, operations and bytes a second, are measured in the same rounds, by another process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.training import SIZES, Rebuild, Step, blocks, serve, write_rows
from benchmarks.record import interval, machine
from interp.dictionaries import RowsSource, TrainConfig
from interp.dictionaries.sparse import Code
from interp.dictionaries.trainer import Trainer

ROOT = Path(__file__).parent.parent
OURS, THEIRS = ("bfloat16", "float32"), ("shipped", "fused", "bfloat16")
PEERS = {
    "topk": ("saelens", "dictionary_learning", "sparsify"),
    "batchtopk": ("saelens", "dictionary_learning"),
    "jumprelu": ("saelens", "dictionary_learning"),
    "transcoder": ("sparsify",),
}
NAMES = list(dict.fromkeys(name for peers in PEERS.values() for name in peers))
LRS = [3e-4, 1e-3, 3e-3]
BYTES = {"float32": 4, "bfloat16": 2}
COPIED = 2**26  # numbers: more than caches hold
Told = dict[str, list[dict[str, float]]]  # contestant: its blocks


# ---------------------------------------------------------------- what is measured here


def config(a: argparse.Namespace) -> TrainConfig:
    """Our run: the kind's own settings, at the learning rate given."""
    kinds: dict[str, dict[str, Any]] = {
        "topk": {"kind": "topk", "k": a.k},
        "batchtopk": {"kind": "batchtopk", "k": a.k},
        "jumprelu": {"kind": "jumprelu_target", "target_l0": a.k},
        "transcoder": {"kind": "topk", "k": a.k, "skip": True},
    }
    run = {"latents": a.m, "batch": a.batch, "steps": a.blocks * a.steps, "lr": a.lr, "dtype": a.form}
    return TrainConfig.from_dict(kinds[a.kind] | run | {"warmup": 0.0, "decay": 0.0, "sparsity_warmup": 0.0})


def build(a: argparse.Namespace) -> tuple[Step, Rebuild]:
    """Our trainer."""
    x, y = (torch.from_numpy(np.load(a.folder / f"{name}.npy", mmap_mode="c")) for name in ("x", "y"))
    trainer = Trainer(config(a), RowsSource(x, y if a.kind == "transcoder" else None))
    trainer.begin()
    ((s_x,), (s_y,)), D = trainer.scales, trainer.dictionary

    def step(x: Tensor, y: Tensor) -> float:
        return trainer.update(x, y).total.item()

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        f = trainer.kind.encode(D, x * s_x)
        return D.decode(f, x * s_x) / s_y, f.values if isinstance(f, Code) else f

    return step, rebuild


def rates(a: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Of each block: operations a second of x W [batch, d] [d, m] by dtype, bytes a second of a copy (read and written)."""
    x, W, there = torch.randn(a.batch, a.d), torch.randn(a.d, a.m), torch.ones(COPIED)
    back = torch.empty_like(there)
    work = {
        name: (lambda x=x.to(t), W=W.to(t): x @ W) for name, t in (("float32", x.dtype), ("bfloat16", torch.bfloat16))
    }
    work["bytes"] = lambda: back.copy_(there)
    amounts = {"float32": 2 * a.batch * a.d * a.m, "bfloat16": 2 * a.batch * a.d * a.m, "bytes": 2 * there.nbytes}
    while True:
        told = {}
        for name, one in work.items():
            begin = time.perf_counter()
            one()
            told[name] = amounts[name] / (time.perf_counter() - begin)
        yield told


# ---------------------------------------------------------------- processes


def process(
    who: str, form: str, kind: str, folder: Path, a: argparse.Namespace, lr: float
) -> Iterator[dict[str, float]]:
    """The blocks of a contestant, made in a process of its own when they are asked for."""
    python = sys.executable if who in ("ours", "machine") else str(ROOT / ".bench" / who / "bin" / "python")
    script = (
        ["-m", "benchmarks.train", "--worker", who]
        if python == sys.executable
        else [f"benchmarks/peers/train_{who}.py"]
    )
    asked = {name: getattr(a, name) for name in SIZES} | {"lr": lr, "kind": kind, "form": form, "folder": folder}
    command = [python, "-W", "ignore", *script, *(part for k, v in asked.items() for part in (f"--{k}", str(v)))]
    return answers(command, f"{kind}, {who} {form}")


def answers(command: list[str], name: str) -> Iterator[dict[str, float]]:
    """What a process says, an object a line, each when it is asked for. Exits with its last words if there are no more."""
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        assert child.stdin and child.stdout
        try:
            while True:
                child.stdin.write("\n")
                child.stdin.flush()
                answer = next((line for line in child.stdout if line.startswith("{")), "")  # peers also print
                if not answer:
                    said.seek(0)
                    raise SystemExit(f"{name}: {said.read()[-2000:]}")
                yield json.loads(answer)
        finally:
            child.kill()
            child.wait()


def tuned(kind: str, folder: Path, a: argparse.Namespace) -> dict[str, float]:
    """The learning rate of each library: see the head of this file."""
    if len(a.lrs) == 1:
        return dict.fromkeys(("ours", *PEERS[kind]), a.lrs[0])
    chosen = {who: float(lr) for who, _, lr in (given.partition("=") for given in a.rates)}
    for who in ("ours", *(peer for peer in PEERS[kind] if peer in a.peers)):
        if who in chosen:
            continue
        losses = {}
        for lr in a.lrs:
            run = process(who, a.ours[0] if who == "ours" else a.theirs[-1], kind, folder, a, lr)
            losses[lr] = loss(kind, [next(run) for _ in range(a.blocks)][-1], a.k)
            run.close()
        chosen[who] = min(losses, key=lambda lr: losses[lr] if losses[lr] == losses[lr] else float("inf"))
        told = ", ".join(f"{lr:g}: {value:.4f}" for lr, value in losses.items())
        print(f"{kind}, {who}: learning rate {chosen[who]:g} of {told}", file=sys.stderr)
    return chosen


def loss(kind: str, block: dict[str, float], k: int) -> float:
    """What is as small as can be where a learning rate is right."""
    return block["fvu"] + ((block["l0"] / k - 1) ** 2 if kind == "jumprelu" else 0.0)


def raced(kind: str, folder: Path, a: argparse.Namespace, lrs: dict[str, float]) -> Told:
    """All contestants of a kind, alternating, a block each."""
    entered = [("machine", ""), *(("ours", form) for form in a.ours)]
    entered += [(peer, form) for peer in PEERS[kind] if peer in a.peers for form in a.theirs]
    runs = {f"{who} {form}".strip(): process(who, form, kind, folder, a, lrs.get(who, 0.0)) for who, form in entered}
    told: Told = {name: [] for name in runs}
    for block in range(a.blocks):
        for name, run in runs.items():
            told[name].append(next(run))
        print(f"{kind}: block {block + 1} of {a.blocks}", file=sys.stderr)
    for run in runs.values():
        run.close()
    return told


# ---------------------------------------------------------------- what is told


def floor(kind: str, form: str, told: Told, a: argparse.Namespace) -> float:
    """Seconds that a step needs at the least: see the head of this file."""
    speed = {name: float(np.median([block[name] for block in told["machine"]])) for name in told["machine"][0]}
    products, s = 2 * a.batch * a.d * a.m, BYTES[form]
    moved = 2 * s * a.batch * a.m + 26 * 2 * a.d * a.m
    skip = 4 * a.batch * a.d**2 if kind == "transcoder" else 0
    return (products + skip) / speed[form] + (moved + 16 * a.batch * a.k * a.d) / speed["bytes"]


def summary(kind: str, told: Told, a: argparse.Namespace, lrs: dict[str, float]) -> dict[str, Any]:
    """Of each contestant: seconds a step, tokens a second, share of the floor (ours), ratios to ours, loss, learning rate."""
    rows: dict[str, Any] = {}
    for name, run in told.items():
        if name == "machine":
            continue
        seconds = float(np.median([block["wall"] for block in run[1:]]))
        rows[name] = {
            "seconds": seconds,
            "tokens_a_second": a.batch / seconds,
            "fvu": run[-1]["fvu"],
            "l0": run[-1]["l0"],
            "lr": lrs[name.split()[0]],
        }
        if name.startswith("ours"):
            rows[name]["share_of_floor"] = floor(kind, name.split()[1], told, a) / seconds
        for form in () if name.startswith("ours") else a.ours:
            pairs = {
                clock: np.array([(m[clock], t[clock]) for m, t in zip(told[f"ours {form}"][1:], run[1:], strict=True)])
                for clock in ("wall", "cpu")
            }
            rows[name][f"over ours {form}"] = {clock: interval(p, "ratio", 1) for clock, p in pairs.items()}
    return rows


def best(rows: dict[str, Any], peer: str) -> str:
    """The fastest form of a peer that is not as shipped; as shipped, if no other ran."""
    forms = [name for name in rows if name.startswith(peer)]
    return min(
        [name for name in forms if not name.endswith("shipped")] or forms, key=lambda name: rows[name]["seconds"]
    )


def show(result: dict[str, Any]) -> None:
    """The tables, ratios first."""
    for kind, rows in result["kinds"].items():
        print(
            f"\n{kind:34}{'theirs / ours':>28}{'CPU time':>10}{'tokens/s':>10}{'of floor':>10}{'FVU':>9}{'L0':>8}{'rate':>8}"
        )
        bests = {best(rows, peer) for peer in PEERS[kind] if any(name.startswith(peer) for name in rows)}
        for name, row in rows.items():
            ratio, cpu, share = "", "", ""
            over = [row[key] for key in row if key.startswith("over")]
            if over:
                x = over[0]["wall"]
                ratio, cpu = f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}]", f"{over[0]['cpu']['value']:.2f}"
            if "share_of_floor" in row:
                share = f"{row['share_of_floor']:.0%}"
            label = name + (", its best" if name in bests else "")
            speed = f"{ratio:>28}{cpu:>10}{row['tokens_a_second']:10.0f}{share:>10}"
            rate = f"{row['lr']:8g}{edge(row['lr'], result)}"
            print(f"{label:34}{speed}{row['fvu']:9.4f}{row['l0']:8.1f}{rate}")


def edge(lr: float, result: dict[str, Any]) -> str:
    """A star beside a rate at an end of the list."""
    lrs = result.get("asked", {}).get("lrs", [lr])
    return "*" if len(lrs) > 1 and lr in (min(lrs), max(lrs)) else ""


def main() -> None:
    """Print one JSON object and a table for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in zip(SIZES, (512, 8192, 32, 4096, 2, 8), strict=True):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--lrs", type=float, nargs="+", default=LRS, help="learning rates that each library chooses from"
    )
    parser.add_argument("--rates", nargs="*", default=[], help="WHO=RATE: not looked for, but taken")
    parser.add_argument("--kinds", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--ours", nargs="+", choices=OURS, default=list(OURS), help="ratios shown are to the first")
    parser.add_argument("--theirs", nargs="+", choices=THEIRS, default=list(THEIRS))
    parser.add_argument("--peers", nargs="*", choices=NAMES, default=NAMES, help="none: ours alone")
    a = parser.parse_args()
    result: dict[str, Any] = {"kinds": {}, "blocks": {}}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), a, seed=1)
        lrs = {kind: tuned(kind, Path(folder), a) for kind in a.kinds}
        write_rows(Path(folder), a)
        for kind in a.kinds:
            result["blocks"][kind] = raced(kind, Path(folder), a, lrs[kind])
            result["kinds"][kind] = summary(kind, result["blocks"][kind], a, lrs[kind])
    result |= {"machine": machine("cpu"), "asked": vars(a)}
    print(json.dumps(result, indent=1))
    show(result)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        who = sys.argv.pop(at := sys.argv.index("--worker") + 1)
        sys.argv.pop(at - 1)
        serve(rates if who == "machine" else partial(blocks, build=build))
    else:
        main()
