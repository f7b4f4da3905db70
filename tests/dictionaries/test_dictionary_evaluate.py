"""Metrics against their definitions, and against dictionaries whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.dictionaries import Dictionary, DictionaryConfig, RowsSource, evaluate, evaluate_model, pca_fvu, rows_of
from interp.errors import Failed, WrongUse

Make = Callable[..., Dictionary]
Measure = Callable[[float], None]


def identity(d: int, site: str = "rows") -> Dictionary:
    """x = ReLU(x) − ReLU(−x): 2d latents, all of them kept."""
    D = Dictionary(DictionaryConfig((site,), (site,), d, d, 2 * d, 2 * d)).double()
    eye = torch.eye(d, dtype=torch.float64)
    with torch.no_grad():
        D.W_enc.copy_(torch.cat([eye, -eye], 1))
        D.W_dec.copy_(torch.cat([eye, -eye]))
    return D


def zero(d: int, site: str = "rows") -> Dictionary:
    """Every reconstruction is zero."""
    return Dictionary(DictionaryConfig((site,), (site,), d, d, 4, 2)).double()


# ------------------------------------------------------------ rows


@pytest.mark.check("dictionaries S9", formula="1 − FVU = r²(y, ŷ), variance weighted (scikit-learn)", tolerance=1e-12)
@pytest.mark.parametrize("kind", [{}, {"d_out": 6, "skip": True}])
def test_s9_explained_variance_is_sklearns(make: Make, rows: Tensor, kind: dict[str, int], measured: Measure) -> None:
    """Batches that do not divide the rows, a mean far from zero, a constant error in ŷ."""
    from sklearn.metrics import r2_score

    D = make(**kind)
    y = rows if D.config.autoencoder else (rows[:, :6] + 50).square()
    # a source gives float32: compare on what it gives
    x32, y32 = rows.float(), y.float()
    found = evaluate(D, RowsSource(x32, None if D.config.autoencoder else y32), batch=37)
    with torch.no_grad():
        made = D(x32.double())
    expected = r2_score(y32.double().numpy(), made.numpy(), multioutput="variance_weighted")
    measured(abs(found.explained_variance - expected) / abs(1 - expected))
    assert found.explained_variance == 1 - found.fvu


def test_metrics_are_their_definitions(make: Make, rows: Tensor) -> None:
    D = make()
    x = rows.float()
    x[3] = 0
    found = evaluate(D, RowsSource(x), batch=64)
    with torch.no_grad():
        f, y = D.encode(x.double()), D(x.double()).numpy()
    given = x.double().numpy()
    there = np.linalg.norm(given, axis=1) > 0
    long, short = np.linalg.norm(given[there], axis=1), np.linalg.norm(y[there], axis=1)
    assert found.rows == 400
    assert found.l0 == pytest.approx((f > 0).sum(1).double().mean().item(), rel=1e-12)
    assert torch.equal(found.density, (f > 0).double().mean(0))
    assert found.dead == int(((f > 0).sum(0) == 0).sum())
    assert found.cosine == pytest.approx(((given * y).sum(1)[there] / (long * short)).mean(), rel=1e-12)
    assert found.l2_ratio == pytest.approx((short / long).mean(), rel=1e-12)
    assert found.bias == pytest.approx((y**2).sum() / (given * y).sum(), rel=1e-12)
    w = y - D.b_dec.detach().numpy()
    assert found.shrinkage == pytest.approx(1 - (w**2).sum() / (w * (given - y + w)).sum(), rel=1e-12)
    assert found.dead_share == found.dead / 120
    names = {"rows", "fvu", "explained_variance", "l0", "dead", "dead_share", "cosine", "bias", "l2_ratio", "shrinkage"}
    assert set(found.to_dict()) == names
    assert found.to_frame().iloc[0].to_dict() == pytest.approx(found.to_dict())


@pytest.mark.check(
    "dictionaries 4.2 shrinkage",
    formula="soft threshold λ/2: 1 − E(c − λ/2)²/E(c − λ/2)c",
    tolerance=1e-12,
)
def test_shrinkage_of_known_latents(measured: Measure) -> None:
    """Positive rows in an orthonormal basis, bias and skip away from zero: neither counts."""
    rows = (torch.rand(300, 6, generator=torch.Generator().manual_seed(1)) + 0.5).double()
    for a in (1.0, 0.7, 1.3):
        D = Dictionary(DictionaryConfig(("in",), ("out",), 6, 6, 6, 6, skip=True)).double()
        skip = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        with torch.no_grad():
            D.W_enc.copy_(a * torch.eye(6))
            D.W_dec.copy_(torch.eye(6))
            D.b_dec.fill_(0.25)
            D.W_skip.copy_(skip)
        y = rows + rows @ skip.T + 0.25
        source = RowsSource(rows.float(), y.float())
        assert evaluate(D, source).shrinkage == pytest.approx(1 - a, abs=1e-6)  # rows in memory are float32
    threshold = 0.3
    D = Dictionary(DictionaryConfig(("in",), ("in",), 6, 6, 6, activation="relu")).double()
    with torch.no_grad():
        D.W_enc.copy_(torch.eye(6))
        D.W_dec.copy_(torch.eye(6))
        D.b_enc.fill_(-threshold)
    c = rows.float().double()
    expected = 1 - ((c - threshold) ** 2).sum() / ((c - threshold) * c).sum()
    measured(abs(evaluate(D, RowsSource(rows.float())).shrinkage - expected.item()))


def test_every_latent_is_in_the_density_histogram(make: Make, rows: Tensor) -> None:
    found = evaluate(make(), RowsSource(rows.float()))
    table = found.density_histogram()
    assert table["latents"].sum() == 120
    assert table["latents"][0] == found.dead > 0
    for low, high, latents in table.iloc[1:].itertuples(index=False):
        inside = (found.density >= low * (1 - 1e-9)) & (
            found.density < high * (1 - 1e-9) if high < 1 else found.density > 0
        )
        assert latents == int(inside.sum()), (low, high)
    assert table["low"][1] <= 1 / 400 < table["high"][1]
    always = evaluate(identity(9), RowsSource(rows.float()))
    assert always.density_histogram()["latents"].sum() == 18


@pytest.mark.check("dictionaries S6 (rows)", formula="identity: FVU 0, bias 1, cosine 1", tolerance=1e-12)
def test_s6_identity_and_zero_on_rows(rows: Tensor, measured: Measure) -> None:
    found = evaluate(identity(9), RowsSource(rows.float()))
    for error in (found.fvu, found.bias - 1, found.cosine - 1, found.l2_ratio - 1):
        measured(abs(error))
    nothing = evaluate(zero(9), RowsSource(rows.float()))
    x = rows.float().double()
    assert nothing.fvu == pytest.approx((x.square().sum() / (x - x.mean(0)).square().sum()).item(), rel=1e-12)
    assert (nothing.l0, nothing.dead, nothing.cosine, nothing.l2_ratio) == (0, 4, 0, 0)
    assert nothing.to_dict()["bias"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_numbers_are_named(make: Make, rows: Tensor, value: float) -> None:
    x = rows.clone()
    x[307, 2] = value
    with pytest.raises(Failed, match="NaN or infinite activations at rows, row 307"):
        evaluate(make(), RowsSource(x), batch=100)
    with pytest.raises(Failed, match="at targets, row 307"):
        evaluate(make(d_out=9), RowsSource(rows, x), batch=100)


def test_other_widths_are_refused(make: Make, rows: Tensor) -> None:
    with pytest.raises(WrongUse, match="maps 9 numbers to 9; the rows given have 8, their targets 8"):
        evaluate(make(), RowsSource(rows[:, :8]))


def test_pca_is_scikit_learns(rows: Tensor) -> None:
    from sklearn.decomposition import PCA

    fit, held = rows[:300].float() + 5, rows[300:].float().flip(1) + 5
    for k in (1, 4, 9):
        pca = PCA(k).fit(fit.double().numpy())
        given = held.double().numpy()
        left = given - pca.inverse_transform(pca.transform(given))
        expected = (left**2).sum() / ((given - given.mean(0)) ** 2).sum()
        assert pca_fvu(RowsSource(fit), RowsSource(held), k) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    with pytest.raises(WrongUse, match="no 10 components"):
        pca_fvu(RowsSource(fit), RowsSource(held), 10)


# ------------------------------------------------------------ inside a model

TEXTS = ["the cat sat on the mat and the dog", "one two", "so it goes on and on and on for ever and a day", "end"]
SITE = "blocks.1.resid_post"


class Words:
    """A tokenizer: a word is its letters' sum; every text begins with <s>."""

    bos_token_id, pad_token_id = 1, 0
    decode = staticmethod(str)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [2 + sum(map(ord, w)) % 50 for w in text.split()]}


