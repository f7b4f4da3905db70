"""Machines over strings of bits: the CLS stands first, and its logits answer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import softplus

from circuits.machines.layers import LogAttention, Places, PostNorm
from circuits.machines.machine import Machine, Names
from circuits.machines.neurons import Layer
from circuits.rasp.compile.model import Attention, Block, Stack, linear
from interp.errors import WrongUse

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

CLS = 2
SHARPEST = 80  # e^(c log n) is a float64 up to n = 7,000


def string_machine(
    name: str,
    names: Names,
    places: dict[str, int],
    layers: list[Layer],
    answer: int,
    options: dict[str, Any],
) -> Machine:
    """A machine whose tokens 0, 1, CLS are the stream's first directions, and whose answer 0 or 1 is the sign of one.

    With the option `layer_norm` every direction x has a mirror image -x, so that the mean is 0 and LN is x over its length,
    and a last MLP takes away all but the answer (Chiang & Cholak 2022). Raises `WrongUse` for a sharpness whose closed form
    float64 does not hold, and for an ε below 0.
    """
    if not 0 < options["sharpness"] <= SHARPEST or options["eps"] < 0:
        raise WrongUse(
            f"sharpness={options['sharpness']:g} and eps={options['eps']:g} are asked for: "
            f"give a sharpness above 0, at most {SHARPEST}, and an eps of 0 or more"
        )
    d, log, norm = names.width, options["log_n"], options["layer_norm"]
    attention = LogAttention if log else Attention
    tokens = torch.eye(3, d, dtype=torch.float64)
    unembed = torch.zeros(d, 2, dtype=torch.float64)
    unembed[answer] = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    if norm:
        layers = [mirrored(layer) for layer in layers]
        layers[-1] |= only(answer, d)
        tokens, unembed = torch.cat([tokens, -tokens], 1), torch.cat([unembed, torch.zeros_like(unembed)])
        names.variables += [mirror(variable, d) for variable in names.variables]
    blocks = [
        PostNorm(layer, 2 * d, options["eps"], attention) if norm else Block(layer, False, attention)
        for layer in layers
    ]
    where = Places(places, 2 * d if norm else d)
    if norm:
        where.table[:, d:] = -where.table[:, :d]
    embed = nn.Embedding.from_pretrained(tokens, freeze=True)
    model = Stack(embed, where, blocks, linear(unembed), causal=False)
    return Machine(name, options, model, names.variables, {"input_ids": torch.full((1, 7), CLS)}, "01")


def mirrored(layer: Layer) -> Layer:
    """The layer for the stream (x, -x): it reads x and writes x and -x."""
    made = {
        name: torch.cat([w, torch.zeros_like(w)], -2)
        for name, w in layer.items()
        if name in ("W_Q", "W_K", "W_V", "W_in")
    }
    made |= {name: torch.cat([w, -w], -1) for name, w in layer.items() if name in ("W_O", "W_out", "b_out")}
    return layer | made


def mirror(variable: Any, d: int) -> Any:
    """The variable in the mirror half."""
    return replace(
        variable,
        name=f"-{variable.name}",
        directions=[d + i for i in variable.directions],
        levels=[-x for x in variable.levels],
    )


def only(answer: int, d: int) -> Layer:
    """An MLP on (x, -x) that takes away everything but the answer: -x = relu(-x) - relu(x)."""
    gone = [i for i in range(d) if i != answer]
    gone += [d + i for i in gone]
    into, out = torch.zeros(2 * d, len(gone), dtype=torch.float64), torch.zeros(len(gone), 2 * d, dtype=torch.float64)
    for neuron, direction in enumerate(gone):
        into[direction, neuron] = 1.0
        out[neuron, direction] = -1.0
        out[neuron, (direction + d) % (2 * d)] = 1.0
    return {
        "W_in": into,
        "b_in": torch.zeros(len(gone), dtype=torch.float64),
        "W_out": out,
        "b_out": torch.zeros(2 * d, dtype=torch.float64),
    }


def strings(n: int) -> Int[Tensor, "string n"]:
    """All strings of n bits."""
    return (torch.arange(2**n).unsqueeze(1) >> torch.arange(n)) & 1


def ids_of(bits: Int[Tensor, "string n"]) -> Int[Tensor, "string pos"]:
    """The strings with the CLS before them."""
    return torch.cat([torch.full((len(bits), 1), CLS), bits], 1)


@torch.no_grad()
def margins(machine: Machine, bits: Int[Tensor, "string n"], right: Int[Tensor, "string"]) -> Float[Tensor, "string"]:
    """logit(right) - logit(wrong) at the CLS, for each string; above 0 where the machine is right."""
    few = max(1, 2**18 // (bits.shape[1] + 1) ** 2)  # patterns are as large as the square of the length
    logits = torch.cat([machine.model(part)[:, 0] for part in ids_of(bits).split(few)])
    return logits.gather(1, right.unsqueeze(1)).squeeze(1) - logits.gather(1, 1 - right.unsqueeze(1)).squeeze(1)


LONG = (100, 1000)


def checked(
    machine: Machine,
    truth: Callable[[Any], Any],
    margin: Callable[[Any], Any],
    longest: int,
    long: tuple[int, ...],
) -> list[dict[str, Any]]:
    """For each length to `longest` all strings, for `long` ones 64: how many are wrong, -log₂ of what a softmax gives the right answer,
    the least margin, and what the closed form says it is.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for n in [*range(1, longest + 1), *long]:
        bits = strings(n) if n <= longest else torch.randint(2, (64, n), generator=generator)
        found, said = margins(machine, bits, truth(bits)).double(), margin(bits)
        rows.append(
            {
                "n": n,
                "strings": len(bits),
                "wrong": int((found <= 0).sum()),
                "cross_entropy_bits": (softplus(-found).mean() / math.log(2)).item(),
                "least_margin": found.min().item(),
                "closed_form": said.min().item(),
                "largest_difference": (found - said).abs().max().item(),
            }
        )
    return rows


def answered(machine: Machine, text: str) -> dict[str, Any]:
    """What the machine says of a string of 0 and 1. Raises `WrongUse` for another or an empty one."""
    if not text or set(text) - {"0", "1"}:
        raise WrongUse(f"{text!r} is no string of 0 and 1: give one such as 0110")
    logits = machine.model(ids_of(torch.tensor([[int(c) for c in text]])))[0, 0]
    return {"answer": int(logits.argmax()), "margin": (logits[1] - logits[0]).abs().item()}
