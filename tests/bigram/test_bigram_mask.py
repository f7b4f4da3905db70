"""Masks: which entries belong to which head, what they do to a model, overlap with chance, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import interp
from circuits import bigram
from circuits.bigram import Mask
from circuits.bigram.places import places
from interp import Failed, WrongUse
from interp.model import load
from tests.bigram.toy import Decoder, transitions
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
DECODERS = ["gpt2", "llama", "pythia", "phi3", "falcon grouped", "bloom", "mixtral"]


def drawn(model, rate: float, seed: int, by_matrix: bool = True) -> Mask:
    """Independent bits, at another rate in every parameter."""
    generator, mask = torch.Generator().manual_seed(seed), bigram.whole(model)
    rates = [rate * (1 + i % 5) if by_matrix else rate for i in range(len(mask.bits))]
    bits = {n: torch.rand(b.shape, generator=generator) < r for (n, b), r in zip(mask.bits.items(), rates, strict=True)}
    return Mask(bits, mask.model, mask.hash)


@pytest.mark.check("bigram C1 (masks)", formula="all ones: the same logits, bit for bit", tolerance=0.0)
@pytest.mark.parametrize("name", DECODERS)
def test_everything_kept_is_the_model_bit_for_bit(name, measured):
    model = load(module(name))
    kept = bigram.whole(model).apply(model)
    with torch.no_grad():
        a, b = (m(IDS).logits for m in (model, kept))
    assert torch.equal(a, b)
    measured(float((a - b).abs().max()))


@pytest.mark.check("bigram C1 (masks)", formula="all zeros: a block writes its biases and nothing else", tolerance=0.0)
@pytest.mark.parametrize("name", ["gpt2", "pythia", "opt", "llama"])
def test_nothing_kept_leaves_the_biases(name, measured):
    model = load(module(name))
    empty = bigram.whole(model, False).apply(model)
    for part, bias in (("attn", "b_O"), ("mlp", "b_out")):
        cache = empty.record(IDS, f"blocks.*.{part}.write")
        for i in range(3):
            written = cache[f"blocks.{i}.{part}.write"]
            b = model.weights.get(f"blocks.{i}.{part}.{bias}", torch.zeros(written.shape[-1]))
            assert torch.equal(written, b.expand_as(written))
            measured(float((written - b).abs().max()))


@pytest.mark.check("bigram C1 (masks)", formula="mask + complement = model, mask ∧ complement = nothing", tolerance=0.0)
def test_a_mask_and_its_complement_are_the_model(measured):
    model = load(module("llama"))
    mask = drawn(model, 0.1, 0)
    parts = [dict(m.apply(model).module.named_parameters()) for m in (mask, mask.complement())]
    assert mask.kept + mask.complement().kept == mask.size
    for name, whole in model.module.named_parameters():
        a, b = (p[name] for p in parts)
        if name in mask.bits:
            assert torch.equal(a + b, whole)
            assert torch.equal((a != 0) ^ (b != 0), whole != 0)
            measured(float((a + b - whole).detach().abs().max()))
        else:
            assert torch.equal(a, whole)
    assert all(
        torch.equal(m[0], m[1])
        for m in zip(model.module.parameters(), load(module("llama")).module.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", [*DECODERS, "gptj", "bitnet", "albert", "t5", "mamba"])
def test_every_entry_belongs_to_one_head_or_matrix(name):
    """What the owners count is what the named weights hold; norms, biases and tables are not masked."""
    model = load(module(name))
    found = places(model)
    masked = {p.parameter for p in found}
    for parameter, p in model.module.named_parameters():
        if p.ndim < 2 or "embed" in parameter or "bias" in parameter or "wte" in parameter or "wpe" in parameter:
            assert parameter not in masked, parameter
    sizes: dict[str, int] = {}
    for place in found:
        owner = place.owners()
        for cell, n in zip(
            place.cells, torch.bincount(owner.flatten(), minlength=len(place.cells)).tolist(), strict=True
        ):
            sizes[cell.matrix] = sizes.get(cell.matrix, 0) + n
        for matrix, layout in place.layouts:  # the layout reads, of the owners, one number a head
            read = layout.read(owner).reshape(max(layout.heads, 1), -1)
            assert all(len(row.unique()) == 1 for row in read), matrix
            assert len(read[:, 0].unique()) == max(layout.heads, 1)
    for matrix, n in sizes.items():
        if n and matrix in model.weights:
            assert n == model.weights[matrix].numel(), matrix
    assert sum(sizes.values()) == sum(dict(model.module.named_parameters())[n].numel() for n in masked)


@pytest.mark.parametrize("name", ["pythia", "gpt2", "llama", "phi3", "falcon grouped"])
def test_one_head_of_a_fused_matrix_is_that_head(name):
    """Keep only head 1 of W_K of block 2: the named weight of the masked model has that head and zeros."""
    model = load(module(name))
    bits = bigram.whole(model, False).bits
    for place in places(model):
        chosen = [i for i, c in enumerate(place.cells) if c.matrix == "blocks.2.attn.W_K" and c.head == 1]
        if chosen:
            bits[place.parameter] = place.owners() == chosen[0]
    kept = Mask(bits, "", bigram.whole(model).hash)
    frame = kept.to_frame(model)
    assert frame[frame.kept > 0][["block", "matrix", "head"]].values.tolist() == [["blocks.2", "attn.W_K", 1]]
    W, masked = model.weights["blocks.2.attn.W_K"], kept.apply(model).weights["blocks.2.attn.W_K"]
    assert torch.equal(masked[1], W[1])
    assert not masked[torch.arange(len(W)) != 1].any()
    assert kept.kept == W[1].numel()


def test_other_tools_take_the_masked_model():
    """Sites and weights keep their names where nothing is left that numbers could tell apart."""
    model = load(module("llama"))
    empty = bigram.whole(model, False).apply(model)
    assert empty.sites() == model.sites()
    assert not empty.weights["blocks.1.attn.W_Q"].any()
    seen = interp.Lens(empty)(IDS)
    assert float(seen.kl_forward.abs().max()) < 1e-6  # no block writes: every layer says the same
    assert not model.weights["blocks.1.attn.W_Q"].eq(0).all()


def test_random_masks_keep_as_much_in_every_matrix():
    model = load(module("phi3"))
    mask = drawn(model, 0.1, 1)
    a, b = mask.random_like(model, 0), mask.random_like(model, 0)
    sizes = [m.to_frame(model).groupby(["block", "matrix"]).kept.sum() for m in (mask, a)]
    assert sizes[0].equals(sizes[1])
    assert all(torch.equal(a.bits[n], b.bits[n]) for n in a.bits)
    assert bigram.overlap(mask, a, model).ratio == pytest.approx(1, abs=0.2)


# ---------------------------------------------------------------- overlap


@pytest.mark.check(
    "bigram C4 (overlap)",
    formula="E|A ∩ B| of independent masks = Σ_b n_b p_b q_b, in standard deviations",
    tolerance=3.0,
)
def test_independent_masks_overlap_as_rates_say(measured):
    model = load(module("gpt2"))
    a, b = drawn(model, 0.1, 2), drawn(model, 0.07, 3)
    rates = [(0.1 * (1 + i % 5), 0.07 * (1 + i % 5), t.numel()) for i, t in enumerate(a.bits.values())]
    mean = sum(p * q * n for p, q, n in rates) / a.size
    sd = math.sqrt(sum(p * q * (1 - p * q) * n for p, q, n in rates)) / a.size
    found = bigram.overlap(a, b, model)
    row = found.to_frame().iloc[0]
    assert abs(row.sampled - row.expected) < 3 * row.sd / math.sqrt(row.draws)
    assert len(found.plot().data) == 1
    assert found.p > 1e-3
    measured(abs(found.share - mean) / sd)


@pytest.mark.check("bigram C4 (overlap)", formula="overlap(A, A) = the rate of A", tolerance=0.0)
def test_a_mask_overlaps_itself_by_its_rate(measured):
    model = load(module("gpt2"))
    a = drawn(model, 0.05, 4)
    found = bigram.overlap(a, a, model, draws=2000)
    assert found.contained == 1
    assert found.p == 1 / 2001
    measured(abs(found.share - a.kept / a.size))


def test_the_null_is_that_of_shuffled_entries():
    """Mean and spread of 400 real shuffles of both masks within every matrix, against the law they follow."""
    model = load(Decoder(transitions(9, 0), blocks=1))
    a, b = drawn(model, 0.05, 5), drawn(model, 0.1, 6)
    shuffled = []
    for i in range(400):
        x, y = a.random_like(model, 2 * i), b.random_like(model, 2 * i + 1)
        shuffled.append(sum(int((x.bits[n] & y.bits[n]).sum()) for n in x.bits) / a.size)
    null = bigram.overlap(a, b, model).null
    assert np.mean(shuffled) == pytest.approx(null.mean(), abs=4 * null.std() / 20)
    assert np.std(shuffled) == pytest.approx(null.std(), rel=0.15)  # its own error: 1 / √800


# ---------------------------------------------------------------- files and errors


def test_what_is_saved_is_read_and_takes_a_bit_an_entry(tmp_path):
    model = load(module("gpt2"))
    mask = drawn(model, 0.1, 7)
    mask.save(tmp_path / "mask.safetensors")
    again = Mask.load(tmp_path)
    assert all(torch.equal(again.bits[n], b) for n, b in mask.bits.items())
    assert (again.kept, again.hash) == (mask.kept, mask.hash)
    size = (tmp_path / "mask.safetensors").stat().st_size
    assert size < mask.size / 8 + 200 * len(mask.bits) + 1000
    data = (tmp_path / "mask.safetensors").read_bytes()
    (tmp_path / "mask.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Failed, match="no whole mask"):
        Mask.load(tmp_path)
    with pytest.raises(WrongUse, match="interp bigram train"):
        Mask.load(tmp_path / "none")


def test_a_mask_of_another_model_is_refused():
    mask = bigram.whole(load(module("llama")))
    other = module("llama", torch.float64)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    for use in (
        mask.apply,
        mask.to_frame,
        mask.check,
        lambda m: mask.random_like(m, 0),
        lambda m: bigram.overlap(mask, mask, m),
    ):
        with pytest.raises(WrongUse, match="of another model"):
            use(load(other))


def test_what_cannot_be_masked_is_said():
    class Quantised(torch.nn.Linear):
        def forward(self, x):
            return x @ (self.weight.round(decimals=1) / 2).T

    net = Decoder(transitions(12, 0))
    net.blocks[1].attn.q = Quantised(24, 24, bias=False)
    with pytest.raises(WrongUse, match="applies another matrix than the one it stores"):
        places(load(net.requires_grad_(False)))


def test_the_picture_has_a_bar_for_every_block():
    model = load(module("llama"))
    figure = drawn(model, 0.1, 0).plot(model)
    assert {tuple(bar.x) for bar in figure.data} == {("blocks.0", "blocks.1", "blocks.2")}
    assert sum(sum(bar.y) for bar in figure.data) == pytest.approx(1)
