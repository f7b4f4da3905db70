"""What is measured: surprisals against counting by hand, both rules for infinite ones, held-out text, the knee."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from circuits import bigram
from circuits.bigram.measure import Sweep, as_dict, compare, correlations, held_out, report, scores
from interp import WrongUse
from interp.model import load
from tests.bigram.toy import Decoder, sampled, tiers, transitions
from tests.model.shapes import module


def constructed(P: torch.Tensor) -> Decoder:
    """embedding one-hot, unembedding log P: a bigram model without any block."""
    net = Decoder(P)
    V = len(P)
    net.head.weight.data = torch.cat([P.log().T, torch.zeros(V, V)], 1)
    return net


@pytest.mark.check("bigram C2 (constructed)", formula="empty mask: 1 - r, and KL(P ‖ model)", tolerance=1e-6)
def test_a_model_that_is_a_bigram_model_without_its_blocks(measured):
    P = tiers(12, 1)
    text = [[a, b] for a in range(12) for b in range(12) for _ in range(round(1000 * float(P[a, b])))]
    counts, model = bigram.count(text, 12), load(constructed(P))
    empty = bigram.whole(model, False).apply(model)
    ids = torch.tensor(sampled(P, 40, 20, 0))
    found = scores(empty, counts, ids)
    entropy = -(P * P.log()).sum(1)[ids[:, :-1]].mean()
    measured(max(1 - found.r, 1 - found.r_dropinf, abs(found.kl), abs(found.cross_entropy - float(entropy))))
    assert scores(model, counts, ids).r < 0.9


def test_scores_are_those_of_the_definition():
    """Surprisals, cross-entropy and loss of a random model, token by token, the last batch a part of one."""
    model, text = load(module("llama")), sampled(transitions(61, 0), 30, 12, 0)
    counts, ids = bigram.count(text, 61), torch.tensor(sampled(transitions(61, 0), 7, 12, 1))
    from circuits.bigram import measure

    old, measure.BATCH = measure.BATCH, 36
    try:
        found = scores(model, counts, ids)
    finally:
        measure.BATCH = old
    with torch.no_grad():
        log_p = model(ids).logits.double().log_softmax(-1)
    p, mine, theirs, crosses = counts.distribution(ids).double(), [], [], []
    for row in range(7):
        for t in range(11):
            mine.append(-float(log_p[row, t, ids[row, t + 1]]))
            q = float(p[row, t, ids[row, t + 1]])
            theirs.append(-math.log(q) if q else math.inf)
            crosses.append(-float((p[row, t] * log_p[row, t]).sum()))
    theirs, mine = np.array(theirs), np.array(mine)
    known = np.isfinite(theirs)
    assert 0 < known.sum() < len(known)
    filled = np.where(known, theirs, theirs[known].max())
    assert found.r == pytest.approx(np.corrcoef(mine, filled)[0, 1], abs=1e-5)
    assert found.r_dropinf == pytest.approx(np.corrcoef(mine[known], theirs[known])[0, 1], abs=1e-5)
    assert found.cross_entropy == pytest.approx(np.mean(crosses), abs=1e-5)
    entropy = -torch.special.xlogy(p, p).sum(-1)[:, :-1].mean()
    assert found.kl == pytest.approx(np.mean(crosses) - float(entropy), abs=1e-5)
    assert found.loss == pytest.approx(mine.mean(), abs=1e-5)
    assert found.infinite == pytest.approx(1 - known.mean())


def test_both_rules_for_infinite_surprisals():
    ngram = torch.tensor([1.0, 2.0, math.inf, 4.0])
    kept, dropped = correlations(torch.tensor([1.0, 2.0, 4.0, 4.0]), ngram)
    assert kept == pytest.approx(1)
    assert dropped == pytest.approx(1)
    kept, dropped = correlations(torch.tensor([1.0, 2.0, 0.0, 4.0]), ngram)
    assert dropped == pytest.approx(1)
    assert kept < 0.5
    same = correlations(torch.tensor([1.0, 2.0, 4.0, math.inf]), ngram)  # the model's own: its largest finite one
    assert same == pytest.approx(correlations(torch.tensor([1.0, 2.0, 4.0, 4.0]), ngram))
    with pytest.raises(WrongUse, match="no token of the text has a finite surprisal"):
        correlations(torch.ones(2), torch.tensor([math.inf, math.inf]))


def test_held_out_text_is_spaced_and_must_be_held_out():
    rng = np.random.default_rng(0)
    seen, fresh = (rng.integers(500, size=(100, 64)).tolist() for _ in range(2))
    counts = bigram.count(seen, 500)
    ids = held_out([*fresh, [1, 2, 3]], counts, 64, 640)
    assert ids.tolist() == fresh[::10]
    assert len(held_out(fresh, counts, 64, 10**9)) == 100
    with pytest.raises(WrongUse, match=r"100% of the text was in the text that was counted"):
        held_out(seen, counts, 64, 640)
    with pytest.raises(WrongUse, match="shorter than one window of 65 tokens"):
        held_out(fresh, counts, 65, 640)


def test_the_penalty_chosen_is_the_highest_near_the_one_without():
    runs = [(0.0, 0.97), (0.0, 0.95), (1.0, 0.95), (10.0, 0.93), (10.0, 0.92), (100.0, 0.90)]
    rows = [{"penalty": p, "seed": i, "stable": True, "r": r} for i, (p, r) in enumerate(runs)]
    assert Sweep(tuple(rows)).penalty == 10
    spoilt = {"penalty": 0.0, "seed": 9, "stable": False, "r": 0.999}
    assert Sweep((*rows, spoilt, spoilt)).penalty == 10  # unstable runs do not count
    assert Sweep(tuple(rows[:2] + rows[5:])).penalty == 0
    with pytest.raises(WrongUse, match="no stable run with penalty 0"):
        Sweep((spoilt, *rows[2:])).penalty  # noqa: B018


def test_runs_are_compared_by_their_own_masks():
    model, text = load(module("llama")), sampled(transitions(61, 0), 30, 12, 0)
    counts, ids = bigram.count(text, 61), torch.tensor(sampled(transitions(61, 0), 7, 12, 1))
    masks = []
    for penalty, value in ((3.0, False), (0.0, True)):
        about = {"penalty": penalty, "seed": 1, "steps_done": 5, "stable": True, "undecided_share": 0.0}
        whole = bigram.whole(model, value)
        masks.append(bigram.Mask(whole.bits, whole.model, whole.hash, about))
    found = compare(masks, model, counts, ids)
    frame = found.to_frame()
    assert list(frame.penalty) == [0, 3]
    assert list(frame.kept_share) == [1, 0]
    assert frame.r[0] == scores(model, counts, ids).r
    assert len(found.plot().data) == 4


def test_a_report_has_every_model_and_counts_add_up():
    model, text = load(module("phi3")), sampled(transitions(61, 0), 30, 12, 0)
    counts, ids = bigram.count(text, 61), torch.tensor(sampled(transitions(61, 0), 7, 12, 1))
    generator = torch.Generator().manual_seed(0)
    whole = bigram.whole(model)
    bits = {n: torch.rand(b.shape, generator=generator) < 0.2 for n, b in whole.bits.items()}
    mask = bigram.Mask(bits, whole.model, whole.hash, {"undecided_share": 0.001})
    found = report(mask, model, counts, ids, random=2, seed=4)
    assert found.subnetwork == scores(mask.apply(model), counts, ids)
    assert found.without == scores(mask.complement().apply(model), counts, ids)
    assert found.random[1] == scores(mask.random_like(model, 5).apply(model), counts, ids)
    assert found.without_random[0] == scores(mask.random_like(model, 4).complement().apply(model), counts, ids)
    assert found.full_model == scores(model, counts, ids)
    assert list(found.to_frame().model) == [
        *("subnetwork", "full model", "empty mask", "random", "random"),
        *("without subnetwork", "without random", "without random"),
    ]
    told = as_dict(mask, model, found)
    for name in ("by_block", "by_part", "by_matrix"):
        assert sum(row["kept"] for row in told[name].values()) == told["kept"] == mask.kept
        assert sum(row["size"] for row in told[name].values()) == mask.size
        assert sum(row["share_of_kept"] for row in told[name].values()) == pytest.approx(1)
    assert len([n for n in told["by_head"] if n.startswith("blocks.1.attn.W_K.")]) == 2  # key heads
    assert len([n for n in told["by_head"] if n.startswith("blocks.1.attn.W_Q.")]) == 4
    assert told["ablation_loss"]["random"] == pytest.approx(np.mean([s.loss for s in found.without_random]))
    assert told["r_random_mask"] == pytest.approx(np.mean([s.r for s in found.random]))
    assert len(found.plot().data) == 2
