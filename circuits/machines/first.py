"""FIRST: is the first bit a one? Two layers, for every length (Chiang & Cholak 2022, "Overcoming a Theoretical Limitation").

layer 1   MLP: mark = relu([token = 1] + [i = 1] - 1)
layer 2   CLS: a head with the logit c at position 1 and 0 at the n others reads mark - [i = 1]/2:
          ±½ e^c/(e^c + n), which a longer string brings to 0; with the logit c log n', n' = n + 1:
          ±½ n'^c/(n'^c + n), above ¼ for every length where c ≥ 1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from circuits.machines.machine import Machine, Names, held
from circuits.machines.strings import LONG, answered, checked, string_machine

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def build(layer_norm: bool = False, log_n: bool = False, sharpness: float = 1.0, eps: float = 1e-5) -> Machine:
    """The machine. c is `sharpness`, with `log_n` times log n'; `eps` is that of `layer_norm`."""
    names = Names()
    zero, one, cls = names.one_hot("token", ["0", "1", "CLS"])
    del zero
    names.writer = "pos_embed"
    first = names.bit("[i=1]")
    places = {"first": first}
    if layer_norm:
        places["later"] = names.bit("[i≠1]")  # so that all positions have the same length
    names.at("blocks.0.mlp", "blocks.0.resid_post")
    mark = names.bit("mark")
    names.at("blocks.1.attn.0", "blocks.1.resid_mid" if layer_norm else "blocks.1.resid_post")
    answer = names.number("first")

    marks = {
        "W_in": names.zeros(-1, 1),
        "b_in": -names.zeros(1).add(1.0),
        "W_out": names.zeros(1, -1),
        "b_out": names.zeros(-1),
    }
    marks["W_in"][[one, first]] = 1.0
    marks["W_out"][0, mark] = 1.0
    looks = {name: names.zeros(1, -1, 1) for name in ("W_Q", "W_K", "W_V")} | {"W_O": names.zeros(1, 1, -1)}
    looks["W_Q"][0, cls] = sharpness
    looks["W_K"][0, first] = 1.0
    looks["W_V"][0, [mark, first], 0] = torch.tensor([1.0, -0.5], dtype=torch.float64)
    looks["W_O"][0, 0, answer] = 1.0
    options = {"layer_norm": layer_norm, "log_n": log_n, "sharpness": sharpness, "eps": eps}
    return string_machine("first", names, places, [marks, looks], answer, options)


def truth(bits: Int[Tensor, "string n"]) -> Int[Tensor, "string"]:
    """The first bit."""
    return bits[:, 0]


def margin(machine: Machine, bits: Int[Tensor, "string n"]) -> Float[Tensor, "string"]:
    """The margin that the equations above give, in float64; with norms every position's vector x is scaled by 1/√(|x|²/d + ε).

    d is half the width of the stream. |x|² is 2 at the entrance, 3 with a mark; the last norm leaves √d · m/√(m² + dε) of
    the answer m.
    """
    n, marked = bits.shape[1], bits[:, 0].double()
    d = machine.model.unembed.in_features / 2
    common = there = torch.ones_like(marked)

    def scale(square: Tensor) -> Tensor:
        return (square / d + machine.options["eps"]).rsqrt()

    if machine.options["layer_norm"]:
        common, there = scale(torch.full_like(marked, 2.0)), scale(2 + marked)
    logit = held(machine.options["sharpness"]) * common * there
    if machine.options["log_n"]:
        logit = logit * torch.tensor(n + 1.0, dtype=torch.float64).log()
    found = there / 2 * logit.exp() / (logit.exp() + n)
    if machine.options["layer_norm"]:
        found = found * scale(2 * common**2 + found**2)
        found = found * scale(found**2)
    return found


def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """STRING, of 0 and 1: its first bit, and by how much the logits differ."""
    return answered(machine, *arguments)


def check(machine: Machine, longest: int = 12, long: tuple[int, ...] = LONG) -> list[dict[str, Any]]:
    """All strings to a length, and some long ones: the least margin, measured and by the closed form."""
    return checked(machine, truth, lambda bits: margin(machine, bits), longest, long)
