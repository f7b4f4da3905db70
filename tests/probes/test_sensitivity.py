"""Jacobian norms: equal to central differences, estimated within their errors, and blind to padding."""

from __future__ import annotations

import pytest
import torch

from interp import WrongUse
from interp.model import load
from interp.model.edits import Replace
from interp.model.twin import Lifted
from probes.sensitivity import Sensitivity, sensitivity
from tests.model.shapes import module

IDS = [5, 9, 11, 3, 8, 20, 7]
STEP = 1e-5


def differences(model, site, until, i, n):
    """‖∂ until_n / ∂ site_i‖_F by central differences, every number of site_i in a row of its own."""
    d = model.width(site)
    ids = torch.tensor([IDS]).expand(d, -1)
    made = []
    for sign in (1, -1):
        bump = torch.zeros(d, len(IDS), d, dtype=torch.float64)
        bump[:, i] = sign * STEP * torch.eye(d, dtype=torch.float64)
        with model.edit(Replace(site, lambda x, b=bump: x + b)):
            made.append(model.record(ids, until)[until][:, n])
    return float(((made[0] - made[1]) / (2 * STEP)).norm())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gptj"])
@pytest.mark.check("squash Jacobian", formula="‖∂y_n/∂v_i‖_F against central differences, relative", tolerance=1e-4)
def test_norms_equal_central_differences(name, measured):
    with Lifted():
        model = load(module(name, torch.float64))
        found = sensitivity(model, IDS)
        assert found.probes == 0
        for site in ("blocks.0.resid_pre", "blocks.2.resid_pre"):
            for i in (0, 3, 6):
                wanted = differences(model, site, "final_norm", i, 6)
                measured(abs(float(found.norms[site][i]) - wanted) / (wanted or 1))  # 0 where no window reaches


def test_probes_come_within_their_errors():
    model = load(module("llama", torch.float64))
    exact = sensitivity(model, IDS, probes=0)
    drawn = sensitivity(model, IDS, probes=128, seed=3)
    for site, norms in exact.norms.items():
        felt = norms > 0
        off = (drawn.norms[site] - norms).abs()[felt] / drawn.errors[site][felt]
        assert float(off.max()) < 4
        assert bool((drawn.norms[site][~felt] == 0).all())
    assert drawn.to_frame()["error"].notna().all()
    assert (
        sensitivity(model, IDS, probes=8, seed=3)
        .norms["blocks.0.resid_pre"]
        .equal(sensitivity(model, IDS, probes=8, seed=3).norms["blocks.0.resid_pre"])
    )
    many = sensitivity(model, IDS, until="logits", probes=0).norms["blocks.1.resid_pre"]
    assert many.shape == (7,)


def test_a_site_against_itself_is_the_identity_and_later_tokens_are_not_felt():
    model = load(module("gpt2", torch.float64))
    found = sensitivity(model, IDS, "blocks.1.resid_pre", until="blocks.1.resid_pre", pos=3)
    assert found.norms["blocks.1.resid_pre"].tolist() == [0, 0, 0, pytest.approx(32**0.5), 0, 0, 0]
    assert bool((sensitivity(model, IDS, pos=3).norms["blocks.0.resid_pre"][4:] == 0).all())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_changes_nothing(name):
    model = load(module(name, torch.float64))
    plain = sensitivity(model, IDS).norms
    for left in (False, True):
        tokens = model.pad([IDS, [1] * 10], left=left)
        batch = {"input_ids": tokens.ids[:1], "attention_mask": tokens.mask[:1].long()}
        if left:  # positions are counted from the first real token, as generation counts them
            batch["position_ids"] = (tokens.mask[:1].long().cumsum(1) - 1).clamp(min=0)
        found = sensitivity(model, batch)
        assert found.pos == 6
        for site, norms in found.norms.items():
            assert torch.allclose(norms, plain[site], rtol=1e-6)


def test_an_encoder_is_felt_through_its_decoder():
    model = load(module("t5", torch.float64))
    inputs = {"input_ids": torch.tensor([IDS]), "decoder_input_ids": torch.tensor([[0, 4, 9]])}
    found = sensitivity(model, inputs, ["encoder.blocks.0.resid_pre", "decoder.blocks.0.resid_pre"])
    assert [len(v) for v in found.norms.values()] == [7, 3]
    assert all(bool((v > 0).all()) for v in found.norms.values())
    frame = found.field()
    assert frame["within"].isna().tolist() == [True, False]
    assert len(found.plot().data[0].z) == 2


def test_short_and_rough_inputs():
    assert len(sensitivity(load(module("gpt2")), [5]).norms["blocks.0.resid_pre"]) == 1
    half = load(module("llama", torch.bfloat16))
    rough, fine = sensitivity(half, IDS).norms, sensitivity(load(module("llama")), IDS).norms
    for site, norms in fine.items():
        assert torch.allclose(rough[site], norms, rtol=0.1, atol=0.05 * float(norms.max()))
    looks_both_ways = sensitivity(load(module("bert")), IDS, pos=0).norms["blocks.0.resid_pre"]
    assert bool((looks_both_ways > 0).all())


def test_the_receptive_field_of_known_shares():
    """Squares 0, 1, 0, 9: a tenth two tokens back, nine tenths at the token itself."""
    norms = {"s": torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])}
    found = Sensitivity(norms, {}, {"s": list("abcde")}, "s", 3, 0)
    assert found.field(0.9)["within"].tolist() == [1]
    row = found.field(0.95).iloc[0]
    assert row["within"] == 3
    assert row["distance"] == pytest.approx(0.2)
    assert row["tokens"] == pytest.approx(1 / (0.1**0.1 * 0.9**0.9))
    assert found.to_frame()["norm"].tolist() == norms["s"].tolist()


def test_bad_requests_are_refused():
    model = load(module("gpt2"))
    with pytest.raises(WrongUse, match="one prompt"):
        sensitivity(model, torch.tensor([IDS, IDS]))
    with pytest.raises(WrongUse, match="no tokens"):
        sensitivity(model, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(WrongUse, match="position 7 is not there"):
        sensitivity(model, IDS, pos=7)
    with pytest.raises(WrongUse, match="2 or more"):
        sensitivity(model, IDS, probes=1)
    with pytest.raises(WrongUse, match="does not depend on"):
        sensitivity(model, IDS, "blocks.2.resid_post", until="blocks.1.resid_pre")
    with pytest.raises(WrongUse, match="no site"):
        sensitivity(model, IDS, "blocks.7.resid_pre")
