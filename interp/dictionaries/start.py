"""How a dictionary starts: the scale of its inputs, the centre of the data, random directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.dictionaries.kinds import TIED
from interp.errors import Failed

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.dictionary import Dictionary


START = 0.1  # length of a transcoder's encoder directions at step 0


def scale_to(size: float, x: Float[Tensor, "rows d"], site: str) -> float:
    """s = √(size / E‖x‖²), so that E‖s x‖² = size.

    Raises `Failed` naming the site if the rows are all equal, infinite or not numbers.
    """
    mean_square = x.double().square().sum(-1).mean().item()
    if not 0 < mean_square < float("inf") or torch.equal(x, x[:1].expand_as(x)):
        raise Failed(f"{site} has rows that are all equal, infinite or not numbers (mean ‖x‖² is {mean_square}).")
    return (size / mean_square) ** 0.5


Scales = tuple[tuple[float, ...], tuple[float, ...]]


def scales(
    D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"], sizes: tuple[float, float]
) -> Scales:
    """What rows are multiplied by in training, site by site: E‖s_x x‖² and E‖s_y y‖² become `sizes`, set by the kind.

    Several sites share a size by their widths. In an autoencoder one number serves both ends.
    """
    c = D.config
    s_x = _by_site(sizes[0], x, c.reads, c.widths_in)
    return s_x, s_x if c.autoencoder else _by_site(sizes[1], y, c.writes, c.widths_out)


def _by_site(size: float, x: Tensor, sites: tuple[str, ...], widths: tuple[int, ...]) -> tuple[float, ...]:
    if not widths:
        sites, widths = (", ".join(sites),), (x.shape[1],)
    parts = zip(x.split(widths, dim=1), sites, strict=True)
    return tuple(scale_to(size * part.shape[1] / x.shape[1], part, site) for part, site in parts)


def spread(scales: tuple[float, ...], widths: tuple[int, ...], like: Tensor) -> Float[Tensor, " d"]:
    """A scale for each dimension, from one for each site."""
    s = torch.tensor(scales, dtype=torch.float64)
    return (s.repeat_interleave(torch.tensor(widths)) if widths else s).to(like)


def geometric_median(x: Float[Tensor, "rows d"], tolerance: float = 1e-6, iterations: int = 200) -> Float[Tensor, " d"]:
    """argmin_g Σ_i ‖x_i − g‖ by Weiszfeld's steps, in float64, until one is below `tolerance` times the median distance.

    A step that starts on data points would divide by zero: they are set aside, and g moves by the share of the step
    that they do not hold back (Vardi & Zhang 2000, PNAS 97(4)), so a point of the data is left unless it is the answer.
    """
    x = x.double()
    g = x.mean(0)
    for _ in range(iterations):
        distance = (x - g).norm(dim=1)
        spread = distance.median()
        away = distance > 1e-12 * spread
        weights = torch.where(away, 1 / distance, 0)
        pull = weights @ (x - g)
        if not pull.any():
            break
        held = ((~away).sum() / pull.norm()).clamp(max=1)
        move = (1 - held) * pull / weights.sum()
        g = g + move
        if move.norm() <= tolerance * spread:
            break
    return g


@torch.no_grad()
def initialise(D: Dictionary, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"], seed: int) -> None:
    """Set the weights before the first step, from a sample (x, y) of the training rows and the seed.

    W_dec: random unit rows. Autoencoder: W_enc = W_decᵀ, if it has an encoder of its own, and b_dec the geometric
    median of x (Gao et al. 2024, appendix A.1). Transcoder: b_in, b_dec are the means (Dunefsky et al. 2024), W_skip is
    0; input and output are different spaces even where their widths agree, so W_enc is drawn apart from W_dec, and
    short: a transcoder starts as the mean of its targets, not as noise added to it.
    """
    generator = torch.Generator().manual_seed(seed)
    D.W_dec.copy_(unit_rows(D.W_dec, generator))
    if D.config.autoencoder:
        if D.config.activation not in TIED:
            D.W_enc.copy_(D.W_dec.T)
        D.b_dec.copy_(geometric_median(x))
    else:
        D.W_enc.copy_(START * unit_rows(D.W_enc.T, generator).T)
        D.b_in.copy_(x.double().mean(0))
        D.b_dec.copy_(y.double().mean(0))
    if D.config.cross_layer:
        D.confine()
        D.W_dec.div_(D.W_dec.norm(dim=1, keepdim=True))
        D.W_enc.mul_(START / D.W_enc.norm(dim=0))


def unit_rows(like: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random directions, uniform on the sphere, as many as the rows of `like`."""
    rows = torch.randn(like.shape, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)
