"""Heads: every selector a bilinear form of two one-hots, everything aggregated a linear map of what the keys hold."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.columns import mark
from circuits.rasp.compile.plan import Head, View
from circuits.rasp.compile.shared import TOKENS
from circuits.rasp.compile.stream import Stream
from circuits.rasp.graph import Aggregate

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SHARP = (
    128.0  # a selected key's score over another's: e^-128 is 0 in float32, and no slow denormal; the BOS stands between
)


def head_weights(head: Head, stream: Stream) -> dict[str, Tensor]:
    """score(q, k) = SHARP · matches that hold; the BOS, half a match below all of them, is attended where no key has all.

    For a width the BOS counts as one more selected key: it is attended by 1/(w + 1).
    """
    queries, keys = [], []
    for match in head.matches:
        holds = torch.from_numpy(match.holds).double()
        rows, which = torch.unique(holds, dim=0, return_inverse=True)  # queries that select alike are one
        query, key = stream.zeros(len(rows)), stream.zeros(len(rows))
        query[stream.of(match.query.root)] = torch.nn.functional.one_hot(which, len(rows)).double() * SHARP
        key[stream.of(match.key.root)] = rows.T
        queries.append(query)
        keys.append(key)
    needed = len(head.matches) - (0.0 if head.width else 0.5)
    floor = stream.zeros(1)
    floor[stream.of(TOKENS)] = SHARP * needed
    w_q, w_k = torch.cat([*queries, floor], dim=1), torch.cat([*keys, stream.zeros(1)], dim=1)
    at_bos = torch.zeros(w_q.shape[1], dtype=torch.float64)
    at_bos[-1] = 1.0
    stream.pin(w_q, SHARP * (len(head.matches) + 1) * at_bos)
    stream.pin(w_k, at_bos)
    w_v, w_o = _values(head, stream)
    return {"W_Q": w_q, "W_K": w_k, "W_V": w_v, "W_O": w_o}


def _values(head: Head, stream: Stream) -> tuple[Tensor, Tensor]:
    """What is read at keys and where it is written; the BOS gives the default, for a width its own presence."""
    if head.width:
        w_v, w_o = stream.zeros(1), torch.zeros(1, stream.width, dtype=torch.float64)
        stream.pin(w_v, torch.ones(1, dtype=torch.float64))
        w_o[0, stream.number(head.width)] = 1.0
        return w_v, w_o
    parts = [_written(step, value, stream) for step, value in head.writes]
    return torch.cat([v for v, _ in parts], dim=1), torch.cat([o for _, o in parts])


def _written(step: Aggregate, value: View | Aggregate, stream: Stream) -> tuple[Tensor, Tensor]:
    if (step, True) in stream.held:
        level = functools.partial(stream.plan.values.level, step)
        w_v, default = stream.zeros(1), torch.tensor([level(step.default)], dtype=torch.float64)
        if isinstance(value, View):
            levels = [0.0 if v is None else level(v) for v in value.values]
            w_v[stream.of(value.root), 0] = torch.tensor(levels, dtype=torch.float64)
        else:
            w_v[stream.number(value), 0] = 1.0
        places = [stream.number(step)]
    else:
        assert isinstance(value, View)
        known = stream.plan.values.of(step)
        w_v, default = stream.zeros(len(known)), one_hots([step.default], known)[0]
        w_v[stream.of(value.root)] = one_hots(value.values, known)
        places = stream.of(step)
    stream.pin(w_v, default)
    w_o = torch.zeros(w_v.shape[1], stream.width, dtype=torch.float64)
    w_o[range(len(places)), places] = 1.0
    return w_v, w_o


def one_hots(values: list[Any], known: list[Any]) -> Float[Tensor, "value known"]:
    """A row for each value: 1 at its place among the known, 0 everywhere for one that never occurs."""
    at = {mark(v): i for i, v in enumerate(known)}
    rows = torch.zeros(len(values), len(known), dtype=torch.float64)
    for i, value in enumerate(values):
        if mark(value) in at:
            rows[i, at[mark(value)]] = 1.0
    return rows


def stacked(heads: list[dict[str, Tensor]], width: int) -> dict[str, Tensor]:
    """Heads of one block side by side, padded to the widest."""
    qk = max((head["W_Q"].shape[1] for head in heads), default=0)
    vo = max((head["W_V"].shape[1] for head in heads), default=0)
    sizes = {"W_Q": (width, qk), "W_K": (width, qk), "W_V": (width, vo), "W_O": (vo, width)}
    out = {name: torch.zeros(len(heads), *size, dtype=torch.float64) for name, size in sizes.items()}
    for i, head in enumerate(heads):
        for name, weight in head.items():
            out[name][i, : weight.shape[0], : weight.shape[1]] = weight
    return out
