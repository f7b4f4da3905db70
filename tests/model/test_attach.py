"""Dictionaries attached to models: their latents and errors are sites, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import Freeze, Patch, Replace, Scale, Steer, Tokens, WrongUse, Zero
from interp.dictionaries import Dictionary, DictionaryConfig
from interp.model import Model, load
from interp.model.twin import Lifted
from tests.model.shapes import module
from tests.model.wrapped import wrapped

SITE = "blocks.1.resid_post"
IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 30, 4, 9]])
PADDED = Tokens(IDS, torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).bool())
M = 40  # latents


def fresh(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """A wrapper of its own around a shared module."""
    return load(module(name, dtype))


@pytest.fixture
def llama() -> Model:
    return fresh("llama")


def dictionary(
    model: Model,
    reads: str | tuple[str, ...] = SITE,
    writes: str | tuple[str, ...] = (),
    activation: str = "topk",
    dtype: torch.dtype | None = None,
    **more: Any,
) -> Dictionary:
    """Random weights in the scale of the sites; m latents, four of them active where their number is fixed."""
    reads = (reads,) if isinstance(reads, str) else reads
    writes = (writes,) if isinstance(writes, str) else writes or reads
    wide = {s: model.record(IDS, s)[s].flatten(2).float() for s in (*reads, *writes)}
    w_in, w_out = (tuple(wide[s].shape[-1] for s in sites) for sites in (reads, writes))
    k = 4 if activation in ("topk", "pursuit", "codebook") else None
    several = {"widths_in": w_in, "widths_out": w_out} if len(reads) > 1 or len(writes) > 1 else {}
    D = Dictionary(DictionaryConfig(reads, writes, sum(w_in), sum(w_out), M, k, activation, **several, **more))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in D.tensors().values():
            p.copy_(torch.randn(p.shape, generator=generator))
        D.W_dec.div_(D.W_dec.norm(dim=1, keepdim=True))
        if hasattr(D, "threshold"):
            D.threshold.abs_()
        if several:
            D.confine()
    return D.to(dtype or model.dtype)


def split(D: Dictionary, site: str, y: Tensor) -> Tensor:
    """The part of ŷ that belongs to a site."""
    widths = D.config.widths_out or (D.config.d_out,)
    return y.split(widths, dim=-1)[D.config.writes.index(site)]


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "pursuit", "codebook"])
def test_latents_are_those_of_encode_and_nothing_changes(activation):
    model = fresh("llama")
    D = dictionary(model, activation=activation)
    plain, alone = model(IDS).logits, model.record(IDS, SITE)[SITE]
    with model.attach(D) as attached:
        assert (attached.latents, attached.errors) == ([f"{SITE}.latents"], [f"{SITE}.error"])
        assert model.sites()[f"{SITE}.latents"] == ("batch", "pos", M)
        cache = model.record(IDS, [SITE, f"{SITE}.latents", f"{SITE}.error", "logits"])
        assert torch.equal(model(IDS).logits, plain)
    assert torch.equal(cache[f"{SITE}.latents"], D.encode(alone))
    assert torch.equal(cache[f"{SITE}.error"], alone - D(alone))
    assert torch.equal(cache.logits, plain)
    assert torch.equal(cache[SITE], alone)
    assert f"{SITE}.latents" not in model.sites()


TRANSCODER = ("blocks.1.mlp.in", "blocks.1.mlp.write")


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_reads_one_site_and_writes_another(llama, skip):
    reads, writes = TRANSCODER
    D = dictionary(llama, reads, writes, skip=skip)
    x = llama.record(IDS, [reads, writes])
    made = D.decode(D.encode(x[reads]), x[reads])
    with llama.attach(D) as attached:
        assert attached.latents == [f"{writes}.latents"]
        cache = llama.record(IDS, [*attached.latents, *attached.errors, "logits"])
        with llama.edit(Zero(f"{writes}.error")):
            replaced = llama(IDS).logits
    assert torch.equal(cache[f"{writes}.latents"], D.encode(x[reads]))
    assert torch.allclose(cache[f"{writes}.error"], x[writes] - made, atol=1e-6)
    with llama.edit(Replace(writes, made)):
        expected = llama(IDS).logits
    assert torch.allclose(replaced, expected, atol=1e-5)
    with llama.attach(D, error=False):
        assert torch.allclose(llama(IDS).logits, expected, atol=1e-6)


def test_sites_of_heads_and_inner_taps_are_read_flat(llama):
    """attn.z [batch, pos, head, d_head], and q, which only a tap sees: reading it leaves fused attention as it is."""
    plain = llama(IDS).logits
    for site in ("blocks.1.attn.z", "blocks.0.attn.q", "blocks.1.attn.result"):
        x = llama.record(IDS, site)[site]
        D = dictionary(llama, site)
        with llama.attach(D):
            cache = llama.record(IDS, [f"{site}.latents", f"{site}.error", "logits"])
            assert torch.equal(cache[f"{site}.latents"], D.encode(x.flatten(2)))
            assert torch.equal(cache[f"{site}.error"], x - D(x.flatten(2)).view(x.shape))
            assert torch.equal(cache.logits, plain)
            with llama.edit(Scale(f"{site}.error", 0.0, head=2)):
                one_head = llama(IDS).logits
            with llama.edit(Replace(site, lambda x, D=D: D(x.flatten(2)).view(x.shape), head=2)):
                assert torch.allclose(one_head, llama(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "mamba", "t5"])
def test_any_architecture(name):
    """An encoder, pictures, a state-space model, cross-attention."""
    model = fresh(name)
    x: Any = torch.linspace(-1, 1, 768).view(1, 3, 16, 16) if name == "vit" else IDS
    x = {"input_ids": IDS, "decoder_input_ids": IDS[:, 1:5]} if name == "t5" else x
    site = "decoder.blocks.1.cross_attn.write" if name == "t5" else SITE
    alone = model.record(x, [site, "logits"])
    D = Dictionary(DictionaryConfig((site,), (site,), 32, 32, M, 3)).requires_grad_(False)
    torch.nn.init.normal_(D.W_enc)
    torch.nn.init.normal_(D.W_dec)
    with model.attach(D):
        cache = model.record(x, [f"{site}.latents", "logits"])
        assert torch.equal(cache.logits, alone.logits)
        assert torch.equal(cache[f"{site}.latents"], D.encode(alone[site]))
        found = model.record(x, "logits", edits=[Zero(f"{site}.latents")]).logits
    with torch.no_grad():
        expected = model.record(x, "logits", edits=[Replace(site, lambda y: y - D(y))]).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, alone.logits, atol=1e-3)


# ---------------------------------------------------------------- edits, against hooks written by hand


def by_hand(model: Model, change: Any) -> Tensor:
    """The logits with a plain hook on block 1 that adds `change(x)` to what it returns."""

    def hook(block: Any, args: Any, out: Any) -> Any:
        x = out if isinstance(out, Tensor) else out[0]
        return x + change(x) if isinstance(out, Tensor) else (x + change(x), *out[1:])

    handle = model.module.model.layers[1].register_forward_hook(hook)  # type: ignore[union-attr,index]
    try:
        return model(IDS).logits
    finally:
        handle.remove()


EDITS = {
    "ablate": (Zero, (), lambda f: -f),
    "clamp": (lambda s, **k: Replace(s, torch.tensor(2.5), **k), (), lambda f: 2.5 - f),
    "boost": (lambda s, **k: Scale(s, 4.0, **k), (), lambda f: 3 * f),
}


@pytest.mark.parametrize("how", EDITS)
def test_an_edited_latent_is_a_hook_that_adds_its_decoder_row(llama, how):
    D = dictionary(llama)
    make, _, change = EDITS[how]
    f = D.encode(llama.record(IDS, SITE)[SITE])
    i = int((f > 0).sum((0, 1)).argmax())
    expected = by_hand(llama, lambda x: change(D.encode(x)[..., i : i + 1]) * D.W_dec[i])
    edit = make(f"{SITE}.latents", index=i)
    with llama.attach(D), llama.edit(edit):
        found = llama(IDS).logits
        recorded = llama.record(IDS, [SITE, f"{SITE}.latents"])
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, llama(IDS).logits, atol=1e-4)
    assert torch.allclose(recorded[f"{SITE}.latents"][..., i], f[..., i] + change(f[..., i]), atol=1e-6)
    assert torch.allclose(recorded[f"{SITE}.latents"][..., :i], f[..., :i])
    assert llama.fired(edit) == 2


def test_what_is_not_selected_keeps_its_bits(llama):
    """One latent at one position of one row: all that the model computes before and beside it is as it was."""
    D = dictionary(llama, activation="relu")
    plain = llama.record(IDS, [SITE, "logits"])
    with llama.attach(D), llama.edit(Steer(f"{SITE}.latents", torch.ones(M), 0.3, pos=3, rows=[1], index=[2, 30])):
        found = llama.record(IDS, [SITE, "logits"])
    same = torch.ones(2, 6, dtype=torch.bool)
    same[1, 3] = False
    assert torch.equal(found[SITE][same], plain[SITE][same])
    moved = (found[SITE] - plain[SITE])[1, 3]
    assert torch.allclose(moved, 0.3 * (D.W_dec[2] + D.W_dec[30]), atol=1e-6)
    assert torch.equal(found.logits[0], plain.logits[0])
    assert torch.equal(found.logits[1, :3], plain.logits[1, :3])


def test_patching_all_latents_and_errors_is_patching_the_site(llama):
    other = torch.tensor([[5, 9, 33, 3, 8, 20], [7, 7, 41, 30, 4, 9]])
    with llama.attach(dictionary(llama)) as attached:
        clean = llama.record(IDS, [SITE, *attached.latents, *attached.errors])
        found = llama.record(other, "logits", edits=[Patch(s, clean) for s in attached.sites]).logits
        frozen = llama.record(other, "logits", edits=[Freeze(f"{SITE}.*", clean)]).logits
    expected = llama.record(other, "logits", edits=[Patch(SITE, clean)]).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found, frozen)


def test_an_edit_of_the_site_comes_before_what_the_dictionary_reads(llama):
    D, d = dictionary(llama), torch.linspace(-1, 1, 32)
    steered = llama.record(IDS, SITE, edits=[Steer(SITE, d)])[SITE]
    for order in ([llama.attach, llama.edit], [llama.edit, llama.attach]):
        with order[0](D if order[0] == llama.attach else Steer(SITE, d)):  # noqa: SIM117
            with order[1](D if order[1] == llama.attach else Steer(SITE, d)):
                assert torch.equal(llama.record(IDS, f"{SITE}.latents")[f"{SITE}.latents"], D.encode(steered))


def test_sweeps(llama):
    D = dictionary(llama, activation="relu")
    metric = lambda logits: logits[:, -1, 3] - logits[:, -1, 4]  # noqa: E731
    with llama.attach(D), torch.no_grad():
        edits = [Zero(f"{SITE}.latents", index=i, pos=p) for i in (0, 7, 9) for p in (1, 5)] + [Zero(f"{SITE}.error")]
        found = llama.sweep(edits, IDS[:1], metric)
        for edit, value in zip(edits, found.values, strict=True):
            assert float(value) == pytest.approx(
                float(metric(llama.record(IDS[:1], "logits", edits=[edit]).logits)), abs=1e-5
            )
    assert found.to_frame()["index"].tolist()[:6] == [0, 0, 7, 7, 9, 9]
    assert len(set(found.values.tolist())) > 3


# ---------------------------------------------------------------- several at once, contexts


def test_several_dictionaries_at_once(llama):
    """Each latent edited as if the other dictionary were not there, but for what it reads."""
    low, high = dictionary(llama, "blocks.0.resid_post"), dictionary(llama, "blocks.2.mlp.in", "blocks.2.mlp.write")
    plain = llama(IDS).logits
    edits = [Zero("blocks.0.resid_post.latents", pos=2), Scale("blocks.2.mlp.write.latents", 3.0)]
    with llama.attach(low), llama.attach(high):
        assert torch.equal(llama(IDS).logits, plain)
        with llama.edit(*edits):
            found = llama(IDS).logits
    lines = [Replace("blocks.0.resid_post", lambda x: x - low.encode(x) @ low.W_dec, pos=2)]
    seen = {}
    lines += [Replace("blocks.2.mlp.in", lambda x: seen.setdefault("x", x))]
    lines += [Replace("blocks.2.mlp.write", lambda y: y + 2 * high.encode(seen["x"]) @ high.W_dec)]
    with llama.edit(*lines):
        expected = llama(IDS).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_contexts_nest_and_leave_nothing_behind(llama):
    D, E = dictionary(llama), dictionary(llama, "blocks.0.resid_post")
    plain = llama(IDS).logits
    with llama.edit(Zero("blocks.0.mlp.write")):
        edited = llama(IDS).logits
        attached = llama.attach(D, error=False)
        spliced = llama(IDS).logits
        with llama.edit(Scale("blocks.0.attn.write", 0.5)):
            llama.attach(E, error=False)
            both = llama(IDS).logits
        llama.detach(E)
        assert torch.equal(llama(IDS).logits, spliced)
        attached.detach()
        assert torch.equal(llama(IDS).logits, edited)
        llama.attach(D, error=False)
    after = llama(IDS).logits
    llama.detach()
    with llama.edit(Replace(SITE, lambda x: D(x))):
        assert torch.allclose(after, llama(IDS).logits, atol=1e-6)
    assert not any(torch.equal(a, b) for a, b in ((plain, edited), (edited, spliced), (spliced, both)))
    with pytest.raises(ZeroDivisionError), llama.attach(D, error=False):
        1 / 0  # noqa: B018
    assert torch.equal(llama(IDS).logits, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.module.modules())


@pytest.fixture(scope="module")
def books() -> Model:
    return interp.load("zoo:books")


@pytest.mark.parametrize("site", ["blocks.2.resid_post", "blocks.2.attn.z"])
def test_dropping_the_error_is_the_replacement_of_evaluate(books, site):
    """Replaced by ŷ but at beginning-of-sequence tokens: the loss that `interp eval` measures; 1e-6, another order of sums."""
    from interp.dictionaries import evaluate_model
    from interp.store.recording import batches, padded

    model, texts = books, ["Mr. Darcy bowed; and then Mr. Bingley laughed.", "It was late, and no one came."]
    D = dictionary(model, site)
    measured = evaluate_model(D, model, texts, batch=2, context=16)
    total, count = 0.0, 0
    with model.attach(D), torch.no_grad():
        for _, group in batches(model, texts, 16, 2):
            inputs, keep = padded(model, group)
            counted = keep[:, :-1] & inputs.mask[:, 1:]
            logits = model.record(inputs, "logits", edits=[Zero(f"{site}.error", pos=keep)]).logits
            log_p = logits[:, :-1].log_softmax(-1).gather(-1, inputs.ids[:, 1:, None]).squeeze(-1)
            total, count = total - float(log_p[counted].sum()), count + int(counted.sum())
    assert count == measured.tokens
    assert total / count == pytest.approx(measured.cross_entropy["replaced"], rel=1e-6)
    assert measured.cross_entropy["replaced"] > measured.cross_entropy["clean"] + 0.01


def test_a_lens_reads_the_error(books):
    """As a state of its site: what the dictionary does not explain."""
    from interp.lenses import Lens

    site, lens = "blocks.2.resid_post", Lens(books)
    D = dictionary(books, site)
    with books.attach(D):
        found = lens("It was late", [f"{site}.error"], k=3)
        e = books.record("It was late", f"{site}.error")[f"{site}.error"][0]
    scores = lens.logits(site, e)
    assert found.to_frame()["top"].tolist() == [books.tokenizer.decode([i]) for i in scores.argmax(-1).tolist()]


# ---------------------------------------------------------------- gradients


def weighted(logits: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, logits[0].numel(), dtype=logits.dtype).reshape(logits.shape[1:])
    return (weight * logits.tanh()).flatten(1).sum(1)


def slope(model: Model, site: str, place: tuple[int, ...], h: float = 1e-5) -> float:
    """(m(x + h) − m(x − h)) / 2h for one entry of the first prompt."""

    def moved(step: float) -> Replace:
        def value(x: Tensor) -> Tensor:
            new = x.clone()
            new[(0, *place)] += step
            return new

        return Replace(site, value)

    up, down = (weighted(model.record(IDS, "logits", edits=[moved(s)]).logits)[0] for s in (h, -h))
    return float((up - down) / (2 * h))


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_gradients_are_central_differences(error, activation):
    """float64, error of h²: 1e-6. Latents that fire and that do not, the error, and what lies before, through two
    dictionaries: kept, it sees the model as it is; dropped, the way back leads through the encoders."""
    model = fresh("llama", torch.float64)
    low, high = dictionary(model, activation=activation), dictionary(model, *("blocks.2.mlp.in", "blocks.2.mlp.write"))
    sites = [f"{SITE}.latents", "blocks.2.mlp.write.latents", "blocks.0.resid_post"]
    sites += [f"{SITE}.error", "blocks.2.mlp.write.error", SITE] if error else []
    with Lifted(), model.attach(low, error=error), model.attach(high, error=error):
        cache = model.record(IDS, sites, grad=lambda logits: weighted(logits).sum())
        for site in sites:
            x = cache[site][0]
            places = [(2, int(x[2].argmax())), (4, int(x[4].argmin())), (5, 1)]
            for place in places:
                exact = float(cache.grad[site][(0, *place)])
                assert slope(model, site, place) == pytest.approx(exact, rel=1e-5, abs=1e-7), (site, place)
        assert all(cache.grad[site].any() for site in sites)
        if not error:
            return
        through = cache.grad[SITE] @ low.W_dec.T
        assert torch.allclose(cache.grad[f"{SITE}.latents"], through, atol=1e-12)
        assert torch.allclose(cache.grad[f"{SITE}.error"], cache.grad[SITE], atol=1e-12)
    with Lifted():
        bare = model.record(IDS, ["blocks.0.resid_post"], grad=lambda logits: weighted(logits).sum())
    assert torch.allclose(bare.grad["blocks.0.resid_post"], cache.grad["blocks.0.resid_post"], atol=1e-12)


def test_attribution_patching_over_latents_is_the_slope_of_patching():
    """(metric moved a little from corrupted to clean) / little, a row a prompt; the error is a site of its own."""
    model = fresh("llama", torch.float64)
    D = dictionary(model, activation="relu")
    other, step, name = IDS.clone(), 1e-6, f"{SITE}.latents"
    other[:, 2] = torch.tensor([33, 41])
    with Lifted(), model.attach(D):
        effect = interp.attribution_patching(model, IDS, other, [name, f"{SITE}.error"], weighted)
        good, bad = model.record(IDS, list(effect.by_site)), model.record(other, list(effect.by_site))
        clean = weighted(model(other).logits).detach()
        for site in effect.by_site:
            edit = Steer(site, good[site] - bad[site], step)
            moved = weighted(model.record(other, "logits", edits=[edit]).logits)
            assert torch.allclose((moved - clean) / step, effect[site].flatten(1).sum(1), rtol=1e-4)
        row, pos, latent = torch.unravel_index(effect[name].abs().argmax(), effect[name].shape)  # one of them alone
        edit = Steer(name, good[name] - bad[name], step, index=int(latent), pos=int(pos), rows=[int(row)])
        moved = weighted(model.record(other, "logits", edits=[edit]).logits)
        assert float((moved - clean)[row] / step) == pytest.approx(float(effect[name][row, pos, latent]), rel=1e-4)
    frame = effect.to_frame()
    assert list(frame.columns) == ["site", "row", "pos", "head", "latent", "effect"]
    of = frame[frame["site"] == name]
    strongest = of.loc[of["effect"].abs().idxmax()]
    assert (strongest["row"], strongest["pos"], strongest["latent"]) == (row, pos, latent)
    assert len(of) == int((effect[name] != 0).sum()) < effect[name].numel()
    assert effect.plot().data[0].z.shape[0] == 2


def test_parameters_of_the_dictionary_are_left_alone_and_can_be_trained(llama):
    D = dictionary(llama)
    with llama.attach(D):
        llama.record(IDS, f"{SITE}.latents", grad=lambda logits: logits.sum())
        assert all(p.grad is None for p in D.parameters())
    with llama.attach(D, error=False):
        slopes = torch.autograd.grad(llama(IDS).logits.sum(), list(D.parameters()))
    assert all(g.any() for g in slopes)


# ---------------------------------------------------------------- several sites


def test_a_crosscoder_has_its_latents_at_its_last_site(llama):
    sites = tuple(f"blocks.{i}.resid_post" for i in range(3))
    D = dictionary(llama, sites, activation="relu")
    x = llama.record(IDS, [*sites, "logits"])
    whole = torch.cat([x[s] for s in sites], -1)
    with llama.attach(D) as attached:
        assert attached.latents == ["blocks.2.resid_post.latents"]
        assert attached.errors == [f"{s}.error" for s in sites]
        cache = llama.record(IDS, [*attached.sites, "logits"])
        assert torch.equal(cache[attached.latents[0]], D.encode(whole))
        for site in sites:
            assert torch.allclose(cache[f"{site}.error"], x[site] - split(D, site, D(whole)), atol=1e-6)
        assert torch.equal(cache.logits, x.logits)
        found = llama.record(IDS, sites, edits=[Zero(attached.latents[0], index=3), Zero("blocks.2.resid_post.error")])
        for call in (
            lambda: llama.edit(Zero("blocks.0.resid_post.error")).__enter__(),
            lambda: llama.record(IDS, "blocks.1.resid_post.error", grad=lambda x: x.sum()),
        ):
            with pytest.raises(WrongUse, match=r"passed before 'blocks\.2\.resid_post' is read"):
                call()
    f = D.encode(whole).dense()
    f[..., 3] = 0
    assert torch.allclose(found[sites[2]], split(D, sites[2], D.decode(f)), atol=1e-5)
    assert torch.equal(found[sites[0]], x[sites[0]])
    with pytest.raises(WrongUse, match=r"error=False cannot replace 'blocks\.0\.resid_post': it is passed before"):
        llama.attach(D, error=False)


LAYERS = tuple(tuple(f"blocks.{i}.mlp.{end}" for i in range(3)) for end in ("in", "write"))


@pytest.fixture
def clt() -> Dictionary:
    """One with random weights, 20 latents a layer."""
    config = DictionaryConfig(*LAYERS, 96, 96, 60, None, "jumprelu", False, (32,) * 3, (32,) * 3, cross_layer=True)
    D, generator = Dictionary(config), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in D.tensors().values():
            p.copy_(torch.randn(p.shape, generator=generator))
        D.threshold.abs_()
    D.confine()
    return D


def test_the_layers_of_a_cross_layer_transcoder_add_up(clt):
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    y, f = torch.zeros(7, 96), []
    for i, layer in enumerate(clt.layers()):
        rows = x[:, 32 * i : 32 * i + 32]
        f.append(layer.encode(rows))
        y[:, 32 * i :] += layer(rows)
    assert torch.allclose(torch.cat(f, -1), clt.encode(x), atol=1e-5)
    assert torch.allclose(y, clt(x), atol=1e-5)


def test_a_cross_layer_transcoder_edits_its_layer_and_all_above(llama, clt):
    """Recorded latents are those of encode; an edit at layer 1 is a hook at 1 and 2; latents above see the edited run."""
    reads, writes = LAYERS
    x = llama.record(IDS, [*reads, *writes, "logits"])
    whole = torch.cat([x[s] for s in reads], -1)
    f, made = clt.encode(whole), clt(whole)
    with llama.attach(clt) as attached:
        assert attached.latents == [f"{w}.latents" for w in writes]
        cache = llama.record(IDS, [*attached.sites, "logits"])
        assert torch.equal(cache.logits, x.logits)
        for i, w in enumerate(writes):
            assert torch.allclose(cache[f"{w}.latents"], f[..., 20 * i : 20 * i + 20], atol=1e-5)
            assert torch.allclose(cache[f"{w}.error"], x[w] - made[..., 32 * i : 32 * i + 32], atol=1e-4)
        found = llama.record(IDS, [*writes, "logits"], edits=[Zero(f"{writes[1]}.latents", pos=3)])
    off = f[..., 20:40].clone()
    off[:, [0, 1, 2, 4, 5]] = 0
    rows = clt.W_dec[20:40]
    edits = [Steer(writes[j], -off @ rows[:, 32 * j : 32 * j + 32]) for j in (1, 2)]
    expected = llama.record(IDS, [*writes, "logits"], edits=edits)
    for site in (*writes, "logits"):
        assert torch.allclose(found[site], expected[site], atol=1e-4), site
    assert not torch.allclose(found.logits, x.logits, atol=1e-2)


def test_a_cross_layer_transcoder_in_place_of_all_mlps(llama, clt):
    """Each layer reads the run that the layers below made."""
    reads, writes = LAYERS
    seen: dict[str, Tensor] = {}

    def put(j: int) -> Any:
        def made(y: Tensor) -> Tensor:
            parts = [seen.get(r, torch.zeros_like(y)) for r in reads[: j + 1]]
            x = torch.cat([*parts, *[torch.zeros_like(y)] * (2 - j)], -1)
            return clt(x)[..., 32 * j : 32 * j + 32]

        return made

    looks = [Replace(r, lambda x, r=r: seen.__setitem__(r, x) or x) for r in reads]
    expected = llama.record(IDS, "logits", edits=[*looks, *(Replace(w, put(j)) for j, w in enumerate(writes))]).logits
    with llama.attach(clt, error=False):
        assert torch.allclose(llama(IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_latents_picked_among_all_layers_are_known_at_the_last(llama):
    config = DictionaryConfig(*LAYERS, 96, 96, 60, 5, "topk", False, (32,) * 3, (32,) * 3, cross_layer=True)
    D = Dictionary(config)
    torch.nn.init.normal_(D.W_enc)
    D.confine()
    x = llama.record(IDS, LAYERS[0])
    with llama.attach(D) as attached:
        assert attached.latents == ["blocks.2.mlp.write.latents"]
        found = llama.record(IDS, attached.latents)[attached.latents[0]]
    assert torch.equal(found, D.encode(torch.cat([x[s] for s in LAYERS[0]], -1)))


# ---------------------------------------------------------------- padding, dtypes, generation


def test_left_padding_and_positions(llama):
    """Positions count real tokens: a padded prompt's latents, edited at position 1, do what they do alone."""
    edit = Scale(f"{SITE}.latents", 5.0, pos=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).bool()
    batch = Tokens(torch.where(mask, IDS, 0), mask)
    with llama.attach(dictionary(llama)):
        both = llama.record(batch, [f"{SITE}.latents", "logits"], edits=[edit])
        alone = llama.record(IDS[:1, :4], [f"{SITE}.latents", "logits"], edits=[edit])
    assert torch.allclose(both.logits[0, :4], alone.logits[0], atol=1e-5)
    assert torch.allclose(both.rows(f"{SITE}.latents")[:4], alone[f"{SITE}.latents"][0], atol=1e-5)


