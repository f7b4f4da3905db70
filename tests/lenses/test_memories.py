"""Memories: the sum is exact, whatever follows the layer; planted memories are found; statistics equal brute force."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

import interp
from interp import Freeze, WrongUse
from interp.lenses import Lens, Memories, exit_examples, find_triggers, makeup, saturation, sub_updates
from interp.lenses.exits import ExitRule, early_exit
from interp.model import load
from interp.model.inputs import probe_inputs
from interp.model.model import Model
from interp.model.onward import run_until
from interp.model.twin import Lifted
from interp.store.recording import batches, padded
from interp.texts import default_text
from tests.model.shapes import BUILD, MORE, module

NO_MLP = ("mamba", "mamba2", "falcon_mamba")
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
POST_NORM = ("bert", "opt after norm", "roberta", "deberta", "bart")
HELD = [n for n in [*BUILD, *MORE] if n not in (*NO_MLP, *EXPERTS, "clip", "albert")]
TEXT = "\n\n".join(default_text()[:2])[:6000]
FEW = {"context": 24, "tokens": 500}


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return Memories(interp.load(tiny_folder))


# ---------------------------------------------------------------- the sum


@pytest.mark.parametrize("name", HELD)
def test_sub_updates_sum_to_the_write(name):
    """Biases, GLUs, multipliers, layer scales, norms behind the layer; a model that carries several stacks, too."""
    memories = Memories(load(module(name)))
    found = sub_updates(memories, probe_inputs(memories.model.module, batch=2, length=6, seed=9))
    assert list(found.layers) == list(memories.layers)
    for run in found.layers.values():
        assert float((run.sum - run.write).norm() / run.write.norm()) < 1e-5
        if name not in POST_NORM:
            assert float((run.before + run.write - run.after).norm() / run.after.norm()) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "granite", "beit"])
def test_the_sum_is_exact_in_float64(name):
    """With a bias, a GLU, a norm behind, a multiplier, a scale for each channel."""
    with Lifted():
        memories = Memories(load(module(name, torch.float64)))
        found = sub_updates(memories, probe_inputs(memories.model.module, batch=2, length=6, seed=9))
        for run in found.layers.values():
            assert float((run.sum - run.write).norm() / run.write.norm()) < 1e-12
    divided = {layer.divided for layer in memories.layers.values()}
    assert divided == {name == "gemma2"}


@pytest.mark.parametrize("name", ["gpt2", "llama", "granite", "pythia"])
def test_one_sub_update_adds_m_r_to_the_logits(name):
    """At the last layer, with the final norm's divisor s held: turning memory i off takes m_i r_i / s away, for all tokens."""
    with Lifted():
        memories = Memories(load(module(name, torch.float64)), norm=True)
        model, role = memories.model, next(reversed(memories.layers))
        ids = torch.tensor([[5, 9, 11, 3, 8]])
        held = model.record(ids, ["final_norm.scale", "logits"])
        m = sub_updates(memories, ids, role).layers[role].m
        for i in (3, 17):
            edits = [Freeze("final_norm.scale", held), memories.clamp(role, i, 0.0)]
            without = model.record(ids, "logits", edits=edits)["logits"]
            r = memories.scores(memories.values(role, [i]))
            wanted = m[:, [i]] * r / held["final_norm.scale"][0]
            assert float((held["logits"] - without - wanted[None]).abs().max() / held["logits"].abs().max()) < 1e-10


