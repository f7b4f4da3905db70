"""Each kind against its paper written out, against the other kinds where they must agree, and from start to saved folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from written_out import DEAD, NOW, OWN, WRITTEN_OUT, kind, rows, universal

from interp.dictionaries import (
    KINDS,
    Code,
    Dictionary,
    RowsSource,
    TrainConfig,
    evaluate,
    load_dictionary,
    sparse,
    train,
)
from interp.dictionaries import kinds as k
from interp.dictionaries.kinds.jumprelu import Jump, Step
from interp.dictionaries.planted import superposed
from interp.dictionaries.recovery import recovery
from interp.dictionaries.trainer import Trainer
from interp.errors import WrongUse

Measure = Callable[[float], None]


def far(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a - b).norm() / b.norm().clamp(min=1e-300)).item()


def whole(f: Code | Tensor, m: int = 24) -> Tensor:
    """f with its zeros written out."""
    return f.dense(m) if isinstance(f, Code) else f


def outcome(total: Tensor, D: Dictionary) -> list[Tensor]:
    """The loss and its gradient to every parameter, zero where there is none."""
    grads = torch.autograd.grad(total, list(D.parameters()), allow_unused=True)
    zeros = (torch.zeros_like(p) for p in D.parameters())
    return [total.detach()[None], *(o if g is None else g for g, o in zip(grads, zeros, strict=True))]


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest relative difference of two outcomes."""
    return max(far(x, y) if y.norm() > 0 else float(x.norm() > 0) for x, y in zip(a, b, strict=True))


def test_every_kind_is_here() -> None:
    assert set(OWN) == set(WRITTEN_OUT) == set(KINDS)


@pytest.mark.check(
    "dictionaries 4.1 losses", formula="each kind's loss and gradients against the paper written out", tolerance=1e-12
)
@pytest.mark.parametrize(
    ("name", "transcoder"), [(n, False) for n in OWN] + [(n, True) for n in OWN if n not in k.TIED]
)
def test_a_kind_is_its_paper_and_no_other(name: str, transcoder: bool, measured: Measure) -> None:
    """float64, one dictionary that all losses run on: this kind's agrees to 1e-12, every other paper's is 1e-3 away."""
    x = rows()
    D = universal(5, skip=True) if transcoder else universal(None)
    y = rows(50, 5).square() if transcoder else x
    got = outcome(kind(name).loss(D, x, y, NOW).total, D)
    for other, written in WRITTEN_OUT.items():
        if other in k.TIED and transcoder:
            continue
        difference = distance(got, outcome(written(D, x, y), D))
        if other == name:
            measured(difference)
        else:
            assert difference > 1e-3, other


@pytest.fixture(params=["few", "all"])
def form(request, monkeypatch) -> str:
    """Whether losses go through the entries above their bounds or through all, however many there are."""
    few = request.param == "few"
    monkeypatch.setattr(sparse, "SPARSE_BELOW", 2.0 if few else -1.0)
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if few else 0.15)
    return request.param


@pytest.mark.check(
    "dictionaries performance 4: gradients",
    formula="losses and gradients through the entries above their bounds, against the paper written out, float64",
    tolerance=1e-12,
)
@pytest.mark.parametrize("name", ["l1", "l1_april", "gated", "p_anneal", "jumprelu", "jumprelu_target"])
@pytest.mark.parametrize("form", ["few"], indirect=True)
@pytest.mark.parametrize("transcoder", [False, True])
def test_few_latents_say_what_all_say(name: str, form: str, transcoder: bool, measured: Measure) -> None:
    x, D = rows(), universal(5, skip=True) if transcoder else universal(None)
    y = rows(50, 5).square() if transcoder else x
    loss = kind(name).loss(D, x, y, NOW)
    assert isinstance(loss.code, Code)
    measured(distance(outcome(loss.total, D), outcome(WRITTEN_OUT[name](D, x, y), D)))


def on_a_grid() -> tuple[Dictionary, Tensor]:
    """z are multiples of ¼ and θ is 1: with ε = ½ many tie with θ, many lie on an edge of the band."""
    D, generator = universal(None), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p, n in ((D.W_enc, 2), (D.b_enc, 4)):
            p.copy_(torch.randint(-n, n + 1, p.shape, generator=generator) / 4)
        D.get_parameter("log_threshold").zero_()
    return D, torch.randint(-1, 2, (50, 7), generator=generator).double()


