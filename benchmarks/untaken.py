"""What was tried for a CPU and is no op, since plain numpy or torch is faster: counting n-grams by hashing, attention by columns.

    python -m benchmarks.untaken [--rounds 3]

Counting: `np.unique` sorts (what `interp bigram count` does); the other is a hash table in numba, its keys sorted after. Tokens
are drawn by Zipf's law. Attention: entropy, sink, distance and what keys receive, by three runs of torch's fast attention whose
values are k, the places of keys, and a derivative; against `attention_statistics`. Milliseconds of processor, least of rounds.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import seconds
from benchmarks.record import machine
from interp.kernels import attention_statistics


def counting(rounds: int) -> list[dict[str, Any]]:
    """Rows: n, tokens, distinct n-grams, both times."""
    from numba import njit

    @njit(nogil=True)
    def table(keys: Any, bits: int) -> Any:
        slots, counts = np.full(1 << bits, -1, np.int64), np.zeros(1 << bits, np.int64)
        mask, used = np.uint64((1 << bits) - 1), 0
        for key in keys:
            at = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)
            while slots[at] != key and slots[at] != -1:
                at = (at + np.uint64(1)) & mask
            used += slots[at] == -1
            slots[at] = key
            counts[at] += 1
        return slots, counts

    def hashed(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots, counts = table(keys, int(np.ceil(np.log2(1.5 * len(keys)))))
        there = np.flatnonzero(slots != -1)
        order = there[np.argsort(slots[there])]
        return slots[order], counts[order]

    def sorted_(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(keys, return_counts=True)

    rows, rng = [], np.random.default_rng(0)
    for vocabulary, n, size in ((8192, 2, 2**14), (8192, 2, 2**20), (50257, 2, 2**20), (50257, 3, 2**20)):
        p = 1 / np.arange(1, vocabulary + 1)
        ids = rng.choice(vocabulary, size + n - 1, p=p / p.sum())
        keys = sum(ids[i : i + size] * vocabulary ** (n - 1 - i) for i in range(n))
        assert all(np.array_equal(a, b) for a, b in zip(sorted_(keys), hashed(keys), strict=True))
        told = seconds({"np.unique": lambda k=keys: sorted_(k), "hash": lambda k=keys: hashed(k)}, rounds)
        rows.append({"n": n, "vocabulary": vocabulary, "tokens": size, "distinct": len(sorted_(keys)[0])} | told)
    return rows


def attention(rounds: int) -> list[dict[str, Any]]:
    """Rows: sizes, one pass of the fast attention, the statistics by its columns, ours."""
    rows = []
    for heads, tokens, d in ((4, 64, 32), (12, 1024, 64), (2, 4096, 64)):
        torch.manual_seed(0)
        q, k = torch.randn(1, heads, tokens, d), torch.randn(1, heads, tokens, d)
        works = {
            "one pass": lambda q=q, k=k: F.scaled_dot_product_attention(q, k, k, is_causal=True),
            "columns": lambda q=q, k=k: by_columns(q, k),
            "ours": lambda q=q, k=k: attention_statistics(q, k, None, None, True, q.shape[-1] ** -0.5),
        }
        for a, b in zip(works["columns"](), works["ours"](), strict=True):
            assert torch.allclose(a, b[..., : a.shape[-1]] if a.ndim == 4 else b, atol=1e-2)
        rows.append({"heads": heads, "tokens": tokens, "width": d} | seconds(works, rounds))
    return rows


def by_columns(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """(Entropy, sink, distance of queries; what keys receive), causal: H = log Σ exp s - scale q · P k."""
    scale, place = q.shape[-1] ** -0.5, torch.arange(k.shape[2], dtype=k.dtype)
    mean, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, 0.0, True, scale=scale)
    columns = torch.zeros_like(k)
    columns[:, :, 0, 0], columns[..., 1] = 1, place
    columns.requires_grad_()
    with torch.enable_grad():
        z = F.scaled_dot_product_attention(q, k, columns, is_causal=True)
    ones = torch.zeros_like(z)
    ones[..., 0] = 1
    received = torch.autograd.grad(z, columns, ones)[0][..., 0]
    z = z.detach()
    return torch.stack([lse - scale * (q * mean).sum(-1), z[..., 0], place - z[..., 1]], -1), received


def main() -> None:
    """Print two tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found = {"counting": counting(rounds), "attention": attention(rounds)}
    for rows in found.values():
        print("".join(f"{name:>12}" for name in rows[0]))
        for row in rows:
            print("".join(f"{v * 1e3:12.3f}" if isinstance(v, float) else f"{v:12}" for v in row.values()))
    print(json.dumps(found | {"machine": machine("cpu")}))


if __name__ == "__main__":
    main()
