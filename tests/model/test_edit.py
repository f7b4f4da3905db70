"""Edits: what they change, what they leave alone, and generation with them."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from interp import (
    Cache,
    Failed,
    Freeze,
    Mean,
    Noise,
    Patch,
    Project,
    Replace,
    Resample,
    Scale,
    Steer,
    WrongUse,
    Zero,
    edits_from_json,
)
from interp.model import load
from interp.model.edits import normal
from interp.model.inputs import probe_inputs
from interp.model.model import Tokens
from interp.model.twin import Lifted
from tests.model.shapes import CAUSAL, module
from tests.model.wrapped import wrapped

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
OTHER = torch.tensor([[5, 9, 33, 3, 8, 20], [7, 7, 12, 41, 6, 13]])


def logits(model, x=IDS):
    with torch.no_grad():
        return model(x).logits


def test_an_edited_value_is_what_is_recorded_and_what_goes_on():
    model = wrapped("llama")
    clean = model.record(IDS, "*")
    after = model.record(IDS, "*", edits=[Zero("blocks.1.mlp.write", pos=2)])
    assert after["blocks.1.mlp.write"][:, 2].abs().max() == 0
    assert torch.equal(after["blocks.1.mlp.write"][:, [0, 1, 3]], clean["blocks.1.mlp.write"][:, [0, 1, 3]])
    assert torch.equal(after["blocks.1.resid_post"][:, 2], clean["blocks.1.resid_mid"][:, 2])
    assert torch.equal(after.logits[:, :2], clean.logits[:, :2])
    assert not torch.equal(after.logits[:, 2], clean.logits[:, 2])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "t5", "vit", "opt"])
def test_resid_mid_is_edited_for_everyone_who_reads_the_stream(name):
    """resid_post - mlp.write must be the value put at resid_mid, not just what the norm reads."""
    model = wrapped(name)
    x = model.inputs(
        torch.randn(2, 3, 16, 16)
        if name == "vit"
        else {"input_ids": IDS, "decoder_input_ids": IDS}
        if name == "t5"
        else IDS
    )
    prefix = "encoder." if name == "t5" else ""
    total = "mlp.sum" if name == "bert" else "resid_post"
    put = torch.randn(32)
    cache = model.record(
        x,
        [f"{prefix}blocks.1.{s}" for s in ("resid_mid", total, "mlp.write")],
        edits=[Replace(f"{prefix}blocks.1.resid_mid", put)],
    )
    assert (cache[f"{prefix}blocks.1.resid_mid"] - put).abs().max() < 1e-5
    reached = cache[f"{prefix}blocks.1.{total}"] - cache[f"{prefix}blocks.1.mlp.write"]
    assert (reached - put).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "pythia", "t5"])
def test_editing_a_pattern_gives_the_weighted_values(name):
    model = wrapped(name)
    prefix = "encoder." if name == "t5" else ""
    x = {"input_ids": IDS, "decoder_input_ids": IDS} if name == "t5" else IDS
    site = f"{prefix}blocks.1.attn."
    first = torch.zeros(6)
    first[0] = 1.0  # everyone looks at the first token
    cache = model.record(
        x, [site + "z", site + "v", site + "pattern"], edits=[Replace(site + "pattern", first, head=3)]
    )
    z, v = cache[site + "z"], cache[site + "v"]
    value = v[:, :1, 3 * v.shape[2] // 4]
    assert (z[:, :, 3] - value).abs().max() < 1e-6
    assert (cache[site + "pattern"][:, 3] - first).abs().max() == 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "pythia"])
@pytest.mark.parametrize("inner", ["q", "k", "v", "scores", "q_raw", "k_raw", "z", "result"])
def test_every_inner_site_can_be_edited_and_reaches_the_output(name, inner):
    model = wrapped(name)
    clean = logits(model)
    head = 0 if inner in ("k", "v", "k_raw") else 1  # two kv heads, four query heads
    with model.edit(
        Replace(f"blocks.1.attn.{inner}", lambda x: 1.5 * x + torch.linspace(0, 1, x.shape[-1]), head=head), strict=True
    ):
        changed = logits(model)
    assert (changed - clean).abs().max() > 1e-4
    assert torch.equal(logits(model), clean)


def test_head_of_v_reaches_only_its_group():
    model = wrapped("llama")
    clean = model.record(IDS, "blocks.0.attn.z")["blocks.0.attn.z"]
    z = model.record(IDS, "blocks.0.attn.z", edits=[Zero("blocks.0.attn.v", head=1)])["blocks.0.attn.z"]
    assert torch.equal(z[:, :, :2], clean[:, :, :2])
    assert z[:, :, 2:].abs().max() == 0


@pytest.mark.parametrize("name", ["llama", "pythia", "mamba", "opt"])
def test_patching_everything_from_another_run_gives_that_run(name):
    model = wrapped(name)
    other = model.record(OTHER, "blocks.*.resid_post")
    with model.edit(Patch("blocks.2.resid_post", other)):
        assert (logits(model) - logits(wrapped(name), OTHER)).abs().max() < 1e-5
    with model.edit(Patch("blocks.0.resid_pre", model.record(OTHER, "blocks.0.resid_pre"), pos=slice(0, 3))):
        one = logits(model)
    assert torch.equal(one[1, :3], logits(model)[1, :3])  # rows differ from position 3 on


def test_patch_moves_a_position():
    model = wrapped("gpt2")
    source = model.record(OTHER, "blocks.1.resid_post")
    cache = model.record(IDS, "blocks.1.resid_post", edits=[Patch("blocks.1.resid_post", source, pos=4, from_pos=2)])
    assert torch.equal(cache["blocks.1.resid_post"][:, 4], source["blocks.1.resid_post"][:, 2])


def test_patch_aligns_prompts_of_other_lengths_by_real_position():
    model = wrapped("llama")
    short = Tokens(IDS, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    source = model.record(short, "blocks.0.resid_post")
    left = {"input_ids": IDS.flip(1), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])}
    cache = model.record(left, "blocks.0.resid_post", edits=[Patch("blocks.0.resid_post", source)])
    assert torch.equal(cache["blocks.0.resid_post"][0, 2:], source["blocks.0.resid_post"][0, :4])


def test_steer_project_mean_rows_and_index():
    model, site = wrapped("llama"), "blocks.1.resid_post"
    clean = model.record(IDS, site)[site]
    d = torch.randn(32)
    assert torch.equal(model.record(IDS, site, edits=[Steer(site, d, 2.0)])[site], clean + 2.0 * d)
    flat = model.record(IDS, site, edits=[Project(site, torch.stack([d, torch.ones(32)]))])[site]
    assert (flat @ d).abs().max() < 1e-4
    assert (flat.sum(-1)).abs().max() < 1e-4
    mean = model.record(IDS, site, edits=[Mean(site, clean.mean((0, 1)), rows=[1], index=[3, 4])])[site]
    assert torch.equal(mean[0], clean[0])
    assert torch.equal(mean[1, :, :3], clean[1, :, :3])
    assert torch.equal(mean[1, :, 3], clean.mean((0, 1))[3].expand(6))


def test_contexts_nest_and_leave_nothing_behind():
    model, site = wrapped("gpt2"), "blocks.1.resid_post"
    clean = logits(model)
    with model.edit(Scale(site, 2.0)):
        with model.edit(Scale(site, 3.0)):
            sixfold = model.record(IDS, site)[site]
            six = logits(model)
        two = logits(model)
        recorded = model.record(IDS, "logits").logits
    assert torch.equal(two, recorded)
    assert torch.equal(sixfold, 3 * (2 * model.record(IDS, site)[site]))
    assert not torch.equal(two, six)
    with pytest.raises(ZeroDivisionError), model.edit(Zero(site)):
        1 / 0  # noqa: B018
    assert torch.equal(logits(model), clean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_an_edit_that_does_not_fire_warns_or_raises():
    model = wrapped("llama")
    with pytest.warns(UserWarning, match="changed nothing"), model.edit(Zero("embed", pos=50)):
        logits(model)
    with pytest.raises(Failed, match="changed nothing"), model.edit(Zero("embed", pos=50), strict=True):
        logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.edit(Zero("embed", pos=5)):
            logits(model)


def test_values_move_between_prompts_of_different_length_by_a_map():
    model, site = wrapped("llama"), "blocks.1.resid_post"
    short = Tokens(IDS[:, :4], torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool())
    source = model.record(short, site)
    edit = Patch(site, source, from_pos=[0, -1], to_pos=[4, 1])
    clean, after = model.record(IDS, site)[site], model.record(IDS, site, edits=[edit])[site]
    assert torch.equal(after[:, 4], source[site][:, 0])
    assert torch.equal(after[0, 1], source[site][0, 2])  # the last real token of the shorter prompt
    assert torch.equal(after[1, 1], source[site][1, 3])
    assert torch.equal(after[:, [0, 2, 3, 5]], clean[:, [0, 2, 3, 5]])
    last = model.record(IDS, site, edits=[Patch(site, source, from_pos=1, to_pos=-1)])[site]
    assert torch.equal(last[:, -1], source[site][:, 1])


def test_beyond_the_end_of_a_shorter_source_nothing_changes():
    model, site = wrapped("llama"), "blocks.1.resid_post"
    source = model.record(Tokens(OTHER, torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]).bool()), site)
    clean, after = model.record(IDS, site)[site], model.record(IDS, site, edits=[Patch(site, source)])[site]
    assert torch.equal(after[0, :3], source[site][0, :3])
    assert torch.equal(after[0, 3:], clean[0, 3:])
    assert torch.equal(after[1], source[site][1])


@pytest.mark.parametrize("inner", ["pattern", "scores"])
def test_patterns_are_patched_key_by_key_whatever_the_padding(inner):
    """A left-padded batch held at the patterns of a right-padded one: each row's keys are its own tokens."""
    model, site = wrapped("llama"), f"blocks.1.attn.{inner}"
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).bool()
    source = model.record(Tokens(OTHER, mask), site)
    ids = torch.stack([IDS[0].roll(2), IDS[1]])
    left = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}
    after = model.record(left, site, edits=[Patch(site, source)])[site]
    assert torch.equal(after[0, :, 2:, 2:], source[site][0, :, :4, :4])
    assert torch.equal(after[1], source[site][1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_frozen_patterns_and_streams_are_those_of_the_other_run(name):
    model = wrapped(name)
    sites = ["blocks.*.attn.pattern", "blocks.0.mlp.write"]
    other = model.record(OTHER, sites)
    freeze = Freeze(sites, other)
    with model.edit(freeze, strict=True):
        held = model.record(IDS, sites)
    for site in other:
        assert torch.equal(held[site], other[site])
    assert model.fired(freeze) == 4  # three patterns and a write
    with pytest.raises(WrongUse, match="was not recorded"), model.edit(Freeze("blocks.*.attn.z", other)):
        pass


def test_resample_takes_another_row_or_a_row_of_another_run():
    model, site = wrapped("llama"), "blocks.1.resid_post"
    four = torch.cat([IDS, OTHER.flip(1)])
    clean = model.record(four, [site, "blocks.1.mlp.write"])
    after = model.record(four, [site, "blocks.1.mlp.write"], edits=[Resample(site, seed=3)])
    rows = [next(s for s in range(4) if torch.equal(after[site][r], clean[site][s])) for r in range(4)]
    assert sorted(rows) == [0, 1, 2, 3] and all(r != s for r, s in enumerate(rows))
    assert torch.equal(after["blocks.1.mlp.write"], clean["blocks.1.mlp.write"])  # it comes before
    drawn = [model.record(IDS[:1], site, edits=[Resample(site, clean, seed=s)])[site][0] for s in range(12)]
    found = {next(r for r in range(4) if torch.equal(d, clean[site][r])) for d in drawn}
    assert found == {0, 1, 2, 3}
    with pytest.raises(WrongUse, match="another row"):
        model.record(IDS[:1], site, edits=[Resample(site)])
    short = Tokens(IDS, torch.tensor([[1, 1, 0, 0, 0, 0], [1] * 6]).bool())
    plain = model.record(short, site)[site]
    mixed = model.record(short, site, edits=[Resample(site)])[site]
    assert torch.equal(mixed[1, :2], plain[0, :2]) and torch.equal(mixed[1, 2:], plain[1, 2:])


def test_noise_is_normal_and_depends_on_seed_site_row_and_position_alone():
    model, site = wrapped("llama"), "blocks.1.resid_post"
    clean, noisy = (model.record(IDS, site, edits=e)[site] for e in ([], [Noise(site, 0.5, seed=1)]))
    part = model.record(IDS[:, :3], site, edits=[Noise(site, 0.5, seed=1)])[site]
    assert torch.allclose(part - clean[:, :3], (noisy - clean)[:, :3], atol=1e-5)
    other = model.record(IDS, site, edits=[Noise(site, 0.5, seed=2)])[site]
    assert not torch.allclose(other, noisy)
    z = normal("1 a", torch.arange(2000).reshape(4, 500), (50,)).flatten()
    # 100 000 draws: the standard errors of the four moments are .003, .004, .008, .015.
    moments = [float(z.pow(k).mean()) for k in (1, 2, 3, 4)]
    assert all(abs(m - e) < b for m, e, b in zip(moments, (0, 1, 0, 3), (0.014, 0.02, 0.04, 0.08), strict=True))
    rows = normal("1 a", torch.arange(9).expand(2, 9), (64,))
    assert abs(float(torch.corrcoef(rows.flatten(1))[0, 1])) < 0.15
    assert torch.equal(
        normal("1 a", torch.arange(9).expand(2, 9), (64, 5))[..., :3],
        normal("1 a", torch.arange(9).expand(2, 9), (64, 3)),
    )


def test_an_edit_says_how_often_it_fired():
    model = wrapped("llama")
    two, none, glob = Zero("embed", pos=2), Zero("embed", pos=50), Scale("blocks.*.mlp.write", 1.1)

    def use():
        with model.edit(two, none, glob) as edited:
            assert edited is model and edited.fired(two) == 0
            logits(model)
            logits(model)
            model.record(IDS, "blocks.1.resid_post")
            assert (model.fired(two), model.fired(none), model.fired(glob)) == (3, 0, 8)

    with pytest.warns(UserWarning, match="changed nothing"):
        use()
    assert model.fired(glob) == 8
    with pytest.raises(WrongUse, match="never used"):
        model.fired(Zero("embed"))


def of_every_kind(model, site, **where):
    """Ten edits of a site with heads, as wide as `where` leaves them."""
    other = model.record(OTHER.flip(1), site)
    d = torch.linspace(-1, 1, other[site].shape[-1])
    return [
        Zero(site, **where),
        Mean(site, d, **where),
        Scale(site, -0.7, **where),
        Steer(site, d, 2.0, **where),
        Project(site, torch.stack([d, d**2]), **where),
        Patch(site, other, **where),
        Freeze([site], other, **where),
        Resample(site, seed=1, **where),
        Noise(site, 0.5, seed=3, **where),
        Replace(site, lambda x: x.tanh() + 1, **where),
    ]


SELECTED = dict(pos=[1, -1], head=2, index=[0, 3], rows=[1])


@pytest.mark.parametrize("selection", [[*SELECTED], *([name] for name in SELECTED)], ids=" ".join)
@pytest.mark.parametrize("site", ["blocks.1.attn.z", "blocks.1.attn.pattern"])
def test_every_kind_changes_what_is_selected_and_nothing_else(site, selection):
    """x' = what the edit makes of everything where it is selected, x elsewhere, bit for bit; the same when read from JSON."""
    model, where = wrapped("llama"), {name: SELECTED[name] for name in selection}
    clean = model.record(IDS, site)[site]
    chosen = torch.ones_like(clean, dtype=torch.bool).transpose(1, 2 if site.endswith("pattern") else 1)
    for axis, name in enumerate(("rows", "pos", "head", "index")):  # [batch, pos, head, last]
        if name in where:
            picked = torch.zeros(chosen.shape[axis], dtype=torch.bool)
            picked[where[name]] = True
            chosen = chosen & picked.view([-1 if a == axis else 1 for a in range(4)])
    chosen = chosen.transpose(1, 2) if site.endswith("pattern") else chosen
    kinds = zip(of_every_kind(model, site), of_every_kind(model, site, **where), strict=True)
    for whole, part in kinds:
        everything = model.record(IDS, site, edits=[whole])[site]
        found = model.record(IDS, site, edits=[part], strict=True)[site]
        assert torch.equal(found, torch.where(chosen, everything, clean)), type(part).__name__
        assert not torch.equal(found, clean), type(part).__name__
        if not isinstance(part, Replace):  # a function cannot be written down
            again = edits_from_json(json.loads(json.dumps(part.to_json())))
            assert torch.equal(model.record(IDS, site, edits=again)[site], found), type(part).__name__
    assert len({type(e) for e in of_every_kind(model, site)}) == 10


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_with_patterns_and_norm_scales_held_attention_is_linear_in_the_stream(name):
    """attn.out(2 x) - attn.out(x) = attn.out(x) - attn.out(0), relative 1e-12 in float64; with free norms it is not."""
    model, at = wrapped(name, torch.float64), "blocks.1."
    held = ["blocks.1.attn.pattern", "blocks.1.attn.norm.scale"]
    with Lifted(), torch.no_grad():
        cache = model.record(IDS, held)
        freezes = [[Freeze(held, cache)], [Freeze(held[0], cache)]]
        outs = [
            [
                model.record(IDS, at + "attn.out", edits=[Scale(at + "resid_pre", f), *freeze])[at + "attn.out"]
                for f in (0.0, 1.0, 2.0)
            ]
            for freeze in freezes
        ]
    bends = [float((two - 2 * one + none).norm() / one.norm()) for none, one, two in outs]
    assert bends[0] < 1e-12 < 1e-3 < bends[1]


# ---------------------------------------------------------------- written down


def all_kinds(dtype):
    torch.manual_seed(0)
    value = torch.randn(3, 32).to(dtype)
    site = "blocks.1.resid_post"
    run = {site: torch.randn(2, 5, 32).to(dtype), "blocks.1.attn.scores": torch.full((2, 4, 5, 5), float("-inf"))}
    cache = Cache(run, mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5]).bool())
    return [
        Zero(site, pos=slice(1, None, 2), rows=[0]),
        Mean(site, value[0], pos=[1, 4], index=3),
        Scale("blocks.*.attn.z", 0.1 + 0.2, head=2, pos="generated"),
        Steer(site, value[1], 4.0, pos=-1),
        Project(site, value, pos=torch.tensor([[True, False, True, True, False, True]] * 2)),
        Patch(site, cache, from_pos=[0, 1], to_pos=[2, -1]),
        Patch("blocks.1.attn.scores", cache),
        Freeze([site, "blocks.*.attn.scores"], cache),
        Resample(site, seed=4),
        Resample(site, run[site], seed=4),
        Noise(site, 0.25, seed=7, index=[1, 2]),
        Replace(site, value[2].double()),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edits_survive_json_exactly(dtype):
    edits = all_kinds(dtype)
    text = json.dumps([e.to_json() for e in edits], allow_nan=False)
    again = edits_from_json(json.loads(text))
    assert [type(e) for e in again] == [type(e) for e in edits]
    for old, new in zip(edits, again, strict=True):
        for name, value in vars(old).items():
            got = getattr(new, name)
            if isinstance(value, Cache):
                assert got.keys() == {k for k in value if k in (old.site if isinstance(old.site, str) else value)} or (
                    isinstance(old.site, list) and got.keys() == value.keys()
                )
                assert all(torch.equal(got[k], value[k]) and got[k].dtype == value[k].dtype for k in got)
                assert torch.equal(got.mask, value.mask)
            elif isinstance(value, torch.Tensor):
                assert torch.equal(got, value) and got.dtype == value.dtype
            else:
                assert got == value
    assert edits_from_json(Zero("embed").to_json())[0].to_json() == {"edit": "Zero", "site": "embed"}


def test_an_edit_read_back_does_the_same():
    model, sites = wrapped("llama"), ["blocks.1.resid_post", "blocks.1.attn.pattern"]
    other = model.record(OTHER, sites)
    edits = [Freeze(sites[1:], other), Patch(sites[0], other, pos=2), Noise(sites[0], 0.1)]
    before = model.record(IDS, "logits", edits=edits).logits
    after = model.record(IDS, "logits", edits=edits_from_json([e.to_json() for e in edits])).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"edit": "Stear", "site": "embed"}, "'Steer'"),
        ({"edit": "Zero", "site": "embed", "haed": 1}, "'head'"),
        ({"edit": "Steer", "site": "embed"}, "lacks 'direction'"),
        ({"site": "embed"}, '"edit": "Zero"'),
        ([3], "an edit is an object"),
        ({"edit": "Mean", "site": "embed", "value": {"dtype": "float33", "values": [1]}}, "bfloat16"),
        ({"edit": "Mean", "site": "embed", "value": {"dtyp": "float32", "values": [1]}}, "'dtype'"),
        ({"edit": "Mean", "site": "embed", "value": [[1, 2], [3]]}, "list of numbers"),
    ],
)
def test_bad_json_teaches(given, words):
    with pytest.raises(WrongUse, match=words):
        edits_from_json(given)