def test_a_dictionary_of_another_dtype():
    """A float32 dictionary on a bfloat16 model: encode and decode in float32, the site in bfloat16 with the same bits."""
    model = fresh("llama", torch.bfloat16)
    D = dictionary(model, dtype=torch.float32)
    x = model.record(IDS, [SITE, "logits"])
    with model.attach(D):
        cache = model.record(IDS, [f"{SITE}.latents", f"{SITE}.error", "logits"])
        assert cache[f"{SITE}.latents"].dtype == torch.float32
        assert torch.equal(cache[f"{SITE}.latents"], D.encode(x[SITE].float()))
        assert torch.equal(cache.logits, x.logits)
        edited = model.record(IDS, SITE, edits=[Zero(f"{SITE}.latents", pos=2)])[SITE]
    assert edited.dtype == torch.bfloat16
    expected = (x[SITE].float() - D.encode(x[SITE].float()) @ D.W_dec).bfloat16()
    assert torch.equal(edited[:, 2], expected[:, 2])
    assert torch.equal(edited[:, [0, 1, 3, 4, 5]], x[SITE][:, [0, 1, 3, 4, 5]])
    with model.attach(D, error=False):
        assert torch.equal(model.record(IDS, SITE)[SITE], D(x[SITE]))


@pytest.mark.parametrize("error", [True, False])
def test_generation_with_cache_and_without_padded_on_the_left(llama, error):
    edit = Scale(f"{SITE}.latents", 3.0, pos="generated")
    with llama.attach(dictionary(llama), error=error), llama.edit(edit):
        cached, cache = llama.generate(PADDED, max_new_tokens=5, record=[f"{SITE}.latents"])
        fired = llama.fired(edit)
        bare = llama.generate(PADDED, max_new_tokens=5, use_cache=False)
        alone = llama.generate(IDS[:1, 2:], max_new_tokens=5)
        again = llama.record(cached[1:, :-1], f"{SITE}.latents")
    assert torch.equal(cached, bare)
    assert torch.equal(cached[0, 2:], alone[0])
    assert fired == 4  # once for each new token but the last, which the model never reads
    kept = cache[f"{SITE}.latents"][1, :6]
    assert torch.allclose(kept, again[f"{SITE}.latents"][0, :6], atol=1e-5)