@pytest.fixture(scope="module")
def model() -> interp.Model:
    """A GPT-2 with ReLU neurons in float64: its MLPs are sparse dictionaries themselves."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=52, n_embd=12, n_layer=3, n_head=2, n_positions=32, activation_function="relu")
    module = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return interp.load(module, tokenizer=Words())


@pytest.mark.check(
    "dictionaries S6 (model)", formula="identity: loss recovered 1, KL 0; zero: loss recovered 0", tolerance=1e-10
)
def test_s6_identity_and_zero_in_a_model(model: interp.Model, measured: Measure) -> None:
    """float64 through three blocks: 1e-10."""
    perfect = evaluate_model(identity(12, SITE), model, TEXTS, batch=2, context=8)
    for name in ("zero", "mean"):
        measured(abs(perfect.loss_recovered[name] - 1))
        measured(abs(perfect.kl_recovered[name] - 1))
    measured(abs(perfect.kl["replaced"]))
    nothing = evaluate_model(zero(12, SITE), model, TEXTS, batch=2, context=8)
    measured(abs(nothing.loss_recovered["zero"]))
    measured(abs(nothing.kl_recovered["zero"]))
    measured(abs(nothing.kl["replaced"] - nothing.kl["zero"]))
    assert nothing.to_frame()["kl.zero"][0] == nothing.kl["zero"]


def test_mean_ablation_is_a_constant_dictionary(model: interp.Model) -> None:
    """A dictionary that only has a bias, set to the mean of the rows, recovers nothing against the mean."""
    D = zero(12, SITE)
    rows = rows_of(D, model, TEXTS, 100, batch=2, context=8)
    assert rows.rows == sum(len(t.split()) for t in TEXTS)
    with torch.no_grad():
        D.b_dec.copy_(rows.x.double().mean(0))
    found = evaluate_model(D, model, TEXTS, batch=2, context=8)
    assert found.loss_recovered["mean"] == pytest.approx(0, abs=1e-6)
    assert abs(found.loss_recovered["zero"]) > 1e-3


def exact_transcoder(model: interp.Model) -> Dictionary:
    """The neurons of block 1 as latents."""
    mlp: Any = model.module.transformer.h[1].mlp  # type: ignore[union-attr]
    config = DictionaryConfig(("blocks.1.mlp.in",), ("blocks.1.mlp.write",), 12, 12, 48, 48)
    D = Dictionary(config).double()
    with torch.no_grad():
        for p, value in ((D.W_enc, mlp.c_fc.weight), (D.b_enc, mlp.c_fc.bias), (D.W_dec, mlp.c_proj.weight)):
            p.copy_(value)
        D.b_dec.copy_(mlp.c_proj.bias)
    return D


@pytest.mark.check("dictionaries T1", formula="neurons as latents: FVU 0, change of CE 0", tolerance=1e-10)
def test_t1_exact_transcoder(model: interp.Model, measured: Measure) -> None:
    """In the model all is float64. Rows in memory are float32, as recordings are: there, 1e-12 of FVU is rounding."""
    D = exact_transcoder(model)
    found = evaluate_model(D, model, TEXTS, batch=2, context=8)
    measured(abs(found.cross_entropy["replaced"] - found.cross_entropy["clean"]))
    measured(found.kl["replaced"])
    measured(evaluate(D, rows_of(D, model, TEXTS, 100, batch=2, context=8)).fvu)


def test_cross_entropy_counts_real_tokens_only(model: interp.Model) -> None:
    """By hand, window by window without padding: predictions made at words whose next token is a word."""
    expected, count = 0.0, 0
    for text in TEXTS:
        ids = Words()(text)["input_ids"][1:]
        for begin in range(0, len(ids), 7):
            window = torch.tensor([[1, *ids[begin : begin + 7]]])
            with torch.no_grad():
                log_p = model(window).logits[0].log_softmax(-1)
            for t in range(1, window.shape[1] - 1):
                expected, count = expected - log_p[t, window[0, t + 1]].item(), count + 1
    found = evaluate_model(identity(12, SITE), model, TEXTS, batch=3, context=8)
    assert found.tokens == count
    assert found.cross_entropy["clean"] == pytest.approx(expected / count, rel=1e-6)
    assert evaluate_model(identity(12, SITE), model, TEXTS, batch=1, context=8, tokens=5).tokens < count


def test_no_text(model: interp.Model) -> None:
    with pytest.raises(WrongUse, match="no text"):
        evaluate_model(zero(12, SITE), model, [])
    with pytest.raises(WrongUse, match="no text"):
        rows_of(zero(12, SITE), model, [], 10)


# ------------------------------------------------------------ several sites


@pytest.mark.check(
    "dictionaries S6 (crosscoder)", formula="identity over three sites: loss recovered 1, KL 0, FVU 0", tolerance=1e-10
)
def test_s6_a_crosscoder_that_is_the_identity(model: interp.Model, measured: Measure) -> None:
    """Three residual streams side by side: nothing is lost; a crosscoder of zeros is the ablation of all of them."""
    sites = tuple(f"blocks.{i}.resid_post" for i in range(3))
    config = DictionaryConfig(sites, sites, 36, 36, 72, 72, widths_in=(12,) * 3, widths_out=(12,) * 3)
    D, eye = Dictionary(config).double(), torch.eye(36, dtype=torch.float64)
    with torch.no_grad():
        D.W_enc.copy_(torch.cat([eye, -eye], 1))
        D.W_dec.copy_(torch.cat([eye, -eye]))
    perfect = evaluate_model(D, model, TEXTS, batch=2, context=8)
    measured(abs(perfect.loss_recovered["zero"] - 1))
    measured(abs(perfect.kl["replaced"]))
    measured(evaluate(D, rows_of(D, model, TEXTS, 100, batch=2, context=8)).fvu)
    with torch.no_grad():
        D.W_dec.zero_()
    nothing = evaluate_model(D, model, TEXTS, batch=2, context=8)
    measured(abs(nothing.kl["replaced"] - nothing.kl["zero"]))


@pytest.mark.check(
    "dictionaries T1 (cross-layer)", formula="neurons of every layer as latents: FVU 0, change of CE 0", tolerance=1e-10
)
def test_t1_exact_cross_layer_transcoder(model: interp.Model, measured: Measure) -> None:
    """All neurons of three MLPs as latents of their layers: nothing changes, though each replaced layer feeds the next."""
    reads, writes = (tuple(f"blocks.{i}.mlp.{end}" for i in range(3)) for end in ("in", "write"))
    config = DictionaryConfig(reads, writes, 36, 36, 144, 144, "topk", False, (12,) * 3, (12,) * 3, cross_layer=True)
    D = Dictionary(config).double()
    with torch.no_grad():
        for i in range(3):
            mlp: Any = model.module.transformer.h[i].mlp  # type: ignore[union-attr]
            d, m = slice(12 * i, 12 * i + 12), slice(48 * i, 48 * i + 48)
            D.W_enc[d, m], D.b_enc[m] = mlp.c_fc.weight, mlp.c_fc.bias
            D.W_dec[m, d], D.b_dec[d] = mlp.c_proj.weight, mlp.c_proj.bias
    found = evaluate_model(D, model, TEXTS, batch=2, context=8)
    measured(abs(found.cross_entropy["replaced"] - found.cross_entropy["clean"]))
    measured(found.kl["replaced"])
    measured(evaluate(D, rows_of(D, model, TEXTS, 100, batch=2, context=8)).fvu)
    # an upper layer's latents cannot have been asked before their layer ran: without the lowest, all that is above changes
    with torch.no_grad():
        D.W_dec[:48].zero_()
    assert evaluate_model(D, model, TEXTS, batch=2, context=8).kl["replaced"] > 1e-3