def test_a_function_cannot_be_written_down():
    with pytest.raises(WrongUse, match="Python function"):
        Replace("embed", torch.tanh).to_json()


# ---------------------------------------------------------------- errors that teach


WIDE = torch.ones(33)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: Steer("embed", torch.ones(32), alhpa=2.0), "alpha"),
        (lambda m: Zero("blocks.0.resid_post", head=1), "no heads"),
        (lambda m: Zero("blocks.0.attn.z", head=7), r"head 7 is outside 0 to 3"),
        (lambda m: Zero("blocks.0.attn.v", head=2), r"head 2 is outside 0 to 1"),
        (lambda m: Zero("blocks.0.attn.pattern", head=-5), r"head -5 is outside 0 to 3"),
        (lambda m: Zero("embed", index=32), r"index 32 is outside 0 to 31"),
        (lambda m: Zero("blocks.0.resid_pots"), "resid_post"),
        (lambda m: Mean("embed", WIDE), r"Mean at 'embed' was given .*\(33,\).*\(batch, pos, 32\)"),
        (lambda m: Replace("embed", WIDE), r"\(33,\)"),
        (lambda m: Steer("blocks.0.attn.z", torch.ones(32)), r"\(32,\).*\(batch, pos, 4, 8\)"),
        (lambda m: Project("embed", WIDE), r"Project at 'embed'"),
        (lambda m: Patch("embed", torch.ones(2, 6, 33)), r"Patch at 'embed'"),
        (lambda m: Patch("embed", torch.ones(6, 32)), r"\(6, 32\)"),
        (lambda m: Patch("blocks.0.attn.z", m.record(IDS, "embed")), "was not recorded"),
        (lambda m: Patch("embed", m.record(IDS, "embed", pos="last")), "every position"),
        (lambda m: Patch("embed", torch.ones(1, 6, 32), from_pos=[1, 2], to_pos=[1]), "equal length"),
        (lambda m: Patch("embed", torch.ones(1, 6, 32), from_pos=[1, 2]), "equal length"),
        (lambda m: "embed", "is no edit"),
    ],
)
def test_bad_edits_are_refused_before_anything_runs(make, words):
    model = wrapped("llama")
    with pytest.raises(WrongUse, match=words), model.edit(make(model)):
        pytest.fail("the context was entered")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Zero("embed", pos=6), r"pos=6\) cannot fire: the prompts have \[6, 6\] tokens"),
        (lambda: Zero("embed", pos=[-7, 9]), "cannot fire"),
        (lambda: Zero("embed", pos=slice(6, None)), "cannot fire"),
        (lambda: Zero("embed", pos="generated"), "nothing is generated here"),
        (lambda: Zero("embed", pos="frist"), "'last'"),
        (lambda: Zero("embed", pos=torch.ones(2, 5, dtype=torch.bool)), r"mask of shape \(2, 5\)"),
        (lambda: Zero("embed", rows=[2]), r"row 2 is outside 0 to 1"),
        (lambda: Zero("blocks.0.attn.pattern", index=6), r"index 6 is outside 0 to 5"),
        (lambda: Mean("embed", torch.ones(5, 32)), r"\(5, 32\)"),
        (lambda: Patch("embed", torch.ones(3, 6, 32)), "3 rows for a batch of 2"),
        (lambda: Patch("embed", torch.ones(1, 2, 32), pos=4), "no such position"),
        (lambda: Patch("embed", torch.ones(1, 2, 32), from_pos=2, to_pos=4), "no such position"),
    ],
)
def test_an_edit_that_cannot_fire_is_refused_before_the_run(make, words):
    model = wrapped("llama")
    model.binding  # noqa: B018  (solve first)
    ran = []
    handle = model.module.register_forward_pre_hook(lambda m, a: ran.append(1))
    try:
        with pytest.raises(WrongUse, match=words):
            model.record(IDS, "blocks.0.resid_post", edits=[make()])
    finally:
        handle.remove()
    assert not ran


