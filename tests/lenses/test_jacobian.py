"""The Jacobian lens: exact where blocks are affine, and the average derivative where they are not."""

from __future__ import annotations

import pytest
import torch

from interp import Replace, WrongUse
from interp.lenses import JacobianLens, explained, fit_jacobian
from interp.model import load
from interp.model.twin import Lifted
from tests.lenses.test_tuned import Words, numbers
from tests.lenses.toy import Linear
from tests.model.shapes import module

IDS = [5, 9, 11, 3, 8, 20, 7]


@pytest.mark.check("lenses Jacobian lens", formula="1 − R² of the first-order expansion, blocks affine", tolerance=1e-9)
def test_affine_blocks_are_carried_exactly(measured):
    """And each map is the product of the blocks' own, (I + A_2) … (I + A_l), float64."""
    net = Linear(vocabulary=23).double()
    model = load(net, tokenizer=Words())
    lens = fit_jacobian(model, numbers(23, 20, 0), context=32, skip=3)
    r2 = explained(lens, numbers(23, 5, 1), context=32)
    measured(float((1 - r2["jacobian"]).abs().max()))
    assert float(r2["identity"][0]) < 0.99
    eye = whole = torch.eye(8, dtype=torch.float64)
    for layer in (2, 1, 0):
        whole = whole @ (eye + net.blocks[layer].part.weight)
        assert float((eye + lens.W[layer] - whole).abs().max()) < 1e-12


@pytest.mark.check(
    "lenses Jacobian lens (finite differences)", formula="J e_j = E_t Σ ∂h_L(t')/∂h_l(t) e_j", tolerance=1e-6
)
def test_it_is_the_average_derivative(measured):
    """Central differences of the last stream, one coordinate of one position at a time, summed over all later positions."""
    skip, step, site = 2, 1e-5, "blocks.1.resid_pre"
    with Lifted():
        model = load(module("llama", torch.float64), tokenizer=Words())
        lens = fit_jacobian(model, [" ".join(map(str, IDS))], context=16, skip=skip)
        # the stream before block 1 is what block 0 returns
        J = torch.eye(32, dtype=torch.float64) + lens.W[lens.sites.index("blocks.0.resid_post")]
        for j in (0, 13, 31):
            columns = []
            for t in range(skip, len(IDS)):
                moved = []
                for sign in (1, -1):
                    push = torch.zeros(32, dtype=torch.float64)
                    push[j] = sign * step
                    put = Replace(site, lambda x, push=push: x + push, pos=t)
                    moved.append(
                        model.record(torch.tensor([IDS]), lens.head.last, edits=[put])[lens.head.last][0, skip:]
                    )
                columns.append((moved[0] - moved[1]).sum(0) / (2 * step))
            wanted = torch.stack(columns).mean(0)
            measured(float((J[:, j] - wanted).abs().max() / wanted.abs().max()))


def test_the_mean_state_is_read_as_the_mean_of_the_last_stream():
    """b = E h_L - J E h_l, over the tokens the slopes are averaged over."""
    model = load(module("llama"), tokenizer=Words())
    lens = fit_jacobian(model, [" ".join(map(str, IDS))], context=16, skip=3)
    cache = model.record(torch.tensor([IDS]), [lens.sites[1], lens.head.last])
    h, last = (cache[n][0, 3:].mean(0) for n in (lens.sites[1], lens.head.last))
    assert torch.allclose(lens.translated(1, h[None])[0], last, atol=1e-4 * float(last.abs().max()))


def test_it_is_saved_read_and_refuses_short_text(tmp_path):
    model = load(module("llama"), tokenizer=Words())
    lens = fit_jacobian(model, numbers(61, 3, 0), tmp_path, context=32, skip=4)
    ids = torch.tensor([IDS])
    again = JacobianLens.load(tmp_path, model)
    assert torch.equal(again(ids).kl_forward, lens(ids).kl_forward)
    assert float(again(ids).kl_forward[-1].abs().max()) == 0.0
    with pytest.raises(WrongUse, match="longer than 16 tokens"):
        fit_jacobian(model, ["5 9 11"])
    with pytest.raises(WrongUse, match="empty"):
        fit_jacobian(model, [])
