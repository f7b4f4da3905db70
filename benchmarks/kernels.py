"""Every op on a CPU: ours, the best plain torch, and the floor.

    python -m benchmarks.kernels [OP …] [--rounds 5]

"ours" is the form that runs by default; "plain" the reference, plain torch that returns the same for all inputs; "eager"
what notebooks write, which does not (ties, NaN, tokens ruled out), and is no torch op. Forms alternate; seconds are the
least CPU time of all threads over the rounds, so that other work on the machine does not count. Floor: multiplications
at the rate of a product of the same width, and bytes at that of a copy, both measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.record import machine
from interp.kernels import OPS
from interp.kernels.record_rows import GROUP


class Case(NamedTuple):
    """One size of an op: arguments on a device, how notebooks write it, and what no form can do without."""

    size: str
    arguments: Callable[[str], tuple[Any, ...]]
    eager: Callable[..., Any]
    product: tuple[int, int, int]  # rows, inner width, columns of the products that must be made
    bytes: int  # that must be read or written once
    typed: bool = False  # its dtypes are part of it


# ---------------------------------------------------------------- lens statistics


def _lens(name: str, s: int, n: int, d: int, v: int) -> Case:
    def arguments(device: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        states, W = torch.randn(s, n, d, device=device), torch.randn(v, d, device=device) / d**0.5
        return states, states[-1].clone(), W, None, 1.0, 0.0, torch.randint(v, (n, 1), device=device), min(5, v)

    size = f"{name}: {s} × {n} states of {d}, vocabulary {v}"
    return Case(size, arguments, eager_lens, ((s + 1) * n, d, v), 4 * (v * d + (s + 1) * n * d))


def eager_lens(
    states: Tensor, final: Tensor, weight: Tensor, _: None, __: float, ___: float, asked: Tensor, k: int
) -> tuple[Tensor, ...]:
    """As notebooks write it: all scores, log_softmax, and a pass for each number."""
    z, log_q = states @ weight.T, (final @ weight.T).log_softmax(-1)
    log_p = z.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    wanted = torch.cat([log_q.argmax(-1, keepdim=True), asked], dim=1).expand(len(z), -1, -1)
    rank = 1 + torch.stack([(z > z.gather(-1, t[..., None])).sum(-1) for t in wanted.unbind(-1)], dim=-1)
    divergences = (q * (log_q - log_p)).sum(-1), (p * (log_p - log_q)).sum(-1)
    return *log_p.topk(k), -(p * log_p).sum(-1), *divergences, log_p.gather(-1, wanted), rank


# ---------------------------------------------------------------- the largest of a row


def _largest(name: str, n: int, m: int, k: int) -> Case:
    def arguments(device: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        return torch.randn(n, m, device=device), torch.randn(m, device=device), k

    eager = lambda z, c, k: (z + c).topk(k)  # noqa: E731
    return Case(f"{name}: {k} of {n} × {m}", arguments, eager, (1, 1, 1), 4 * n * m)


# ---------------------------------------------------------------- what is above its bound


def _above(name: str, n: int, m: int, share: float) -> Case:
    """`share` of normal numbers above one bound."""

    def arguments(device: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        bound = torch.distributions.Normal(0.0, 2**0.5).icdf(torch.tensor(1 - share)).item()
        z, c = torch.randn(n, m, device=device), torch.randn(m, device=device)
        return z, c, torch.full((m,), bound, device=device), max(8, round(3 * share * m))

    def eager(z: Tensor, c: Tensor, bound: Tensor, k: int) -> tuple[Tensor, ...]:
        found = z + c > bound
        return ((z + c) * found).topk(min(k, z.shape[1]))

    return Case(f"{name}: {share:.1%} of {n} × {m}", arguments, eager, (1, 1, 1), 4 * n * m)


# ---------------------------------------------------------------- the two products of a sparse code


def _code(n: int, d: int, m: int, k: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices, rows; latents differ in how often they are active, as trained ones do."""
    torch.manual_seed(0)
    often = torch.rand(m, device=device) ** 3
    indices = (torch.rand(n, m, device=device) * often).topk(k).indices
    return torch.rand(n, k, device=device), indices, torch.randn(n, d, device=device)


def _weight_gradient(name: str, n: int, d: int, m: int, k: int) -> Case:
    def eager(values: Tensor, indices: Tensor, rows: Tensor, m: int) -> tuple[Tensor, ...]:
        code = values.new_zeros(len(values), m).scatter_(1, indices, values)
        return code.T @ rows, code.sum(0)

    size = f"{name}: {k} of {m} latents, {n} rows of {d}"
    return Case(size, lambda device: (*_code(n, d, m, k, device), m), eager, (1, 1, 1), 4 * d * (n * k + m))


