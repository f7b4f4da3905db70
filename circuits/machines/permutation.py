"""Inverse permutation: put a list back in order (Alur et al. 2025, "Impossibility of inverse permutation learning").

The input is a permutation π of n places and n symbols x, then in the variant with scratch n empty tokens:

    π(0) … π(n-1)  x_0 … x_(n-1)  [_ … _]        wanted: y with y_π(j) = x_j

    layer 1   x_j attends to π(j), n places before it (logit β), and copies it
    layer 2   the output's place i attends to the x_j with π(j) = i: logit β for a symbol, β more for its copy of π

The outputs stand at the permutation's own places if nothing is masked. A causal model cannot give them there, whatever its
depth: these places see no symbol, so the Jacobian of the outputs by the symbols is exactly 0. With scratch tokens the
outputs stand behind the symbols, and two layers suffice again.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

from circuits.machines.machine import Machine, Names, held
from circuits.rasp.compile.model import CompiledTransformer
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

MOST = 1_000_000  # inputs that are all tried
SHARPEST = 500  # e^β is a float64


def build(
    n: int = 4, symbols: int = 2, causal: bool = False, scratch: bool = False, sharpness: float = 25.0
) -> Machine:
    """The machine for lists of n symbols; β is `sharpness`. Raises `WrongUse` for no places, or for symbols that are not told apart."""
    if n < 1 or not 2 <= symbols <= 26:
        raise WrongUse(f"n={n} and symbols={symbols} are asked for: give at least 1 place, and 2 to 26 symbols")
    if not 0 < sharpness <= SHARPEST:
        raise WrongUse(f"sharpness={sharpness:g} is asked for: give one above 0, at most {SHARPEST}")
    length = (3 if scratch else 2) * n
    names = Names()
    values = [*range(n), *letters(symbols), *(["_"] if scratch else [])]
    token = names.one_hot("token", values)
    names.writer = "pos_embed"
    place = names.one_hot("place", list(range(length)))
    names.at("blocks.0.attn.0", "blocks.0.resid_post")
    goal = names.one_hot("goal", list(range(n)))
    names.at("blocks.1.attn.0", "blocks.1.resid_post")
    output = names.one_hot("output", letters(symbols))
    entries, data = place[:n], place[n : 2 * n]

    copies = {"W_Q": names.zeros(1, -1, n), "W_K": names.zeros(1, -1, n), "W_V": names.zeros(1, -1, n)}
    copies["W_Q"][0, data, range(n)] = sharpness
    copies["W_K"][0, entries, range(n)] = 1.0
    copies["W_V"][0, token[:n], range(n)] = 1.0
    copies["W_O"] = names.zeros(1, n, -1)
    copies["W_O"][0, range(n), goal] = 1.0
    fetches = {"W_Q": names.zeros(1, -1, n + 1), "W_K": names.zeros(1, -1, n + 1)}
    fetches |= {"W_V": names.zeros(1, -1, symbols), "W_O": names.zeros(1, symbols, -1)}
    for where in (entries, place[2 * n :]):
        fetches["W_Q"][0, where, range(len(where))] = sharpness
    fetches["W_Q"][0, place, n] = sharpness
    fetches["W_K"][0, goal, range(n)] = 1.0
    fetches["W_K"][0, data, n] = 1.0
    fetches["W_V"][0, token[n : n + symbols], range(symbols)] = 1.0
    fetches["W_O"][0, range(symbols), output] = 1.0
    unembed = names.zeros(-1, symbols)
    unembed[output, range(symbols)] = 1.0
    embed, positions = names.zeros(len(values), -1), names.zeros(length, -1)
    embed[range(len(values)), token] = positions[range(length), place] = 1.0
    model = CompiledTransformer(embed, positions, [copies, fetches], unembed, causal)
    options = {"n": n, "symbols": symbols, "causal": causal, "scratch": scratch, "sharpness": sharpness}
    example = torch.full((1, length), len(values) - 1)
    return Machine("permutation", options, model, names.variables, {"input_ids": example})


def letters(count: int) -> list[str]:
    """Names of symbols: a, b, …"""
    return [chr(ord("a") + i) for i in range(count)]


def ids_of(
    machine: Machine, permutations: Int[Tensor, "batch n"], data: Int[Tensor, "batch n"]
) -> Int[Tensor, "batch pos"]:
    """Permutations and symbols 0 … as the model takes them."""
    n, symbols = machine.options["n"], machine.options["symbols"]
    empty = torch.full((len(data), n if machine.options["scratch"] else 0), n + symbols)
    return torch.cat([permutations, n + data, empty], 1)


def outputs(machine: Machine, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch n symbol"]:
    """The logits where the outputs stand: at the scratch tokens, else at the permutation."""
    n = machine.options["n"]
    logits = machine.model(ids)
    return logits[:, 2 * n :] if machine.options["scratch"] else logits[:, :n]


def everything(n: int, symbols: int) -> tuple[Int[Tensor, "batch n"], Int[Tensor, "batch n"], Int[Tensor, "batch n"]]:
    """All permutations with all lists of symbols, and the lists wanted. Raises `WrongUse` where these are more than `MOST`."""
    if n > 12 or math.factorial(n) * symbols**n > MOST:
        raise WrongUse(f"n={n} and symbols={symbols} have more than {MOST:,} inputs: give smaller ones to try them all")
    pairs = list(itertools.product(itertools.permutations(range(n)), itertools.product(range(symbols), repeat=n)))
    permutations, data = (torch.tensor(part) for part in zip(*pairs, strict=True))
    return permutations, data, torch.empty_like(data).scatter(1, permutations, data)


@torch.no_grad()
def margins(machine: Machine) -> Float[Tensor, "batch n"]:
    """logit(right) - the greatest other logit, for every output of every input."""
    n, symbols = machine.options["n"], machine.options["symbols"]
    permutations, data, wanted = everything(n, symbols)
    logits = outputs(machine, ids_of(machine, permutations, data))
    right = logits.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    others = logits.scatter(-1, wanted.unsqueeze(-1), -torch.inf).max(-1).values
    return right - others


def least_margin(machine: Machine) -> float:
    """The least margin by the equations above, in float64: that of an output whose symbol is unlike all others.

    Position p sees p + 1 positions if causal, else all. Layer 1 gives a symbol's own π(j) the share e^β/Z, and 1/Z to others,
    Z = e^β + seen - 1; positions that look for nothing hold the mean of what they see. Layer 2 is a softmax of
    β goal_i + β [a symbol], and the margin is the weight of the right symbol minus that of all others.
    """
    n, b, causal = machine.options["n"], held(machine.options["sharpness"]), machine.options["causal"]
    place = torch.arange((3 if machine.options["scratch"] else 2) * n)
    symbol = (place >= n) & (place < 2 * n)
    seen = (place + 1 if causal else torch.full_like(place, len(place))).double()
    z = math.exp(b) + seen - 1
    margins = []
    for i, j in itertools.product(range(n), repeat=2):  # output i, whose symbol is x_j
        goal = torch.where(symbol, 1 / z, 1 / seen)
        goal[n + j] = math.exp(b) / z[n + j]
        if causal:
            goal[:j] = 0.0  # these have not seen π(j) = i
        query = 2 * n + i if machine.options["scratch"] else i
        hidden = (place > query) & causal
        weights = torch.softmax((b * goal + b * symbol).masked_fill(hidden, -torch.inf), 0)
        margins.append(2 * weights[n + j] - weights[symbol].sum())
    return min(margins).item()


def jacobian(machine: Machine, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "n symbol pos d_model"]:
    """d output / d (what the first layer receives), for one input."""
    start = machine.model.stream(ids[:1])
    found = torch.func.jacrev(lambda h: _outputs_from(machine, h))(start)
    return found[:, :, 0]


def _outputs_from(machine: Machine, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "n symbol"]:
    n = machine.options["n"]
    logits = machine.model.logits(machine.model.loop(h))[0]
    return logits[2 * n :] if machine.options["scratch"] else logits[:n]


def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """PERMUTATION SYMBOLS, such as 2,0,1,3 abba: the symbols in order."""
    n, symbols = machine.options["n"], machine.options["symbols"]
    try:
        order, text = [int(part) for part in arguments[0].split(",")], arguments[1]
    except (ValueError, IndexError) as error:
        raise WrongUse("give a permutation and symbols, such as 2,0,1,3 abba") from error
    if sorted(order) != list(range(n)) or len(text) != n or set(text) - set(letters(symbols)):
        raise WrongUse(f"give a permutation of 0 … {n - 1} and {n} of the symbols {''.join(letters(symbols))}")
    data = [letters(symbols).index(letter) for letter in text]
    (logits,) = outputs(machine, ids_of(machine, torch.tensor([order]), torch.tensor([data])))
    return {"answer": "".join(letters(symbols)[i] for i in logits.argmax(-1).tolist())}


def check(machine: Machine) -> list[dict[str, Any]]:
    """Every input of the machine's size, three ways: without a mask, causal, and causal with scratch tokens."""
    kept = {name: machine.options[name] for name in ("n", "symbols", "sharpness")}
    n, rows = kept["n"], []
    for causal, scratch in ((False, False), (True, False), (True, True)):
        variant = build(causal=causal, scratch=scratch, **kept)
        found = margins(variant)
        permutations, data, _ = everything(n, kept["symbols"])
        by_data = jacobian(variant, ids_of(variant, permutations, data))[:, :, n : 2 * n]
        rows.append(
            {
                "causal": causal,
                "scratch": scratch,
                "inputs": len(found),
                "wrong": int((found <= 0).sum()),
                "of": found.numel(),
                "least_margin": found.min().item(),
                "closed_form": least_margin(variant),
                "largest_jacobian": by_data.abs().max().item(),
            }
        )
    return rows
