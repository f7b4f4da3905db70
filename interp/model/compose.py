"""What heads do together: composition scores, and singular directions of QK and OV circuits, all from their factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Composition:
    """scores[i, h, j, g]: how much head g of the j-th attention reads of what head h of the i-th writes; 0 unless i < j."""

    kind: str
    scores: Float[Tensor, "layer head layer head"]
    attentions: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of heads, the sender earlier than the receiver, largest score first."""
        import pandas as pd

        layers, heads = self.scores.shape[:2]
        pairs = torch.cartesian_prod(*(torch.arange(n) for n in (layers, heads, layers, heads)))
        pairs = pairs[pairs[:, 0] < pairs[:, 2]]
        table = {
            "sender": [self.attentions[i] for i in pairs[:, 0].tolist()],
            "sender_head": pairs[:, 1].tolist(),
            "receiver": [self.attentions[i] for i in pairs[:, 2].tolist()],
            "receiver_head": pairs[:, 3].tolist(),
            "score": self.scores.cpu()[tuple(pairs.T)].tolist(),
        }
        return pd.DataFrame(table).sort_values("score", ascending=False, ignore_index=True)

    def plot(self) -> go.Figure:
        """A heat map: senders down, receivers across, one cell a pair of heads."""
        import plotly.graph_objects as go

        layers, heads = self.scores.shape[:2]
        labels = [f"{i}.{h}" for i in range(layers) for h in range(heads)]
        flat = self.scores.float().cpu().reshape(layers * heads, -1)
        later = torch.ones(layers, layers).triu(1).repeat_interleave(heads, 0).repeat_interleave(heads, 1).bool()
        z = torch.where(later, flat, torch.nan)  # pairs that cannot compose stay empty
        hover = f"sender %{{y}}<br>receiver %{{x}}<br>{self.kind}-composition %{{z:.4f}}<extra></extra>"
        heat = go.Heatmap(z=z.numpy(), x=labels, y=labels, colorscale="Blues", hovertemplate=hover)
        across = {"title": "receiver, layer.head", "type": "category"}
        down = {"title": "sender, layer.head", "type": "category", "autorange": "reversed"}
        layout = {"title": f"{self.kind}-composition", "xaxis": across, "yaxis": down, "template": "plotly_white"}
        return go.Figure(heat, layout)


@dataclass(frozen=True, eq=False)
class Singular:
    """product = left diag(values) rightᵀ: left [..., in, rank] and right [..., out, rank] have orthonormal columns."""

    name: str
    values: Float[Tensor, "... rank"]
    left: Float[Tensor, "... in rank"]
    right: Float[Tensor, "... out rank"]

    def to_frame(self) -> pd.DataFrame:
        """One row a singular value: head, index, value, and the share of the squared Frobenius norm up to it."""
        import pandas as pd

        values = self.values.double().cpu().reshape(-1, self.values.shape[-1])
        share = values.square().cumsum(1) / values.square().sum(1, keepdim=True).clamp(min=1e-300)
        head, index = torch.cartesian_prod(*(torch.arange(n) for n in values.shape)).T
        table = {"head": head.tolist(), "index": index.tolist(), "value": values.flatten().tolist()}
        return pd.DataFrame(table | {"share": share.flatten().tolist()})

    def plot(self) -> go.Figure:
        """Singular values in falling order, one line a head."""
        import plotly.graph_objects as go

        values = self.values.float().cpu().reshape(-1, self.values.shape[-1])
        lines = [go.Scatter(y=v.tolist(), mode="lines+markers", name=f"head {h}") for h, v in enumerate(values)]
        layout = {"title": f"singular values of {self.name}", "template": "plotly_white"}
        return go.Figure(lines, layout | {"xaxis": {"title": "index"}, "yaxis": {"title": "singular value"}})


