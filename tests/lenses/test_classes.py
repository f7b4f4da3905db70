"""The class-embedding lens: pictures read token by token."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf

from interp import WrongUse
from interp.lenses import ClassLens
from interp.lenses.classes import picture_of
from interp.model import load
from interp.model.inputs import probe_inputs
from interp.model.twin import randomise
from tests.model.shapes import LAYERS, MLP, module

TEN = {"id2label": {i: f"class {i}" for i in range(10)}, "label2id": {f"class {i}": i for i in range(10)}}


@cache
def net(name: str):
    """A random classifier of ten classes, of pictures of 4 × 4 patches."""
    size = LAYERS | MLP | dict(image_size=16, patch_size=4) | TEN
    built = {
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**size)),
        "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**size)),
        "beit": lambda: hf.BeitForImageClassification(hf.BeitConfig(**size, use_relative_position_bias=True)),
        "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**size)),
    }[name]().eval()
    randomise(built, 3)
    return built


def pictures(name: str, count: int = 3):
    return probe_inputs(net(name), batch=count, seed=9)["pixel_values"]


@pytest.mark.check("lenses 5a (class token at the last block)", formula="head(norm(h_L[CLS])) = logits", tolerance=1e-5)
@pytest.mark.parametrize("name", ["vit", "deit"])
def test_the_class_token_ends_as_the_model(name, measured):
    model = load(net(name))
    lens, x = ClassLens(model), pictures(name)
    with torch.no_grad():
        logits = model(x).logits
    for label in (0, 7):
        seen = lens.evolution(x, label=label)
        measured(float((seen.logit[-1, :, 0] - logits[:, label]).abs().max()))
    assert torch.equal(lens.evolution(x).labels, logits.argmax(-1))
    assert bool((lens.evolution(x).identifiability[-1, :, 0] == 1).all())


TAILS = {  # norm and head of Hugging Face; where a head reads several tokens, all of them are the state
    "vit": lambda net, h: net.classifier(net.vit.layernorm(h)),
    "deit": lambda net, h: net.classifier(net.deit.layernorm(h)),
    "beit": lambda net, h: net.classifier(net.beit.pooler.layernorm(h)),
    "swin": lambda net, h: net.classifier(net.swin.layernorm(h)),
    "dinov2": lambda net, h: net.classifier(net.dinov2.layernorm(h).repeat(1, 1, 2)),
}


@pytest.mark.parametrize("name", TAILS)
def test_every_token_is_read_by_the_norm_and_the_head(name):
    """Logit, rank and likeliest class of every token at every block, against a few lines for each architecture."""
    built = module("swin") if name == "swin" else net(name)
    lens, x = ClassLens(load(built)), probe_inputs(built, batch=2, seed=9)["pixel_values"]
    seen = lens.evolution(x, label=1)
    cache = lens.model.record(x, list(seen.rows))
    with torch.no_grad():
        wanted = torch.stack([TAILS[name](built, cache[row]) for row in seen.rows])
    assert torch.allclose(seen.logit, wanted[..., 1], atol=1e-5)
    assert torch.equal(seen.rank, 1 + (wanted > wanted[..., [1]]).sum(-1))
    assert torch.equal(seen.top, wanted.argmax(-1))


@pytest.mark.check(
    "lenses 5b (chance)", formula="mean identifiability 1/2 + 1/2C, rate 1/C, over all classes", tolerance=1e-6
)
@pytest.mark.parametrize("name", ["vit", "beit"])
def test_over_all_classes_it_is_chance(name, measured):
    """A label drawn at random has any rank equally often, whatever the model."""
    lens, x = ClassLens(load(net(name))), pictures(name)
    seen = [lens.evolution(x, label=label) for label in range(10)]
    measured(float((torch.stack([e.identifiability for e in seen]).double().mean(0) - 0.55).abs().max()))
    measured(float((torch.stack([e.rate for e in seen]).mean(0) - 0.1).abs().max()))


def planted(j: int = 5, label: int = 6):
    """In block 1 the attention writes nothing, one neuron fires, and what it writes is the class's row of the head."""
    built = copy.deepcopy(net("vit"))
    block = built.vit.layers[1]
    with torch.no_grad():
        built.vit.layernorm.weight.fill_(1.0)
        built.vit.layernorm.bias.zero_()
        built.classifier.weight.sub_(built.classifier.weight.mean(1, keepdim=True))  # what the norm takes out anyway
        built.classifier.bias.zero_()
        for p in block.attention.parameters():
            p.zero_()
        first, second = (m for m in block.modules() if isinstance(m, torch.nn.Linear) and {48, 32} == {*m.weight.shape})
        first.weight.zero_()
        first.bias.fill_(-100.0)  # silent: GELU(-100) = 0
        first.bias[j] = 3.0
        second.weight[:, j] = built.classifier.weight[label]
        second.bias.zero_()
    return load(built), j, label


