"""The RASP compiler against tracr: sizes, time to compile, time to run 1,000 inputs, positions wrong.

    python -m benchmarks.rasp [--tracr FOLDER] [--python PYTHON] [--out runs/rasp.jsonl] [--table docs/rasp.md]

Programs × lengths 5, 10, 20 × vocabularies of 3, 5, 10 tokens (bracket languages: their brackets, and letters up to that).
FOLDER is a checkout of google-deepmind/tracr, PYTHON one that has jax and dm-haiku: `make bench-peers` builds it. Both sides
run on one thread and see the same 1,000 random inputs of the greatest length (for sort, unique: without repetition). Times
are CPU seconds, so that they do not depend on what else runs; a compilation is measured once, after another of a small
program, a run is the median of three. tracr as shipped runs an input at a time (one is measured, times 1,000); beside it all
at once under `jax.jit`, without the time to trace. Right is what our interpreter says. Finished rows are kept in --out, and
not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import string
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from circuits.rasp import run
from circuits.rasp.batch import evaluate_batch
from circuits.rasp.compile import compile_program
from circuits.rasp.compile.columns import mark

UNSAID = "selectors with `and` or `or` over different keys and queries"  # as the peer's process says it
PAPER = 'load "paper_examples";'
SHUFFLE = """
def balance(open,close) {
    before = select(indices,indices,<=);
    return aggregate(before,indicator(tokens==open))-aggregate(before,indicator(tokens==close));
}
def shuffle(pairs) {
    negative = False; zero = True;
    for pair in pairs {
        b = balance(pair[0],pair[1]);
        negative = negative or (b<0); zero = zero and (b==0);
    }
    ever = aggregate(full_s,indicator(negative))>0;
    return aggregate(select(indices,length-1,==),zero) and not ever;
}
"""
HISTOGRAM = "hist = selector_width(select(tokens,tokens,==));"
PROGRAMS = {  # the program, and the tokens that have to be there
    "reverse": ("x = aggregate(select(indices,length-1-indices,==),tokens);", ""),
    "histogram": (HISTOGRAM + "x = hist;", ""),
    "length": ("x = length;", ""),
    "sort, unique": (
        'set example "abc"\nx = aggregate(select(selector_width(select(tokens,tokens,<)),indices,==),tokens);',
        "",
    ),
    "sort": ("x = sort(tokens,tokens);", ""),
    "sort by frequency": (HISTOGRAM + "x = sort(tokens,-hist);", ""),
    "shuffle-Dyck-1": (SHUFFLE + 'x = shuffle(["()"]);', "()"),
    "shuffle-Dyck-2": (SHUFFLE + 'x = shuffle(["()","{}"]);', "(){}"),
    "Dyck-1": (PAPER + "x = dyck1_ptf;", "()"),
    "Dyck-2": (PAPER + "x = dyck2_ptf;", "(){}"),
    "Dyck-3": (PAPER + "x = dyck3_ptf;", "(){}[]"),
    "histogram of the histogram": (HISTOGRAM + "x = selector_width(select(hist,hist,==));", ""),
    "double histogram": (PAPER + "x = hist2_nobos;", ""),
    "most frequent": (PAPER + "x = sort_by_most_freq;", "§"),
}
INPUTS = 1_000
INTRODUCTION = """`python -m benchmarks.rasp --tracr FOLDER --table docs/rasp.md` wrote what follows; its help says
how it is measured. tracr's numbers stand behind the slash, in brackets its time jitted and batched. All inputs have the greatest length."""
NUMBERS = ("sort", "sort, unique")  # tracr compares and adds keys: its tokens are 1 … V


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tracr", type=Path, help="a checkout of google-deepmind/tracr; without it ours alone")
    asked.add_argument("--python", default=".bench/tracr/bin/python", help="a Python that has jax and dm-haiku")
    asked.add_argument("--out", type=Path, default=Path("runs/rasp.jsonl"))
    asked.add_argument(
        "--table", type=Path, help="a page whose last part, from '### Against tracr' on, is written anew"
    )
    given = asked.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    known = {(row["program"], row["length"], row["tokens"]) for row in rows}
    peer = Peer(given.tracr, given.python) if given.tracr else None
    ours(("length", 3, list("ab")))  # the first compilation also imports
    for job in tqdm([job for job in jobs() if (job[0], job[1], len(job[2])) not in known]):
        row = ours(job) if peer is None else ours(job) | {"tracr": peer.measured(job)}
        rows.append({"program": job[0], "length": job[1], "tokens": len(job[2])} | row)
        with given.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    text = "\n".join([*summary(rows), "", *table(rows)])
    print(text)
    if given.table:
        page = given.table.read_text(encoding="utf-8").partition("### Against tracr")[0]
        given.table.write_text(f"{page}### Against tracr\n\n{INTRODUCTION}\n\n{text}\n", encoding="utf-8")


