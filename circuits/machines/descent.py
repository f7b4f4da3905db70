"""Gradient descent in context: a layer of linear attention is a step (von Oswald et al. 2023, Proposition 1).

The input has N examples (x_j, y_j) and then a query (x, 0). For a linear model W, at first 0, with the loss
L(W) = 1/2N Σ_j |W x_j - y_j|², a step of gradient descent is W ← W - η/N Σ_j (W x_j - y_j) x_jᵀ. One head does it to all
tokens at once, without W being anywhere:

    q = x    k = x_j/N (0 at the query)    v = y_j    y ← y - η Σ_j (q · k_j) v_j

leaves y_j - W x_j at the examples and -W x at the query, so that L layers are L steps. The output is -y: the prediction
W x at the query, the error W x_j - y_j at the examples. With a softmax in place of the products this is no step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from circuits.machines.layers import LinearAttention
from circuits.machines.machine import Machine, Names, held
from circuits.rasp.compile.model import Block, Stack, linear
from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

STEPS = 1_000


class Examples(nn.Module):
    """Rows (x, y) to the stream: x, y, and x/N at the N examples, which are all rows but the last."""

    def __init__(self, x: int, row: Float[Tensor, "row d_model"], example: Float[Tensor, "row d_model"]) -> None:
        super().__init__()
        self.x, self.row, self.example = x, linear(row), linear(example)

    def forward(self, rows: Float[Tensor, "batch pos row"]) -> Float[Tensor, "batch pos d_model"]:
        """The stream; what the query has for its y is not looked at."""
        examples, query = rows[:, :-1], rows[:, -1:]
        query = torch.cat([query[..., : self.x], torch.zeros_like(query[..., self.x :])], -1)
        keys = torch.cat([examples / max(examples.shape[1], 1), torch.zeros_like(query)], 1)
        return self.row(torch.cat([examples, query], 1)) + self.example(keys)


def build(x: int = 3, y: int = 2, rate: float = 0.5, steps: int = 1) -> Machine:
    """The machine for x and y of so many entries; η is `rate`, and `steps` layers of the same weights are as many steps."""
    if min(x, y, steps) < 1:
        raise WrongUse(f"x={x}, y={y}, steps={steps} are asked for: give at least 1 of each")
    if steps > STEPS:
        raise WrongUse(f"{steps} steps are asked for: give at most {STEPS:,}, each is a layer")
    names = Names()
    point, target, key = names.numbers("x", x), names.numbers("y", y), names.numbers("x/N", x)
    row, example = names.zeros(x + y, -1), names.zeros(x + y, -1)
    row[range(x + y), [*point, *target]] = 1.0
    example[range(x), key] = 1.0
    head = {"W_Q": names.zeros(1, -1, x), "W_K": names.zeros(1, -1, x), "W_V": names.zeros(1, -1, y)}
    head["W_Q"][0, point, range(x)] = head["W_K"][0, key, range(x)] = 1.0
    head["W_V"][0, target, range(y)] = 1.0
    head["W_O"] = names.zeros(1, y, -1)
    head["W_O"][0, range(y), target] = -rate
    unembed = names.zeros(-1, y)
    unembed[target, range(y)] = -1.0
    blocks = [Block(head, False, LinearAttention) for _ in range(steps)]
    model = Stack(Examples(x, row, example), None, blocks, linear(unembed), causal=False)
    options = {"x": x, "y": y, "rate": rate, "steps": steps}
    return Machine("descent", options, model, names.variables, {"input_ids": torch.ones(1, 7, x + y)})


def descended(
    points: Float[Tensor, "example x"], targets: Float[Tensor, "example y"], rate: float, steps: int
) -> Float[Tensor, "y x"]:
    """W after steps of gradient descent from 0: W ← W - η/N Σ_j (W x_j - y_j) x_jᵀ."""
    w = points.new_zeros(targets.shape[1], points.shape[1])
    for _ in range(steps):
        w = w - rate / len(points) * (points @ w.T - targets).T @ points
    return w


def predicted(
    machine: Machine, points: Float[Tensor, "example x"], targets: Float[Tensor, "example y"], query: Float[Tensor, "x"]
) -> Float[Tensor, "y"]:
    """What the machine says at the query."""
    last = torch.cat([query, query.new_zeros(targets.shape[1])])
    rows = torch.cat([torch.cat([points, targets], 1), last.unsqueeze(0)])
    return machine.model(rows.unsqueeze(0))[0, -1]


def run(machine: Machine, arguments: list[str]) -> dict[str, Any]:
    """X:Y… X, such as 1,0,0:2,1 0,1,0:1,1 1,1,0 (examples, then a query): the prediction of the machine, and of gradient descent."""
    options = machine.options
    try:
        *given, query = [[[float(n) for n in part.split(",")] for part in text.split(":")] for text in arguments]
        points, targets = torch.tensor([x for x, _ in given]), torch.tensor([y for _, y in given])
        (asked,) = query
    except ValueError as error:
        raise WrongUse("give examples X:Y and a query X, such as 1,0,0:2,1 0,1,0:1,1 1,1,0") from error
    if (
        points.ndim != 2
        or points.shape[1] != options["x"]
        or targets.shape[1] != options["y"]
        or len(asked) != options["x"]
    ):
        raise WrongUse(f"x has {options['x']} entries and y {options['y']}: set others with x=… and y=…")
    w = descended(points, targets, held(options["rate"]), options["steps"])
    answer = predicted(machine, points, targets, torch.tensor(asked))
    return {"prediction": answer.tolist(), "gradient_descent": (w @ torch.tensor(asked)).tolist()}


def check(machine: Machine, tasks: int = 100) -> list[dict[str, Any]]:
    """Random regressions in float64, from one example on: the largest difference from gradient descent's prediction."""
    options, rows = machine.options, []
    for count in (1, 5, 20):
        model = build(**options)
        model.model.double()
        generator = torch.Generator().manual_seed(count)
        largest = 0.0
        for _ in range(tasks):
            data = torch.randn(count + 1, options["x"] + options["y"], generator=generator, dtype=torch.float64)
            points, targets = data[:count, : options["x"]], data[:count, options["x"] :]
            query = data[count, : options["x"]]
            wanted = descended(points, targets, held(options["rate"]), options["steps"]) @ query
            largest = max(largest, (predicted(model, points, targets, query) - wanted).abs().max().item())
        rows.append({"examples": count, "steps": options["steps"], "tasks": tasks, "largest_difference": largest})
    return rows