def test_ties_and_edges_of_the_band(form: str) -> None:
    """Of z = ¾, 1, 1¼ none but 1 is near θ, and 1 does not fire; gradients are those of the dense formula."""
    D, x = on_a_grid()
    z = x @ D.W_enc + D.b_enc
    assert min((z == edge).sum() for edge in (0.75, 1.0, 1.25)) > 20
    of = k.TargetJumpReLU(bandwidth=0.5, target_l0=5.0)
    loss = of.loss(D, x, x, NOW)
    assert isinstance(loss.code, Code) == (form == "few")
    assert torch.equal(whole(loss.code) > 0, z > 1)
    θ = D.get_parameter("log_threshold").exp()
    f = Jump.apply(z, θ, 0.5)
    l0 = Step.apply(z, θ, 0.5).sum(-1).mean()
    e = x - f @ D.W_dec - D.b_dec
    wanted = k.squared(e) + NOW.warm * of.sparsity * (l0 / 5 - 1).square()
    assert distance(outcome(loss.total, D), outcome(wanted, D)) < 1e-13


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["l1", "gated", "jumprelu_target"])
def test_what_is_not_finite_is_not_lost(name: str, bad: float, form: str) -> None:
    """One number of one row, and no loss is finite: training says so and stops."""
    D, x = universal(None), rows()
    x[3, 2] = bad
    assert not torch.isfinite(kind(name).loss(D, x, x, NOW).total)


def test_fewer_bits_choose_no_other_entries() -> None:
    """The encoder's product in bfloat16 gives the code of the product in float32, entry for entry."""
    D, x = universal(None, m=600).float(), rows(700).float()
    with torch.no_grad():
        D.get_parameter("log_threshold").add_(1.3)
    exact = kind("jumprelu").encode(D, x)
    D.product = torch.bfloat16
    found = kind("jumprelu").encode(D, x)
    assert isinstance(exact, Code) and isinstance(found, Code)
    a, b = exact.dense(600), found.dense(600)
    assert torch.equal(a > 0, b > 0)
    assert 0.005 < (a > 0).float().mean() < 0.08
    assert far(b, a) < 1e-6


# ------------------------------------------------------------ identities