def test_what_is_known_only_in_the_run_is_refused_there():
    model = wrapped("llama")
    for edit, words in [
        (Zero("embed", rows=[2]), "row 2 is outside 0 to 1"),
        (Replace("embed", lambda x: x[:, :1]), "returned"),
        (Mean("embed", torch.ones(5, 32)), r"\(5, 32\)"),
        (Zero("embed", pos="frist"), "'last'"),
    ]:
        with pytest.raises(WrongUse, match=words), model.edit(edit):
            logits(model)


def test_what_can_only_be_read_refuses_edits_and_gradients():
    model, sink = wrapped("gpt_oss"), "blocks.1.attn.sink"
    with pytest.raises(WrongUse, match=r"attn\.sink' can be recorded, but not edited.*attn\.pattern"):
        model.record(IDS, "logits", edits=[Zero(sink)])
    with pytest.raises(WrongUse, match="but not edited"), model.edit(Scale("blocks.1.attn.*", 2.0)):
        pass
    with pytest.raises(WrongUse, match=r"attn\.sink' has no gradient.*attn\.pattern"):
        model.record(IDS, [sink, "embed"], grad=lambda x: x.sum())


def test_parallel_and_unproven_sites_refuse_edits_with_the_reason():
    with pytest.raises(WrongUse, match="parallel"), wrapped("pythia").edit(Zero("blocks.0.resid_mid")):
        pass
    model = load(module("llama"))
    refused = model.binding.refused
    refused["blocks.1.*"] = "unproven: resid_mid is off by 3.0e-01 (tolerance 1e-05)"
    model.binding.sites.pop("blocks.1.attn.write")
    with pytest.raises(WrongUse, match=r"off by 3\.0e-01"), model.edit(Zero("blocks.1.attn.write")):
        pass


