"""The state of recurrent mixers: against the recurrence written out, in generation, and under edits."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional as F

import interp
from interp import Noise, Patch, Replace, Scale, Steer, WrongUse, Zero
from interp.model import load
from interp.model.model import Model, Tokens
from interp.model.twin import Lifted, twin_of
from tests.model.shapes import RECURRENT, module
from tests.model.wrapped import wrapped

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
SITE = "blocks.2.mixer.state"
LEFT = Tokens(IDS, torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).bool())


def convolved(mixer, x):
    """Each channel [batch, pos, channel] with its last few values, then SiLU."""
    size = mixer.conv1d.weight.shape[-1]
    windows = F.pad(x, (0, 0, size - 1, 0)).unfold(1, size, 1)
    return F.silu((windows * mixer.conv1d.weight[:, 0]).sum(-1) + mixer.conv1d.bias)


def channels(name, mixer, x, put):
    """Mamba (Gu and Dao 2023, algorithm 2), h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t: (states, output).

    `put`: by position, what stands in place of h_t once the output at t is read.
    """
    inner, gate = mixer.in_proj(x).chunk(2, dim=-1)
    u = convolved(mixer, inner)
    rank, width = mixer.time_step_rank, mixer.ssm_state_size
    step, b, c = mixer.x_proj(u).split([rank, width, width], dim=-1)
    if name == "falcon_mamba":
        step, b, c = (t * (t.square().mean(-1, keepdim=True) + mixer.rms_eps).rsqrt() for t in (step, b, c))
    if name == "jamba":
        step, b, c = mixer.dt_layernorm(step), mixer.b_layernorm(b), mixer.c_layernorm(c)
    delta, a = F.softplus(mixer.dt_proj(step)), -mixer.A_log.exp()
    h, states, read = torch.zeros(len(x), u.shape[-1], width, dtype=x.dtype), [], []
    for t in range(x.shape[1]):
        h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        read.append((h * c[:, t, None]).sum(-1) + mixer.D * u[:, t])
        h = put.get(t, h)
        states.append(h)
    return torch.stack(states, 1), mixer.out_proj(torch.stack(read, 1) * F.silu(gate))


def heads(mixer, x, put):
    """Mamba-2 (Dao and Gu 2024, equation 13): one decay a head, B and C shared by the heads of a group."""
    count, width, groups = mixer.num_heads, mixer.ssm_state_size, mixer.n_groups
    inner = count * mixer.head_dim
    gate, mixed, step = mixer.in_proj(x).split([inner, inner + 2 * groups * width, count], dim=-1)
    u, b, c = convolved(mixer, mixed).split([inner, groups * width, groups * width], dim=-1)
    u = u.unflatten(-1, (count, -1))
    b, c = (t.unflatten(-1, (groups, width)).repeat_interleave(count // groups, dim=2) for t in (b, c))
    delta, a = F.softplus(step + mixer.dt_bias), -mixer.A_log.exp()
    h, states, read = torch.zeros(len(x), count, mixer.head_dim, width, dtype=x.dtype), [], []
    for t in range(x.shape[1]):
        decay = (delta[:, t] * a).exp()[..., None, None]
        h = decay * h + (delta[:, t, :, None] * u[:, t])[..., None] * b[:, t, :, None]
        read.append((h * c[:, t, :, None]).sum(-1) + mixer.D[:, None] * u[:, t])
        h = put.get(t, h)
        states.append(h)
    y = torch.stack(read, 1).flatten(2) * F.silu(gate)
    y = y.unflatten(-1, (groups, -1))
    y = y * (y.square().mean(-1, keepdim=True) + mixer.norm.variance_epsilon).rsqrt()
    return torch.stack(states, 1), mixer.out_proj(mixer.norm.weight * y.flatten(2))


@cache
def twin(name):
    """The float64 twin of a shape, wrapped; shared between tests, so leave it as it is."""
    return Model(twin_of(module(name)))


def plainly(name, model, block, x, put=None):
    """(States, output) of a block's mixer by the recurrence."""
    ends = (f"{block}.mixer", f"{block}.mamba")
    mixer = next(m for n, m in model.module.named_modules() if n.endswith(ends))
    return heads(mixer, x, put or {}) if name == "mamba2" else channels(name, mixer, x, put or {})


