"""The geometry of a model's representations, layer by layer: every curve of one pass over text, and blocks as linear maps.

Each curve is one of `probes.measures` at the stream before the first block and after each, between a block's two ends, or at
what a block's parts return. Beginning-of-sequence tokens are left out: their states are outliers that would be all one sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, check_keys
from interp.model.edits import Edit, Replace
from interp.model.model import teaches
from probes import measures as m
from probes.windows import Data, batches, of_windows

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float

    from interp.model.model import Model

OVERLOADED, COLLAPSED = 0.75, 0.25  # of the most entropy that a head's rows can have
EPS = 0.5  # of the coding rate, states scaled to unit norm

CURVES = {
    "linearity": "how linear a block is in the stream: R² of its output from its input",
    "linearity of the update": "the same without the residual: R² of output - input",
    "cka": "linear CKA of a block's output with its input",
    "procrustes": "overlap of output and input after the best rotation",
    "update": "mean ‖output - input‖ / ‖input‖ of a token",
    "attention write": "mean ‖what attention adds‖ / ‖block input‖ of a token",
    "mlp write": "mean ‖what the MLP adds‖ / ‖block input‖ of a token",
    "norm": "mean norm of a state",
    "matrix entropy": "entropy of a window's states, each feature made standard, in nats; at most log of its tokens",
    "participation ratio": "directions that share the variance: (Σ λ)² / Σ λ²",
    "intrinsic dimension": "of the states as a cloud of points, by two nearest neighbours",
    "anisotropy": "share of the variance along one direction",
    "mean cosine": "of states of different tokens",
    "rank-one residual": "‖X - 1 x̄ᵀ‖ / ‖X‖ of a window: 0 if all its states are one",
    "partition ratio": "min Z / max Z over directions, states scaled to unit norm: 1 if none is preferred",
    "coding rate": "½ log det(I + d/(n ε²) XᵀX), states scaled to unit norm, ε = ½, in nats",
    "compression": "the same of the value heads, summed over heads, in nats",
    "order in the stream": "share of pairs where the nearer position is the more alike; ½ is none",
    "order in attention": "the same of what attention returns",
    "attention entropy": "of a head's rows, in nats, mean over heads",
    "attention entropy, share": "of the most that each row can have, mean over heads",
    "overloaded heads": "share of heads above ¾ of the most entropy",
    "collapsed heads": "share of heads below ¼ of it",
    "neurons at zero": "share of the MLP's activations that are exactly 0",
    "neuron sparsity": "Hoyer's: 0 if all neurons fire alike, 1 if one does",
}


@dataclass(frozen=True, eq=False)
class Geometry:
    """Curves by name: (site, value) from layer to layer; what each head's entropy is; and what it was measured on.

    What is of a block stands at the block's end. `chance`: what linearity independent states of this number and width would score.
    """

    curves: dict[str, list[tuple[str, float]]]
    heads: Float[Tensor, "layer head"] | None  # entropy as a share of the most
    spread: dict[str, float]  # of the matrix entropy over windows, standard deviation by site
    tokens: int
    windows: int
    chance: float

    def curve(self, name: str) -> Float[Tensor, " layer"]:
        """The values of one curve. Raises `WrongUse` for a name that is not there."""
        check_keys([name], self.curves, "the list of curves")
        return torch.tensor([v for _, v in self.curves[name]], dtype=torch.float64)

    def to_frame(self) -> pd.DataFrame:
        """One row a curve and site: curve, site, value."""
        import pandas as pd

        rows = [[name, site, value] for name, curve in self.curves.items() for site, value in curve]
        return pd.DataFrame(rows, columns=["curve", "site", "value"])

    def plot(self, *names: str) -> go.Figure:
        """A small picture of each curve that is named, or of all."""
        from plotly.subplots import make_subplots

        check_keys(names, self.curves, "the list of curves")
        chosen = list(names or self.curves)
        across = min(3, len(chosen))
        down = math.ceil(len(chosen) / across)
        figure = make_subplots(down, across, subplot_titles=chosen, vertical_spacing=0.4 / (down + 1))
        for i, name in enumerate(chosen):
            y, x = self.curve(name).tolist(), [short(s) for s, _ in self.curves[name]]
            figure.add_scatter(x=x, y=y, mode="lines+markers", row=i // across + 1, col=i % across + 1)
        size = {"height": 120 + 230 * down, "width": 60 + 330 * across, "showlegend": False}
        return figure.update_layout(template="plotly_white", **size)


def short(site: str) -> str:
    """A site as an axis shows it: "3.resid_post"."""
    return site.rpartition("blocks.")[2]


@dataclass(eq=False)
class _Seen:
    """What one pass leaves behind: the stream's states, and sums of all else."""

    blocks: list[str]
    windows: list[list[Tensor]]  # of each stream site, the states of each window
    sums: dict[str, list[list[float]]]  # of each curve, for each block, a value a window
    entropies: list[list[Tensor]]  # of each block, [2, head] a window


