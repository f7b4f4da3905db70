"""An MLP put together neuron by neuron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

Layer = dict[str, Tensor]


class Neurons:
    """The neurons of one MLP: each reads some directions of the stream and writes to some."""

    def __init__(self, width: int) -> None:
        self.width, self.columns, self.biases, self.rows = width, list[Any](), list[float](), list[Any]()

    def add(self, reads: dict[int, float], bias: float, writes: dict[int, float]) -> None:
        """writes · relu(reads · h + bias)."""
        self.columns.append(self._vector(reads))
        self.biases.append(bias)
        self.rows.append(self._vector(writes))

    def step(self, reads: dict[int, float], bias: float, threshold: float, writes: dict[int, float]) -> None:
        """writes · [S ≥ threshold] of S = reads · h + bias near a whole number: relu(2(S - T) + 3/2) - relu(2(S - T) + 1/2)."""
        twice = {direction: 2 * weight for direction, weight in reads.items()}
        self.add(twice, 2 * (bias - threshold) + 1.5, writes)
        self.add(twice, 2 * (bias - threshold) + 0.5, {direction: -weight for direction, weight in writes.items()})

    def copy(self, source: int, writes: dict[int, float]) -> None:
        """writes · h[source], by x = relu(x) - relu(-x)."""
        self.add({source: 1.0}, 0.0, writes)
        self.add({source: -1.0}, 0.0, {direction: -weight for direction, weight in writes.items()})

    def weights(self) -> Layer:
        """The MLP as a layer has it."""
        return {
            "W_in": torch.stack(self.columns, 1),
            "b_in": torch.tensor(self.biases, dtype=torch.float64),
            "W_out": torch.stack(self.rows),
            "b_out": torch.zeros(self.width, dtype=torch.float64),
        }

    def _vector(self, entries: dict[int, float]) -> Float[Tensor, "d_model"]:
        made = torch.zeros(self.width, dtype=torch.float64)
        for direction, weight in entries.items():
            made[direction] += weight
        return made
