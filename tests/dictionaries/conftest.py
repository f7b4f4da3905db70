"""Dictionaries with random weights, away from every default."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp.dictionaries import Dictionary, DictionaryConfig

Make = Callable[..., Dictionary]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Matrices here are tiny: on a busy machine, threads that wait for each other take a hundred times as long."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make() -> Make:
    """`make(d_in, d_out, latents, k, ...)`: an autoencoder if `d_out` is None, else a transcoder; float64."""

    def build(
        d_in: int = 9,
        d_out: int | None = None,
        latents: int = 120,
        k: int | None = 5,
        skip: bool = False,
        activation: str = "topk",
    ) -> Dictionary:
        reads, writes = ("in",), ("in" if d_out is None else "out",)
        config = DictionaryConfig(reads, writes, d_in, d_out or d_in, latents, k, activation, skip)
        dictionary = Dictionary(config).double()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for p in dictionary.tensors().values():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) + 0.2)
        return dictionary

    return build


@pytest.fixture
def rows() -> torch.Tensor:
    """Rows away from zero, one scale a column [400, 9], float64."""
    generator = torch.Generator().manual_seed(6)
    return (
        torch.randn(400, 9, generator=generator, dtype=torch.float64) * torch.linspace(0.3, 2, 9, dtype=torch.float64)
        + 0.7
    )