@teaches
@torch.no_grad()
def geometry(
    model: Model, data: Data, *, context: int = 512, tokens: int = 4096, batch: int = 4, stack: str | None = None
) -> Geometry:
    """Every curve of `CURVES` that the model has sites for, over full windows of text of `context` tokens, up to `tokens`.

    `data`: a text, texts, token ids [window, pos], or ready inputs. `stack`: of several ("encoder.", "decoder."), whose.
    One pass; of attention, values and neurons only sums are kept, so memory holds the stream's states, and a pattern only
    where the model itself makes one.
    Raises `WrongUse` for a text shorter than a window, as many states as the stream is wide or fewer, and an unknown stack.
    """
    seen = _pass(model, data, _blocks(model, stack), context, tokens, batch)
    n, d = sum(map(len, seen.windows[0])), seen.windows[0][0].shape[1]
    sites = [f"{seen.blocks[0]}.resid_pre", *(f"{b}.resid_post" for b in seen.blocks)]
    curves: dict[str, list[tuple[str, float]]] = {}

    def put(name: str, site: str, value: float) -> None:
        curves.setdefault(name, []).append((site, value))

    before: Tensor | None = None
    spread = {}
    for site, windows in zip(sites, seen.windows, strict=True):
        x = torch.cat(windows).double().cpu()
        for name, value in _of_states(x, windows).items():
            put(name, site, value)
        entropies = _entropies(x, windows)
        put("matrix entropy", site, float(entropies.mean()))
        spread[site] = float(entropies.std(correction=0))
        if before is not None:
            for name, value in _between(before, x).items():
                put(name, site, value)
        before = x
    for name, blocks in seen.sums.items():
        for b, values in zip(seen.blocks, blocks, strict=True):
            if values:
                put(name, f"{b}.resid_post", sum(values) / len(values))
    heads = _heads(seen, put)
    ordered = {name: curves[name] for name in CURVES if name in curves}
    return Geometry(ordered, heads, spread, n, len(seen.windows[0]), d / (n - 1))


def _blocks(model: Model, stack: str | None) -> list[str]:
    """The blocks of one stack."""
    stacks = {s.prefix: s for s in model.wiring.stacks}
    if not stacks:
        raise WrongUse(f"no stream was found in {model.id}, so it has no layers to follow.")
    if stack is None and len(stacks) > 1:
        raise WrongUse(f"{model.id} has several stacks: say which, stack={' or stack='.join(map(repr, stacks))}.")
    prefix = next(iter(stacks)) if stack is None else stack
    if prefix not in stacks and f"{prefix}." in stacks:
        prefix += "."
    check_keys([prefix], stacks, f"{model.id}: the list of stacks")
    return [f"{prefix}blocks.{i}" for i in range(len(stacks[prefix].blocks))]


def _pass(model: Model, data: Data, blocks: list[str], context: int, tokens: int, batch: int) -> _Seen:
    """One run over the data, every tensor read when it is made."""
    from interp.model.onward import run_until

    table = model.sites()
    parts = ("attn.write", "mlp.write", "attn.out", "attn.pattern", "attn.v", "mlp.post")
    stream = [f"{blocks[0]}.resid_pre", *(f"{b}.resid_post" for b in blocks)]
    inner = {f"{b}.{p}": (i, p) for i, b in enumerate(blocks) for p in parts if f"{b}.{p}" in table}
    seen = _Seen(blocks, [[] for _ in stream], {}, [[] for _ in blocks])
    place = {name: i for i, name in enumerate(stream)}
    for x, keep in batches(model, data, context, tokens, batch):
        norms: dict[int, list[Tensor]] = {}

        def visit(site: str, t: Tensor, keep: Any = keep, norms: Any = norms) -> bool:
            if site in place:
                windows = of_windows(t, keep)
                seen.windows[place[site]] += windows
                norms[place[site]] = [w.double().norm(dim=1) for w in windows]
            else:
                i, part = inner[site]
                _read(seen, i, part, t, keep, norms.get(i))
            return site == stream[-1]

        run_until(model, x, [*stream, *inner], visit, statistics=True)
    return seen


def _read(
    seen: _Seen, i: int, part: str, t: Tensor, keep: Bool[Tensor, "batch pos"] | None, norms: list[Tensor] | None
) -> None:
    """What is kept of an inner tensor of block i: a number a window."""

    def put(name: str, values: list[float]) -> None:
        seen.sums.setdefault(name, [[] for _ in seen.blocks])[i] += values

    if part == "attn.pattern":
        for row, statistics in enumerate(t):
            real = None if keep is None or keep.shape[1] != t.shape[2] else _asked(keep[row])
            entropy, _, _, keys = (statistics if real is None else statistics[:, real]).unbind(-1)
            seen.entropies[i].append(m.entropy_shares(entropy, keys.amax(0)).cpu())
        return
    windows = of_windows(t, keep)
    if part.endswith("write") and norms is not None:
        name = "attention write" if part == "attn.write" else "mlp write"
        put(name, [float((w.double().norm(dim=1) / n).mean()) for w, n in zip(windows, norms, strict=True)])
    elif part == "attn.out":
        put("order in attention", [m.adjacency(w) for w in windows])
    elif part == "attn.v":
        put("compression", [_compression(w, t.shape[2]) for w in windows])
    elif part == "mlp.post":
        put("neurons at zero", [float((w == 0).double().mean()) for w in windows])
        put("neuron sparsity", [float(m.hoyer(w).nanmean()) for w in windows])