class Deaf(torch.nn.Module):
    """Takes no mask: every token sees every other."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(61, 8)

    def forward(self, input_ids):
        return {"out": self.table(input_ids).mean(1, keepdim=True) + self.table(input_ids)}


def test_a_mask_that_would_be_ignored_is_refused():
    from transformers import BertForMaskedLM

    class DeafBert(BertForMaskedLM):
        def forward(self, input_ids=None, attention_mask=None, **rest):
            return super().forward(input_ids=input_ids, **rest)

    padded = Tokens(IDS, torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]).bool())
    heard = module("bert")
    deaf = DeafBert(heard.config).eval()
    deaf.load_state_dict(heard.state_dict())
    load(heard).record(padded, "blocks.1.resid_post")
    model = load(deaf)
    for call in (lambda: model.record(padded, "blocks.1.resid_post"), lambda: model(padded)):
        with pytest.raises(WrongUse, match=r"would ignore the attention mask .* off by"):
            call()
    model.record(IDS, "blocks.1.resid_post")
    with pytest.raises(WrongUse, match="takes no attention_mask"):
        load(Deaf()).record(padded, "module:table")


@pytest.mark.parametrize(
    ("kind", "labels"), [("SequenceClassification", 8), ("TokenClassification", 3), ("QuestionAnswering", 2)]
)
def test_the_mask_of_a_padded_batch_is_heard_whatever_shape_answers_have(kind, labels):
    """Once a prompt, of as many classes as the twin's prompts have tokens; once a token; two answers a token."""
    import transformers

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=61, num_labels=labels, **sizes)
    model = load(getattr(transformers, f"BertFor{kind}")(config).eval())
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]).bool()
    site = "blocks.1.resid_post"
    together, alone = model.record(Tokens(IDS, mask), site)[site][0, :3], model.record(IDS[:1, :3], site)[site][0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # float32, two blocks


# ---------------------------------------------------------------- generation

DIRECTION = torch.linspace(-2, 2, 32)


@pytest.mark.parametrize("pos", ["all", "prompt", "generated", [2, 3, 8]])
@pytest.mark.parametrize("name", [n for n in CAUSAL if n != "mamba"])
def test_steered_generation_is_the_same_with_cache_and_without(name, pos):
    model = wrapped(name)
    with model.edit(Steer("blocks.1.resid_post", DIRECTION, 1.5, pos=pos)):
        cached = model.generate(IDS, max_new_tokens=6, use_cache=True)
        bare = model.generate(IDS, max_new_tokens=6, use_cache=False)
    assert torch.equal(cached, bare)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "opt", "mamba"])
