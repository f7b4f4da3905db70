"""What each kind of dictionary finds of planted features, over five seeds; writes the tables of docs/ground_truth.md.

    python -m benchmarks.planted [--kinds topk l1 --tasks superposed hierarchical --seeds 0 1 2 3 4 --out runs/planted.jsonl]

A line of the output file is one training run; lines that are there are not made again. Settings of each kind were chosen
on seed 100, which no table shows. About 20 minutes on an idle core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.dictionaries import KINDS, Dictionary, RowsSource, TrainConfig, evaluate, forced, planted, recovery, train
from interp.dictionaries.seeds import Interval, interval
from interp.dictionaries.start import scale_to
from interp.files import write_text

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2, 3, 4)
ROWS, HELD_OUT = 60_000, 8_000
RUN = {"latents": 128, "steps": 1000, "batch": 256, "lr": 5e-3, "log_every": 1000, "save_every": 1000}
SETTINGS: dict[str, dict[str, Any]] = {
    "l1": {"sparsity": 2.0, "lr": 3e-3, "resample": 400},
    "l1_april": {"sparsity": 2.0, "lr": 3e-3},
    "gated": {"sparsity": 3.0, "resample": 400},
    "p_anneal": {"sparsity": 2.0, "lr": 3e-3, "resample": 400},
    "codebook": {"k": 3, "resample": 200},
    "jumprelu": {"sparsity": 0.03, "bandwidth": 0.05, "threshold": 0.05, "lr": 3e-3},
    "jumprelu_target": {"sparsity": 0.3, "target_l0": 3.0, "bandwidth": 0.05, "threshold": 0.05, "lr": 3e-3},
    "jumprelu_tanh": {"sparsity": 1.0, "bandwidth": 1.0, "lr": 3e-3},
}  # the others: k = 3, which is the true L0, rounded

Scores = dict[str, float]


def trained(kind: str, seed: int, source: RowsSource, **settings: Any) -> Dictionary:
    """A dictionary of `source` with the settings above, or those given."""
    own = SETTINGS.get(kind, {"k": 3})
    config = TrainConfig.from_dict({"kind": kind, "seed": seed} | RUN | own | settings)
    with tempfile.TemporaryDirectory() as folder:
        return train(config, source, folder).requires_grad_(False)


def scores(data: planted.Planted, D: Dictionary, held: planted.Planted) -> Scores:
    """What was found, on rows that were not trained on."""
    f, rows = D.encode(held.x), evaluate(D, RowsSource(held.x))
    found = recovery.recovery(data.directions, D.W_dec) | {"f1": recovery.matched_f1(held.fires, f)}
    if data.parents is not None:
        found |= recovery.parent_recall(held, D.W_dec, f)
    return found | {"l0": rows.l0, "fvu": rows.fvu, "dead": rows.dead}


def features(make: Callable[[int], planted.Planted]) -> Callable[[str, int], Scores]:
    """A task: `make(seed)` plants features, a dictionary of 128 latents is trained on them and scored."""

    def task(kind: str, seed: int) -> Scores:
        data = make(seed)
        fit, held = data.split(HELD_OUT)
        return scores(data, trained(kind, seed, RowsSource(fit.x)), held)

    return task


def shrinkage(kind: str, seed: int, sparsity: float = 1.0) -> Scores:
    """⟨d_i, s(x − x̂)⟩ over λ/2 where feature i is there; with orthonormal directions the loss is least at 1."""
    data = planted.orthonormal(ROWS, seed)
    fit, held = data.split(HELD_OUT)
    D = trained(kind, seed, RowsSource(fit.x), latents=16, sparsity=sparsity, resample=400)
    s = scale_to(D.config.d_in, fit.x, "rows")  # E‖s x‖² = d, the units λ is in
    missing = s * (held.x - D(held.x)) @ data.directions.T
    found = recovery.recovery(data.directions, D.W_dec)["recovered"]
    return {"ratio": (missing[held.fires].mean() / (sparsity / 2)).item(), "recovered": found}


def crosscoder(kind: str, seed: int) -> Scores:
    """Which features are of site a, of b, of both: share of features whose latent's relative norm says it right."""
    data = planted.pair(ROWS, seed)
    d = data.directions.shape[1] // 2
    D = trained(kind, seed, RowsSource(data.x, reads={"a": d, "b": d}))
    cosine = recovery.cosines(data.directions, D.W_dec)
    rows, latents = recovery.matched(cosine)
    sizes = torch.stack([part.square().sum(1).mean().sqrt() for part in data.x.split(d, dim=1)])
    of_truth, of_latents = (
        torch.stack([p.norm(dim=1) for p in W.detach().split(d, dim=1)], 1) for W in (data.directions, D.W_dec)
    )
    said, true = (recovery.label(recovery.relative_norms(norms, sizes)) for norms in (of_latents, of_truth))
    exclusive = true != 1
    right = said[latents] == true[rows]
    return {
        "right": right.double().mean().item(),
        "right_exclusive": right[exclusive].double().mean().item(),
        "recovered": (cosine.max(1).values > recovery.FOUND).double().mean().item(),
    }