def near(a, b):
    """float64, 1e-12 of the norm: sums in another order."""
    return a.shape == b.shape and bool((a - b).norm() < 1e-12 * b.norm())


@pytest.mark.parametrize("name", RECURRENT)
def test_the_state_is_that_of_the_recurrence(name):
    model = twin(name)
    with Lifted(), torch.no_grad():
        c = model.record(IDS, ["blocks.2.mixer.in", SITE, "blocks.2.mixer.out"])
        states, out = plainly(name, model, 2, c["blocks.2.mixer.in"])
    assert c[SITE].shape == (2, 6, *model.sites()[SITE][2:])
    assert near(c[SITE], states) and near(c["blocks.2.mixer.out"], out)


@pytest.mark.parametrize("name", RECURRENT)
def test_later_tokens_start_from_the_state_that_was_put_there(name):
    model, sites = twin(name), ["blocks.0.mixer.in", "blocks.0.mixer.state", "blocks.0.mixer.out"]
    with Lifted(), torch.no_grad():
        clean, source = model.record(IDS, sites), model.record(IDS.flip(1), sites)
        edited = model.record(IDS, sites, edits=[Patch(sites[1], source, pos=3), Zero(sites[1], pos=1)])
        put = {1: torch.zeros_like(clean[sites[1]][:, 1]), 3: source[sites[1]][:, 3]}
        states, out = plainly(name, model, 0, clean[sites[0]], put)
    assert near(edited[sites[1]], states) and near(edited[sites[2]], out)
    assert near(edited[sites[2]][:, :2], clean[sites[2]][:, :2])  # the output at 1 was read before
    assert not near(edited[sites[2]][:, 2:], clean[sites[2]][:, 2:])


@pytest.mark.parametrize("name", RECURRENT)
def test_reading_the_state_changes_no_bit_and_no_other_site(name):
    model, inside = wrapped(name), [n for n in module(name).state_dict() if n.endswith("2.mixer.in_proj.weight")]
    others = ["blocks.1.resid_post", "logits", *(f"module:{n.removesuffix('.weight')}" for n in inside)]
    alone, both = model.record(IDS, others), model.record(IDS, [*others, SITE])
    assert all(torch.equal(alone[n], both[n]) for n in others)
    with torch.no_grad():
        assert torch.equal(both.logits, model.module(IDS, use_cache=True).logits)
    padded = model.record(LEFT, SITE)
    bare = model.record(IDS[:1, 2:], SITE)[SITE]
    assert (padded.rows(SITE)[:4] - bare[0]).abs().max() < 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


@pytest.mark.parametrize("name", RECURRENT)
def test_edits_see_the_whole_state_and_count_once_a_pass(name):
    """A mask, a value for every position, noise, a function and a sweep do at each position what they say."""
    model, site = wrapped(name), SITE
    clean = model.record(IDS, site)[site]
    mask = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    edit, value = Zero(site, pos=mask), torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with model.edit(edit):
        assert (model.record(IDS, site)[site][mask] == 0).all()
        assert model.fired(edit) == 1
    assert torch.equal(model.record(IDS, site, edits=[Replace(site, value)])[site], value)
    assert torch.equal(model.record(IDS, site, edits=[Replace(site, lambda x: 0 * x + value)])[site], value)
    last = model.record(IDS, site, edits=[Scale(site, 3.0, pos="last", index=1)])[site]
    assert torch.equal(last[:, :-1], clean[:, :-1])
    assert torch.equal(last[:, -1, ..., 1], 3 * clean[:, -1, ..., 1])
    assert torch.equal(last[:, -1, ..., 0], clean[:, -1, ..., 0])
    with pytest.warns(UserWarning, match="changed nothing"), model.edit(Zero(site, pos=9)):
        model.record(IDS, site)