@pytest.mark.check(
    "dictionaries S2",
    formula="∂/∂z, ∂/∂θ of z·1[z > θ] and 1[z > θ] against the kernel, band edges too",
    tolerance=1e-14,
)
def test_s2_kernel_gradients(measured: Measure) -> None:
    """A loop over elements, in the paper's closed form; the band is open: |z − θ| = ε/2 is outside."""
    ε = 0.5  # exact in binary, so that the edges are
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    θ = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.125, 2.0], dtype=torch.float64)
    z[0], z[1], z[2] = θ, θ + ε / 2, θ - ε / 2
    g = torch.randn(40, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaves = [z.clone().requires_grad_(), θ.clone().requires_grad_()]
    for function, dθ, dz in (
        (Jump, lambda t: -t / ε, lambda fires: fires),
        (Step, lambda t: -1 / ε, lambda fires: 0.0),
    ):
        got_z, got_θ = torch.autograd.grad((function.apply(*leaves, ε) * g).sum(), leaves, allow_unused=True)
        wanted_z, wanted_θ = torch.zeros_like(z), torch.zeros_like(θ)
        for b in range(40):
            for i in range(6):
                inside = abs(z[b, i] - θ[i]) < ε / 2
                wanted_z[b, i] = g[b, i] * dz(float(z[b, i] > θ[i]))
                wanted_θ[i] += g[b, i] * dθ(θ[i]) * inside
        measured(far(got_θ, wanted_θ))
        measured(far(torch.zeros_like(z) if got_z is None else got_z, wanted_z) if wanted_z.any() else 0.0)


@pytest.mark.check(
    "dictionaries S3", formula="orthonormal d_i: the L1 loss is least at f = max(0, ⟨d_i, x⟩ − λ/2)", tolerance=1e-12
)
def test_s3_orthonormal_l1_is_the_soft_threshold(measured: Measure) -> None:
    """On single rows with W_enc = W_decᵀ and b_enc = −λ/2: no gradient to b_enc, and any change of it costs."""
    D = universal(None, m=7)
    λ = 0.9
    with torch.no_grad():
        D.W_dec.copy_(torch.linalg.qr(D.W_dec).Q)
        D.W_enc.copy_(D.W_dec.T)
        D.b_enc.fill_(-λ / 2)
    L1, now = k.L1(sparsity=λ), k.Now(DEAD[:0])
    for row in 3 * rows(20):
        x = row[None]
        wanted = ((x - D.b_dec) @ D.W_dec.T - λ / 2).clamp(min=0)
        measured(far(whole(L1.encode(D, x), 7), wanted))
        best = L1.loss(D, x, x, now).total
        measured(torch.autograd.grad(best, D.b_enc)[0].abs().max().item())
        for i in range(7):
            for change in (-1e-3, 1e-3):
                moved = D.b_enc.detach().clone()
                moved[i] += change
                worse = torch.func.functional_call(_Loss(L1, D, now), {"D.b_enc": moved}, (x,))
                assert worse > best if wanted[0, i] > 0 else worse >= best


class _Loss(torch.nn.Module):
    def __init__(self, of: k.Kind, D: Dictionary, now: k.Now):
        super().__init__()
        self.of, self.D, self.now = of, D, now

    def forward(self, x: Tensor) -> Tensor:
        return self.of.loss(self.D, x, x, self.now).total


@pytest.mark.check(
    "dictionaries S4 (BatchTopK)", formula="BatchTopK of one row is TopK; gradients too", tolerance=1e-13
)
def test_s4_batchtopk_of_one_row_is_topk(measured: Measure) -> None:
    """The loss without the batch's variance, which one row does not have."""
    D, given = universal(5, skip=True), {"k": 3, "aux": 0.0}
    for row in rows(20):
        x, y = row[None], row[None, :5] * 2
        one, batch = k.TopK(**given).encode(D, x), k.BatchTopK(**given).encode(D, x)
        assert isinstance(one, Code) and isinstance(batch, Code)
        measured(far(batch.dense(24), one.dense(24)))
        losses = [k.squared(y - D.decode(f, x)) for f in (one, batch)]
        measured(distance(*(outcome(loss, D) for loss in losses)))


def test_batchtopk_gives_a_row_as_many_latents_as_it_takes() -> None:
    """One row is 50 times the others: all its positive entries are kept, far more than the 2k first looked at."""
    D, x, of = universal(None), rows(20), k.BatchTopK(k=2)
    x[7] *= 50
    z = of.z(D, x).relu()
    kept = torch.zeros_like(z).flatten().scatter(0, z.flatten().topk(40).indices, 1).view_as(z)
    wanted, got = z * kept, of.encode(D, x)
    assert isinstance(got, Code)
    assert (wanted[7] > 0).sum() == (z[7] > 0).sum() > 8
    assert far(got.dense(24), wanted) < 1e-12
    assert distance(*(outcome(k.squared(x - D.decode(f, x)), D) for f in (got, wanted))) < 1e-12


@pytest.mark.check(
    "dictionaries S4 (Matryoshka)", formula="one group is BatchTopK; AuxK and gradients too", tolerance=1e-13
)
def test_s4_one_group_is_batchtopk(measured: Measure) -> None:
    D, x, y = universal(5, skip=True), rows(), rows(50, 5).square()
    given = {"k": 3, "aux": 0.2, "k_aux": 2}
    one, nested = (
        c(**given).loss(D, x, y, NOW).total for c in (k.BatchTopK, lambda **g: k.Matryoshka(**g, groups=(24,)))
    )
    measured(distance(outcome(nested, D), outcome(one, D)))


@pytest.mark.check("dictionaries 4.1 p-anneal", formula="p = 1 is L1; s Σ f^p goes on as s' Σ f^q", tolerance=1e-12)
def test_p_anneal(measured: Measure) -> None:
    D, x, y = universal(5), rows(), rows(50, 5)
    D.get_buffer("s").fill_(1)
    anneal = k.PAnneal(sparsity=0.7, p_end=0.2, p_steps=4, p_from=0.5)
    before, plain = (c.loss(D, x, y, NOW._replace(step=10)).total for c in (anneal, k.L1(sparsity=0.7)))
    measured(distance(outcome(before, D), outcome(plain, D)))
    # over a run of 80 steps, on one batch: p falls at 40, 50, 60 and 70, and the penalty does not move
    assert [anneal.level(t, 80) for t in (39, 40, 49, 50, 60, 70, 79)] == [0, 1, 1, 2, 3, 4, 4]
    assert anneal.p(4) == pytest.approx(0.2)
    first = anneal.loss(D, x, y, k.Now(DEAD, 0, 80)).sparsity
    for t in range(80):
        loss = anneal.loss(D, x, y, k.Now(DEAD, t, 80))
        measured(far(loss.sparsity[None], first[None]))
        with torch.no_grad():
            anneal.after(D, loss, k.Now(DEAD, t, 80))
    assert abs(D.get_buffer("s").item() - 1) > 0.01


@pytest.mark.check(
    "dictionaries 4.1 Gated", formula="Gated is the JumpReLU with θ = max(0, b_mag − e^r b_gate)", tolerance=1e-13
)
def test_gated_is_a_jumprelu(measured: Measure) -> None:
    for D in (prepared("gated", None), prepared("gated", 5)):
        x = rows(2000)
        f = whole(kind("gated").encode(D, x))
        assert 0.1 < (f > 0).double().mean() < 0.9
        used = kind("gated").folded(D)
        measured(far(used.encode(x), f))
        transcoder = set() if D.config.autoencoder else {"b_in"}
        assert set(used.tensors()) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"} | transcoder


def prepared(name: str, d_out: int | None, skip: bool = False) -> Dictionary:
    """A dictionary as this kind trains it, with random weights."""
    D = trainer(name, d_out, skip).dictionary
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in D.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.1)
        if not (KINDS[name].centred or D.config.autoencoder):
            D.b_in.zero_()
        if name in ("batchtopk", "matryoshka"):
            D.threshold.fill_(0.6)
    return D