def test_dominance_effects_and_promotions_are_what_they_say(tiny):
    found = sub_updates(tiny, "The class statement is")
    E = tiny.unembedding
    for role, run in found.layers.items():
        weight = run.m.abs() * tiny.values(role).norm(dim=1)
        which, best = found.dominant(role, 4)
        assert torch.equal(best, weight.topk(4).values)
        assert torch.equal(weight.gather(1, which), best)
        effect = found.effects(role, [7, 30])
        assert torch.allclose(effect[2, 5], run.m[2, 5] * (tiny.values(role)[5] @ E)[[7, 30]])
    frame = found.to_frame(3)
    assert len(frame) == len(found.layers) * len(found.pos) * 3
    one = frame.iloc[4]
    ids = tiny.read(one["layer"], [one["memory"]], 3, 1 if one["coefficient"] > 0 else -1)[0][0]
    assert one["says"] == " ".join(repr(w)[1:-1] for w in tiny.lens.words(ids.tolist()))
    table = found.promotions()
    assert len(table)
    for _, row in table.iterrows():
        run, i = found.layers[row["layer"]], int(row["pos"])
        old, new = found.tops[row["layer"]][:, i]
        assert old != new
        for who, token in (("old", old), ("new", new)):
            moved = float(run.write[i] @ E[:, token])
            assert row[f"{who}_up"] + row[f"{who}_down"] + row[f"{who}_bias"] == pytest.approx(moved, abs=1e-4)
            assert row[f"{who}_up"] >= 0 >= row[f"{who}_down"]
            each = run.m[i] * (tiny.values(row["layer"]) @ E[:, token])
            top10 = (run.dominance[i]).topk(10).indices
            assert row[f"{who}_dominant"] == pytest.approx(float(each[top10].sum()), abs=1e-4)
    last = next(reversed(found.layers))
    assert table.loc[table["layer"] == last, "saturates"].all()
    assert found.plot(k=3).data[0].z is not None


def test_values_are_read_as_distributions(tiny):
    """Against a softmax over everything, either sign; with the norm's gain, which is no 1 in this model."""
    for memories in (tiny, Memories(tiny.model, norm=True)):
        r = (
            tiny.values("blocks.1.mlp")
            * (tiny.model.weights["final_norm.w"] if memories.norm else 1)
            @ tiny.model.weights["W_U"]
        )
        for sign in (1, -1):
            ids, p = memories.read("blocks.1.mlp", k=4, sign=sign)
            wanted = (sign * r).softmax(1).topk(4)
            assert torch.allclose(p, wanted.values, atol=1e-6)
            assert torch.equal(ids, wanted.indices)


# ---------------------------------------------------------------- planted memories


def planted(folder) -> tuple[Memories, str, int, int, int]:
    """(Memories, text, memory, a, b): in block 0 a key that looks for token a, which b follows in the text, and b as its value.

    The attention of block 0 writes nothing and the norm has no gain, so the key sees the token's embedding alone.
    """
    model = interp.load(folder)
    model = Model(copy.deepcopy(model.module), model.tokenizer)
    W = model.weights
    W.set("blocks.0.attn.W_O", torch.zeros_like(W["blocks.0.attn.W_O"]))
    W.set("blocks.0.mlp.norm.w", torch.ones_like(W["blocks.0.mlp.norm.w"]))
    text = "The class statement is used"
    ids = model.tokens(text).ids[0].tolist()
    E, U = W["W_E"], W["W_U"].T
    unit = E / E.square().mean(1, keepdim=True).sqrt()
    apart = U - U.mean(0)
    directions = torch.linalg.solve(apart.T @ apart, apart.T).T
    a, b = next((a, b) for a, b in pairwise(ids[1:]) if int((U @ directions[b]).argmax()) == b)
    memory = 7
    for name in ("W_gate", "W_up"):
        matrix = W[f"blocks.0.mlp.{name}"].clone()
        matrix[:, memory] = 3 * unit[a]
        W.set(f"blocks.0.mlp.{name}", matrix)
    out = W["blocks.0.mlp.W_out"].clone()
    out[memory] = directions[b] / directions[b].norm()
    W.set("blocks.0.mlp.W_out", out)
    return Memories(model), text, memory, a, b


