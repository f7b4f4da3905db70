"""Hooks that are put in and taken out together: where they are, in which order, and that nothing is left of them."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.model import load
from interp.model.binding import output_matrix
from interp.model.hooks import Hooks
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20]])


class Doubled(nn.Module):
    """Twice what another module returns, which it keeps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def _hooks(net: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(m, kind)) for m in net.modules() for kind in kinds)


@pytest.mark.parametrize("site", ["module:transformer.h.1.mlp", "blocks.1.mlp.out"])
def test_a_module_that_was_exchanged_is_the_one_recorded(site: str) -> None:
    net = copy.deepcopy(module("gpt2"))
    model = load(net)
    before = model.record(IDS, [site])[site]
    net.transformer.h[1].mlp = Doubled(net.transformer.h[1].mlp)
    assert torch.equal(model.record(IDS, [site])[site], 2 * before)
    doubled = weakref.ref(net.transformer.h[1].mlp)
    net.transformer.h[1].mlp = net.transformer.h[1].mlp.inner
    assert doubled() is None
    assert torch.equal(model.record(IDS, [site])[site], before)
    assert _hooks(net) == 0


def test_hooks_come_behind_those_that_are_there_and_leave_them() -> None:
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()))
    told: list[str] = []
    own = net[1].register_forward_hook(lambda m, a, o: told.append("own"))
    hooks = Hooks(
        net,
        [
            ("1", "out", lambda m, a, o: told.append("out")),
            ("1.0", "in", lambda m, a, k: told.append(f"in, {len(a)} and {len(k)}")),
            ("", "out", lambda m, a, o: o + 1),
        ],
    )
    for _ in range(2):
        hooks.put()
        assert torch.equal(net(torch.zeros(2)), torch.ones(2))
        assert _hooks(net) == 5  # one of the input counts twice: it is told keywords
        hooks.remove()
        hooks.remove()
        assert _hooks(net) == 1
    assert told == ["in, 1 and 0", "own", "out"] * 2
    own.remove()


def test_a_path_that_leads_nowhere_leaves_nothing() -> None:
    net = nn.Sequential(nn.Identity())
    hooks = Hooks(net, [("0", "out", lambda m, a, o: None), ("1", "out", lambda m, a, o: None)])
    with pytest.raises(KeyError, match="1"):
        hooks.put()
    assert _hooks(net) == 0
    net.append(nn.Identity())
    hooks.put()
    assert _hooks(net) == 2


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_the_matrix_of_a_linear_layer_is_its_own(kind: type[nn.Module]) -> None:
    layer = kind(5, 7) if kind is nn.Linear else kind(7, 5)
    z, bias = torch.randn(3, 5), layer.bias.detach()  # type: ignore[union-attr]
    matrix = output_matrix(layer, 5, z)
    assert (z @ matrix + bias - layer(z)).abs().max() < 1e-6  # float32, five numbers a sum
    own = matrix.untyped_storage().data_ptr()
    assert own == layer.weight.untyped_storage().data_ptr()  # type: ignore[union-attr,operator]
    other = Doubled(layer)
    assert (output_matrix(other, 5, z) - 2 * matrix).abs().max() < 1e-6
    layer.forward = lambda x: 3 * kind.forward(layer, x)  # type: ignore[method-assign]
    assert (output_matrix(layer, 5, z) - 3 * matrix).abs().max() < 1e-6