def trainer(name: str, d_out: int | None = None, skip: bool = False, **settings: Any) -> Trainer:
    """A trainer of 24 latents in float64 on 400 rows."""
    x = rows(400).float()
    source = RowsSource(x, None if d_out is None else (x[:, :d_out] * 3).square())
    given = {"latents": 24, "batch": 50, "steps": 40, "lr": 3e-3, "dtype": "float64", "skip": skip} | settings
    return Trainer(TrainConfig(kind(name), **given), source)


@pytest.mark.check(
    "dictionaries S1 (kinds)", formula="‖d_i‖, biases, gates and scales folded: the same ŷ, f ‖d_i‖", tolerance=1e-12
)
@pytest.mark.parametrize("name", OWN)
def test_s1_every_kind_folds(name: str, measured: Measure) -> None:
    """What is used against what was trained, on other scales; BatchTopKs against z·1[z > θ], which is what they become."""
    for d_out, skip in ((None, False), (5, True)) if name not in k.TIED else ((None, False),):
        D, of, x = prepared(name, d_out, skip), kind(name), rows()
        if of.unit:
            D.W_dec.data /= D.W_dec.data.norm(dim=1, keepdim=True)
        else:
            assert D.W_dec.norm(dim=1).max() > 1.5 * D.W_dec.norm(dim=1).min()
        s_in, s_out = 3.7, 3.7 if d_out is None else 0.21
        f = of.encode(D, s_in * x)
        if name in ("batchtopk", "matryoshka"):
            f = of.z(D, s_in * x) * (of.z(D, s_in * x) > 0.6)
        dense = whole(f)
        used = of.folded(D).rescaled(s_in, s_out)
        measured(far(used(x), D.decode(dense, s_in * x) / s_out))
        if name == "codebook":  # its values are 1/k, its codes as long as they are
            measured(far(used.encode(x), dense))
            continue
        measured(far(used.encode(x), dense * D.W_dec.norm(dim=1) / s_out))
        measured((used.W_dec.norm(dim=1) - 1).abs().max().item())


