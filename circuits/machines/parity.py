"""PARITY: is the number of ones odd? Two layers, for every length (Chiang & Cholak 2022, "Overcoming a Theoretical Limitation").

With the CLS at position 0, n' = n + 1 positions i, k ones, E even positions and O odd ones:

    layer 1   every position: k/n' and 1/n', means over all positions
              MLP: [i = k]/n' = relu((k-i-1)/n') - 2 relu((k-i)/n') + relu((k-i+1)/n')
    layer 2   CLS: two heads with the logits ±c cos(πi) look for it at even and at odd positions; odd minus even:
              (-1)^(k+1)/n' · (e^c/Z_same - e^-c/Z_other), Z_same and Z_other the sums e^±c over all positions
              = ±2 tanh(c)/n'² where n' is even
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
    place, even = names.number("i/n"), names.number("even")
    places = {"fraction": place, "even": even}
    if layer_norm:
        places["rest"] = names.number("√(1-(i/n)²)")  # so that all positions have the same length
    names.at("blocks.0.attn.0", "blocks.0.resid_mid")
    ones, share = names.number("ones/n"), names.number("1/n")
    names.at("blocks.0.mlp", "blocks.0.resid_post")
    here = names.number("[i=ones]/n")
    names.at("blocks.1.attn.0", "blocks.1.resid_mid" if layer_norm else "blocks.1.resid_post")
    odd = names.number("odd")

    first = {name: names.zeros(1, -1, 1) for name in ("W_Q", "W_K")}
    first["W_Q"][0, :3] = first["W_K"][0, :3] = 1.0  # every position is one token: all logits are 1
    first |= {"W_V": names.zeros(1, -1, 2), "W_O": names.zeros(1, 2, -1)}
    first["W_V"][0, [one, cls], [0, 1]] = 1.0
    first["W_O"][0, [0, 1], [ones, share]] = 1.0
    first |= {"W_in": names.zeros(-1, 3), "b_in": names.zeros(3), "W_out": names.zeros(3, -1), "b_out": names.zeros(-1)}
    first["W_in"][ones], first["W_in"][place] = 1.0, -1.0
    first["W_in"][share] = torch.tensor([-1.0, 0.0, 1.0])
    first["W_out"][:, here] = torch.tensor([1.0, -2.0, 1.0])

    second = {"W_Q": names.zeros(2, -1, 1), "W_K": names.zeros(2, -1, 1)}
    second |= {"W_V": names.zeros(2, -1, 1), "W_O": names.zeros(2, 1, -1)}
    second["W_Q"][:, cls] = sharpness
    second["W_K"][:, even, 0] = torch.tensor([1.0, -1.0])
    second["W_V"][:, here] = 1.0
    second["W_O"][:, 0, odd] = torch.tensor([-1.0, 1.0])
    options = {"layer_norm": layer_norm, "log_n": log_n, "sharpness": sharpness, "eps": eps}
    return string_machine("parity", names, places, [first, second], odd, options)


def truth(bits: Int[Tensor, "string n"]) -> Int[Tensor, "string"]:
    """1 where the number of ones is odd."""
    return bits.sum(1) % 2


def margin(machine: Machine, bits: Int[Tensor, "string n"]) -> Float[Tensor, "string"]:
    """The margin that the equations above give, in float64; with norms every position's vector x is scaled by 1/√(|x|²/d + ε).

    d is half the width of the stream. Before the norms |x|² is 3 at the entrance, (k² + 1)/n'² more after the first head,
    1/n'² more where [i = k]; the last norm leaves √d · m/√(m² + dε) of the answer m.
    """
    n, k = bits.shape[1] + 1, bits.sum(1).double()
    evens = n - n // 2
    c = held(machine.options["sharpness"]) * (
        torch.tensor(float(n), dtype=torch.float64).log() if machine.options["log_n"] else 1.0
    )
    common = special = cls = torch.ones_like(k)
    d = machine.model.unembed.in_features / 2

    def scale(square: Tensor) -> Tensor:
        return (square / d + machine.options["eps"]).rsqrt()

    if machine.options["layer_norm"]:
        square = 3 + (k**2 + 1) / n**2
        first = scale(square)
        common = first * scale(first**2 * square)
        special = first * scale(first**2 * (square + 1 / n**2))
        cls = torch.where(k == 0, special, common)
    same = torch.where(k % 2 == 0, float(evens), float(n - evens))  # positions of k's parity
    logit, there = c * cls * common, c * cls * special

    def weight(sign: int) -> Tensor:
        """What the head of k's parity (1) or the other (-1) gives to position k."""
        others = (same - 1) * (sign * logit).exp() + (n - same) * (-sign * logit).exp()
        return (sign * there).exp() / (others + (sign * there).exp())

    found = special / n * (weight(1) - weight(-1))
    if machine.options["layer_norm"]:
        length = cls**2 * (3 + (k**2 + 1 + (k == 0)) / n**2) + found**2
        found = found * scale(length)
        found = found * scale(found**2)
    return found


def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """STRING, of 0 and 1: the parity of its ones, and by how much the logits differ."""
    return answered(machine, *arguments)


def check(machine: Machine, longest: int = 12, long: tuple[int, ...] = LONG) -> list[dict[str, Any]]:
    """All strings to a length, and some long ones: the least margin, measured and by the closed form."""
    return checked(machine, truth, lambda bits: margin(machine, bits), longest, long)