@pytest.mark.check(
    "lenses 5c (planted class value)", formula="agreement of the value with its class = 1", tolerance=1e-5
)
def test_a_value_that_is_a_class_is_found(measured):
    model, j, label = planted()
    lens, x = ClassLens(model), pictures("vit")
    agreement = lens.agreement("blocks.1.mlp.W_out")
    assert agreement.shape == (10, 48)
    measured(abs(float(agreement[label, j]) - 1.0))
    assert int(agreement[label].argmax()) == j
    assert float(lens.key_value_agreement(x, "blocks.1.mlp.W_out", label=label)) == 1.0
    table = lens.updates(x, label=label).set_index("block")
    assert table.loc[1, "mlp raises"] == 1.0  # no state of its length has a higher logit of the class
    seen = lens.evolution(x, "blocks.1.mlp.write", label=label)
    assert bool((seen.rank == 1).all())


@pytest.mark.check(
    "lenses 5d (perturbed attention)", formula="other tokens of the picture change nothing", tolerance=1e-6
)
def test_the_perturbations_cut_what_they_say(measured):
    model = load(net("vit"))
    lens, x = ClassLens(model), pictures("vit")
    other = x.clone()
    other[:, :, 4:8, 8:12] += 1.0  # the patch in row 1, column 2: token 7
    with model.edit(*lens.self_only(x)):
        a, b = (model.record(t, lens.head.last)[lens.head.last] for t in (x, other))
    moved = (a - b).abs().amax((0, 2))
    measured(float(moved[[i for i in range(1, 17) if i != 7]].max()))
    assert float(moved[7]) > 0.01
    assert float(moved[0]) > 1e-4  # the class token still sees it
    with model.edit(*lens.no_class_token(x)):
        cut = model.record(x, "blocks.*.attn.pattern")["blocks.0.attn.pattern"]
    plain = model.record(x, "blocks.0.attn.pattern")["blocks.0.attn.pattern"]
    assert torch.equal(cut[:, :, 0], plain[:, :, 0])
    assert not bool(cut[:, :, 1:, 0].any())
    assert torch.equal(cut[:, :, 1:, 1:], plain[:, :, 1:, 1:])