# ------------------------------------------------------------ what else a kind does


@pytest.mark.check(
    "dictionaries 4.1 first thresholds", formula="⟨y − ŷ, ŷ − b⟩ / ‖y‖‖ŷ − b‖ at the start, float64", tolerance=1e-12
)
@pytest.mark.parametrize("d_out", [None, 5])
def test_a_target_is_met_from_the_start(d_out: int | None, measured: Measure) -> None:
    """One θ for all, above which 5 latents of a row are on average, exactly; and the encoder as long as is best."""
    t = trainer("jumprelu_target", d_out)
    t.kind = of = k.TargetJumpReLU(target_l0=5.0, threshold=1e-9)
    t.begin()
    D, (x, y) = t.dictionary, next(t.source.batches(400, 0, 0, 1))
    x, y = ((r * torch.tensor(s)).double() for r, s in zip((x, y), t.scales, strict=True))  # as in `begin`
    θ = D.get_parameter("log_threshold").exp()
    assert torch.equal(θ, θ[:1].expand(24))
    assert (of.z(D, x) > θ * (1 + 1e-9)).sum() == 400 * 5
    written = D.written(of.encode(D, x[:200]))
    error = y[:200] - D.b_dec - written
    measured(((error * written).sum() / (y[:200].norm() * written.norm())).abs().item())
    t.kind = k.TargetJumpReLU(target_l0=24.0, threshold=0.3)  # all may fire: the paper's θ
    t.begin()
    assert far(D.get_parameter("log_threshold").exp(), torch.full((24,), 0.3, dtype=torch.float64)) < 1e-12


def test_batchtopk_learns_a_threshold_that_keeps_k_a_row() -> None:
    """The first batch's value, then a moving average; in use rows alone give k a row on average."""
    t = trainer("batchtopk", steps=400)
    t.begin()
    least = []
    for number, (x, y) in enumerate(t.source.batches(50, 0, 0, 400)):
        before = t.dictionary.threshold.clone()
        f = t.update(x, y).code.values
        least.append(f[f > 0].min())
        assert (f > 0).sum() == 150
        expected = least[0].expand(24) if not number else before + (least[-1] - before) / 20
        assert far(t.dictionary.threshold, expected) < 1e-12
    assert evaluate(t.finished(), t.source).l0 == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", ["l1", "gated", "p_anneal"])
@pytest.mark.parametrize("d_out", [None, 5])
def test_dead_latents_are_resampled(name: str, d_out: int | None) -> None:
    """Two dead latents become the directions of rows, short in the encoder, without momentum; the others stay."""
    t = trainer(name, d_out)
    of = KINDS[name](**OWN[name], resample=4)
    t.kind = of
    t.begin()
    batches = t.source.batches(50, 0, 0, 4)
    for _ in range(3):
        t.update(*next(batches))
    t.silent[[4, 9]] = 1000
    x, y = next(batches)
    D, now = t.dictionary, k.Now(DEAD, 3, 40)
    xs, ys = x.double() * t.scales[0][0], (x if d_out is None else y).double() * t.scales[1][0]
    before = {name: p.detach().clone() for name, p in D.named_parameters()}
    with torch.no_grad():
        latents = of.revived(D, xs, ys, t.silent, now)
        t._forget(latents)
    assert latents.tolist() == [4, 9]
    others = [i for i in range(24) if i not in (4, 9)]
    length = before["W_enc"][:, others].norm(dim=0).mean()
    for i in (4, 9):
        match = (torch.nn.functional.normalize(ys - before["b_dec"]) @ D.W_dec[i]).max(0)
        assert match.values.item() == pytest.approx(1, abs=1e-9)
        b_pre = before["b_dec" if d_out is None else "b_in"]
        wanted = 0.2 * length * torch.nn.functional.normalize(xs[match.indices] - b_pre, dim=0)
        assert far(D.W_enc[:, i], wanted) < 1e-9
    for p in ("b_enc", *of.tensors):
        assert D.get_parameter(p)[[4, 9]].tolist() == [0, 0]
        assert torch.equal(D.get_parameter(p)[others], before[p][others])
    assert torch.equal(D.W_dec[others], before["W_dec"][others])
    assert torch.equal(D.W_enc[:, others], before["W_enc"][:, others])
    assert not t.optimiser.state[D.W_enc]["exp_avg"][:, [4, 9]].any()
    assert not t.optimiser.state[D.W_dec]["exp_avg_sq"][[4, 9]].any()
    assert t.optimiser.state[D.W_dec]["exp_avg_sq"][others].all()
    assert not t.silent[[4, 9]].any()
    with torch.no_grad():
        assert not len(of.revived(D, xs, ys, t.silent + 1000, now._replace(step=4)))