def test_left_padding_changes_no_token(name):
    model = wrapped(name)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    inner = "blocks.0.mixer.write" if name == "mamba" else "blocks.0.attn.pattern"
    with model.edit(Steer("blocks.1.resid_post", DIRECTION, pos=[1, 5]), Scale(inner, 0.5, pos="generated")):
        both = model.generate(Tokens(IDS, mask), max_new_tokens=5)
        alone = model.generate(IDS[:1, :3], max_new_tokens=5)
    assert torch.equal(both[0, 3:], alone[0])


def test_a_model_that_cannot_be_padded_on_the_left_is_refused():
    """A recurrence that reads padding as text: found by running its twin, not by its name."""
    from transformers import RwkvConfig, RwkvForCausalLM

    net = RwkvForCausalLM(RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=3, context_length=64)).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    with pytest.raises(WrongUse, match="padded on the left"):
        load(net).generate(Tokens(IDS, mask), max_new_tokens=2)


def test_an_encoder_of_sound_is_as_long_as_its_own_input():
    """Not as the decoder's tokens, which are the only token ids of the call."""
    model = load(module("whisper"))
    inputs = probe_inputs(model.module, batch=2, length=5)
    site = "encoder.blocks.1.resid_post"
    old = model.record(inputs, site)[site]
    assert old.shape[1] != inputs["decoder_input_ids"].shape[1]
    new = model.record(inputs, site, edits=[Replace(site, 2 * old)])[site]
    assert torch.equal(new, 2 * old)
    last = model.record(inputs, site, edits=[Zero(site, pos="last")])[site]
    assert torch.equal(last[:, :-1], old[:, :-1]) and not last[:, -1].any()