def _asked(keep: Bool[Tensor, " pos"]) -> Tensor:
    """The queries that are real."""
    return keep.nonzero().flatten()


def _compression(v: Float[Tensor, "pos heads_d"], heads: int) -> float:
    """R^c of values split by heads, each token's value of a head scaled to unit norm."""
    z = torch.nn.functional.normalize(v.double().unflatten(1, (heads, -1)), dim=-1)
    return float(m.compression(z.movedim(1, 0), EPS))


def _of_states(x: Float[Tensor, "n d"], windows: Sequence[Tensor]) -> dict[str, float]:
    """Curves of the states at one site."""
    scaled = torch.nn.functional.normalize(x, dim=1)
    return {
        "norm": float(x.norm(dim=1).mean()),
        "participation ratio": m.participation_ratio(x),
        "intrinsic dimension": m.two_nn(x),
        "anisotropy": m.anisotropy(x),
        "mean cosine": m.mean_cosine(x),
        "rank-one residual": sum(map(m.rank_one_residual, windows)) / len(windows),
        "partition ratio": m.partition_ratio(scaled),
        "coding rate": float(m.coding_rate(scaled, EPS)),
        "order in the stream": sum(map(m.adjacency, windows)) / len(windows),
    }


def _entropies(x: Float[Tensor, "n d"], windows: Sequence[Tensor]) -> Float[Tensor, " window"]:
    """The matrix entropy of each window, features made standard over all of them (LIMe)."""
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    found = [m.matrix_entropy((w.double().cpu() - mean) / std) for w in windows]
    return torch.tensor(found, dtype=torch.float64)


def _between(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> dict[str, float]:
    """Curves of the way from one site to the next."""
    u = m.basis(x)
    return {
        "linearity": m.explained(u, y),
        "linearity of the update": m.explained(u, y - x),
        "cka": m.cka(x, y),
        "procrustes": m.procrustes(x, y),
        "update": float(((y - x).norm(dim=1) / x.norm(dim=1)).mean()),
    }


def _heads(seen: _Seen, put: Callable[[str, str, float], None]) -> Float[Tensor, "layer head"] | None:
    """Entropies of heads as shares of the most; their curves."""
    rows = [(f"{b}.resid_post", torch.stack(e).mean(0)) for b, e in zip(seen.blocks, seen.entropies, strict=True) if e]
    for site, (entropy, share) in rows:
        put("attention entropy", site, float(entropy.mean()))
        put("attention entropy, share", site, float(share.mean()))
        put("overloaded heads", site, float((share > OVERLOADED).double().mean()))
        put("collapsed heads", site, float((share < COLLAPSED).double().mean()))
    return torch.stack([e[1] for _, e in rows]) if len({len(e[1]) for _, e in rows}) == 1 else None


# ---------------------------------------------------------------- a block as a linear map


@torch.no_grad()
def linear_block(
    model: Model, block: int, data: Data, *, context: int = 512, tokens: int = 4096, batch: int = 4
) -> list[Edit]:
    """Edits that put in place of a block the affine map of its input that is nearest to its output in least squares.

    `with model.edit(*linear_block(model, 3, text)): …` (Razzhigaev et al. 2024, section 4). What the block itself computes is
    thrown away. Raises what `geometry` raises.
    """
    blocks = _blocks(model, None)
    if not 0 <= block < len(blocks):
        raise WrongUse(f"there is no block {block}: they are 0 to {len(blocks) - 1}.")
    pre, post = f"{blocks[block]}.resid_pre", f"{blocks[block]}.resid_post"
    rows: dict[str, list[Tensor]] = {pre: [], post: []}
    for x, keep in batches(model, data, context, tokens, batch):
        cache = model.record(x, [pre, post])
        for site, found in rows.items():
            found += of_windows(cache[site], keep)
    x, y = (torch.cat(rows[site]).double().cpu() for site in (pre, post))
    m.basis(x)  # says so if there are too few tokens
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    solved = torch.linalg.lstsq(torch.cat([x, ones], 1), y, driver="gelsd").solution
    held: list[Tensor] = []

    def keep_input(t: Tensor) -> Tensor:
        held[:] = [t]
        return t

    def mapped(t: Tensor) -> Tensor:
        a = solved.to(t)
        return held[0].to(t) @ a[:-1] + a[-1]

    return [Replace(pre, keep_input), Replace(post, mapped)]