@dataclass(frozen=True)
class Circuits:
    """Factors of one attention's circuits, a query head each: W_QK = q kᵀ, W_OV = v o, with q, k, v, oᵀ [head, d_model, e]."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


def _wide(t: Tensor) -> Tensor:
    """Half precision widened: sums of squares of products need it."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _spread(t: Tensor, heads: int) -> Tensor:
    """Key heads repeated for the query heads that share them."""
    return t.repeat_interleave(heads // t.shape[0], dim=0)


def circuits(weights: Mapping[str, Tensor], attention: str) -> Circuits:
    q, k, v, o = (_wide(weights[f"{attention}.{w}"]) for w in ("W_Q", "W_K", "W_V", "W_O"))
    return Circuits(q, _spread(k, len(q)), _spread(v, len(q)), o)


def _root(t: Float[Tensor, "... d e"]) -> Float[Tensor, "... e e"]:
    """R with Rᵀ R = tᵀ t: t's norm-preserving stand-in, from its QR decomposition."""
    return torch.linalg.qr(t, mode="r").R


def composition(weights: Mapping[str, Tensor], kind: str, attention: str) -> Composition:
    """||A B|| / (||A|| ||B||) with A = W_OV of the sender and B what the receiver reads with; see `Weights.composition`.

    A = v o and B = l rᵀ are products of thin factors, so ||A B|| = ||R_v (o l) R_rᵀ|| with R from QR: [e, e] matrices only.
    """
    if kind not in ("Q", "K", "V"):
        raise WrongUse(f'composition is by "Q", "K" or "V", not {kind!r}.')
    roles = [n.removesuffix(".W_Q") for n in weights if n.endswith(".W_Q")]
    chosen = [r for r in roles if fnmatchcase(r, attention)]
    if not chosen:
        raise WrongUse(f"no attention matches {attention!r}.{nearest(attention, roles)} There are: {', '.join(roles)}.")
    found = [circuits(weights, r) for r in chosen]
    if len({len(c.q) for c in found}) > 1:
        raise WrongUse(f"the attentions {attention!r} differ in their number of heads: name fewer of them.")
    senders = [_root(c.v) @ c.o for c in found]  # [head, e, d_model]
    pairs = [(c.q, c.k) if kind == "Q" else (c.k, c.q) if kind == "K" else (c.v, c.o.mT) for c in found]
    receivers = [(left @ _root(right).mT).movedim(0, 1) for left, right in pairs]  # [d_model, head, e]
    whole = [(_root(left) @ _root(right).mT).flatten(1).norm(dim=1) for left, right in pairs]
    sent = [(_root(c.v) @ _root(c.o.mT).mT).flatten(1).norm(dim=1) for c in found]
    scores = senders[0].new_zeros(len(chosen), len(senders[0]), len(chosen), len(senders[0]))
    for i, sender in enumerate(senders):
        for j in range(i + 1, len(chosen)):
            product = torch.tensordot(sender, receivers[j], dims=1).movedim(2, 1).flatten(2).norm(dim=2)
            scores[i, :, j] = product / (sent[i][:, None] * whole[j][None]).to(product)
    return Composition(kind, scores, tuple(chosen))


def singular(weights: Mapping[str, Tensor], what: str | tuple[str, str]) -> Singular:
    """SVD of a product of factors: L = Q₁R₁ and Rᵀ = Q₂R₂, so L R = Q₁ svd(R₁R₂ᵀ) Q₂ᵀ; see `Weights.singular`."""
    name = what if isinstance(what, str) else " @ ".join(what)
    role, _, circuit = name.rpartition(".")
    if isinstance(what, str) and circuit not in ("OV", "QK"):
        u, s, vh = torch.linalg.svd(_wide(weights[what]), full_matrices=False)
        return Singular(name, s, u, vh.mT)
    if isinstance(what, str):
        made = circuits(weights, role)
        left, right = (made.v, made.o) if circuit == "OV" else (made.q, made.k.mT)
    else:
        left, right = _pair(weights, *what)
    (q1, r1), (q2, r2) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    u, s, vh = torch.linalg.svd(r1 @ r2.mT, full_matrices=False)
    return Singular(name, s, q1 @ u, q2 @ vh.mT)


def _pair(weights: Mapping[str, Tensor], first: str, second: str) -> tuple[Tensor, Tensor]:
    left, right = _wide(weights[first]), _wide(weights[second])
    heads = max(len(t) if t.ndim == 3 else 1 for t in (left, right))
    left, right = (_spread(t, heads) if t.ndim == 3 else t for t in (left, right))
    if left.shape[-1] != right.shape[-2]:
        raise WrongUse(f"{first!r} {tuple(left.shape)} and {second!r} {tuple(right.shape)} do not multiply.")
    return left, right