def states(kind: str, seed: int) -> Scores:
    """How well codes stand for states, with half as many again as there are states, and with just as many."""
    data = planted.finite_state(ROWS, seed)
    return of_states(data, kind, seed, 30) | {f"{n}_20": v for n, v in of_states(data, kind, seed, 20).items()}


def of_states(data: planted.States, kind: str, seed: int, codes: int) -> Scores:
    """Precision and recall of the code of each state, and how far a forced code's next states are from its state's own (total
    variation)."""
    D = trained(kind, seed, RowsSource(data.x[:-HELD_OUT]), latents=codes, k=1, resample=10)
    code, state = D.active(data.x[-HELD_OUT:]).indices[:, 0], data.state[-HELD_OUT:]
    together = torch.zeros(len(data.T), codes).index_put((state, code), torch.ones(len(code)), accumulate=True)
    precision, recall = together / together.sum(0).clamp(min=1), together / together.sum(1, keepdim=True)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    of, ids = recovery.matched(f1)
    next_states = torch.stack([data.following(forced(D, i[None])(data.x[:1]))[0] for i in ids])
    moved = (next_states - data.T[of]).abs().sum(1) / 2
    return {
        "precision": precision[of, ids].mean().item(),
        "recall": recall[of, ids].mean().item(),
        "distance": moved.mean().item(),
    }


def meta(kind: str, seed: int) -> Scores:
    """Directions found by a dictionary of a decoder whose rows are sums of three of them."""
    data = planted.sums(20_000, seed)
    return scores(data, trained(kind, seed, RowsSource(data.x)), data)


ALL, SMALL = tuple(KINDS), {"d": 32, "features": 64, "l0": 3.0}
TASKS: dict[str, tuple[Callable[[str, int], Scores], tuple[str, ...]]] = {
    "superposed": (features(lambda seed: planted.superposed(ROWS, seed, **SMALL)), ALL),
    "zipf": (features(lambda seed: planted.superposed(ROWS, seed, zipf=True, **SMALL)), ALL),
    "correlated": (features(lambda seed: planted.correlated(ROWS, seed, **SMALL)), ALL),
    "hierarchical": (features(lambda seed: planted.hierarchical(ROWS, seed)), ALL),
    "shrinkage": (shrinkage, ("l1",)),
    "crosscoder": (crosscoder, ("l1_april", "batchtopk")),
    "states": (states, ("codebook",)),
    "meta": (meta, ("batchtopk", "topk")),
}


@dataclass(frozen=True)
class Claim:
    """`low` ≤ the mean of a score ≤ `high`, and its whole interval."""

    text: str
    task: str
    kind: str
    score: str
    low: float = float("-inf")
    high: float = float("inf")

    def verdict(self, found: Interval) -> str:
        """passed, or FAILED."""
        half = found.half if found.half == found.half else 0.0
        return "passed" if self.low <= found.mean - half and found.mean + half <= self.high else "FAILED"

    def bound(self) -> str:
        """What is asked."""
        ends = [f"≥ {self.low:g}"] * (self.low > float("-inf")) + [f"≤ {self.high:g}"] * (self.high < float("inf"))
        return ", ".join(ends)