def test_pre_activation_loss_reaches_silent_latents() -> None:
    """Nothing fires, and still every latent's bias has a gradient: that is what revives them; JumpReLU's has none."""
    for name, reached in (("jumprelu_tanh", True), ("jumprelu", False)):
        D = prepared(name, None)
        with torch.no_grad():
            D.b_enc.fill_(-1e3)
        g = torch.autograd.grad(kind(name).loss(D, rows(), rows(), NOW).total, D.b_enc, allow_unused=True)[0]
        assert bool(g is not None and (g < 0).all()) == reached


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "l1", "k": 3}, r"\(kind l1\) has no 'k'"),
        ({"kind": "l1", "sparsty": 3}, "Did you mean 'sparsity'"),
        ({"kind": "jumpreluu"}, "Did you mean 'jumprelu'"),
        ({"kind": "jumprelu", "bandwidth": 0}, "bandwidth must be positive"),
        ({"kind": "jumprelu_target", "target_l0": 0}, "target_l0 must be positive"),
        ({"kind": "gated", "sparsity": -1}, "sparsity must be at least 0"),
        ({"kind": "l1", "resample": 1}, "resample must be at least 2"),
        ({"kind": "p_anneal", "p_end": 0}, "p_end=0.0 must be above 0"),
        (
            {"kind": "matryoshka", "latents": 40, "groups": [4, 41]},
            r"groups must rise and end with latents=40; they are \[4, 41\]",
        ),
        ({"kind": "matryoshka", "latents": 40, "groups": [9, 9, 40]}, "groups must rise"),
        ({"kind": "matryoshka", "latents": 40, "groups": "many"}, "groups must be int"),
        ({"kind": "codebook", "latents": 40, "heads": 3}, r"cannot be 3 codebooks \(heads\)"),
        ({"kind": "codebook", "latents": 40, "heads": 10, "k": 5}, "with k=5 codes or more each"),
        ({"kind": "pursuit", "k": 9, "latents": 5}, "k=9 of latents=5"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        TrainConfig.from_dict(given)


def test_settings_there_and_back() -> None:
    for name in OWN:
        config = TrainConfig(kind(name), latents=24, steps=7)
        assert TrainConfig.from_dict(config.to_dict()) == config
        assert TrainConfig.from_dict({"kind": name}).kind == KINDS[name]()
    assert k.Matryoshka().ends(4096) == (256, 512, 1024, 2048, 4096)
    assert k.Matryoshka().ends(3) == (1, 2, 3)


@pytest.mark.parametrize(("name", "why"), [("pursuit", "its search subtracts"), ("codebook", "it compares what")])
def test_what_has_no_transcoder(name: str, why: str) -> None:
    with pytest.raises(WrongUse, match=f"{name} has no transcoder: {why}"):
        trainer(name, 5)


# ------------------------------------------------------------ training


class Interrupted(Exception):
    """What stops the runs below."""


class Stops(RowsSource):
    """Rows that end with an exception at a step."""

    def batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, pair in enumerate(super().batches(size, seed, start, stop), start):
            if number == 23:
                raise Interrupted
            yield pair


@pytest.mark.parametrize("name", OWN)
def test_a_run_that_is_stopped_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Stopped in the middle of p's fall, after a resampling, between checkpoints; weights averaged for half of them."""
    x = rows(300).float()
    given = (x, None) if name in k.TIED else (x, x[:, :5].square())
    own = OWN[name] | ({"resample": 6} if "resample" in KINDS[name].__dataclass_fields__ else {})
    average = 0.9 if list(OWN).index(name) % 2 else 0.0
    config = TrainConfig(
        KINDS[name](**own), latents=24, batch=30, steps=40, lr=3e-3, log_every=4, save_every=10,
        dead_after=60, average=average, skip=name == "l1_april",
    )  # fmt: skip
    train(config, RowsSource(*given), tmp_path / "whole", command="interp train")
    with pytest.raises(Interrupted):
        train(config, Stops(*given), tmp_path / "stopped", command="interp train")
    train(config, RowsSource(*given), tmp_path / "stopped", resume=True, command="interp train")
    for file in ("weights.safetensors", "config.json", "state.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes(), file
    norms = load_dictionary(tmp_path / "whole").W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones(24), atol=1e-6) != (name == "codebook")


@pytest.mark.parametrize("name", OWN)
def test_training_leaves_decoder_norms_as_the_kind_says_and_lowers_the_loss(name: str) -> None:
    t = trainer(name, sparsity_warmup=0.0, warmup=0.0, decay=0.0)
    t.begin()
    losses = [t.update(x, y) for x, y in t.source.batches(50, 0, 0, 40)]
    norms = t.dictionary.W_dec.norm(dim=1)
    assert bool((norms - 1).abs().max() < 1e-9) == t.kind.unit
    assert sum(loss.total.item() for loss in losses[-8:]) < sum(loss.total.item() for loss in losses[:8])


def test_averaged_weights_are_the_weighted_mean() -> None:
    """Σ_t β^{T−t} w_t / Σ_t β^{T−t}, decoder rows then folded to length one."""
    t = trainer("l1", average=0.8)
    t.begin()
    seen = []
    for x, y in t.source.batches(50, 0, 0, 9):
        t.update(x, y)
        seen.append({name: p.detach().clone() for name, p in t.dictionary.named_parameters()})
    weights = torch.tensor([0.8 ** (8 - i) for i in range(9)], dtype=torch.float64)
    mean = {n: sum(w * s[n] for w, s in zip(weights, seen, strict=True)) / weights.sum() for n in seen[0]}
    x = rows()
    f = ((x * t.scales[0][0] - mean["b_dec"]) @ mean["W_enc"] + mean["b_enc"]).relu()
    assert far(t.finished()(x), (f @ mean["W_dec"] + mean["b_dec"]) / t.scales[0][0]) < 1e-12
    assert (t.finished().W_dec.norm(dim=1) - 1).abs().max() < 1e-12


def test_warm_up_of_the_penalty() -> None:
    c = TrainConfig(k.L1(), steps=100, sparsity_warmup=0.1)
    assert [c.warm(t) for t in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])
    assert TrainConfig(k.L1(), steps=100).warm(0) == pytest.approx(0.2)
    assert TrainConfig(k.TanhJumpReLU(), steps=100).warm(49) == pytest.approx(0.5)
    assert TrainConfig(k.L1(), steps=100, sparsity_warmup=0.0).warm(0) == 1
    t = trainer("l1", sparsity_warmup=0.5)
    t.begin()
    x, y = next(t.source.batches(50, 0, 0, 1))
    loss = t.update(x, y)
    e = loss.fvu * (x * t.scales[0][0] - (x * t.scales[0][0]).mean(0)).square().sum() / 50
    assert loss.total.item() == pytest.approx((e + 0.7 * loss.sparsity / 20).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("l1", {"sparsity": 2.0, "lr": 3e-3}),
        ("l1_april", {"sparsity": 2.0, "lr": 3e-3}),
        ("gated", {"sparsity": 4.0, "lr": 1e-2}),
        ("batchtopk", {"k": 2, "lr": 1e-2}),
        ("pursuit", {"k": 2}),
    ],
)
def test_planted_directions_are_found(name: str, own: dict[str, Any], tmp_path: Path) -> None:
    """24 directions in 16 dimensions, in 300 small batches: enough for these kinds, not for those that need billions."""
    planted = superposed(20_000, seed=1, d=16, features=24, l0=1.5)
    given = {"kind": name, "latents": 32, "steps": 300, "batch": 256, "lr": 5e-3, "save_every": 300} | own
    D = train(TrainConfig.from_dict(given), RowsSource(planted.x), tmp_path)
    assert recovery(planted.directions, D.W_dec)["recovered"] > 0.8
