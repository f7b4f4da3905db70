"""Inversion: prompts come back exactly, collisions are found and said, a sentence is found in one vector."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch

import interp
from interp import Failed, Steer, WrongUse
from interp.model import load
from interp.model.model import Model
from interp.model.twin import Lifted, randomise
from probes.cli.invert import collisions as collisions_command
from probes.cli.invert import prompt as prompt_command
from probes.cli.invert import sentence as sentence_command
from probes.inversion import appended, collisions, nearest_pairs, recover, sentence_vector
from tests.model.shapes import BUILD, module

IDS = [5, 9, 11, 3, 8, 20, 7, 7, 12, 40, 6, 13]


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return load(module("gpt2", torch.float64))


def states(model, site, ids=IDS):
    return model.record(torch.tensor([ids]), site)[site][0]


@pytest.mark.parametrize("policy", ["gradient", "brute"])
@pytest.mark.parametrize("site", ["blocks.0.resid_post", "blocks.1.resid_mid", "blocks.2.resid_post", "final_norm"])
def test_prompts_come_back_exactly(gpt2, site, policy):
    found = recover(gpt2, states(gpt2, site), site, policy=policy, batch=4, seed=3)
    assert found.ids.tolist() == IDS
    assert int(found.tests.max()) <= 61
    assert bool((found.distance <= found.eps).all())
    frame = found.to_frame()
    assert frame["id"].tolist() == IDS
    assert len(found.plot().data[0].x) == len(IDS)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_other_architectures_too(name):
    """Rotary positions, grouped heads, embeddings that are multiplied."""
    with Lifted():
        model = load(module(name, torch.float64))
        found = recover(model, states(model, "blocks.1.resid_post"), "blocks.1.resid_post", batch=8)
    assert found.ids.tolist() == IDS


def test_the_gradient_tests_fewer_tokens(gpt2):
    x = states(gpt2, "blocks.1.resid_post")
    tests = {
        p: int(recover(gpt2, x, "blocks.1.resid_post", policy=p, batch=1).tests.sum()) for p in ("gradient", "brute")
    }
    assert tests["gradient"] < tests["brute"] / 2


def test_every_token_tested_gives_margin_and_the_same_prompt(gpt2):
    """The rival is the second nearest of all 61, by brute force."""
    site = "blocks.1.resid_post"
    x = states(gpt2, site, IDS[:4])
    for policy in ("gradient", "brute"):
        found = recover(gpt2, x, site, policy=policy, every=True, batch=16)
        assert found.tests.tolist() == [61] * 4
        assert found.matches.tolist() == [1] * 4
        for t in range(4):
            prompts = torch.tensor([[*IDS[:t], v] for v in range(61)])
            far = (gpt2.record(prompts, site)[site][:, -1] - x[t]).norm(dim=1).sort().values
            assert float(found.rival[t]) == pytest.approx(float(far[1]), rel=1e-6)


def test_noise_below_half_the_margin_does_no_harm(gpt2):
    site = "blocks.1.resid_post"
    x = states(gpt2, site)
    margin = float(recover(gpt2, x, site, every=True).rival.min())
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    noisy = x + 0.45 * margin * noise / noise.norm(dim=1, keepdim=True)
    assert recover(gpt2, noisy, site, eps=0.49 * margin).ids.tolist() == IDS
    with pytest.raises(Failed, match="position 0: no token gives this state"):
        recover(gpt2, noisy, site)


def test_equal_embeddings_are_a_collision():
    """Tokens 3 and 17 are embedded alike: no state tells them apart, and the ambiguity is reported."""
    net = copy.deepcopy(module("gpt2", torch.float64))
    with torch.no_grad():
        net.transformer.wte.weight[17] = net.transformer.wte.weight[3]
    model, site = load(net), "blocks.1.resid_post"
    found = recover(model, states(model, site, IDS[:5]), site, every=True)
    assert found.matches.tolist() == [1, 1, 1, 2, 1]
    assert int(found.ids[3]) in (3, 17)
    near = collisions(model, [[5, 9, 3], [5, 9, 17], [5, 9, 20]], site, k=2)
    assert near.to_frame()["collides"].tolist() == [True, False]
    assert [near.prompts[i] for i in near.pairs[site][0].tolist()] == [[5, 9, 3], [5, 9, 17]]


# ---------------------------------------------------------------- pairs


def test_nearest_pairs_equal_brute_force(monkeypatch):
    """Blocks of seven; values far from the origin, where sums of squares cancel."""
    monkeypatch.setattr("probes.inversion.BLOCK", 7)
    draw = torch.Generator().manual_seed(2)
    a, b = (100 + torch.randn(40, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    a[31] = a[4] + 1e-9
    whole = torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist")
    whole[torch.ones(40, 40).tril().bool()] = torch.inf
    pairs, far = nearest_pairs(a, 6)
    wanted = whole.flatten().topk(6, largest=False)
    assert torch.allclose(far, wanted.values, rtol=1e-6)
    assert (pairs[:, 0] * 40 + pairs[:, 1]).tolist() == wanted.indices.tolist()
    assert pairs[0].tolist() == [4, 31]
    pairs, far = nearest_pairs(a, 3, b)
    wanted = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").flatten().topk(3, largest=False)
    assert (pairs[:, 0] * 40 + pairs[:, 1]).tolist() == wanted.indices.tolist()
    assert len(nearest_pairs(a[:3], 10)[1]) == 3


def test_collisions_compare_last_states_of_any_length(gpt2):
    prompts = [[5], [5, 9], [5, 9, 11], [7, 8], [5, 9], [30, 2, 2, 2]]
    found = collisions(gpt2, prompts, "blocks.*.resid_post", k=4, batch=2)
    assert len(found.prompts) == 5
    for site in found.pairs:
        last = [gpt2.record(torch.tensor([p]), site)[site][0, -1] for p in found.prompts]
        wanted = sorted(float((last[i] - last[j]).norm()) for i in range(5) for j in range(i))
        assert found.distances[site].tolist() == pytest.approx(wanted[:4], rel=1e-9)
    assert len(found.to_frame()) == 12
    assert len(found.plot().data[0].y) == 3


def test_every_token_behind_two_prompts(gpt2):
    site = "blocks.1.resid_post"
    pairs, far = appended(gpt2, [5, 9], [7], site, k=3)
    first, second = (gpt2.record(torch.tensor([[*p, v] for v in range(61)]), site)[site][:, -1] for p in ([5, 9], [7]))
    wanted = torch.cdist(first, second).flatten().topk(3, largest=False)
    assert torch.allclose(far, wanted.values, rtol=1e-6)
    assert (pairs[:, 0] * 61 + pairs[:, 1]).tolist() == wanted.indices.tolist()


# ---------------------------------------------------------------- a sentence in one vector


def digest(model):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.module.parameters())).hexdigest()


def test_only_the_vector_is_trained_and_decoding_is_what_is_told(gpt2):
    """The likelihood rises, the model stays as it is, and what is said is what a run under the vector says, greedily."""
    before, wanted = digest(gpt2), [9, 33, 2, 50, 17]
    found = sentence_vector(gpt2, wanted, "embed", start=1, steps=60, lr=0.2, restarts=1, seed=4)
    assert digest(gpt2) == before
    assert found.losses[-1] < found.losses[0]
    ids = torch.tensor([[1, *found.said.tolist()]])
    with gpt2.edit(Steer("embed", found.z)):
        assert gpt2(ids).logits[0, :-1].argmax(-1).tolist() == found.said.tolist()
    same = [a == b for a, b in zip(wanted, found.said.tolist(), strict=True)]
    assert found.accuracy == sum(same) / 5
    assert found.prefix == (same.index(False) if False in same else 5)
    assert found.to_frame()["same"].tolist() == same
    assert len(found.plot().data[0].y) == len(found.losses)


def test_a_sentence_comes_back_from_one_vector():
    """Five tokens drawn by hand, that a random model of width 128 says under one vector at its embeddings."""
    kind, config, options = BUILD["gpt2"]
    torch.manual_seed(3)
    net = kind(config(**options | dict(n_embd=128, n_layer=2))).eval().double()
    randomise(net, 3)
    found = sentence_vector(load(net), [9, 33, 2, 50, 17], "embed", start=1, steps=250, lr=0.3, restarts=1, seed=4)
    assert found.exact
    assert (found.accuracy, found.prefix) == (1.0, 5)


def test_a_sentence_that_the_model_would_say_anyway_is_recovered_whole(gpt2):
    """Its own greedy continuation: the vector has only to do no harm, and every measure says so."""
    ids = torch.tensor([[1]])
    for _ in range(4):
        ids = torch.cat([ids, gpt2(ids).logits[:, -1:].argmax(-1)], dim=1)
    found = sentence_vector(gpt2, ids[0, 1:].tolist(), "embed", start=1, steps=80, lr=0.05)
    assert found.exact
    assert (found.accuracy, found.prefix) == (1.0, 4)


def test_at_the_last_site_a_vector_is_a_constant_shift(gpt2):
    """z after the final norm adds z W_U at every position, so it cannot encode an order; z = 0 changes nothing."""
    ids, z = torch.tensor([IDS]), torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = gpt2(ids).logits
    with gpt2.edit(Steer("final_norm", z)):
        assert torch.allclose(gpt2(ids).logits - plain, (z @ gpt2.weights["W_U"]).expand_as(plain), atol=1e-12)
    with gpt2.edit(Steer("final_norm", 0 * z)):
        assert torch.equal(gpt2(ids).logits, plain)
    found = sentence_vector(gpt2, [9, 33, 9, 50, 17], "final_norm", start=1, steps=150, restarts=1)
    assert not found.exact


# ---------------------------------------------------------------- the commands, and bad input


def test_commands_print_one_object(tiny_folder, capsys):
    prompt_command(
        str(tiny_folder), "The class", policy=["gradient", "brute"], site=["blocks.*.resid_post"], as_json=True
    )
    told = json.loads(capsys.readouterr().out)
    assert [r["exact"] for r in told["runs"]] == [True] * 4
    assert told["ids"] == interp.load(tiny_folder).tokens("The class").ids[0].tolist()
    collisions_command(str(tiny_folder), prompts=30, context=8, k=2, append=True, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"] == 30
    assert len(told["pairs"]) == 4
    assert set(told["appended"]) == {"blocks.0.resid_post", "blocks.1.resid_post"}
    sentence_command(str(tiny_folder), "The class", steps=30, restarts=1, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["prefix"] <= told["tokens"]
    with pytest.raises(SystemExit):
        prompt_command(str(tiny_folder))
    assert "one of the two" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prompt_command(str(tiny_folder), ids="5,x")
    assert "--ids takes numbers" in capsys.readouterr().err


def test_bad_requests_are_refused(gpt2):
    x = states(gpt2, "blocks.1.resid_post")
    with pytest.raises(WrongUse, match="none of gradient, brute"):
        recover(gpt2, x, "blocks.1.resid_post", policy="adam")
    with pytest.raises(WrongUse, match=r"states are \[pos, 32\]"):
        recover(gpt2, x[:, :5], "blocks.1.resid_post")
    with pytest.raises(WrongUse, match="no site"):
        recover(gpt2, x, "blocks.9.resid_post")
    with pytest.raises(WrongUse, match="two different prompts"):
        collisions(gpt2, [[1, 2], [1, 2]], "blocks.0.resid_post")
    with pytest.raises(WrongUse, match="no token to recover"):
        sentence_vector(gpt2, [], "embed", start=1)
    with pytest.raises(Failed, match="position 2"):
        recover(gpt2, torch.cat([x[:2], 1 + x[2:]]), "blocks.1.resid_post")
