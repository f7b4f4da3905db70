"""The formulas of TopK dictionaries: written out in float64, and the identities that the notes ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.dictionaries import Dictionary, RowsSource, TopK, TrainConfig
from interp.dictionaries.kinds import Now, share
from interp.dictionaries.planted import sparse_mlp, superposed
from interp.dictionaries.trainer import Trainer
from interp.errors import WrongUse

Make = Callable[..., Dictionary]
Measure = Callable[[float], None]


def far(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a - b).norm() / b.norm()).item()


def written_out(D: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """(f, ŷ) by the paper's formula, with nothing sparse about it."""
    z = (x - D.b_pre) @ D.W_enc + D.b_enc
    kept = z.sort(dim=1, descending=True, stable=True).indices[:, : D.config.k]
    f = z.relu() * torch.zeros_like(z).scatter(1, kept, 1.0)
    y = f @ D.W_dec + D.b_dec
    return f, y + x @ D.W_skip.T if D.config.skip else y


@pytest.mark.parametrize("kind", [{}, {"d_out": 6}, {"d_out": 6, "skip": True}, {"d_out": 9}])
def test_encode_decode_forward(make: Make, rows: Tensor, kind: dict[str, int]) -> None:
    D = make(**kind)
    f, y = written_out(D, rows)
    assert far(D.encode(rows), f) < 1e-13
    assert far(D(rows), y) < 1e-13
    assert far(D.decode(D.encode(rows), rows), y) < 1e-13
    assert far(D(rows.view(8, 50, 9)), y.view(8, 50, -1)) < 1e-13
    assert D.encode(rows.view(8, 50, 9)).shape == (8, 50, 120)
    assert D(rows[0]).shape == y[0].shape
    assert ((f > 0).sum(1) <= 5).all()


def test_dtype_out_is_dtype_in(make: Make, rows: Tensor) -> None:
    D = make()
    assert D(rows.half()).dtype == torch.float16
    assert D(rows.bfloat16()).dtype == torch.bfloat16


def test_wrong_width_is_named(make: Make, rows: Tensor) -> None:
    with pytest.raises(WrongUse, match="reads 9 numbers a row; the rows given have 8"):
        make()(rows[:, :8])
    D = make(d_out=6, skip=True)
    with pytest.raises(WrongUse, match="has a skip"):
        D.decode(D.encode(rows))


@pytest.mark.check(
    "dictionaries S1", formula="ŷ'(x) = ŷ(s_in x)/s_out; decoder norms folded into the encoder", tolerance=1e-12
)
@pytest.mark.parametrize("kind", [{}, {"d_out": 6}, {"d_out": 6, "skip": True}])
def test_s1_folding_changes_nothing(make: Make, rows: Tensor, kind: dict[str, int], measured: Measure) -> None:
    """float64, a handful of products: 1e-12. TopK selects by value, so decoder norms fold where nothing is left out."""
    D = make(**kind)
    s_in, s_out = 3.7, 3.7 if D.config.autoencoder else 0.21
    folded = D.rescaled(s_in, s_out)
    measured(far(folded(rows), D(s_in * rows) / s_out))
    measured(far(folded.encode(rows), D.encode(s_in * rows) / s_out))
    assert torch.equal(folded.W_dec, D.W_dec)

    everything = make(**kind, k=120)
    before = everything(rows)
    with torch.no_grad():
        norms = everything.W_dec.norm(dim=1)
        assert norms.max() > 1.5 * norms.min()
        everything.W_enc *= norms
        everything.b_enc *= norms
        everything.W_dec /= norms[:, None]
    measured(far(everything(rows), before))


@pytest.mark.check(
    "dictionaries S4 (TopK)", formula="TopK with k = m is the ReLU autoencoder, gradients too", tolerance=1e-13
)
def test_s4_everything_selected_is_relu(make: Make, rows: Tensor, measured: Measure) -> None:
    D = make(k=120)
    relu = ((rows - D.b_dec) @ D.W_enc + D.b_enc).relu() @ D.W_dec + D.b_dec
    measured(far(D(rows), relu))
    names = list(dict(D.named_parameters()))
    got = torch.autograd.grad(share(rows - D(rows), rows), list(D.parameters()))
    wanted = torch.autograd.grad(share(rows - relu, rows), list(D.parameters()))
    for _, a, e in zip(names, got, wanted, strict=True):
        measured(far(a, e))


