"""Every kind's loss written out from its paper with plain products, and dictionaries to compute it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp.dictionaries import KINDS, Dictionary, DictionaryConfig
from interp.dictionaries.kinds import Kind, Now

DEAD = torch.tensor([2, 3, 17, 20])
# settings away from their defaults, and such that every term counts
OWN: dict[str, dict[str, Any]] = {
    "l1": {"sparsity": 0.7},
    "l1_april": {"sparsity": 0.6},
    "gated": {"sparsity": 0.5},
    "p_anneal": {"sparsity": 0.4, "p_end": 0.3, "p_steps": 4, "p_from": 0.25},
    "topk": {"k": 3, "aux": 0.2, "k_aux": 2},
    "multi_topk": {"k": 3, "aux": 0.2, "k_aux": 2},
    "batchtopk": {"k": 3, "aux": 0.2, "k_aux": 2},
    "matryoshka": {"k": 3, "aux": 0.2, "k_aux": 2, "groups": (4, 9, 24)},
    "pursuit": {"k": 3, "aux": 0.2, "k_aux": 2},
    "codebook": {"k": 3},
    "jumprelu": {"sparsity": 0.3, "bandwidth": 1.5, "threshold": 0.4},
    "jumprelu_target": {"sparsity": 0.9, "bandwidth": 1.5, "threshold": 0.4, "target_l0": 5.0},
    "jumprelu_tanh": {"sparsity": 0.3, "bandwidth": 1.5, "tanh_scale": 0.8, "pre_act": 0.05},
}
NOW = Now(DEAD, step=60, steps=100, warm=0.6)


def kind(name: str) -> Kind:
    """With the settings above."""
    return KINDS[name](**OWN[name])


def universal(d_out: int | None, skip: bool = False, d: int = 7, m: int = 24) -> Dictionary:
    """A random float64 dictionary with everything any kind trains, nothing at its default: every loss runs on it."""
    writes = "in" if d_out is None else "out"
    D = Dictionary(DictionaryConfig(("in",), (writes,), d, d_out or d, m, 3, "topk", skip))
    for name in OWN:
        kind(name).prepare(D)
    D.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in D.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.1)
        D.get_buffer("s").fill_(1.7)
    return D


def rows(n: int = 50, d: int = 7) -> Tensor:
    """float64, mean not zero."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(8), dtype=torch.float64) + 0.3


# ------------------------------------------------------------ the papers, written out


def z(D: Any, x: Tensor, centre: bool) -> Tensor:
    b = (D.b_dec if D.config.autoencoder else D.b_in) if centre else 0
    return torch.einsum("bd,dm->bm", x - b, D.W_enc) + D.b_enc


def read(D: Any, f: Tensor, x: Tensor) -> Tensor:
    y = torch.einsum("bm,md->bd", f, D.W_dec) + D.b_dec
    return y + torch.einsum("bd,ed->be", x, D.W_skip) if D.config.skip else y


def l2(e: Tensor) -> Tensor:
    return (e**2).sum() / len(e)


def normalised(e: Tensor, y: Tensor) -> Tensor:
    return (e**2).sum() / ((y - y.mean(0)) ** 2).sum()


def top(v: Tensor, k: int) -> Tensor:
    """The k largest entries of each row, the others 0."""
    edge = v.sort(1, descending=True).values[:, k - 1 : k]
    return v * (v >= edge).double()


def auxk(D: Any, before: Tensor, e: Tensor) -> Tensor:
    """Two of the four dead latents, from their pre-activations `before`."""
    e = e.detach()
    return normalised(e - top(before[:, DEAD].relu(), 2) @ D.W_dec[DEAD], e)


def step(v: Tensor, θ: Tensor, ε: float) -> Tensor:
    """1[v > θ] whose derivative to θ is the kernel's: straight through a term that is zero."""
    near = (((v - θ) / ε).abs() < 0.5).double()
    slope = (-near / ε).detach()
    return (v > θ).double() + slope * (θ - θ.detach())


def jump(v: Tensor, θ: Tensor, ε: float) -> Tensor:
    slope = (-(θ / ε) * (((v - θ) / ε).abs() < 0.5).double()).detach()
    return v * (v > θ).double() + slope * (θ - θ.detach())


def l1(D: Any, x: Tensor, y: Tensor) -> Tensor:
    f = z(D, x, True).relu()
    return l2(y - read(D, f, x)) + 0.6 * 0.7 * f.sum() / len(x)


def l1_april(D: Any, x: Tensor, y: Tensor) -> Tensor:
    f = z(D, x, False).relu()
    return l2(y - read(D, f, x)) + 0.6 * 0.6 * (f * (D.W_dec**2).sum(1).sqrt()).sum() / len(x)