@pytest.mark.parametrize("batch", [1, 5])
def test_a_planted_memory_is_found_and_steers(tiny_folder, batch):
    memories, text, memory, a, b = planted(tiny_folder)
    found = find_triggers(memories, [text, "A test of nothing at all", text], top=4, batch=batch)
    best, *_ = found.of("blocks.0.mlp", memory)
    assert best.tokens[-1] == memories.lens.words([a])[0]
    assert best.target == memories.lens.words([b])[0]
    assert memories.read("blocks.0.mlp", [memory], 1)[0].item() == b
    row = found.agreement().set_index("layer").loc["blocks.0.mlp"]
    agrees = memories.read("blocks.0.mlp", k=1)[0][:, 0] == found.targets("blocks.0.mlp")[0]
    assert agrees[memory]
    assert row["agreement"] == pytest.approx(float(agrees.double().mean()))
    with memories.model.edit(memories.clamp("blocks.0.mlp", memory, 1e6)):
        made = memories.model.generate(text, max_new_tokens=3, do_sample=False)
        assert set(memories.model(text).logits.argmax(-1).flatten().tolist()) == {b}
    assert made.endswith(memories.model.tokenizer.decode([b] * 3))


def test_a_coefficient_set_to_itself_changes_nothing(tiny):
    ids = tiny.model.tokens("The class statement is").ids
    m = tiny.coefficients(ids, "blocks.1.mlp")
    edit = tiny.clamp("blocks.1.mlp", [3, 9], float(m[0, 2, 3]), pos=2)
    assert edit.index == [3, 9]
    one = tiny.clamp("blocks.1.mlp", 3, float(m[0, 2, 3]), pos=2)
    plain, other = (tiny.model.record(ids, "logits", edits=e)["logits"] for e in ([], [one]))
    assert torch.equal(plain, other)


# ---------------------------------------------------------------- statistics over text


@pytest.mark.parametrize(("sign", "batch"), [(1, 3), (-1, 7)])
def test_triggers_equal_brute_force(tiny, sign, batch):
    """All coefficients of all windows at once, the largest of each window, sorted."""
    found = find_triggers(tiny, [TEXT], top=3, sign=sign, batch=batch, **FEW)
    groups = [g for _, g in batches(tiny.model, [TEXT], 24, batch)]
    windows, seen = [], 0
    for group in groups:
        windows += group
        seen += sum(map(len, group))
        if seen >= 500:
            break
    assert found.tokens == seen
    tokens, keep = padded(tiny.model, windows)
    m = sign * tiny.coefficients(tokens, "blocks.1.mlp")
    for memory in (0, 11, 47):
        best = []
        for w, ids in enumerate(windows):
            real = [(float(m[w, p, memory]), p) for p in range(len(ids) - 1) if keep[w, p]]
            value, p = max(real, default=(0.0, 0), key=lambda r: r[0])
            if value > 0:
                best.append((value, tuple(tiny.lens.words(ids[: p + 1])), tiny.lens.words([ids[p + 1]])[0]))
        best.sort(key=lambda r: -r[0])
        told = found.of("blocks.1.mlp", memory)
        assert [(t.tokens, t.target) for t in told] == [(p, t) for _, p, t in best[:3]]
        assert [sign * t.coefficient for t in told] == pytest.approx([v for v, _, _ in best[:3]], rel=1e-5)
    assert set(found.windows) <= set(range(len(windows)))
    frame = found.to_frame(11)
    assert list(frame["layer"].unique()) == list(tiny.layers)
    assert list(frame["number"][:3]) == [1, 2, 3]


def test_agreement_equals_brute_force(tiny):
    found = find_triggers(tiny, [TEXT], top=3, **FEW)
    row = found.agreement().iloc[1]
    r = tiny.scores(tiny.values("blocks.1.mlp"))
    said, p = r.argmax(1), r.softmax(1).amax(1)
    live, hits, anyhit, ranks, targets = [], [], [], [], []
    for i in range(len(r)):
        told = found.of("blocks.1.mlp", i)
        if told:
            words = tiny.lens.words([int(said[i])])[0]
            live.append(i)
            hits.append(told[0].target == words)
            anyhit.append(any(t.target == words for t in told))
            targets.append(int(found.targets("blocks.1.mlp")[0, i]))
            ranks.append(1 + int((r[i] > r[i, targets[-1]]).sum()))
    assert row["memories"] == len(live)
    assert row["agreement"] == pytest.approx(sum(hits) / len(hits))
    assert row["any"] == pytest.approx(sum(anyhit) / len(hits))
    assert row["rank"] == pytest.approx(float(torch.tensor(ranks).double().quantile(0.5)))
    assert row["largest"] == pytest.approx(float(p[live].mean()), rel=1e-5)
    chance = sum(int(said[i]) == t for i in live for t in targets) / len(live) ** 2
    assert row["chance"] == pytest.approx(chance)
    sure = sorted(range(len(live)), key=lambda n: -float(p[live[n]]))[: round(0.1 * len(live))]
    assert row["confident"] == pytest.approx(sum(anyhit[n] for n in sure) / len(sure))
    assert len(found.plot().data) == 3