def test_latents_edited_while_books_writes(books):
    """One latent that fires, held at twenty times the stream's length at every generated token: the text becomes another."""
    model, site, prompt = books, "blocks.2.resid_post", "It was late, and"
    D = dictionary(model, site)
    plain = model.generate(prompt, max_new_tokens=8)
    with model.attach(D):
        f = model.record(prompt, f"{site}.latents")[f"{site}.latents"]
        i = int(f.sum((0, 1)).argmax())
        edit = Replace(f"{site}.latents", torch.tensor(20.0 * float(f.max())), index=i, pos="generated")
        with model.edit(edit):
            steered = model.generate(prompt, max_new_tokens=8)
        assert model.fired(edit) == 7
        assert model.generate(prompt, max_new_tokens=8) == plain
    assert steered != plain


# ---------------------------------------------------------------- errors


def misfit(reads: str, writes: str = "", d: int = 32) -> Dictionary:
    return Dictionary(DictionaryConfig((reads,), (writes or reads,), d, d, 8, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: m.attach(misfit(SITE, d=30)), r"30 numbers at 'blocks\.1\.resid_post', where .* has 32"),
        (lambda m: m.attach(misfit("blocks.9.resid_post")), r"no site matches 'blocks\.9\.resid_post'"),
        (lambda m: m.attach(misfit("rows")), r"no site matches 'rows'"),
        (lambda m: m.attach(misfit("blocks.0.attn.pattern")), r"takes no dictionary: its shape is \[batch, 4, query, key\]"),
        (lambda m: m.attach(misfit(SITE, "blocks.0.mlp.write")), r"cannot be written by what .* they are passed before"),
        (lambda m: m.attach("runs/sae"), r"attach takes a dictionary.* not 'runs/sae'"),
        (lambda m: m.attach(misfit(SITE), eror=False), r"attach\(\) has no 'eror'. Did you mean 'error'"),
        (lambda m: [m.attach(misfit(SITE)), m.attach(misfit("blocks.1.mlp.in", SITE))], r"writes 'blocks.* attached already"),
        (lambda m: [m.attach(misfit(SITE)), m.record(IDS, "x", edits=[Zero(f"{SITE}.latents", index=8)])], "no site"),
        (lambda m: [m.attach(misfit(SITE)), m.edit(Zero(f"{SITE}.latents", index=8)).__enter__()], "index 8 is outside 0 to 7"),
        (lambda m: [m.attach(misfit(SITE)), m.record(IDS, "blocks.0.resid_post.latents")], r"there are: .*resid_post\.latents"),
        (lambda m: m.record(IDS, f"{SITE}.latents"), r"no attached dictionary has .* there are: none"),
        (lambda m: [m.attach(misfit(SITE), error=False), m.edit(Zero(f"{SITE}.error")).__enter__()], "it was dropped"),
        (lambda m: m.detach(misfit(SITE)), "is not attached"),
    ],
)  # fmt: skip
def test_errors_teach(llama, make, words):
    with pytest.raises(WrongUse, match=words):
        make(llama)
    llama.detach()
    assert torch.equal(llama(IDS).logits, wrapped("llama")(IDS).logits)


def test_a_dictionary_whose_latents_are_edited_is_not_taken_away(llama):
    with llama.attach(dictionary(llama)) as attached, llama.edit(Zero(attached.latents[0])):
        llama(IDS)
        with pytest.raises(WrongUse, match=r"an edit of .*latents.* is in place"):
            attached.detach()


def test_a_width_known_only_in_the_run(llama):
    """A `module:` site: latents are those of encode, and a width that does not fit is refused in the run."""
    site = "module:model.layers.1.mlp"
    D = dictionary(llama, site)
    x = llama.record(IDS, site)[site]
    with llama.attach(D):
        assert torch.equal(llama.record(IDS, f"{site}.latents")[f"{site}.latents"], D.encode(x))
        with llama.edit(Zero(f"{site}.latents")):
            found = llama(IDS).logits
    with llama.edit(Replace(site, lambda y: y - D.encode(y) @ D.W_dec)):
        assert torch.allclose(found, llama(IDS).logits, atol=1e-5)
    with llama.attach(misfit(site, d=30)), pytest.raises(WrongUse, match="reads 30 numbers"):
        llama.record(IDS, f"{site}.latents")