def _sddmm(name: str, n: int, d: int, m: int, k: int) -> Case:
    def arguments(device: str) -> tuple[Any, ...]:
        _, indices, rows = _code(n, d, m, k, device)
        return rows, torch.randn(m, d, device=device), indices

    eager = lambda rows, W, indices: (rows @ W.T).gather(1, indices)  # noqa: E731
    return Case(f"{name}: {k} of {m} latents, {n} rows of {d}", arguments, eager, (1, 1, 1), 4 * d * n * (k + 1))


# ---------------------------------------------------------------- attention


def _attention(name: str, batch: int, heads: int, kv: int, t: int, d: int) -> Case:
    """Causal, with key heads that are shared; half of the scores are looked at."""

    def arguments(device: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        q, k = (torch.randn(batch, h, t, d, device=device) for h in (heads, kv))
        return q, k, None, None, True, d**-0.5

    size = f"{name}: {batch} × {heads} heads ({kv} of keys), {t} tokens, width {d}"
    return Case(size, arguments, eager_attention, (-(-batch * heads * t // 2), d, t), 4 * batch * t * d * (heads + kv))


def eager_attention(
    q: Tensor, k: Tensor, _: Tensor | None, __: Tensor | None, ___: bool, scale: float
) -> tuple[Tensor, ...]:
    """As notebooks write it, from the whole pattern."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    late = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    p = scores.masked_fill(late, -torch.inf).softmax(-1)
    j = torch.arange(p.shape[-1], device=q.device, dtype=p.dtype)
    return -(p * (p + 1e-12).log()).sum(-1), p[..., 0], (p * (j[:, None] - j)).sum(-1), p.sum(-2)


# ---------------------------------------------------------------- rows into a store


def _record(name: str, n: int, width: int, read: torch.dtype, wrote: torch.dtype) -> Case:
    """An eighth of the rows is padding; int8 with sums, as the store asks for them."""
    kept, coded = n - n // 8, wrote == torch.int8

    def arguments(device: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        x, groups = torch.randn(n, width, device=device).to(read), -(-width // GROUP)
        places = (torch.randperm(n, device=device)[:kept].sort().values, torch.randperm(n, device=device)[:kept])
        ring = torch.zeros(n, width, device=device).to(wrote)
        if not coded:
            return x, *places, ring, None, None, None
        scales, sums = torch.zeros(n, groups, device=device), torch.zeros(3, width, device=device, dtype=torch.float64)
        return x, *places, ring, scales.bfloat16(), x.float().mean(0), sums

    dtypes = " to ".join(str(t).removeprefix("torch.") for t in (read, wrote))
    moved = kept * width * (read.itemsize + wrote.itemsize)
    return Case(f"{name}: {kept} of {n} × {width}, {dtypes}", arguments, eager_record, (1, 1, 1), moved, True)


def eager_record(
    x: Tensor,
    kept: Tensor,
    slots: Tensor,
    rows: Tensor,
    scales: Tensor | None,
    pivot: Tensor | None,
    sums: Tensor | None,
) -> Tensor:
    """As notebooks write it, one scale a row; a copy for each step."""
    x = x[kept]
    if pivot is not None and sums is not None:
        y = x.float() - pivot
        scale = y.abs().amax(1, keepdim=True) / 127
        stored = (y / scale).round().to(torch.int8)
        sums += torch.stack([y.sum(0), y.square().sum(0), (stored * scale - y).square().sum(0)])
        rows[slots] = stored
    else:
        rows[slots] = x.to(rows.dtype)
    return x.float().norm(dim=1)


def _unpack(name: str, n: int, width: int) -> Case:
    def arguments(device: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        codes = torch.randint(-127, 128, (n, width), dtype=torch.int8, device=device)
        scales = torch.rand(n, -(-width // GROUP), device=device).bfloat16()
        return codes, scales, torch.randn(width, device=device), torch.zeros(n, width, device=device)

    def eager(codes: Tensor, scales: Tensor, pivot: Tensor, rows: Tensor) -> None:
        rows[:] = pivot + codes.float() * scales.float().repeat_interleave(GROUP, 1)[:, : codes.shape[1]]

    return Case(f"{name}: {n} × {width}", arguments, eager, (1, 1, 1), 5 * n * width, True)


CODES = {  # rows, width, latents, active
    "tiny": (4, 8, 64, 4),
    "ragged": (37, 100, 1999, 7),
    "the demo": (1024, 256, 2048, 32),
    "training": (4096, 512, 8192, 32),
    "wide": (256, 2048, 65536, 64),
    "an eighth of them": (1024, 128, 512, 64),
}

CASES: dict[str, list[Case]] = {
    "lens_statistics": [
        _lens("tiny", 2, 3, 16, 61),
        _lens("ragged", 3, 37, 100, 1999),
        _lens("the demo", 7, 64, 256, 8192),
        _lens("GPT-2", 12, 64, 768, 50257),
        _lens("wide", 4, 32, 2048, 32000),
        _lens("one state", 1, 1, 768, 50257),
    ],
    "largest": [
        _largest("tiny", 4, 64, 4),
        _largest("ragged", 37, 1999, 7),
        _largest("the demo", 1024, 2048, 32),
        _largest("training", 4096, 8192, 32),
        _largest("wide", 256, 65536, 64),
        _largest("half of them", 1024, 512, 256),
        _largest("a batch at once", 1, 2**22, 2**14),
    ],
    "attention_statistics": [
        _attention("tiny", 1, 2, 2, 16, 8),
        _attention("ragged", 3, 6, 2, 37, 20),
        _attention("the demo", 4, 8, 4, 256, 32),
        _attention("GPT-2", 1, 12, 12, 1024, 64),
        _attention("wide", 1, 8, 2, 1024, 128),
        _attention("long", 1, 2, 2, 4096, 64),
        _attention("many short", 64, 4, 4, 32, 16),
    ],
    "record_rows": [
        _record("tiny", 4, 8, torch.float32, torch.bfloat16),
        _record("ragged", 37, 100, torch.float32, torch.int8),
        _record("the demo", 2048, 256, torch.float32, torch.bfloat16),
        _record("training", 8192, 512, torch.bfloat16, torch.bfloat16),
        _record("int8", 8192, 512, torch.bfloat16, torch.int8),
        _record("wide", 512, 4096, torch.float32, torch.int8),
        _record("as it is", 4096, 768, torch.float32, torch.float32),
        _record("half", 1024, 768, torch.float32, torch.float16),
    ],
    "above": [
        _above("tiny", 4, 64, 0.05),
        _above("ragged", 37, 1999, 0.004),
        _above("the demo", 1024, 2048, 0.016),
        _above("training", 4096, 8192, 0.004),
        _above("wide", 256, 65536, 0.001),
        _above("a twelfth of them", 1024, 512, 0.08),
    ],
    "unpack_rows": [
        _unpack("tiny", 4, 8),
        _unpack("ragged", 37, 100),
        _unpack("the demo", 1024, 256),
        _unpack("training", 4096, 512),
        _unpack("wide", 512, 4096),
        _unpack("a pile", 65536, 300),
    ],
    "weight_gradient": [_weight_gradient(name, *sizes) for name, sizes in CODES.items()],
    "sddmm": [_sddmm(name, *sizes) for name, sizes in CODES.items()],
}


# ---------------------------------------------------------------- timed


def seconds(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least CPU time of each, alternating, forwards and backwards, after a round that warms up."""
    told: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in list(works.items())[:: -1 if turn % 2 else 1]:
            begin, count = time.process_time(), 0
            while not count or time.process_time() - begin < 0.02:
                work()
                count += 1
            told[name].append((time.process_time() - begin) / count)
    return {name: min(t[1:]) for name, t in told.items()}


@torch.no_grad()
def row(op: str, case: Case, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    args, (n, d, m) = case.arguments("cpu"), case.product
    x, W, there = torch.randn(n, d), torch.randn(d, m), torch.ones(2**24)
    back, room = torch.empty_like(there), torch.empty(n, m)
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: OPS[op](*args),
        "plain": lambda: OPS[op].forms["reference"](*args),
        "eager": lambda: case.eager(*args),
        "product": lambda: torch.mm(x, W, out=room),
        "copy": lambda: back.copy_(there),
    }
    told = seconds(works, rounds)
    told["floor"] = told["product"] + told["copy"] * case.bytes / (2 * there.nbytes)
    ratios = {f"{other}/ours": told[other] / told["ours"] for other in ("plain", "eager")}
    ratios["ours/floor"] = told["ours"] / told["floor"]
    return {"op": op, "size": case.size, "form": OPS[op].chosen("cpu", *args), "ratios": ratios, "seconds": told}


def rows(ops: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Of each op each size."""
    for op in ops:
        for case in CASES[op]:
            yield row(op, case, rounds)


def main() -> None:
    """Print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    times = ("ours", "plain", "eager", "floor")
    print(f"{'op':22}{'size':58}{'form':10}{'plain/ours':>12}{'eager/ours':>12}{'ours/floor':>12}", end="")
    print("".join(f"{name + ' ms':>10}" for name in times))
    found = []
    for r in rows(a.ops, a.rounds):
        found.append(r)
        print(f"{r['op']:22}{r['size']:58}{r['form']:10}" + "".join(f"{x:12.2f}" for x in r["ratios"].values()), end="")
        print("".join(f"{r['seconds'][name] * 1e3:10.3f}" for name in times), flush=True)
    print(json.dumps({"kernels": found, "machine": machine("cpu")}))


if __name__ == "__main__":
    main()