@pytest.mark.parametrize("norm", [False, True])
def test_makeup_equals_brute_force(tiny, norm):
    memories = Memories(tiny.model, norm=norm)
    found = makeup(memories, [TEXT], batch=5, **FEW)
    frame = found.to_frame().set_index("layer")
    sums = dict.fromkeys(frame.columns, 0.0)
    count = 0
    for _, group in batches(tiny.model, [TEXT], 24, 5):
        for ids in group:
            cache = tiny.model.record(torch.tensor([ids]), ["blocks.0.*", "blocks.1.resid_post"])
            for p in range(1, len(ids)):
                m, y = cache["blocks.0.mlp.post"][0, p], cache["blocks.0.mlp.write"][0, p]
                r, o = cache["blocks.0.resid_mid"][0, p], cache["blocks.0.resid_post"][0, p]
                each = m[:, None] * memories.scores(tiny.values("blocks.0.mlp"))
                tops = set(each[m != 0].argmax(1).tolist())
                top_r, top_o, final = (
                    int(tiny.head(t[None]).argmax()) for t in (r, o, cache["blocks.1.resid_post"][0, p])
                )
                top_y = int(memories.scores(y[None]).argmax())
                kind = ("both" if top_r == top_y else "residual") if top_o == top_r else None
                kind = kind or ("ffn" if top_o == top_y else "composition")
                sums[kind] += 1
                sums["active"] += int((m > 0).sum())
                sums["own_top"] += top_y not in tops
                sums["kept"] += top_r == top_o
                sums["final_kept"] += top_r == final
                sums["final_prob"] += float(tiny.head(r[None]).softmax(1)[0, final].detach())
                count += 1
        if count >= 500:
            break
    assert found.tokens == count
    for name, total in sums.items():
        if name != "active_share":
            assert frame.loc["blocks.0.mlp", name] == pytest.approx(total / count, abs=1e-5), name
    assert frame["active_share"].iloc[0] == pytest.approx(frame["active"].iloc[0] / 48)
    assert frame[["residual", "both", "ffn", "composition"]].sum(axis=1).to_list() == pytest.approx([1, 1])
    assert len(found.plot().data) == 4


# ---------------------------------------------------------------- groups of values


