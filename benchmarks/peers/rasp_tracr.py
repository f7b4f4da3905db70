"""tracr's side of `benchmarks.rasp`, in an environment with jax and dm-haiku: jobs as JSON lines in, results as JSON lines out.

A job has `program`, `length`, `vocabulary`, `inputs` and `right` (the values wanted, a list per input). The programs are
those of tracr's library, and the Dyck-1 language written with them; where tracr has no way to say a program, `refused` says why.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

REPEATS = 3


def dyck1() -> Any:
    """F after a prefix that cannot be closed, else T where all is closed, else P."""
    balance = lib.make_pair_balance(rasp.tokens, "(", ")")
    broken = rasp.numerical(rasp.Map(lambda x: x < -1e-6, balance))
    ever = rasp.Map(lambda x: x > 1e-6, lib.make_frac_prevs(broken))
    closed = rasp.Map(lambda x: abs(x) < 1e-6, balance)
    return rasp.SequenceMap(lambda e, c: "F" if e else "T" if c else "P", ever, closed)


def double_histogram() -> Any:
    """How many kinds of tokens occur as often as this one: the first of each kind counts."""
    hist = lib.make_hist()
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
    earlier = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LT)
    seen = rasp.SelectorWidth(rasp.SelectorAnd(same, earlier))
    first = rasp.Map(lambda n: n == 0, seen)
    alike = rasp.Select(hist, hist, rasp.Comparison.EQ)
    kinds = rasp.Select(first, first, lambda k, q: k)
    return rasp.SelectorWidth(rasp.SelectorAnd(alike, kinds))


def sort(length: int) -> Any:
    return lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=length, min_key=1)


PROGRAMS: dict[str, Any] = {
    "reverse": lambda _: lib.make_reverse(rasp.tokens),
    "histogram": lambda _: lib.make_hist(),
    "length": lambda _: lib.make_length(),
    "sort, unique": lambda _: lib.make_sort_unique(rasp.tokens, rasp.tokens),
    "sort": sort,
    "sort by frequency": lib.make_sort_freq,
    "shuffle-Dyck-1": lambda _: lib.make_shuffle_dyck(pairs=["()"]),
    "shuffle-Dyck-2": lambda _: lib.make_shuffle_dyck2(),
    "Dyck-1": lambda _: dyck1(),
    "histogram of the histogram": lambda _: rasp.SelectorWidth(
        rasp.Select(lib.make_hist(), lib.make_hist(), rasp.Comparison.EQ)
    ),
    "double histogram": lambda _: double_histogram(),
}


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Sizes, CPU seconds and wrong positions of a job, or why it was refused."""
    if job["program"] not in PROGRAMS:
        return {"refused": "selectors with `and` or `or` over different keys and queries"}
    try:
        started = time.process_time()
        model = compiling.compile_rasp_to_model(
            PROGRAMS[job["program"]](job["length"]), vocab=set(job["vocabulary"]), max_seq_len=job["length"]
        )
        compiled = time.process_time() - started
    except Exception as error:  # whatever tracr raises is its answer
        return {"refused": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"}
    config, leaves = model.model_config, jax.tree_util.tree_leaves(model.params)
    return {
        "compile": compiled,
        "d_model": len(model.residual_labels),
        "layers": config.num_layers,
        "heads": config.num_heads,
        "parameters": sum(leaf.size for leaf in leaves),
        "nonzero": int(sum(np.count_nonzero(leaf) for leaf in leaves)),
        **_run(model, job),
    }


def _run(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    inputs = [["compiler_bos", *tokens] for tokens in job["inputs"]]
    model.apply(inputs[0])
    shipped = _seconds(lambda: model.apply(inputs[1]))
    batch = jnp.array([model.input_encoder.encode(tokens) for tokens in inputs])
    forward = jax.jit(lambda params, tokens: model.forward(params, tokens).unembedded_output)
    found = np.array(forward(model.params, batch))
    jitted = _seconds(lambda: forward(model.params, batch).block_until_ready())
    decode = model.output_encoder.decode if model.output_encoder else list
    wrong = 0
    for row, right in zip(found, job["right"], strict=True):
        try:
            values = decode(row.tolist())[1:]
        except (KeyError, ValueError):
            values = [decode([x])[0] if i else None for i, x in enumerate(row.tolist())][1:]
        wrong += sum(not _same(a, b) for a, b in zip(values, right, strict=True))
    return {
        "shipped": shipped * len(inputs),
        "jitted": jitted,
        "wrong": wrong,
        "positions": sum(map(len, job["right"])),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, str) or isinstance(a, str):
        return a == b
    return a is not None and abs(float(a) - float(b)) < 1e-3


def _seconds(call: Any) -> float:
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return sorted(taken)[REPEATS // 2]


for line in sys.stdin:
    print(json.dumps(measured(json.loads(line))), flush=True)
