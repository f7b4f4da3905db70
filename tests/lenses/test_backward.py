"""The backward lens: its outer products sum to the gradient of autograd."""

from __future__ import annotations

import copy

import pytest
import torch

from interp import WrongUse
from interp.lenses import BackwardLens, Lens, weight_gradient
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


def test_the_backward_lens_reads_minus_the_gradient():
    """Against autograd through Hugging Face's own cross-entropy of the next token; as long as the token's last stream."""
    net = module("llama")
    model = load(net)
    lens = BackwardLens(model)
    ids = torch.tensor([[5, 9, 11, 3, 8, 20]])
    last, states = lens.states(model.inputs(ids), lens.readable())
    assert list(states) == [f"blocks.{i}.mlp.out" for i in range(3)]
    kept = {}
    handle = net.model.layers[1].mlp.register_forward_hook(
        lambda m, a, out: (kept.update(out=out.detach().requires_grad_()), kept["out"])[1]
    )
    net(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    handle.remove()
    wanted, got = -kept["out"].grad[0], states["blocks.1.mlp.out"][0]
    assert float(torch.cosine_similarity(got, wanted)[:-1].min()) > 1 - 1e-5
    assert torch.allclose(got.norm(dim=1)[:-1], last[0].norm(dim=1)[:-1], rtol=1e-5)
    assert not bool(got[-1].any())  # after the last token nothing is asked
    seen = lens(ids, tokens=range(61))
    assert torch.allclose(seen.chosen_log_prob[1], lens.head(got).log_softmax(-1), atol=1e-5)


def test_at_the_last_block_it_moves_towards_the_target():
    """-∂L/∂h of the last stream points where the target's log-probability rises: a small step along it raises it."""
    model = load(module("llama"))
    lens = BackwardLens(model, target=7)
    ids = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
    last, states = lens.states(model.inputs(ids), ["blocks.2.resid_post", "blocks.0.mlp.write"])
    step = states["blocks.2.resid_post"]
    before, after = (lens.head(x[:, -1]).log_softmax(-1)[:, 7] for x in (last, last + 1e-3 * step))
    assert bool((after > before).all())
    assert not bool(
        step[:, :-1].any()
    )  # earlier tokens reach the last one by attention alone: not after the last block
    assert bool(states["blocks.0.mlp.write"][:, 0].any())


def test_what_the_backward_lens_cannot_read():
    with pytest.raises(WrongUse, match="looks both ways"):
        BackwardLens(load(module("bert")))
    lens = BackwardLens(load(module("llama")))
    with pytest.raises(WrongUse, match="at least two tokens"):
        lens(torch.tensor([[5]]))
    with pytest.raises(WrongUse, match="ids run from"):
        BackwardLens(lens.model, target=99)
    with pytest.raises(WrongUse, match="cannot read"):
        lens(torch.tensor([[5, 6]]), "blocks.0.mlp.post")