def test_clusters_are_those_of_the_scores_themselves(tiny):
    """scikit-learn's complete linkage on the cosine distances of r_i, made in full."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    found = tiny.clusters(9)
    scores = torch.cat([tiny.scores(tiny.values(r)) for r in tiny.layers]).double().numpy()
    wanted = AgglomerativeClustering(9, metric="cosine", linkage="complete").fit_predict(scores)
    assert {r: len(labels) for r, labels in found.items()} == dict.fromkeys(tiny.layers, 48)
    assert adjusted_rand_score(wanted, torch.cat(list(found.values())).numpy()) == 1.0
    assert found["blocks.0.mlp"][0] == 0


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_planted_groups_are_found(method):
    from interp.lenses.clusters import clustered

    draw = torch.Generator().manual_seed(4)
    centres, E = torch.randn(5, 20, generator=draw), torch.randn(20, 50, generator=draw)
    wanted = torch.randint(5, (80,), generator=draw)
    scale = torch.rand(80, 1, generator=draw) * 9 + 0.1
    values = scale * (centres[wanted] + 0.05 * torch.randn(80, 20, generator=draw))
    labels = clustered(values, E, 5, method, seed=1)
    assert len(set(zip(labels.tolist(), wanted.tolist(), strict=True))) == 5
    assert torch.equal(labels, clustered(values, E, 5, method, seed=1))


# ---------------------------------------------------------------- saturation and early exit


def test_saturation_is_the_first_layer_of_the_last_constant_run():
    tops = torch.tensor([[3, 3, 3, 3], [1, 3, 3, 3], [3, 1, 3, 3], [3, 3, 3, 1], [2, 2, 1, 2]])
    assert saturation(tops).tolist() == [0, 1, 2, 3, 3]


@pytest.fixture(scope="module")
def early(tiny_folder):
    """A model whose last block writes nothing, so that every prediction is saturated before it."""
    model = interp.load(tiny_folder)
    model = Model(copy.deepcopy(model.module), model.tokenizer)
    for name in ("blocks.1.attn.W_O", "blocks.1.mlp.W_out"):
        model.weights.set(name, torch.zeros_like(model.weights[name]))
    return Memories(model)


def test_what_is_saturated_early_is_left_early(early):
    """All examples are saturated at layer 0, so the rule has nothing against leaving there: half of the blocks are saved."""
    examples = exit_examples(early, [TEXT], 40, k=3, context=24, seed=2)
    assert set(examples.saturated.tolist()) == {0}
    found = early_exit(early, examples, clusters=6)
    assert (found.accuracy, found.saved) == (1.0, 1.0)
    assert found.to_frame()["saved_share"].tolist() == [0.5, 0.5, 0.0]
    assert found.to_frame()["accuracy"].tolist() == [1.0] * 3
    assert len(found.plot().data) == 2


def test_blocks_that_are_left_out_do_not_run(tiny):
    """Counted at the modules themselves; the token is what the logit lens reads where the run ended."""
    examples = exit_examples(tiny, [TEXT], 60, k=3, context=24, seed=2)
    rule = ExitRule.of(tiny, examples[torch.arange(40)], 8)
    ran: list[int] = []
    blocks = tiny.model.module.model.layers
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    ended = set()
    try:
        for ids in examples.prefixes:
            ran.clear()
            token, count = rule.run(ids)
            assert ran == list(range(count))
            ended.add(count)
            with torch.no_grad():
                site = f"blocks.{count - 1}.resid_post"
                seen = Lens(tiny.model)(torch.tensor([ids]), site)
            assert int(seen.top[0, -1, 0]) == token
    finally:
        for h in handles:
            h.remove()
    assert ended == {1, 2}


def test_the_rule_is_as_written():
    """Best and mean match, both above those of every later layer that has examples."""
    known = torch.tensor([[[1, 2, 3]], [[1, 2, 4]], [[1, 9, 9]], [[7, 7, 7]]]).expand(-1, 3, -1)

    def rule(saturated):
        return ExitRule(None, {}, known, torch.tensor(saturated))  # type: ignore[arg-type]

    here = torch.tensor([1, 2, 3])  # the matches are 3, 2, 1, 0
    assert rule([0, 0, 1, 2]).leaves(0, here)
    assert rule([0, 2, 2, 2]).leaves(0, here)
    assert not rule([1, 0, 0, 2]).leaves(0, here)  # the best is another's
    assert not rule([0, 1, 0, 0]).leaves(0, here)  # the mean is 4/3 against 2
    assert not rule([1, 1, 1, 1]).leaves(0, here)  # nothing is known of leaving here
    assert rule([0, 0, 1, 1]).leaves(1, here)  # what is saturated before does not count


def test_examples_are_the_lens_at_the_last_position(tiny):
    examples = exit_examples(tiny, [TEXT], 12, k=4, context=24, batch=5, seed=3)
    assert len(examples.prefixes) == 12
    lens = Lens(tiny.model)
    for n in (0, 7, 11):
        ids = torch.tensor([examples.prefixes[n]])
        seen = lens(ids, ["blocks.0.resid_post", "blocks.1.resid_post"])
        assert examples.tops[n].tolist() == seen.top[:, -1, 0].tolist()
        run = sub_updates(tiny, ids)
        for layer, role in enumerate(tiny.layers):
            assert examples.dominant[n, layer].tolist() == run.dominant(role, 4)[0][-1].tolist()
    again = exit_examples(tiny, [TEXT], 12, k=4, context=24, batch=5, seed=4)
    assert again.prefixes != examples.prefixes


def test_a_run_ends_where_it_is_told_to(tiny):
    seen = []
    run_until(tiny.model, "The class", "blocks.*.resid_post", lambda site, t: seen.append(site) or True)
    assert seen == ["blocks.0.resid_post"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mixtral", "mixtures of experts"),
        ("mamba", "no feed-forward memories"),
        ("clip", "no head"),
        ("albert", "no matrix from its stream"),
    ],
)
def test_models_without_memories_are_refused(name, why):
    with pytest.raises(WrongUse, match=why):
        Memories(load(module(name)))


def test_bad_requests_are_refused(tiny):
    with pytest.raises(WrongUse, match=r"no layer of memories 'blocks\.7\.mlp'"):
        tiny.read("blocks.7.mlp")
    with pytest.raises(WrongUse, match="memory 48 is outside 0 to 47"):
        tiny.clamp("blocks.0.mlp", 48, 1.0)
    with pytest.raises(WrongUse, match="the text is empty"):
        find_triggers(tiny, [])
    with pytest.raises(WrongUse, match="the text is empty"):
        makeup(tiny, [])
    with pytest.raises(WrongUse, match="the text is empty"):
        exit_examples(tiny, [])
    with pytest.raises(WrongUse, match="sign is 1 or -1"):
        find_triggers(tiny, [TEXT], sign=0)
    with pytest.raises(WrongUse, match=r"find_triggers\(\) has no 'topp'"):
        find_triggers(tiny, [TEXT], topp=3)
    with pytest.raises(WrongUse, match="agglomerative or kmeans"):
        tiny.clusters(3, method="ward")
    with pytest.raises(WrongUse, match="96 values make 1 to 96 groups, not 97"):
        tiny.clusters(97)
    with pytest.raises(WrongUse, match="at least 10"):
        early_exit(tiny, exit_examples(tiny, [TEXT], 5))
    found = sub_updates(tiny, "The class", "blocks.1.mlp")
    with pytest.raises(WrongUse, match="was not read"):
        found.dominant("blocks.0.mlp")
    with pytest.raises(WrongUse, match="not there"):
        found.effects("blocks.1.mlp", [4000])
    triggers = find_triggers(tiny, [TEXT], "blocks.1.mlp", top=1, **FEW)
    with pytest.raises(WrongUse, match="was not looked at"):
        triggers.of("blocks.0.mlp", 0)
    with pytest.raises(WrongUse, match="memory -49 is outside"):
        triggers.of("blocks.1.mlp", -49)


def test_values_are_not_compared_where_there_are_too_many(tiny, monkeypatch):
    monkeypatch.setattr("interp.lenses.clusters.MOST", 50)
    with pytest.raises(WrongUse, match="name fewer layers, or method='kmeans'"):
        tiny.clusters(3)
    assert len(tiny.clusters(3, "blocks.0.mlp")["blocks.0.mlp"]) == 48


def test_models_that_look_both_ways(tiny):
    """Their values can be read, and their runs split; prefixes and exits mean nothing there."""
    bert = Memories(load(module("bert")))
    assert bert.read("blocks.0.mlp", k=2)[0].shape == (48, 2)
    with pytest.raises(WrongUse, match="looks both ways"):
        find_triggers(bert, [TEXT])
    with pytest.raises(WrongUse, match="looks both ways"):
        exit_examples(bert, [TEXT])
    with pytest.raises(WrongUse, match="reads no final norm"):
        Memories(bert.model, norm=True)