def test_importance_is_that_of_a_picture_without_the_token():
    """Against Hugging Face's own blocks on the sequence with the token left out after the embedding."""
    built = net("vit")
    model = load(built)
    lens, x = ClassLens(model), pictures("vit", 1)
    found = lens.importance(x, label="class 3")
    assert found.label == 3
    assert found.drop.shape == (4, 4)
    with torch.no_grad():
        assert found.probability == pytest.approx(float(built(x).logits.softmax(-1)[0, 3]), abs=1e-6)
        h = built.vit.embeddings(x)
        for place in (0, 6, 15):
            part = torch.cat([h[:, : 1 + place], h[:, 2 + place :]], dim=1)
            for block in built.vit.layers:
                out = block(part)
                part = out[0] if isinstance(out, tuple) else out
            p = built.classifier(built.vit.layernorm(part)[:, 0]).softmax(-1)[0, 3]
            assert float(found.drop[place // 4, place % 4]) == pytest.approx(found.probability - float(p), abs=1e-5)
    assert list(found.to_frame().columns) == ["row", "column", "drop"]
    assert np.asarray(found.plot().data[0].z).shape == (4, 4)


def test_updates_and_changes_by_hand():
    model = load(net("vit"))
    lens, x = ClassLens(model), pictures("vit")
    names = [f"blocks.2.{s}" for s in ("resid_pre", "attn.write", "mlp.write", "resid_post")]
    cache = model.record(x, names)
    read = [lens.head(cache[n].flatten(0, 1)).unflatten(0, (3, 17))[:, 1:] for n in names]
    before, attn, mlp, after = (z[..., 4] for z in read)
    top = [z.argmax(-1) for z in read]
    row = lens.updates(x, label=4).set_index("block").loc[2]
    assert row["attn raises"] == pytest.approx(float((attn > before).double().mean()))
    assert row["mlp raises"] == pytest.approx(float((mlp > before).double().mean()))
    assert row["is mlp"] == pytest.approx(float((top[2] == top[3]).double().mean()))
    same = (top[3] == top[0]) | (top[3] == top[1]) | (top[3] == top[2])
    assert row["new"] == pytest.approx(float((~same).double().mean()))
    seen = lens.evolution(x, label=4)
    assert float(seen.change_rate[-1]) == pytest.approx(float((after > before).double().mean()))
    frame = seen.to_frame()
    assert list(frame["site"]) == list(seen.rows)
    assert np.asarray(seen.plot(1).data[3].z).shape == (4, 4)


def test_heads_that_average_are_read_as_they_average():
    """BEiT: a state is read as the mean it would be; what a sublayer writes passes the sublayer's norm first."""
    built = net("beit")
    model = load(built)
    lens, x = ClassLens(model), pictures("beit", 2)
    assert lens.pooled
    names = ["blocks.1.resid_post", "blocks.1.mlp.write", "blocks.1.attn.write"]
    cache, seen = model.record(x, names), lens.evolution(x, names, label=2)
    block, norm = built.beit.layers[1], built.beit.pooler.layernorm
    with torch.no_grad():
        for i, first in enumerate((torch.nn.Identity(), block.layernorm_after, block.layernorm_before)):
            wanted = built.classifier(norm(first(cache[names[i]])))[..., 2]
            assert torch.allclose(seen.logit[i], wanted, atol=1e-5)
    with pytest.raises(WrongUse, match="averages over the picture"):
        lens.importance(x[:1])
    with pytest.raises(WrongUse, match="averages over the picture"):
        lens.self_only(x)


def test_stages_and_two_part_heads():
    """Swin: the last stage alone is as wide as its head; DINOv2: the head reads the class token beside the mean."""
    swin = ClassLens(load(module("swin")))
    x = probe_inputs(swin.model.module, batch=2, seed=1)["pixel_values"]
    seen = swin.evolution(x)
    assert seen.rows[0] == "stages.1.blocks.0.resid_pre"
    assert (seen.picture.first, seen.picture.rows, seen.picture.columns) == (0, 4, 4)
    logits = torch.stack([swin.evolution(x, label=c).logit[-1] for c in (0, 1)], dim=-1)
    assert torch.allclose(logits.mean(1), swin.model(x).logits, atol=1e-5)  # it averages after its norm
    assert seen.to_frame()["class token"].isna().all()
    with pytest.raises(WrongUse, match=r"cannot read 'stages\.0\.blocks\.1\.resid_post'"):
        swin.evolution(x, "stages.0.blocks.1.resid_post")
    dino = ClassLens(load(net("dinov2")))
    assert dino.pooled
    assert dino.evolution(pictures("dinov2")).picture.first == 1
    with pytest.raises(WrongUse, match="share no space"):
        dino.agreement("blocks.1.mlp.W_out")


def test_how_a_picture_lies():
    pixels = torch.zeros(1, 3, 32, 48)
    assert (picture_of(pixels, 8, 24).rows, picture_of(pixels, 8, 24).columns) == (4, 6)
    assert picture_of(pixels, 8, 26).first == 2
    assert (picture_of(pixels, 4, 24).rows, picture_of(pixels, 4, 24).columns) == (4, 6)
    with pytest.raises(WrongUse, match="make no picture"):
        picture_of(pixels, 8, 60)


def test_what_is_no_picture_or_no_class():
    for name in ("llama", "bert", "whisper"):
        with pytest.raises(WrongUse, match="no classifier of pictures"):
            ClassLens(load(module(name)))
    lens, x = ClassLens(load(net("vit"))), pictures("vit")
    with pytest.raises(WrongUse, match="Did you mean 'class 3'"):
        lens.evolution(x, label="clas 3")
    with pytest.raises(WrongUse, match="run from 0 to 9"):
        lens.evolution(x, label=10)
    with pytest.raises(WrongUse, match="2 classes for 3 pictures"):
        lens.evolution(x, label=[1, 2])
    with pytest.raises(WrongUse, match="cannot read"):
        lens.evolution(x, "blocks.1.mlp.post")
