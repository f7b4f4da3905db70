"""Dictionaries of several sites: crosscoders and cross-layer transcoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from written_out import NOW, WRITTEN_OUT, kind, l2, rows, universal

from interp.dictionaries import Dictionary, DictionaryConfig, RowsSource, TrainConfig, load_dictionary, train
from interp.dictionaries import kinds as k
from interp.dictionaries.kinds.jumprelu import Jump
from interp.dictionaries.trainer import Trainer
from interp.errors import WrongUse

Measure = Callable[[float], None]
A, B, M = 4, 3, 24  # widths of two sites, latents


def far(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a - b).norm() / b.norm()).item()


def crosscoder(widths: tuple[int, ...]) -> Dictionary:
    """The weights of `universal`, over sites of these widths."""
    D = universal(None)
    sites = tuple(f"site{i}" for i in range(len(widths)))
    D.config = DictionaryConfig(sites, sites, 7, 7, M, 3, "topk", False, widths, widths)
    return D


def gradients(total: Tensor, D: Dictionary) -> list[Tensor]:
    """To every parameter that is trained, zero where there is none."""
    trained = [p for p in D.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, trained, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, trained, strict=True)]


@pytest.mark.check(
    "dictionaries S7",
    formula="crosscoder of one site = April SAE; of two, Σ_s ‖e^s‖² + λ Σ f_i Σ_s ‖d_i^s‖",
    tolerance=1e-13,
)
def test_s7_crosscoder(measured: Measure) -> None:
    """Loss and gradients, float64; two sites written out site by site (Lindsey et al. 2024)."""
    x = rows()

    def two(D: Dictionary) -> Tensor:
        f = (x[:, :A] @ D.W_enc[:A] + x[:, A:] @ D.W_enc[A:] + D.b_enc).relu()
        errors = (x[:, s] - f @ D.W_dec[:, s] - D.b_dec[s] for s in (slice(0, A), slice(A, 7)))
        norms = D.W_dec[:, :A].square().sum(1).sqrt() + D.W_dec[:, A:].square().sum(1).sqrt()
        return sum(l2(e) for e in errors) + 0.6 * 0.6 * (f * norms).sum() / len(x)

    for widths, wanted in (((7,), lambda D: WRITTEN_OUT["l1_april"](D, x, x)), ((A, B), two)):
        D = crosscoder(widths)
        got, expected = kind("l1_april").loss(D, x, x, NOW).total, wanted(D)
        measured(abs(got.item() / expected.item() - 1))
        for a, b in zip(gradients(got, D), gradients(expected, D), strict=True):
            measured(far(a, b) if b.any() else a.abs().max().item())
    assert abs(two(D).item() / WRITTEN_OUT["l1_april"](D, x, x).item() - 1) > 1e-3


def test_batchtopk_crosscoder_selects_by_decoder_norms() -> None:
    """By brute force; and its thresholds in use are θ / Σ_s ‖d_i^s‖."""
    of, x = kind("batchtopk"), rows()
    t = trainer(of)
    t.begin()
    D = t.dictionary
    norms = D.W_dec[:, :A].norm(dim=1) + D.W_dec[:, A:].norm(dim=1)
    assert norms.max() > 1.2 * norms.min()
    z = of.z(D, x)
    weighed = (z.relu() * norms).flatten()
    kept = sorted(range(len(weighed)), key=lambda i: -weighed[i].item())[: 3 * len(x)]
    f = torch.zeros_like(weighed)
    f[kept] = z.relu().flatten()[kept]
    assert far(of.encode(D, x).dense(z.shape[1]), f.view_as(z)) < 1e-12  # the weights go through the product
    D.threshold.fill_(0.7)
    assert far(of.folded(D).encode(x), z * (z * norms > 0.7)) < 1e-12


def trainer(of: k.Kind, cross_layer: bool = False, **settings: Any) -> Trainer:
    """Two sites whose scales are a thousand apart."""
    x = torch.cat([1000 * rows(400)[:, :A], rows(400)[:, A:]], 1).float()
    y = torch.cat([0.01 * x[:, :B].square(), x[:, B:]], 1) if cross_layer else None
    reads = {"a.in": A, "b.in": B}
    source = RowsSource(x, y, reads, {"a.write": B, "b.write": A} if cross_layer else None)
    given = {"latents": M, "batch": 50, "steps": 40, "lr": 3e-3, "dtype": "float64", "cross_layer": cross_layer}
    return Trainer(TrainConfig(of, **(given | settings)), source)


@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("name", ["l1", "l1_april", "gated", "p_anneal", "topk", "jumprelu", "jumprelu_tanh"])
def test_scales_of_each_site_are_folded_away(name: str, cross_layer: bool) -> None:
    """ŷ of raw rows, in raw units, is what training saw; each site had its share of E‖x‖²."""
    t = trainer(kind(name), cross_layer)
    t.begin()
    for x, y in t.source.batches(50, 0, 0, 5):
        t.update(x, y if cross_layer else x)
    x = t.source.x.double()
    s_x, s_y = t._spread(x)
    sizes = kind(name).sizes(t.dictionary.config)
    assert (x * s_x)[:, :A].square().sum(1).mean().item() == pytest.approx(sizes[0] * A / 7)
    assert (x * s_x)[:, A:].square().sum(1).mean().item() == pytest.approx(sizes[0] * B / 7)
    D = t.dictionary
    code = kind(name).encode(D, x * s_x)
    f = code if isinstance(code, Tensor) else code.dense(M)
    assert far(t.finished()(x), D.decode(f, x * s_x) / s_y) < 1e-12


@pytest.mark.check(
    "dictionaries 4.1 cross-layer transcoder",
    formula="ŷ^j = Σ_{i ≤ j} f^i W_dec^{i→j} + b^j, f^i of site i; gradients",
    tolerance=1e-12,
)
def test_cross_layer_transcoder(measured: Measure) -> None:
    """Written out layer by layer, after training steps; what is not there has stayed zero."""
    of = kind("jumprelu_tanh")
    t = trainer(of, cross_layer=True)
    t.begin()
    for x, y in t.source.batches(50, 0, 0, 10):
        t.update(x, y)
    D, half = t.dictionary, M // 2
    outside = D.W_enc[:A, half:], D.W_enc[A:, :half], D.W_dec[half:, :B]
    inside = D.W_enc[:A, :half], D.W_enc[A:, half:], D.W_dec[:half, :B], D.W_dec[:half, B:], D.W_dec[half:, B:]
    assert not any(w.any() for w in outside)
    assert all((w != 0).all() for w in inside)
    x, y = rows(), rows(50, 7).square()
    f = [
        Jump.apply(x[:, s] @ D.W_enc[s, m] + D.b_enc[m], D.log_threshold[m].exp(), 1.5)
        for s, m in ((slice(0, A), slice(0, half)), (slice(A, 7), slice(half, M)))
    ]
    made = [
        f[0] @ D.W_dec[:half, :B] + D.b_dec[:B],
        f[0] @ D.W_dec[:half, B:] + f[1] @ D.W_dec[half:, B:] + D.b_dec[B:],
    ]
    error = l2(y[:, :B] - made[0]) + l2(y[:, B:] - made[1])
    now = NOW._replace(warm=0.0)
    found = k.TanhJumpReLU(bandwidth=1.5, pre_act=0.0).loss(D, x, y, now).total
    measured(abs(found.item() / error.item() - 1))
    for a, b in zip(gradients(found, D), gradients(error, D), strict=True):
        measured(far(a, b) if b.any() else a.abs().max().item())


@pytest.mark.parametrize("cross_layer", [False, True])
def test_stopped_runs_of_several_sites_and_resampling(cross_layer: bool, tmp_path: Path) -> None:
    """The same bytes; resampled latents stay within their layer; the folder keeps the sites."""
    of = k.L1(sparsity=0.5, resample=6)
    t = trainer(of, cross_layer, dtype="float32", dead_after=60, save_every=10, log_every=10)
    for name, steps in (("whole", [40]), ("stopped", [17, 40])):
        for stop in steps:
            source = t.source
            if stop < 40:
                source = Short(
                    t.source.x,
                    t.source.y,
                    {"a.in": A, "b.in": B},
                    dict(zip(source.writes, source.widths_out, strict=True)),
                )
            try:
                train(t.config, source, tmp_path / name, resume=True, command="interp train")
            except EOFError:
                assert stop < 40
    for file in ("weights.safetensors", "config.json", "state.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes(), file
    D = load_dictionary(tmp_path / "whole")
    assert (D.config.reads, D.config.widths_in, D.config.cross_layer) == (("a.in", "b.in"), (A, B), cross_layer)
    assert bool(D.W_enc[:A, M // 2 :].any()) != cross_layer


class Short(RowsSource):
    """Rows that end at step 17."""

    def batches(self, size: int, seed: int, start: int, stop: int) -> Any:
        for number, pair in enumerate(super().batches(size, seed, start, stop), start):
            if number == 17:
                raise EOFError
            yield pair


def test_relative_norms_tell_shared_from_exclusive_latents(tmp_path: Path) -> None:
    """16 planted features of two sites, 4 of one, 4 of the other: ‖d^b‖/(‖d^a‖ + ‖d^b‖) of the latents that match them."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(2, 24, 16, generator=generator), dim=2)
    directions[1, 16:20], directions[0, 20:] = 0, 0
    f = (torch.rand(20_000, 24, generator=generator) < 0.06) * (torch.rand(20_000, 24, generator=generator) + 0.5)
    x = torch.cat([f @ directions[0], f @ directions[1]], 1)
    config = TrainConfig(k.April(sparsity=2.0), latents=40, steps=300, batch=256, lr=5e-3, save_every=300)
    D = train(config, RowsSource(x, reads={"a": 16, "b": 16}), tmp_path)
    whole = torch.nn.functional.normalize(torch.cat([*directions], 1), dim=1)
    best = (whole @ torch.nn.functional.normalize(D.W_dec.detach(), dim=1).T).max(1)
    norms = D.part_norms()[best.indices]
    relative = norms[:, 1] / norms.sum(1)
    assert (best.values > 0.9).sum() >= 20
    said = torch.where(relative < 0.2, 0, torch.where(relative > 0.8, 2, 1))
    true = torch.tensor([1] * 16 + [0] * 4 + [2] * 4)
    assert (said == true).sum() >= 22


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widths_in": (3, 3)}, r"a, b cannot be of widths \[3, 3\], 7 together"),
        ({"widths_out": ()}, r"c, d cannot be of widths \[\], 7 together"),
        ({"latents": 25}, "latents=25 cannot be shared equally by 2 layers"),
        ({"skip": True}, "has no skip"),
        ({"writes": ("c",), "widths_out": (7,)}, "writes as many others"),
        ({"reads": ("c", "d")}, "writes as many others"),
        ({"activation": "pursuit", "cross_layer": False, "reads": ("c", "d")}, "pursuit reads one site"),
    ],
)
def test_sites_that_make_no_sense(change: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"reads": ("a", "b"), "writes": ("c", "d"), "d_in": 7, "d_out": 7, "latents": M, "k": 3}
    good |= {"widths_in": (A, B), "widths_out": (A, B), "cross_layer": True}
    assert DictionaryConfig(**good).cross_layer
    with pytest.raises(WrongUse, match=said):
        DictionaryConfig(**(good | change))
    with pytest.raises(WrongUse, match="do not add up to 7 and 7"):
        RowsSource(rows(), reads={"a": 3})