@pytest.mark.check(
    "dictionaries 4.1 AuxK", formula="‖e − ê‖²/‖e − ē‖², ê = TopK(ReLU(z_dead)) W_dec; gradients", tolerance=1e-12
)
@pytest.mark.parametrize(("k_aux", "many"), [(3, False), (30, False), (3, True)])
@pytest.mark.parametrize("kind", [{}, {"d_out": 6, "skip": True}])
def test_auxk_and_its_gradients(
    make: Make, rows: Tensor, kind: dict[str, int], k_aux: int, many: bool, measured: Measure
) -> None:
    """The error is held fixed, the bias of the decoder stays out, and the encoder is reached; float64, 1e-12."""
    D = make(**kind)
    y = rows if D.config.autoencoder else rows[:, :6].square()
    dead = torch.arange(1, 110) if many else torch.tensor([2, 3, 17, 40, 41, 42, 77, 119])
    total = TopK(5, aux=0.25, k_aux=k_aux).loss(D, rows, y, Now(dead))
    e = y - written_out(D, rows)[1]
    z = ((rows - D.b_pre) @ D.W_enc + D.b_enc)[:, dead]
    kept = z.sort(dim=1, descending=True, stable=True).indices[:, : min(k_aux, len(dead))]
    f = z.relu() * torch.zeros_like(z).scatter(1, kept, 1.0)
    held = e.detach()
    aux = (held - f @ D.W_dec[dead]).square().sum() / (held - held.mean(0)).square().sum()
    wanted = e.square().sum() / (y - y.mean(0)).square().sum() + 0.25 * aux
    measured(abs(total.total.item() / wanted.item() - 1))
    measured(abs(total.aux.item() / aux.item() - 1))
    for a, b in zip(
        torch.autograd.grad(total.total, list(D.parameters())),
        torch.autograd.grad(wanted, list(D.parameters())),
        strict=True,
    ):
        measured(far(a, b))


def test_auxk_of_an_error_that_does_not_vary_is_zero(make: Make, rows: Tensor) -> None:
    D = make()
    e = torch.ones(400, 9, dtype=torch.float64)
    aux = TopK(5, k_aux=2).auxk(D, rows, e, torch.arange(4))
    assert aux.item() == 0
    assert all(
        g is None or torch.isfinite(g).all() for g in torch.autograd.grad(aux, list(D.parameters()), allow_unused=True)
    )


def small_trainer(**settings: float) -> Trainer:
    """A trainer of 40 latents (or as said) over 12 planted directions in 8 dimensions."""
    x = superposed(2000, seed=1, d=8, features=12, l0=1.5).x
    config = {"k": 2, "latents": 40, "batch": 128, "steps": 1000, "lr": 3e-3} | settings
    trainer = Trainer(TrainConfig.from_dict(config), RowsSource(x))
    trainer.begin()
    return trainer


def run(trainer: Trainer, steps: int) -> None:
    """`steps` more steps."""
    c = trainer.config
    for x, y in trainer.source.batches(c.batch, c.seed, trainer.step, trainer.step + steps):
        trainer.update(x, y)


@pytest.mark.check(
    "dictionaries S5", formula="⟨g_i, d_i⟩/‖g‖ after projection; ‖d_i‖ − 1 after the step", tolerance=1e-6
)
def test_s5_gradient_orthogonal_and_norms_one(measured: Measure) -> None:
    trainer = small_trainer()
    for _ in range(5):
        before = trainer.dictionary.W_dec.detach().clone()
        run(trainer, 1)
        g = trainer.dictionary.W_dec.grad
        assert g is not None
        assert g.norm() > 0
        measured(((g * before).sum(1).abs().max() / g.norm()).item())
        measured((trainer.dictionary.W_dec.norm(dim=1) - 1).abs().max().item())


