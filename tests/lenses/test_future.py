"""The future lens: what a state says of the tokens after the next one."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import WrongUse
from interp.lenses import FutureLens, Recipe, Shortcut, bigram, fit_shortcut, train_future_lens
from interp.lenses.future import FromLeastSquares
from interp.lenses.shortcut import squares
from interp.lenses.tuned import Descent, descent
from interp.model import load
from interp.store.recording import windows
from tests.lenses.test_tuned import Words, numbers
from tests.lenses.toy import Linear
from tests.model.shapes import module

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [7, 7, 12, 40, 6, 13]])
ORDER = [3, 0, 6, 1, 5, 2, 4]  # a cycle of all seven tokens


def fitted(model, texts, ridge: float = 1e-3, out=None) -> FutureLens:
    """By least squares alone."""
    lens = FutureLens(model)
    squares(lens, texts, ridge=ridge, context=32, tokens=None).run(out)
    return lens


def cycles(count: int, length: int = 21) -> list[str]:
    """Texts in which the token decides all that come after it."""
    return [" ".join(str(ORDER[(start + i) % 7]) for i in range(length)) for start in range(count)]


@pytest.mark.check(
    "lenses future lens", formula="KL(model n on ‖ lens), where the token decides what comes", tolerance=1e-8
)
def test_a_future_that_is_decided_is_read_exactly(measured):
    """Seven tokens in eight dimensions: every later state is an affine function of the token, and least squares finds it."""
    model = load(Linear(8, 7).double(), tokenizer=Words())
    lens = fitted(model, cycles(7), ridge=1e-13)
    seen = lens(torch.tensor([ORDER * 2]))
    known = ~seen.kl_forward.isnan()
    measured(float(seen.kl_forward[known].abs().max()))
    assert bool(seen.agreement[known].all())


def test_the_last_row_is_the_model_and_rows_look_ahead():
    """Row +2 is compared with what the model says one position on, row +3 with two; past the end there is nothing."""
    model = load(module("llama"), tokenizer=Words())
    lens = fitted(model, numbers(61, 12, 0))
    padded = model.pad([IDS[0].tolist(), IDS[1, :4].tolist()])
    seen = lens(padded, k=3)
    assert seen.sites[0] == "blocks.0.resid_pre+3"
    assert seen.sites[-1] == "blocks.2.resid_post+1"
    assert len(seen.sites) == 12
    assert float(seen.kl_forward[-1].abs().max()) == 0.0
    assert bool(seen.agreement[-1].all())
    with torch.no_grad():
        q = model(IDS[:1]).logits[0].double().log_softmax(-1)
    for n in (1, 2, 3):
        row = seen.sites.index(f"blocks.1.resid_post+{n}")
        h = model.record(IDS[:1], "blocks.1.resid_post")["blocks.1.resid_post"][0]
        layer = lens.sites.index(f"blocks.1.resid_post+{n}")
        p = lens.head(lens.translated(layer, h)).double().log_softmax(-1)
        kl, count = (q[n - 1 :].exp() * (q[n - 1 :] - p[: 7 - n])).sum(1), 7 - n
        first = seen.of(0)
        assert torch.allclose(first.kl_forward[row, :count].double(), kl, atol=1e-5)
        assert bool(first.kl_forward[row, count:].isnan().all())
        assert first.rank[row, count:].tolist() == [0] * (n - 1)
        assert not bool(first.agreement[row, count:].any())
        follows = -p[: 6 - n].gather(1, IDS[0, n:, None])[:, 0]
        assert torch.allclose(first.cross_entropy[row, : 6 - n].double(), follows, atol=1e-5)
        assert bool(first.cross_entropy[row, 6 - n :].isnan().all())
        assert int((~seen.of(1).kl_forward[row].isnan()).sum()) == 5 - n


def test_one_ahead_it_is_the_linear_shortcut():
    model = load(module("llama"), tokenizer=Words())
    future = fitted(model, numbers(61, 12, 0))
    short = fit_shortcut(model, numbers(61, 12, 0), context=32)
    for site in short.sites:
        ours, theirs = (lens.W[lens.sites.index(name)] for lens, name in ((future, f"{site}+1"), (short, site)))
        assert torch.equal(ours, theirs)


def test_sites_are_named_with_and_without_how_far(tmp_path):
    model = load(module("llama"), tokenizer=Words())
    lens = fitted(model, numbers(61, 12, 0), out=tmp_path)
    assert lens(IDS, "blocks.1.resid_post+2").sites == ("blocks.1.resid_post+2",)
    assert lens(IDS, "blocks.1.resid_post").sites == tuple(f"blocks.1.resid_post+{n}" for n in (3, 2, 1))
    again = FutureLens.load(tmp_path, model)
    assert torch.equal(again(IDS).kl_backward.nan_to_num(), lens(IDS).kl_backward.nan_to_num())
    some = FutureLens(model, ["blocks.0.resid_mid+3"])
    assert some.sites == ["blocks.0.resid_mid+3"]
    assert some(IDS).sites == ("blocks.0.resid_mid+3", "blocks.2.resid_post+1")
    for site, words in (
        ("blocks.1.resid_post+4", "has \\+1, \\+2 and \\+3"),
        ("blocks.1.resid_mid", "it has maps for"),
        ("blocks.1.mlp.post+2", "cannot read 'blocks.1.mlp.post'"),
        ("blocks.7.resid_post+1", "The blocks are 0 to 2"),
    ):
        with pytest.raises(WrongUse, match=words):
            lens(IDS, site)
    with pytest.raises(WrongUse, match="holds no shortcut lens"):
        Shortcut.load(tmp_path, model)


def test_means_leave_out_what_has_no_future():
    model = load(module("llama"), tokenizer=Words())
    lens = fitted(model, numbers(61, 12, 0))
    texts = numbers(61, 3, 5)
    seen = [lens(torch.tensor([ids])) for _, ids in windows(model, texts, 16)]
    means = lens.over(texts, context=16)
    for value in ("kl_forward", "cross_entropy"):
        together = torch.cat([getattr(t, value) for t in seen], dim=1).double().nanmean(1)
        assert torch.allclose(means.mean(value), together, atol=1e-5)
    row = means.sites.index("blocks.0.resid_post+3")
    right = torch.cat([t.agreement[row, :-2] for t in seen]).double().mean()
    assert float(means.mean("agreement")[row]) == pytest.approx(float(right))


def test_the_bigram_counts():
    model = load(Linear(8, 7), tokenizer=Words())
    p = bigram(model, ["0 1 0 2 0 1", "3"], 2)
    assert torch.allclose(p.sum(1), torch.ones(7))
    share = torch.tensor([3, 2, 2, 1, 1, 1, 1]) / 11  # two further on stand 0, 2, 0 and 1; one is added for each
    assert torch.allclose(p[0], (torch.tensor([2.0, 0, 0, 0, 0, 0, 0]) + share) / 3)  # after a 0 it is a 0, twice
    assert torch.allclose(p[5], share)
    with pytest.raises(WrongUse, match="nothing to count"):
        bigram(model, ["3"], 1)


def test_the_gradient_is_that_of_the_loss_further_on():
    """Against autograd through KL to the model's own distributions one and two positions later, in float64."""
    model = load(Linear(8, 11).double(), tokenizer=Words())
    lens = FutureLens(model, ["blocks.1.resid_post+3", "blocks.0.resid_pre+2"])
    torch.manual_seed(1)
    lens.W, lens.b = [0.1 * torch.randn_like(w) for w in lens.W], [0.1 * torch.randn_like(b) for b in lens.b]
    ids = torch.randint(11, (3, 7))
    batch = [model.pad(ids[:2].tolist()), model.pad([ids[2, :2].tolist()])]
    losses = Descent(lens, Recipe()).backward(batch)
    rows, total = [ids[0], ids[1], ids[2, :2]], 0.0
    for i, row in enumerate(lens.sites):
        site, ahead, parts = row.partition("+")[0], lens.ahead(row), []
        for text in rows:
            cache = model.record(text[None], [site, lens.head.last])
            q = lens.head(cache[lens.head.last][0]).log_softmax(1)[ahead:]
            p = lens.logits(row, cache[site][0]).log_softmax(1)[: len(q)]
            parts.append((q.exp() * (q - p)).sum(1))
        loss = torch.cat(parts).mean()
        assert float(loss) == pytest.approx(losses[i], abs=1e-12)
        total = total + loss
    wanted = torch.autograd.grad(total, [*lens.W, *lens.b])
    for t, g in zip([*lens.W, *lens.b], wanted, strict=True):
        assert float((t.grad - g).abs().max()) < 1e-12