Job = tuple[str, int, list[str]]


def jobs() -> Iterator[Job]:
    """Every program, length and vocabulary; none twice where the brackets fill the vocabulary."""
    seen = set()
    for name, (_, needed) in PROGRAMS.items():
        for length in (5, 10, 20):
            for size in (3, 5, 10):
                tokens = [*needed, *string.ascii_lowercase][: max(size, len(needed))]
                if (name, length, len(tokens)) not in seen:
                    seen.add((name, length, len(tokens)))
                    yield name, length, tokens


def drawn(job: Job) -> list[list[str]]:
    """Inputs of the greatest length, the same for both sides."""
    name, length, tokens = job
    rng = random.Random(f"{name} {length} {len(tokens)}")
    if name == "sort, unique":
        return [rng.sample(tokens, min(length, len(tokens))) for _ in range(INPUTS)]
    return [rng.choices(tokens, k=length) for _ in range(INPUTS)]


def ours(job: Job) -> dict[str, Any]:
    """Sizes, CPU seconds and wrong positions of our model."""
    name, length, tokens = job
    node, inputs = run(PROGRAMS[name][0]).value("x"), drawn(job)
    started = time.process_time()
    compiled = compile_program({"x": node}, tokens, length)
    seconds = time.process_time() - started
    right, ids = evaluate_batch(node, inputs), compiled.ids(inputs)
    found = compiled.model(ids)[:, 1:].argmax(-1).tolist()
    values = [[mark(compiled.outputs["x"][i]) for i in row] for row in found]
    wanted = [[mark(right.values[i]) for i in row] for row in right.at.tolist()]
    sizes = compiled.model.sizes()
    return {
        "compile": seconds,
        "run": median(lambda: compiled.model(ids)),
        "d_model": sizes["d_model"],
        "layers": sizes["layers"],
        "heads": sizes["heads_per_layer"],
        "parameters": sizes["parameters"],
        "nonzero": sum(int(p.count_nonzero()) for p in compiled.model.parameters()),
        "wrong": sum(a != b for row, wish in zip(values, wanted, strict=True) for a, b in zip(row, wish, strict=True)),
        "positions": sum(map(len, inputs)),
    }


def median(call: Callable[[], Any]) -> float:
    """CPU seconds of the middle one of three calls, after one."""
    call()
    taken = []
    for _ in range(3):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return sorted(taken)[1]


