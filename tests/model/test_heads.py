"""One head of a site as a site of its own."""

from __future__ import annotations

import pytest
import torch

from interp import Patch, Replace, Scale, Steer, WrongUse, Zero
from interp.dictionaries import Dictionary, DictionaryConfig
from interp.model import load
from tests.model.shapes import module
from tests.model.wrapped import wrapped

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 30, 4, 9]])
WITH_HEADS = ["blocks.1.attn.z", "blocks.1.attn.result", "blocks.0.attn.q", "blocks.1.attn.v"]


@pytest.mark.parametrize("site", WITH_HEADS)
def test_a_head_is_read_and_edited_as_a_part_of_its_site(site):
    model, one = wrapped("llama"), f"{site}.1"
    plain = model.record(IDS, [site, one, "logits"])
    assert torch.equal(plain[one], plain[site][:, :, 1])
    assert torch.equal(plain.logits, model(IDS).logits)
    assert model.width(one) == plain[site].shape[-1]
    for edit, same in (
        (Zero(one, pos=3), Zero(site, head=1, pos=3)),
        (Scale(one, 3.0, index=[0, 5], rows=[1]), Scale(site, 3.0, head=1, index=[0, 5], rows=[1])),
        (Steer(one, plain[one][0, 0]), Steer(site, plain[one][0, 0], head=1)),
    ):
        found, wanted = (model.record(IDS, [site, one, "logits"], edits=[e]) for e in (edit, same))
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found[one], wanted[site][:, :, 1])
        assert not torch.equal(found.logits, plain.logits)
    with torch.no_grad():
        both = model.sweep([Zero(one), Zero(site, head=1)], IDS[:1], lambda logits: logits[:, -1, 5]).values
    assert both[0] == both[1]
    slope = model.record(IDS, [site, one], grad=lambda logits: logits[:, -1, 5].sum())
    assert torch.allclose(slope.grad[one], slope.grad[site][:, :, 1], atol=1e-6)


def test_globs_aliases_and_other_runs():
    model = wrapped("llama")
    assert model.names("blocks.*.attn.z.2") == [f"blocks.{i}.attn.z.2" for i in range(3)]
    assert model.names("blocks.1.attn.hook_z.2") == ["blocks.1.attn.z.2"]
    assert not any(name.endswith(".2") for name in model.sites())
    clean = model.record(IDS, "blocks.*.attn.z.0")
    edits = [Patch(site, clean) for site in clean]
    found = model.record(IDS.flip(1), "blocks.*.attn.z", edits=edits)
    assert all(torch.equal(found[site.removesuffix(".0")][:, :, 0], clean[site]) for site in clean)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.1.attn.z.4", "head 4 is outside 0 to 3"),
        ("blocks.1.attn.v.2", "head 2 is outside 0 to 1"),
        ("blocks.9.attn.z.0", "The blocks are 0 to 2"),
        ("blocks.1.resid_post.0", "no site matches"),
    ],
)
def test_errors_teach(name, words):
    with pytest.raises(WrongUse, match=words):
        wrapped("llama").record(IDS, name)


@pytest.mark.parametrize("site", ["blocks.1.attn.result.2", "blocks.1.attn.z.2"])
def test_a_dictionary_of_one_head(site):
    """Its latents are those of that head; an edit and a reconstruction leave the other heads as they are."""
    model, whole = load(module("llama")), site.removesuffix(".2")
    d = model.width(site)
    D = Dictionary(DictionaryConfig((site,), (site,), d, d, 40, 4)).requires_grad_(False)
    torch.nn.init.normal_(D.W_enc)
    torch.nn.init.normal_(D.W_dec)
    plain = model.record(IDS, [whole, "logits"])
    with model.attach(D):
        cache = model.record(IDS, [f"{site}.latents", f"{site}.error", "logits"])
        assert torch.equal(cache.logits, plain.logits)
        assert torch.equal(cache[f"{site}.latents"], D.encode(plain[whole][:, :, 2]))
        found = model.record(IDS, [whole, "logits"], edits=[Zero(f"{site}.latents", pos=4)])
    gone = D.encode(plain[whole][:, :, 2]) @ D.W_dec
    expected = model.record(IDS, [whole, "logits"], edits=[Steer(whole, -gone[:, :, None], head=2, pos=4)])
    for name in (whole, "logits"):
        assert torch.allclose(found[name], expected[name], atol=1e-5)
    assert torch.equal(found[whole][:, :, [0, 1, 3]], plain[whole][:, :, [0, 1, 3]])
    with model.attach(D, error=False):
        replaced = model(IDS).logits
    with model.edit(Replace(site, lambda x: D(x))):
        assert torch.allclose(replaced, model(IDS).logits, atol=1e-6)


def test_computed_sites_are_recorded_as_they_were_edited():
    """Results of heads, divisors of norms and neurons of experts are in no tensor of the model: still edits show."""
    for name, site in (("llama", "blocks.1.attn.result"), ("llama", "blocks.1.mlp.norm.scale")):
        plain = wrapped(name).record(IDS, site)[site]
        found = wrapped(name).record(IDS, site, edits=[Scale(site, 2.0, pos=3)])[site]
        assert torch.equal(found[:, 3], 2 * plain[:, 3])
        assert torch.equal(found[:, 4], plain[:, 4])
    site = "blocks.1.mlp.experts.post"
    plain = wrapped("mixtral").record(IDS, site)[site]
    assert torch.equal(wrapped("mixtral").record(IDS, site, edits=[Zero(site, pos=3)])[site][:, 3], 0 * plain[:, 3])
