"""Linear shortcuts and patchscopes."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import WrongUse
from interp.lenses import Shortcut, explained, fit_shortcut, patch_from
from interp.model import load
from tests.lenses.test_tuned import Words, numbers
from tests.lenses.toy import Linear
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])


@pytest.mark.check(
    "lenses linear shortcut", formula="1 − R² of the fitted maps where blocks are linear", tolerance=1e-9
)
def test_linear_blocks_are_found_exactly(measured):
    """And the map is the product of the blocks' own, (I + A_2)(I + A_1)(I + A_0), float64."""
    net = Linear(vocabulary=23).double()
    model = load(net, tokenizer=Words())
    lens = fit_shortcut(model, numbers(23, 40, 0), ridge=1e-12, context=32)
    r2 = explained(lens, numbers(23, 5, 1), context=32)
    measured(float((1 - r2["shortcut"]).abs().max()))
    assert float(r2["identity"][0]) < 0.99
    whole = torch.eye(8, dtype=torch.float64)
    for block in net.blocks:
        whole = (torch.eye(8, dtype=torch.float64) + block.part.weight) @ whole
    assert float((torch.eye(8, dtype=torch.float64) + lens.W[0] - whole).abs().max()) < 1e-7


def test_it_is_the_least_squares_solution(tmp_path):
    """Against numpy's solver on all states at once, of windows of unequal length, so that batches are padded."""
    model = load(module("llama"), tokenizer=Words())
    texts = [*numbers(61, 12, 0), "5 9 11"]
    lens = fit_shortcut(model, texts, ridge=0.0, context=24)
    from interp.store.recording import windows

    rows: dict[str, list[torch.Tensor]] = {}
    for number, (_, ids) in enumerate(windows(model, texts, 24)):
        if number % 10 == 9:  # kept out of the fit
            continue
        cache = model.record(torch.tensor([ids]), [lens.sites[1], lens.head.last])
        for name in cache:
            rows.setdefault(name, []).append(cache[name][0].double())
    h, last = (torch.cat(rows[n]) for n in (lens.sites[1], lens.head.last))
    x = torch.cat([h, torch.ones(len(h), 1)], dim=1)
    wanted = torch.linalg.lstsq(x, last).solution
    assert float((lens.translated(1, h.float()) - x @ wanted).abs().max()) < 1e-3 * float(last.abs().max())
    lens.save(tmp_path)
    again = Shortcut.load(tmp_path, model)
    assert torch.equal(again(IDS).kl_forward, lens(IDS).kl_forward)
    with pytest.raises(WrongUse, match="empty"):
        fit_shortcut(model, [])


def test_on_the_bundled_model_it_beats_the_identity_on_held_out_text():
    from interp.zoo.corpus import topics

    model, split = interp.load("zoo:books"), topics()
    lens = fit_shortcut(model, [split.train], ridge=1e-3, context=128, tokens=4000)
    r2 = explained(lens, [split.held_out[:6000]], context=128)
    assert bool((r2["shortcut"] > r2["identity"]).all())


def test_a_state_put_into_its_own_place_changes_nothing():
    model = load(module("llama"))
    edit = patch_from(model, IDS, "blocks.1.resid_post", 2, target_pos=2)
    seen = model.record(IDS, "logits", edits=[edit], strict=True)
    assert torch.equal(seen.logits, model.record(IDS, "logits").logits)


def test_a_state_is_read_in_another_prompt():
    """By hand: a hook that overwrites one position of the block's output, at another layer."""
    net = module("llama")
    model = load(net)
    target = torch.tensor([[4, 30, 2, 9]])
    edit = patch_from(model, IDS[:1], "blocks.0.resid_post", -1, target_pos=3, target_site="blocks.1.resid_post")
    got = model.record(target, "logits", edits=[edit]).logits
    state = model.record(IDS[:1], "blocks.0.resid_post")["blocks.0.resid_post"][:, -1]

    def put(module, args, out):
        out = out.clone()
        out[:, 3] = state
        return out

    handle = net.model.layers[1].register_forward_hook(put)
    try:
        with torch.no_grad():
            wanted = net(input_ids=target, use_cache=False).logits
    finally:
        handle.remove()
    assert torch.equal(got, wanted)
    with model.edit(edit):
        assert model.generate(target, max_new_tokens=3).shape == (1, 7)


def test_patches_that_cannot_be():
    model = load(module("llama"))
    with pytest.raises(WrongUse, match="no state fits both"):
        patch_from(model, IDS, "blocks.1.resid_post", 0, target_pos=0, target_site="blocks.1.mlp.post")
    with pytest.raises(WrongUse, match="count it from the target's start"):
        patch_from(model, IDS, "blocks.1.resid_post", 0, target_pos=-1)
    with pytest.raises(WrongUse, match="lies outside"):
        patch_from(model, IDS, "blocks.1.resid_post", 9, target_pos=1)
