"""The backward lens: its outer products sum to the gradient of autograd."""

from __future__ import annotations

import copy

import pytest
import torch

from interp import WrongUse
from interp.lenses import Lens, weight_gradient
from interp.model import load
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])


def loss(logits):
    return -logits.log_softmax(-1)[:, -1, 4].sum()


@pytest.mark.check("lenses backward", formula="‖Σ_t x_tᵀ δ_t − ∂L/∂W‖ / ‖∂L/∂W‖, autograd's", tolerance=1e-6)
@pytest.mark.parametrize(
    ("name", "weights"),
    [("llama", ["W_gate", "W_up", "W_out"]), ("gpt2", ["W_in", "W_out"]), ("pythia", ["W_in", "W_out"])],
)
def test_the_outer_products_sum_to_the_gradient(name, weights, measured):
    net = copy.deepcopy(module(name, torch.float64)).requires_grad_(True)
    lens = Lens(load(net))
    loss(net(input_ids=IDS, use_cache=False).logits).backward()
    for weight in weights:
        found = weight_gradient(lens, IDS, f"blocks.1.mlp.{weight}", loss)
        layout = lens.model.weights.layout(f"blocks.1.mlp.{weight}")
        stored = net.get_submodule(layout.path).weight.grad
        wanted = stored.mT if layout.turned else stored
        measured(float((found.gradient - wanted).norm() / wanted.norm()))
        assert found.norms.shape == (12,)


def test_sides_in_the_stream_are_read():
    """Minus δ at the last matrix, x at a first one, each by the head."""
    lens = Lens(load(module("llama")))
    last = weight_gradient(lens, IDS, "blocks.2.mlp.W_out", loss)
    first = weight_gradient(lens, IDS, "blocks.2.mlp.W_up", loss)
    ends = [5, 11]  # after the last attention only the last tokens are asked about; δ of all others is zero
    assert torch.equal(last.read(lens, k=3)[0][ends], lens.head(-last.delta).topk(3).indices[ends])
    assert torch.equal(last.read(lens, k=3, sign=1)[0][ends], lens.head(last.delta).topk(3).indices[ends])
    assert torch.equal(first.read(lens, k=3)[0], lens.head(first.x).topk(3).indices)
    assert not bool(
        last.delta.view(2, 6, -1)[:, :5].any()
    )  # after the last attention only the last token is asked about


def test_weights_that_cannot_be_read_backwards():
    lens = Lens(load(module("llama")))
    with pytest.raises(WrongUse, match="no matrix of an MLP"):
        weight_gradient(lens, IDS, "blocks.1.attn.W_Q", loss)
    with pytest.raises(WrongUse, match="GLU"):
        weight_gradient(lens, IDS, "blocks.1.mlp.W_in", loss)
    with pytest.raises(WrongUse, match=r"blocks\.9"):
        weight_gradient(lens, IDS, "blocks.9.mlp.W_out", loss)