def test_decoder_moves_unless_frozen() -> None:
    for frozen in (False, True):
        trainer = small_trainer(frozen_decoder=frozen)
        before = {name: p.detach().clone() for name, p in trainer.dictionary.named_parameters()}
        run(trainer, 3)
        moved = {name for name, p in trainer.dictionary.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {"W_enc", "b_enc", "b_dec"} | (set() if frozen else {"W_dec"})


def kill(trainer: Trainer, latent: int) -> None:
    """Make the latent's pre-activations too small to be selected, and let it count as dead."""
    with torch.no_grad():
        trainer.dictionary.W_enc[:, latent] *= 1e-3
        trainer.dictionary.b_enc[latent] = 0
    trainer.silent[latent] = trainer.window


def test_auxk_revives_a_killed_latent_and_nothing_else_does() -> None:
    """12 latents for 12 directions: what the killed one stood for is left in the error."""
    for α, alive in ((1 / 32, True), (0.0, False)):
        trainer = small_trainer(aux=α, latents=12)
        run(trainer, 100)
        kill(trainer, 7)
        assert trainer.dead[7]
        run(trainer, 300)
        assert bool(trainer.dead[7]) != alive


def test_a_selected_zero_counts_as_silence() -> None:
    """Biases so low that nothing is positive: k indices are selected on every row, none fires, all die together."""
    trainer = small_trainer(aux=0.0)
    with torch.no_grad():
        trainer.dictionary.b_enc.fill_(-1e3)
    run(trainer, 15)
    assert trainer.silent.tolist() == [15 * 128] * 40
    assert trainer.window == 2000
    assert not trainer.dead.any()
    run(trainer, 1)
    assert trainer.dead.all()


@pytest.mark.check(
    "dictionaries 4.1 first encoder", formula="⟨x − x̂, x̂ − b⟩ / ‖x‖‖x̂ − b‖ over the sample, float64", tolerance=1e-14
)
@pytest.mark.parametrize("kind", ["topk", "multi_topk", "batchtopk", "matryoshka"])
def test_the_first_encoder_has_the_length_of_least_error(kind: str, measured: Measure) -> None:
    """The least-squares error is orthogonal to what is written; the directions are the decoder's. A sum of 450 × 24 products."""
    rows = superposed(900, 0, d=24, features=60, l0=4.0).x
    config = TrainConfig.from_dict({"kind": kind, "latents": 300, "k": 5, "batch": 300, "dtype": "float64"})
    trainer = Trainer(config, RowsSource(rows))
    trainer.begin()
    D, sample = trainer.dictionary, next(trainer.source.batches(900, 0, 0, 1))[0][:450]
    x = (sample * torch.tensor(trainer.scales[0])).double()  # scaled in float32, as in `begin`
    with torch.no_grad():
        written = D.written(trainer.kind.encode(D, x))
        error = x - D.b_dec - written
    length = D.W_enc.norm(dim=0)
    measured((error * written).sum().abs().item() / (x.norm() * written.norm()).item())
    assert far(D.W_enc / length, D.W_dec.T) < 1e-6  # directions are drawn in float32
    assert far(length, length[:1].expand_as(length)) < 1e-6
    assert 0.1 < length[0] < 0.9


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_a_transcoder_starts_by_writing_what_its_targets_are_where_latents_fire(kind: str) -> None:
    """d_i ∝ Σ_b f_bi (y_b − ȳ), written out; one that never fires keeps its random direction; better than the mean at once."""
    mlp = sparse_mlp(5000, seed=2, active=5)
    config = TrainConfig.from_dict({"kind": kind, "latents": 300, "k": 9, "batch": 300, "dtype": "float64"})
    trainer = Trainer(config, RowsSource(mlp.x, mlp.y))
    trainer.begin()
    D = trainer.dictionary
    sample = next(trainer.source.batches(trainer.sample_rows, config.order, 0, 1))
    x, y = ((t * torch.tensor(s)).double() for t, s in zip(sample, trainer.scales, strict=True))
    with torch.no_grad():
        z = (x[1024:] - D.b_in) @ D.W_enc + D.b_enc
        edge = z.flatten().topk(9 * len(z)).values[-1] if kind == "batchtopk" else z.topk(9).values[:, -1:]
        toward = (z.relu() * (z >= edge)).T @ (y[1024:] - D.b_dec)
        fires = toward.norm(dim=1) > 0
        assert fires.all() if kind == "topk" else fires.sum() > 250
        assert far(D.W_dec[fires], toward[fires] / toward[fires].norm(dim=1, keepdim=True)) < 1e-10
        assert far(D.W_dec.norm(dim=1), torch.ones(300).double()) < 1e-6
        fvu = share(y - D.decode(trainer.kind.encode(D, x), x), y)
    assert 0.2 < fvu < 0.97


def test_a_transcoder_of_noise_starts_near_the_mean() -> None:
    """Targets that have nothing to do with x: what is written at first is a tenth of their spread."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3000, 12, generator=generator), torch.randn(3000, 20, generator=generator)
    trainer = Trainer(TrainConfig.from_dict({"kind": "topk", "latents": 200, "k": 5, "batch": 300}), RowsSource(x, y))
    trainer.begin()
    s_x, s_y = (s[0] for s in trainer.scales)
    D = trainer.dictionary
    with torch.no_grad():
        fvu = share(y * s_y - D.decode(trainer.kind.encode(D, x * s_x), x * s_x), y * s_y)
    assert 0.95 < fvu < 1.05