class Peer:
    """tracr in a process of its own."""

    def __init__(self, folder: Path, python: str) -> None:
        if shutil.which(python) is None:
            raise SystemExit(
                f"{python} is not there: `make bench-peers` builds it, or give --python one with jax and dm-haiku."
            )
        script = Path(__file__).parent / "peers" / "rasp_tracr.py"
        one = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "OMP_NUM_THREADS": "1"}
        env = os.environ | one | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )
        self.ask("length", 3, ["a", "b"], [["a", "b", "a"]] * 2, [[3, 3, 3]] * 2)

    def measured(self, job: Job) -> dict[str, Any]:
        name, length, tokens = job
        inputs = drawn(job)
        right = evaluate_batch(run(PROGRAMS[name][0]).value("x"), inputs)
        wanted = [[right.values[i] for i in row] for row in right.at.tolist()]
        if name not in NUMBERS:
            return self.ask(name, length, tokens, inputs, wanted)
        number = {token: i + 1 for i, token in enumerate(tokens)}
        as_numbers = [[[number[token] for token in row] for row in rows] for rows in (inputs, wanted)]
        return self.ask(name, length, list(number.values()), *as_numbers)

    def ask(
        self, program: str, length: int, vocabulary: list[Any], inputs: list[Any], right: list[Any]
    ) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        job = {"program": program, "length": length, "vocabulary": vocabulary, "inputs": inputs, "right": right}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("tracr's process ended: does --python have jax and dm-haiku, and is --tracr the checkout?")
        return json.loads(answer)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """The goals, and what was measured."""
    both = [row for row in rows if "compile" in row.get("tracr", {})]
    lines = [
        f"{len(rows)} rows, {sum(r['wrong'] for r in rows):,} of {sum(r['positions'] for r in rows):,} positions wrong."
    ]
    if not both:
        return lines
    reasons = [row["tracr"]["refused"] for row in rows if "refused" in row.get("tracr", {})]
    unsaid = sum(reason == UNSAID for reason in reasons)
    theirs = sum(row["tracr"]["wrong"] for row in both)
    wrong_in = sum(row["tracr"]["wrong"] > 0 for row in both)
    lines.append(
        f"tracr compiles {len(both)} of them and refuses {len(reasons) - unsaid}; {unsaid} were not tried, since its language has "
        f"no {UNSAID}. {theirs:,} of its "
        f"{sum(r['tracr']['positions'] for r in both):,} positions are wrong, in {wrong_in} rows."
    )

    def ratio(what: str, mine: str, goal: float) -> str:
        found = sorted(row["tracr"][what] / max(row[mine], 1e-9) for row in both)
        met = sum(each >= goal for each in found)
        return f"median {found[len(found) // 2]:,.1f}, least {found[0]:,.1f}; at least {goal:g} in {met} of {len(found)} rows"

    more = [row for row in both if row["layers"] > row["tracr"]["layers"]]
    lines += [
        "",
        "| tracr's over ours, where it compiles | |",
        "| --- | --- |",
        f"| CPU time to compile (goal 100) | {ratio('compile', 'compile', 100)} |",
        f"| CPU time of 1,000 inputs, tracr as shipped (goal 20) | {ratio('shipped', 'run', 20)} |",
        f"| CPU time of 1,000 inputs, tracr jitted and batched (goal 1) | {ratio('jitted', 'run', 1)} |",
        f"| parameters (goal: more than 1) | {ratio('parameters', 'parameters', 1.0000001)} |",
        f"| rows where ours has more layers (goal 0) | {len(more)} |",
    ]
    return lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each row; what stands after a slash is tracr's."""
    head = "| program | length | tokens | d_model | layers | heads | parameters | not 0 | compile s | 1,000 inputs s | wrong |"
    lines = [head, "|" + " --- |" * 11]
    for row in rows:
        peer = row.get("tracr", {"refused": "not run"})
        theirs = "refused" not in peer

        def pair(mine: Any, key: str, form: str = "", peer: Any = peer, theirs: bool = theirs) -> str:
            return f"{mine:{form}} / {peer[key]:{form}}" if theirs else f"{mine:{form}} / –"

        cells = [
            row["program"],
            row["length"],
            row["tokens"],
            pair(row["d_model"], "d_model"),
            pair(row["layers"], "layers"),
            pair(max(row["heads"]), "heads"),
            pair(row["parameters"], "parameters", ","),
            pair(row["nonzero"], "nonzero", ","),
            pair(row["compile"], "compile", ".3g"),
            f"{row['run']:.3g} / " + (f"{peer['shipped']:.3g} ({peer['jitted']:.3g})" if theirs else "–"),
            pair(row["wrong"], "wrong", ","),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    main()