def test_the_first_step_begins_at_least_squares():
    """Its one step is the fit: from all tokens to the later last stream, by numpy's solver."""
    model, texts = load(module("llama"), tokenizer=Words()), numbers(61, 125, 0)
    lens = FutureLens(model, ["blocks.0.resid_post+2"])
    descent(FromLeastSquares(lens, Recipe(steps=1, tokens=4000, context=32)), texts).run()
    ids = torch.tensor([[int(w) for w in t.split()] for t in texts])
    cache = model.record(ids, ["blocks.0.resid_post", lens.head.last])
    h, last = (cache[n].double() for n in ("blocks.0.resid_post", lens.head.last))
    h, last = h[:, :-1].flatten(0, 1), last[:, 1:].flatten(0, 1)
    x = torch.cat([h, torch.ones(len(h), 1)], dim=1)
    best = x @ torch.linalg.lstsq(x, last).solution
    off = [float((last - guess).square().sum()) for guess in (lens.translated(0, h.float()), best)]
    assert off[0] < 1.001 * off[1]


def test_training_lowers_the_loss_and_is_saved(tmp_path):
    model = load(module("llama"), tokenizer=Words())
    lens = train_future_lens(model, numbers(61, 20, 0), tmp_path, Recipe(steps=12, tokens=640, context=32))
    from csv import DictReader

    rows = list(DictReader((tmp_path / "metrics.csv").open()))
    assert set(rows[0]) == {"step", *lens.sites}
    assert all(float(rows[-1][row]) < float(rows[0][row]) for row in lens.sites)
    assert torch.equal(FutureLens.load(tmp_path, model).W[3], lens.W[3])