def gated(D: Any, x: Tensor, y: Tensor) -> Tensor:
    u = z(D, x, True) - D.b_enc
    π = u + D.b_gate
    f = (π > 0).double() * (D.r_mag.exp() * u + D.b_enc).relu()
    alone = π.relu() @ D.W_dec.detach() + D.b_dec.detach()
    if D.config.skip:
        alone = alone + x @ D.W_skip.detach().T
    return l2(y - read(D, f, x)) + 0.6 * 0.5 * π.relu().sum() / len(x) + l2(y - alone)


def p_anneal(D: Any, x: Tensor, y: Tensor) -> Tensor:
    """Step 60 of 100, first fall at 25, four of them: the second interval, so p = 1 − 0.7 · 2/4."""
    f = z(D, x, True).relu()
    return l2(y - read(D, f, x)) + 0.6 * 0.4 * 1.7 * (f[f > 0] ** 0.65).sum() / len(x)


def topk(D: Any, x: Tensor, y: Tensor) -> Tensor:
    v = z(D, x, True)
    e = y - read(D, top(v.relu(), 3), x)
    return normalised(e, y) + 0.2 * auxk(D, v, e)


def multi_topk(D: Any, x: Tensor, y: Tensor) -> Tensor:
    return topk(D, x, y) + normalised(y - read(D, top(z(D, x, True).relu(), 12), x), y) / 8


def batchtopk(D: Any, x: Tensor, y: Tensor) -> Tensor:
    v = z(D, x, True)
    e = y - read(D, top(v.relu().view(1, -1), 3 * len(x)).view_as(v), x)
    return normalised(e, y) + 0.2 * auxk(D, v, e)


def matryoshka(D: Any, x: Tensor, y: Tensor) -> Tensor:
    v = z(D, x, True)
    f = top(v.relu().view(1, -1), 3 * len(x)).view_as(v)
    errors = [y - read(D, torch.cat([f[:, :m], torch.zeros_like(f[:, m:])], 1), x) for m in (4, 9, 24)]
    return sum(normalised(e, y) for e in errors) / 3 + 0.2 * auxk(D, v, errors[-1])


def pursuit(D: Any, x: Tensor, y: Tensor) -> Tensor:
    """Row by row, latent by latent."""
    left = []
    for row in x:
        r = row - D.b_dec
        for _ in range(3):
            products = [(r * d).sum() for d in D.W_dec]
            best = max(range(len(products)), key=lambda i: products[i].item())
            r = r - products[best].clamp(min=0) * D.W_dec[best]
        left.append(r)
    e = torch.stack(left)
    return normalised(e, x) + 0.2 * auxk(D, e.detach() @ D.W_dec.T, e)


def codebook(D: Any, x: Tensor, y: Tensor) -> Tensor:
    """Row by row: the mean of the three codes of largest cosine."""
    made = []
    for row in x:
        likeness = [((row - D.b_dec) @ c / (c @ c).sqrt()).item() for c in D.W_dec]
        chosen = sorted(range(len(likeness)), key=lambda i: -likeness[i])[:3]
        made.append(D.b_dec + D.W_dec[chosen].mean(0))
    return normalised(x - torch.stack(made), x)


def jumprelu(D: Any, x: Tensor, y: Tensor) -> Tensor:
    v, θ = z(D, x, False), D.log_threshold.exp()
    return l2(y - read(D, jump(v, θ, 1.5), x)) + 0.6 * 0.3 * step(v, θ, 1.5).sum() / len(x)


def jumprelu_target(D: Any, x: Tensor, y: Tensor) -> Tensor:
    v, θ = z(D, x, False), D.log_threshold.exp()
    l0 = step(v, θ, 1.5).sum() / len(x)
    return l2(y - read(D, jump(v, θ, 1.5), x)) + 0.6 * 0.9 * (l0 / 5 - 1) ** 2


def jumprelu_tanh(D: Any, x: Tensor, y: Tensor) -> Tensor:
    v, θ, length = z(D, x, False), D.log_threshold.exp(), (D.W_dec**2).sum(1).sqrt()
    f = jump(v, θ, 1.5)
    penalties = 0.6 * 0.3 * torch.tanh(0.8 * f * length) + 0.05 * (θ - v).relu() * length
    return l2(y - read(D, f, x)) + penalties.sum() / len(x)


WRITTEN_OUT: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    f.__name__: f
    for f in (
        *(l1, l1_april, gated, p_anneal, topk, multi_topk, batchtopk, matryoshka, pursuit, codebook),
        *(jumprelu, jumprelu_target, jumprelu_tanh),
    )
}
