"""Paths through attention: their products, rollout, and the bound on how much the last token can feel another.

Patterns are never made: P x and Pᵀ r are the model's own attention with other values, and the derivative of its z to its
v. A row of a product of L layers costs L such derivatives. Sources: Barbero et al. 2024 (arXiv:2406.04267), theorem B.5 (the
bound, here with every head and with the constants of the run at hand); Abnar and Zuidema 2020 (arXiv:2005.00928), rollout;
Wu et al. 2025 (arXiv:2502.01951), the context without the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.edits import Replace
from interp.model.model import Model, teaches
from interp.model.wiring import Block
from probes import prompts
from probes.sensitivity import Sensitivity, layers_by_tokens, sensitivity

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

KINDS = ("products", "rollout", "context")
LARGE = 2**29  # bytes of Jacobians that exist at one time
AT_ONCE = 256  # tokens whose spectral norms are taken together


class Patterns:
    """Products with the patterns of one run, from its graph: `back` is r ↦ Σ Pᵀ r."""

    def __init__(self, model: Model, inputs: dict[str, Any], roles: list[str]) -> None:
        self.sites = {role: (f"{role}.v", f"{role}.z") for role in roles}
        for names in self.sites.values():
            missing = [n for n in names if n not in model.binding.sites]
            if missing:
                raise WrongUse(f"{missing[0]!r} is not proven in {model.id}, so no path through that layer is known.")
        wanted = [n for names in self.sites.values() for n in names]
        self.zeros, self.found = model.linked(inputs, wanted, wanted[-1])

    def heads(self, role: str) -> int:
        """Query heads of an attention."""
        return self.found[self.sites[role][1]].shape[2]

    @property
    def length(self) -> int:
        """Columns of the run."""
        return next(iter(self.zeros.values())).shape[1]

    def back(self, role: str, r: Float[Tensor, "pos head column"]) -> Float[Tensor, "pos column"]:
        """Σ_head P_headᵀ r_head, at most d_head columns at a time: ∂(z · r)/∂v, summed over the key heads."""
        v, z = self.sites[role]
        pull = torch.zeros_like(self.found[z])
        pull[0, ..., : r.shape[-1]] = r.to(pull)
        made = torch.autograd.grad(self.found[z], self.zeros[v], pull, retain_graph=True)[0]
        return made[0, ..., : r.shape[-1]].sum(1)

    def received(self, role: str) -> Float[Tensor, "head pos"]:
        """The mean attention that each token gets, over queries, in every query head: (1/n) Pᵀ 1.

        A key head adds up its group of query heads, so these take turns.
        """
        v, z = self.sites[role]
        heads, kv = self.found[z].shape[2], self.zeros[v].shape[2]
        group = heads // kv
        rows = torch.zeros(heads, self.length)
        for turn in range(group):
            pull = torch.zeros_like(self.found[z])
            pull[0, :, turn::group, 0] = 1 / self.length
            made = torch.autograd.grad(self.found[z], self.zeros[v], pull, retain_graph=True)[0]
            rows[turn::group] = made[0, ..., 0].T.float().cpu()
        return rows


def attentions(model: Model) -> list[str]:
    """The self-attention of every block of the last stack. Raises `WrongUse` for a block that has none."""
    stack = model.wiring.stacks[-1] if model.wiring.stacks else None
    roles = [f"{stack.prefix}blocks.{i}.attn" for i in range(len(stack.blocks))] if stack else []
    without = [r for r in roles if f"{r}.v" not in model.binding.sites]
    if without or not roles:
        raise WrongUse(
            f"{model.id} has no attention at {without[0] if without else 'all'}: paths lead through attention."
        )
    return roles


# ---------------------------------------------------------------- products and rollout


@dataclass(frozen=True, eq=False)
class Paths:
    """Row `pos` of products over layers, from layer l to the last, at each l: what reaches the token by all paths.

    `products`: Π (Λ + I); `rollout`: Π (Λ + I) / 2; `context`: Π Λ. Λ is the mean pattern over heads.
    """

    products: dict[str, Float[Tensor, " pos"]]
    rollout: dict[str, Float[Tensor, " pos"]]
    context: dict[str, Float[Tensor, " pos"]]
    tokens: dict[str, list[str]]
    pos: int

    def to_frame(self) -> pd.DataFrame:
        """One row a site and token: site, pos, token, products, rollout, context."""
        import pandas as pd

        rows = []
        for site, words in self.tokens.items():
            numbers = (getattr(self, kind)[site].tolist() for kind in KINDS)
            rows += [[site, *row] for row in zip(range(len(words)), words, *numbers, strict=True)]
        return pd.DataFrame(rows, columns=["site", "pos", "token", *KINDS])

    def plot(self, kind: str = "rollout") -> go.Figure:
        """Tokens across, layers upwards. Raises `WrongUse` for another kind."""
        if kind not in KINDS:
            raise WrongUse(f"{kind!r} is none of {', '.join(KINDS)}.")
        return layers_by_tokens(getattr(self, kind), self.tokens, f"{kind} to token {self.pos}")


@teaches
def paths(model: Model, x: Any, *, pos: int = -1, bos: bool | None = None) -> Paths:
    """Row `pos` of Π (Λ + I), of Π (Λ + I)/2 and of Π Λ, from every layer on; r ← Λᵀ r + r, from the last layer down.

    With n tokens and uniform causal Λ the entries of Π Λ go to the first token as depth grows, and so do those of
    Π (Λ + I)/2 (theorem B.8). Raises `WrongUse` for several prompts, blocks without attention, a position that is not there.
    """
    inputs, roles = prompts.one_prompt(model, x, bos), attentions(model)
    patterns = Patterns(model, inputs, roles)
    sites = prompts.stream(model)
    kept = prompts.columns(inputs, sites[-1], patterns.length)
    at = _place(pos, kept)
    rows = torch.zeros(patterns.length, 2, dtype=patterns.found[f"{roles[0]}.z"].dtype)
    rows[kept[at]] = 1.0
    found = [rows]
    for role in reversed(roles):
        heads = patterns.heads(role)
        made = patterns.back(role, rows[:, None].expand(-1, heads, -1) / heads).cpu()
        rows = made + rows * torch.tensor([1.0, 0.0])
        found.append(rows)
    found = [r[kept].double() for r in reversed(found)]
    names = dict(zip(sites, found, strict=True))
    products = {n: r[:, 0] for n, r in names.items()}
    rollout = {n: r / 2 ** (len(roles) - i) for i, (n, r) in enumerate(products.items())}
    tokens = {n: prompts.words(model, inputs, n, kept) for n in sites}
    return Paths(products, rollout, {n: r[:, 1] for n, r in names.items()}, tokens, at)


def _place(pos: int, kept: Tensor) -> int:
    if not -len(kept) <= pos < len(kept):
        raise WrongUse(f"position {pos} is not there: this prompt has {len(kept)} tokens.")
    return pos % len(kept)


# ---------------------------------------------------------------- the bound


@dataclass(frozen=True, eq=False)
class PathBound:
    """At each site and token: `bound`, the norm with patterns `held` (never above it), and the norm as it is.

    `constants`: one row a layer, the largest over tokens and heads: "1/β1" of the norm before the attention, "OV" =
    max ‖W_V W_O‖, "after" of what follows the heads, "mlp" = ‖I + ∂mlp‖, at most σ_ψ/β2 + 1; `last`: ‖∂y/∂v^L‖_F, in
    the place of 1/β3.
    """

    bound: dict[str, Float[Tensor, " pos"]]
    held: Sensitivity
    exact: Sensitivity
    constants: pd.DataFrame
    last: float

    @property
    def looseness(self) -> pd.DataFrame:
        """One row a site: how many times the norm with patterns held the bound is, over the tokens that are felt at all;
        and the share of tokens whose norm as it is lies above the bound, which a moving pattern may do.
        """
        import pandas as pd

        rows = []
        for site, bound in self.bound.items():
            there = self.held.norms[site] > 0
            times = (bound / self.held.norms[site])[there]
            above = float((self.exact.norms[site] > bound * (1 + 1e-6)).double().mean())
            rows.append([site, float(times.min()), float(times.log().mean().exp()), float(times.max()), above])
        return pd.DataFrame(rows, columns=["site", "least", "mean", "most", "exact_above"])

    def to_frame(self) -> pd.DataFrame:
        """One row a site and token: site, pos, token, bound, held, exact."""
        frame = self.exact.to_frame()[["site", "pos", "token"]]
        numbers = {"bound": self.bound, "held": self.held.norms, "exact": self.exact.norms}
        return frame.assign(**{k: torch.cat(list(v.values())).tolist() for k, v in numbers.items()})

    def plot(self) -> go.Figure:
        """From the first layer: the bound, the norm with patterns held, and the norm as it is, token after token."""
        import plotly.graph_objects as go

        site = next(iter(self.bound))
        lines = {"bound": self.bound, "exact, patterns held": self.held.norms, "exact": self.exact.norms}
        figure = go.Figure(
            [go.Scatter(y=v[site].tolist(), name=name, mode="lines+markers") for name, v in lines.items()]
        )
        axes = {"xaxis": {"title": "token"}, "yaxis": {"title": f"‖∂ y / ∂ {site}‖", "type": "log"}}
        return figure.update_layout(title="The bound over attention paths", template="plotly_white", **axes)


@teaches
def path_bound(
    model: Model, x: Any, *, pos: int = -1, probes: int | None = None, seed: int = 0, bos: bool | None = None
) -> PathBound:
    """‖∂y_n/∂v_i‖_F ≤ ‖∂y_n/∂v_n^L‖_F Σ_paths Π_l B^l, B^l_ij = m_i (δ_ij + c_i Σ_h P^h_ij ‖W_V^h W_O^h‖ g_j), patterns held.

    g_j = ‖∂attn.in_j/∂v_j‖ (the paper's 1/β1), c_i the same of what stands between the heads and the stream (1, or a norm
    after the sublayer), m_i = ‖∂v'_i/∂(stream after attention)‖ (the paper's σ_ψ/β2 + 1 is an upper bound of it): spectral
    norms of the derivatives at this run's own states. Parallel blocks: m_i δ_ij + c_i Σ_h … . `probes`, `seed`: of the norms
    beside the bound, as `sensitivity` takes them.
    Raises `WrongUse` for blocks that are not stream + attention + MLP with norms before them, and what `sensitivity` raises.
    """
    inputs, roles = prompts.one_prompt(model, x, bos), attentions(model)
    _check_blocks(model)
    site, y = prompts.stream(model), prompts.output(model)
    exact = sensitivity(model, inputs, site, until=y, pos=pos, probes=probes, seed=seed)
    still = sensitivity(model, inputs, site, until=y, pos=pos, probes=probes, seed=seed, held=True)
    steps, last = _gains(model, inputs, roles, exact.pos)  # before the patterns: one graph at a time
    patterns = Patterns(model, inputs, roles)
    kept = prompts.columns(inputs, site[-1], patterns.length)
    r = torch.zeros(patterns.length, dtype=torch.float64)
    r[kept[exact.pos]] = last
    found, constants = [r], []
    for layer in reversed(range(len(roles))):
        g, c, m, parallel = steps[layer]
        ov = model.weights.singular(f"{roles[layer]}.OV").values[:, 0].double().cpu()
        after = r * m
        sent = (r if parallel else after) * c
        r = after + g * patterns.back(roles[layer], (sent[:, None] * ov)[..., None])[:, 0].double().cpu()
        found.append(r)
        constants.append([layer, *(float(t[kept].max()) for t in (g, c, m)), float(ov.max())])
    bounds = {n: b[kept] for n, b in zip(site, reversed(found), strict=True)}
    return PathBound(bounds, still, exact, _table(constants), last)


def _table(rows: list[list[float]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows[::-1], columns=["layer", "1/β1", "after", "mlp", "OV"])
    return frame[["layer", "1/β1", "OV", "after", "mlp"]]


def _check_blocks(model: Model) -> None:
    """Blocks are sums of the stream and what sublayers write, and nothing rescales the stream."""
    for i, block in enumerate(model.wiring.stacks[-1].blocks):
        why = _unlike(block)
        if why:
            raise WrongUse(
                f"block {i} of {model.id} {why}: the bound is about stream + attention + MLP, norms before them."
            )


def _unlike(block: Block) -> str:
    if block.norms:
        return "normalises after adding"
    if not block.sums:
        return "is not proven to be a sum"
    if any(s.scale != 1.0 for s in block.sums):
        return "rescales the stream"
    writers = {write.rsplit(".", 1)[0] for s in block.sums for write, _ in s.writes}
    return f"writes through {', '.join(sorted(writers - {'attn', 'mlp'}))}" if writers - {"attn", "mlp"} else ""


def _gains(
    model: Model, inputs: dict[str, Any], roles: list[str], pos: int
) -> tuple[list[tuple[Tensor, Tensor, Tensor, bool]], float]:
    """(g, c, m and whether it is parallel) of every layer, ‖∂y_n/∂v_n^L‖_F."""
    gains = _Gains(model, inputs, roles)
    kept = prompts.columns(inputs, gains.stream[-1], gains.found[gains.stream[-1]].shape[1])
    return [gains.layer(i) for i in range(len(roles))], gains.last(int(kept[pos]))


class _Gains:
    """Spectral norms of what happens at each token by itself: ‖∂out_i/∂in_i‖, attention held so that no token sees another."""

    def __init__(self, model: Model, inputs: dict[str, Any], roles: list[str]) -> None:
        self.roles, self.stream, self.y = roles, prompts.stream(model), prompts.output(model)
        self.blocks = [role.removesuffix(".attn") for role in roles]
        self.known = model.binding.sites
        ends = [*self.stream, *(f"{b}.resid_post" for b in self.blocks)]
        inner = [f"{r}.{s}" for r in roles for s in ("in", "out")]
        mid = [f"{b}.resid_mid" for b in self.blocks if f"{b}.resid_mid" in self.known]
        wanted = [n for n in self.known if n in {*ends, *inner, *mid}]
        with prompts.held(model), model.edit(*(Replace(f"{role}.v", Tensor.detach) for role in roles)):
            self.zeros, self.found = model.linked(inputs, wanted, self.y)

    def layer(self, i: int) -> tuple[Tensor, Tensor, Tensor, bool]:
        """(g, c, m, whether the block is parallel) of a layer, each [pos]."""
        block, role = self.blocks[i], self.roles[i]
        parallel = f"{block}.resid_mid" not in self.known
        start, middle, end = (f"{block}.resid_{s}" for s in ("pre", "mid", "post"))
        middle = middle if not parallel else start
        g = self._gain(f"{role}.in", start)
        c = self._gain(end if parallel else middle, f"{role}.out")
        return g, c, self._gain(end, middle), parallel

    def last(self, at: int) -> float:
        """‖∂y_n/∂v_n^L‖_F."""
        if self.y == self.stream[-1]:
            return self.found[self.y].shape[-1] ** 0.5
        return float(self._rows(self.y, self.stream[-1], slice(at, at + 1)).double().norm())

    def _gain(self, out: str, into: str) -> Float[Tensor, " pos"]:
        y = self.found[out]
        step = max(1, LARGE // (y.shape[-1] * self.found[into].shape[-1] * y.element_size()))
        parts = [self._rows(out, into, slice(i, i + step)) for i in range(0, y.shape[1], step)]
        return torch.cat([_largest(j) for part in parts for j in part.split(AT_ONCE)])

    def _rows(self, out: str, into: str, where: slice) -> Float[Tensor, "pos out in"]:
        """∂out_i/∂in_i, a row for each number of `out`: all tokens at once, as none depends on another."""
        y, zero = self.found[out], self.zeros[into]
        found = y.new_empty(len(range(y.shape[1])[where]), y.shape[-1], zero.shape[-1], device="cpu")
        for k in range(y.shape[-1]):
            (slope,) = torch.autograd.grad(y[..., k].sum(), zero, retain_graph=True)
            found[:, k] = slope[0, where].cpu()
        return found


def _largest(j: Float[Tensor, "n out in"]) -> Float[Tensor, " n"]:
    """‖j‖_2, from the largest eigenvalue of j jᵀ."""
    j = j.double()
    return torch.linalg.eigvalsh(j @ j.mT)[:, -1].clamp(min=0).sqrt()