CLAIMS = (
    Claim("TopK at the true L0, m twice the directions: share found", "superposed", "topk", "recovered", 0.95),
    Claim("Matryoshka: recall of a parent's latent where a child is there", "hierarchical", "matryoshka", "with_child", 0.9),
    Claim("TopK: recall of a parent's latent where a child is there", "hierarchical", "topk", "with_child", high=0.5),
    Claim("L1: shrinkage over that of the soft threshold, λ/2", "shrinkage", "l1", "ratio", 0.95, 1.05),
    Claim("L1 crosscoder: features of one site or both, told right", "crosscoder", "l1_april", "right", 0.95),
    Claim("BatchTopK crosscoder: features of one site or both, told right", "crosscoder", "batchtopk", "right", 0.95),
    Claim("Codebook, 30 codes for 20 states: precision of a state's code", "states", "codebook", "precision", 0.9),
    Claim("Codebook, 30: distance of what follows a forced code from what follows its state", "states", "codebook", "distance", high=0.1),
    Claim("Codebook, 20 codes for 20 states: precision of a state's code", "states", "codebook", "precision_20", 0.9),
    Claim("Codebook, 20: its recall", "states", "codebook", "recall_20", 0.9),
    Claim("Meta-dictionary: share of the directions found in sums of three", "meta", "batchtopk", "recovered", 0.95),
)  # fmt: skip

TABLES = {  # one row a kind; which scores of which task
    "Found": [("superposed", "recovered"), ("superposed", "mmcs"), ("superposed", "f1"), ("zipf", "recovered"),
              ("correlated", "recovered"), ("superposed", "l0"), ("superposed", "fvu")],
    "Parents and children": [("hierarchical", "alone"), ("hierarchical", "with_child"), ("hierarchical", "absorbed"),
                             ("hierarchical", "f1"), ("hierarchical", "l0")],
}  # fmt: skip


def jobs(a: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(task, kind, seed), all of a seed before the next."""
    for seed in a.seeds:
        for task in a.tasks:
            yield from ((task, kind, seed) for kind in TASKS[task][1] if kind in a.kinds)


def measured(a: argparse.Namespace) -> dict[tuple[str, str, int], Scores]:
    """What the file holds, and what was missing from it."""
    a.out.parent.mkdir(parents=True, exist_ok=True)
    lines = a.out.read_text(encoding="utf-8").splitlines() if a.out.exists() else []
    found = {(row.pop("task"), row.pop("kind"), row.pop("seed")): row for row in map(json.loads, lines)}
    with open(a.out, "a", encoding="utf-8") as file:
        for task, kind, seed in jobs(a):
            if (task, kind, seed) in found:
                continue
            scores = found[task, kind, seed] = TASKS[task][0](kind, seed)
            row = {"task": task, "kind": kind, "seed": seed} | {n: round(v, 6) for n, v in scores.items()}
            print(json.dumps(row), file=file, flush=True)
    return found


def over_seeds(found: dict[tuple[str, str, int], Scores], task: str, kind: str, score: str) -> Interval | None:
    """The mean over seeds, if there is one."""
    values = [row[score] for (t, k, _), row in found.items() if (t, k) == (task, kind)]
    return interval(values) if values else None


def results(found: dict[tuple[str, str, int], Scores]) -> str:
    """The claims and the tables, as Markdown."""
    lines = ["| claim | asked | measured | |", "| --- | --- | --- | --- |"]
    for claim in CLAIMS:
        mean = over_seeds(found, claim.task, claim.kind, claim.score)
        if mean is not None:
            lines.append(f"| {claim.text} | {claim.bound()} | {mean} | {claim.verdict(mean)} |")
    for title, columns in TABLES.items():
        lines += ["", f"### {title}", "", "| kind | " + " | ".join(f"{t}: {s}" for t, s in columns) + " |"]
        lines.append("| --- |" + " --- |" * len(columns))
        for kind in KINDS:
            means = [over_seeds(found, task, kind, score) for task, score in columns]
            if any(means):
                lines.append(f"| `{kind}` | " + " | ".join("–" if m is None else str(m) for m in means) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, print claims and tables, write them under the page's last heading."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "planted.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "ground_truth.md")
    a = parser.parse_args()
    found = measured(a)
    told = results({key: row for key, row in found.items() if key in set(jobs(a))})
    print(told)
    if set(jobs(a)) == set(jobs(parser.parse_args([]))):
        head, heading, _ = a.page.read_text(encoding="utf-8").partition("\n## Results\n")
        write_text(a.page, f"{head}{heading}\n{told}")


if __name__ == "__main__":
    main()