@pytest.mark.slow("trains maps of the bundled model's states, and reads text that it has not seen")
def test_on_the_bundled_model_it_knows_more_than_the_token_does():
    """Cross-entropy of the token 1, 2 and 3 ahead, from block 3: below a bigram's, and below states of other places."""
    from interp.zoo.corpus import topics

    class Shuffled(FutureLens):
        def states(self, inputs, names):
            last, states = super().states(inputs, names)
            order = torch.randperm(last.shape[1], generator=torch.Generator().manual_seed(0))
            return last, {row: x[:, order] for row, x in states.items()}

    model, split = interp.load("zoo:books"), topics()
    sites = [f"blocks.3.resid_post+{n}" for n in (3, 2, 1)]
    lens = FutureLens(model, sites)
    descent(
        FromLeastSquares(lens, Recipe(steps=24, tokens=512, context=128, optimizer="adam", lr=3e-3)), [split.train]
    ).run()
    other = Shuffled(model, sites)
    other.W, other.b = lens.W, lens.b
    texts = [split.held_out[:12_000]]
    ours, shuffled = (a.over(texts, sites, context=128) for a in (lens, other))
    _, (_, high) = ours.less(shuffled, "cross_entropy")
    assert bool((high < 0).all())
    for n, site in zip((3, 2, 1), sites, strict=True):
        p = bigram(model, [split.train], n, context=128, tokens=24 * 512)  # as much text as the lens had
        pairs = [(ids[:-n], ids[n:]) for _, ids in windows(model, texts, 128)]
        by_count = torch.cat([-p[a, b].log() for a, b in pairs]).double().mean()
        assert float(ours.mean("cross_entropy")[ours.sites.index(site)]) < float(by_count)