def test_a_sweep_over_positions_of_the_state_equals_one_run_each():
    model, site = twin("mamba"), "blocks.1.mixer.state"
    edits = [Zero(site, pos=p) for p in range(5)] + [Noise(site, 0.3, seed=1), Scale("blocks.0.resid_post", 2.0)]

    def metric(logits):
        return logits[:, -1, 7] - logits[:, -1, 3]

    with Lifted(), torch.no_grad():
        table = model.sweep(edits, IDS[:1], metric)
        for edit, value in zip(edits, table.values, strict=True):
            with model.edit(edit):
                assert abs(float(metric(model(IDS[:1]).logits)[0]) - float(value)) < 1e-10
    assert (table.values - table.clean).abs().min() > 1e-9


@pytest.mark.parametrize("name", RECURRENT)
def test_generation_edits_and_records_the_state_with_a_cache_and_without(name):
    model, site = wrapped(name), SITE
    shape = model.sites()[site][2:]
    edits = [
        Steer(site, torch.linspace(-1, 1, shape[-1]), 9.0, pos=[1, 3, 7]),
        Scale("blocks.0.mixer.state", 0.2, pos="generated"),
    ]
    with model.edit(*edits):
        cached, cache = model.generate(LEFT, 6, record=site, eos_token_id=None)
        fired = [model.fired(e) for e in edits]
    with model.edit(*edits):
        bare, again = model.generate(LEFT, 6, record=site, use_cache=False, eos_token_id=None)
        alone = model.generate(IDS[:1, 2:], 6, eos_token_id=None)
    assert torch.equal(cached, bare) and torch.equal(cached[0, 2:], alone[0])
    assert fired == [3, 5]  # the prompt, and position 7 of either row; every pass that reads a token it wrote
    assert not torch.equal(cached, model.generate(LEFT, 6, eos_token_id=None))
    with model.edit(edits[0]):
        once = model.generate(LEFT, 6, record=site, eos_token_id=None)[1]
        full = model.record(Tokens(once.tokens, once.mask), site)
    for a, b in ((cache, again), (once, full)):
        assert (a.rows(site) - b.rows(site)).abs().max() < 1e-4 * a[site].square().mean().sqrt()


def test_a_cache_that_is_handed_in_goes_on_and_is_left_as_it_was():
    model = wrapped("mamba")
    whole = model.record(IDS, SITE)[SITE]
    with torch.no_grad():
        given = model.module(IDS[:, :3], use_cache=True).cache_params
        held = given.layers[2].recurrent_states[0].clone()
        rest = model.record({"input_ids": IDS[:, 3:4], "cache_params": given}, SITE)[SITE]
    assert (rest - whole[:, 3:4]).abs().max() < 1e-6
    assert torch.equal(given.layers[2].recurrent_states[0], held)  # the pass ended before the mixer's own turn


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.record(IDS, SITE, grad=lambda x: x.sum()), r"'blocks\.2\.mixer\.state' has no gradient.*in place"),
        (lambda m: m.record(IDS, "embed", edits=[Zero(SITE)], grad=lambda x: x.sum()), "nor lets one through"),
        (lambda m: m.record(IDS, "embed", edits=[Zero(SITE, head=1)]), "no heads"),
        (lambda m: m.record(IDS, "embed", edits=[Zero(SITE, index=4)]), "index 4 is outside 0 to 3"),
        (lambda m: interp.attribution_patching(m, IDS, IDS, SITE, lambda x: x[:, -1, 3]), "has no gradient"),
        (lambda m: load(hawk()).record(IDS, "blocks.0.mixer.state"), "takes no cache of transformers' kind"),
    ],
)
def test_errors_teach(call, words):
    with pytest.raises(WrongUse, match=words):
        call(wrapped("mamba"))


def hawk():
    """A recurrence that keeps its state on the module."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    sizes = dict(vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes, lru_width=32, attention_window_size=4)).eval()
