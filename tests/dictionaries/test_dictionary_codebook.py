"""Codebooks: exact on their own codes, head by head, and one code for each planted state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.dictionaries import (
    Codebook,
    Dictionary,
    DictionaryConfig,
    RowsSource,
    TrainConfig,
    forced,
    straight_through,
    train,
)
from interp.dictionaries.trainer import Trainer
from interp.errors import WrongUse

Measure = Callable[[float], None]


def codes(d: int, m: int, k: int, heads: int = 1) -> Dictionary:
    """Random codes of different lengths, float64."""
    D = Dictionary(DictionaryConfig(("in",), ("in",), d, d, m, k, "codebook", heads=heads)).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        D.W_dec.copy_(torch.randn(m, d, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 3, m)[:, None])
        D.b_dec.copy_(torch.randn(d, generator=generator, dtype=torch.float64))
        D.confine()
    return D


def rows(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.check("dictionaries CB1", formula="x a code: x̂ = x, and ∂x̂/∂x is the identity", tolerance=1e-14)
def test_cb1_codes_are_their_own_reconstruction(measured: Measure) -> None:
    D = codes(6, 20, 1)
    x = (D.W_dec + D.b_dec).detach().requires_grad_()
    made = straight_through(D, x)
    measured((made - x).abs().max().item())
    g = rows(20, 6)
    made.backward(g)
    assert x.grad is not None and D.W_dec.grad is not None
    measured((x.grad - g).abs().max().item())
    measured((D.W_dec.grad - g).abs().max().item())


@pytest.mark.check("dictionaries CB2", formula="the codes of b + s (x − b) are those of x, s > 0", tolerance=0.0)
def test_cb2_choice_does_not_depend_on_length(measured: Measure) -> None:
    D, x = codes(6, 20, 3), rows(200, 6)
    for s in (0.01, 7.0):
        moved = D.active(D.b_dec.detach() + s * (x - D.b_dec.detach()))
        measured(float((moved.indices != D.active(x).indices).sum()))
    assert D.active(x).indices.unique().numel() > 15


@pytest.mark.check("dictionaries CB3", formula="a codebook of H heads = H codebooks on chunks", tolerance=1e-14)
def test_cb3_heads_are_codebooks_of_their_own(measured: Measure) -> None:
    D, x = codes(6, 20, 2, heads=2), rows(200, 6)
    for h in (0, 1):
        d, m = slice(3 * h, 3 * h + 3), slice(10 * h, 10 * h + 10)
        one = codes(3, 10, 2)
        with torch.no_grad():
            one.W_dec.copy_(D.W_dec[m, d])
            one.b_dec.copy_(D.b_dec[d])
        measured((D(x)[:, d] - one(x[:, d])).abs().max().item())
        assert torch.equal(D.encode(x)[:, m], one.encode(x[:, d]))


def test_heads_stay_apart_in_training() -> None:
    """Also where codes are placed anew."""
    config = TrainConfig(Codebook(k=1, heads=2, resample=4), latents=20, batch=50, steps=12, lr=1e-2)
    t = Trainer(config, RowsSource(rows(400, 6).float()))
    t.begin()
    start = t.dictionary.W_dec.detach().clone()
    for x, y in t.source.batches(50, 0, 0, 12):
        t.silent[3] = 1000
        t.update(x, y)
    W = t.dictionary.W_dec
    assert not W[:10, 3:].any() and not W[10:, :3].any()
    assert (W[3, :3] - start[3, :3]).norm() > 0.1
    assert (W[:10, :3] != start[:10, :3]).any()


@pytest.mark.check("dictionaries CB5", formula="a code −1 adds nothing, and the divisor stays k", tolerance=1e-14)
def test_cb5_forced_codes(measured: Measure) -> None:
    D, x = codes(6, 20, 3), rows(4, 6)
    for ids, sum_of in (([2, 9, 4], [2, 9, 4]), ([2, -1, 4], [2, 4]), ([-1, -1, -1], [])):
        y = forced(D, torch.tensor(ids))(x)
        measured((y - D.b_dec - D.W_dec[sum_of].sum(0) / 3).abs().max().item())
        assert y.shape == x.shape
    with pytest.raises(WrongUse, match=r"numbered 0 to 19, and −1 is none; got \[20\]"):
        forced(D, torch.tensor([20]))


def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Twelve states [12, 16], which of them each row is in, and the rows: their states with noise."""
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(12, 16, generator=generator)
    state = torch.randint(12, (6000,), generator=generator)
    return states, state, states[state] + 0.1 * torch.randn(6000, 16, generator=generator)


def purity(D: Dictionary, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """How often each state has each code [12, m], and the precision of every code that is used."""
    code = D.active(x).indices[:, 0]
    together = torch.zeros(12, D.config.latents).index_put((state, code), torch.ones(len(x)), accumulate=True)
    used = together.sum(0) > 0
    return together, (together.max(0).values / together.sum(0))[used]


@pytest.mark.check(
    "dictionaries CB4",
    formula="codes = states: 1 − precision, 1 − recall; a forced code gives its state's next states",
    tolerance=1e-12,
)
def test_cb4_one_code_for_each_state(measured: Measure) -> None:
    """The states as codes. What comes next is a softmax of a linear readout: of a swapped code, it is the other state's."""
    states, state, x = planted()
    D = codes(16, 12, 1)
    with torch.no_grad():
        D.b_dec.zero_()
        D.W_dec.copy_(states)
    together, precision = purity(D, state, x)
    measured(float(1 - precision.min()))
    measured(float(1 - (together.max(1).values / together.sum(1)).min()))
    readout = torch.randn(16, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    following = (states.double() @ readout).softmax(1)
    for s in range(12):
        steered = forced(D, torch.tensor([s]))(x[:5].double())
        measured(((steered @ readout).softmax(1) - following[s]).abs().max().item())


def test_trained_codes_stand_for_one_state_each(tmp_path: Path) -> None:
    _, state, x = planted()
    config = TrainConfig(Codebook(k=1, resample=20), latents=36, steps=150, batch=256, lr=1e-2)
    together, precision = purity(train(config, RowsSource(x), tmp_path), state, x)
    assert precision.min() > 0.99
    assert (together.sum(0) > 0).sum() >= 12


@pytest.mark.parametrize("heads", [1, 3])
def test_first_codes_cover_the_directions(heads: int) -> None:
    """20 directions, some a hundred times as frequent as others: each is a code of each head, and only then comes again."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(20, heads, 16, generator=generator)
    often = torch.cat([torch.arange(20), torch.randint(4, (3000,), generator=generator)])
    x = centres[often].flatten(1)
    config = TrainConfig(Codebook(k=1, heads=heads), latents=22 * heads, batch=64)
    t = Trainer(config, RowsSource(x))
    t.begin()
    D, around = t.dictionary, (centres.flatten(1) * t.scales[0][0] - t.dictionary.b_dec.detach()).view(20, heads, 16)
    with torch.no_grad():
        for head, codes in enumerate(D.W_dec.view(heads, 22, heads, 16).diagonal(dim1=0, dim2=2).unbind(-1)):
            near = normalize(codes) @ normalize(around[:, head]).T
            assert near.argmax(1).unique().numel() == 20
