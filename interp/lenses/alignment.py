"""Two models with one vocabulary: which of their layers say the same, and one model's end on the other's beginning.

Both are had from d × d kernels between the two embeddings, never from scores over the vocabulary. Source: Dar et al. 2022
(arXiv:2209.02535), sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.embedding import WRITERS, EmbeddingSpace
from interp.model.cache import Cache
from interp.model.edits import Replace
from interp.model.model import teaches

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Alignment:
    """scores[i, j]: how alike weight i of the first model and weight j of the second are, the mean of |correlation|."""

    scores: Float[Tensor, "layer_a layer_b"]
    names: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def pairs(self) -> Int[Tensor, "pair 2"]:
        """The one-to-one assignment with the largest sum of scores (Kuhn 1955)."""
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(self.scores.numpy(), maximize=True)
        return torch.stack([torch.as_tensor(rows), torch.as_tensor(columns)], dim=1)

    @property
    def diagonal(self) -> float:
        """Share of the pairs that join layers of the same number."""
        return float((self.pairs[:, 0] == self.pairs[:, 1]).double().mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of weights: a, b, score, assigned."""
        import pandas as pd

        chosen = {tuple(p) for p in self.pairs.tolist()}
        rows = [
            [a, b, float(self.scores[i, j]), (i, j) in chosen]
            for i, a in enumerate(self.names[0])
            for j, b in enumerate(self.names[1])
        ]
        return pd.DataFrame(rows, columns=["a", "b", "score", "assigned"])

    def plot(self) -> go.Figure:
        """A heat map; crosses mark the assignment."""
        import plotly.graph_objects as go

        heat = go.Heatmap(z=self.scores.numpy(), y=list(self.names[0]), x=list(self.names[1]), colorscale="Blues")
        figure = go.Figure(heat)
        x, y = ([self.names[1 - side][i] for i in self.pairs[:, 1 - side].tolist()] for side in (0, 1))
        figure.add_scatter(x=x, y=y, mode="markers", marker={"symbol": "x", "color": "#b3470f"}, name="assigned")
        down = {"autorange": "reversed"}
        return figure.update_layout(title="mean |correlation| over the vocabulary", yaxis=down, template="plotly_white")


@teaches
@torch.no_grad()
def align(
    a: EmbeddingSpace, b: EmbeddingSpace, weight: str, other: str | None = None, *, raw: bool = False
) -> Alignment:
    """Compare every weight of `a` that matches a glob with every one of `b` ("blocks.*.mlp.W_out", say; `other`: b's glob).

    Of all pairs of vectors the correlation over the vocabulary of what they say, in absolute value, in the mean. With
    x E_a and y E_b the projections: cov = x K yᵀ / V - mean · mean, K = E_a E_bᵀ. `raw`: the correlation of the vectors
    themselves, the paper's baseline. Raises `WrongUse` for other vocabularies, a weight that is not there, and `raw` with
    other widths.
    """
    _same_vocabulary(a, b)
    names = a.weights.names(weight), b.weights.names(other or weight)
    if raw:
        sides = [
            [_centred(s.vectors(n).flatten(0, -2).double()) for n in some]
            for s, some in zip((a, b), names, strict=True)
        ]
        if sides[0][0].shape[1] != sides[1][0].shape[1]:
            raise WrongUse("vectors of other widths have no correlation of their own: leave raw out.")
        scores = [[float((x @ y.T).abs().mean()) for y in sides[1]] for x in sides[0]]
        return Alignment(torch.tensor(scores, dtype=torch.float64), (tuple(names[0]), tuple(names[1])))
    tables = [_projector(s, some[0]) for s, some in zip((a, b), names, strict=True)]
    kernels = {(i, j): tables[i] @ tables[j].T for i, j in ((0, 0), (0, 1), (1, 1))}
    vectors = [[_pulled(s, n) for n in some] for s, some in zip((a, b), names, strict=True)]
    units = [[x / _spread(x, kernels[side, side]) for x in some] for side, some in enumerate(vectors)]
    scores = [[float((x @ kernels[0, 1] @ y.T).abs().mean()) for y in units[1]] for x in units[0]]
    return Alignment(torch.tensor(scores, dtype=torch.float64), (tuple(names[0]), tuple(names[1])))


def _same_vocabulary(a: EmbeddingSpace, b: EmbeddingSpace) -> None:
    size = len(a.embed), len(b.embed)
    known = [s.model.tokenizer.get_vocab() for s in (a, b) if s.model.tokenizer is not None]
    if size[0] != size[1] or (len(known) == 2 and known[0] != known[1]):
        raise WrongUse(
            f"{a.model.id} and {b.model.id} have other vocabularies ({size[0]} and {size[1]} tokens): nothing can be compared."
        )


def _projector(space: EmbeddingSpace, name: str) -> Float[Tensor, "d vocabulary"]:
    """What a vector, pulled if it reads, is multiplied by to be scores; centred over the vocabulary."""
    E = space.unembed if name.rsplit(".", 1)[-1] in WRITERS else space.embed.T
    return E.double() - E.double().mean(1, keepdim=True)


def _pulled(space: EmbeddingSpace, name: str) -> Float[Tensor, "n d"]:
    vectors = space.vectors(name).flatten(0, -2).double()
    return vectors if name.rsplit(".", 1)[-1] in WRITERS else space.pulled(vectors)


def _spread(x: Float[Tensor, "n d"], kernel: Float[Tensor, "d d"]) -> Float[Tensor, "n 1"]:
    return ((x @ kernel) * x).sum(1, keepdim=True).clamp(min=1e-300).sqrt()


def _centred(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)


# ---------------------------------------------------------------- stitching


def kernel(b: EmbeddingSpace, a: EmbeddingSpace) -> Float[Tensor, "d_b d_a"]:
    """S = E_b pinv(E_a): states of b in a's space, h_a = h_b S, by what they say. E is the output embedding.

    Raises `WrongUse` for other vocabularies.
    """
    _same_vocabulary(a, b)
    A, B = a.unembed.double(), b.unembed.double()
    return torch.linalg.lstsq(A.T, B.T).solution.T


@teaches
@torch.no_grad()
def stitched(
    b: EmbeddingSpace, a: EmbeddingSpace, x: Any, site_b: str, site_a: str, sites: str | Sequence[str] = "logits"
) -> Cache:
    """A run of `a` on `x` with `b`'s state at `site_b`, times S, in place of its own at `site_a`: b's first layers and then a's.

    No training. Returns what `a.model.record` returns for `sites`. Raises `WrongUse` for other vocabularies, or sites that are
    no streams of the two.
    """
    for space, site in ((b, site_b), (a, site_a)):
        if space.model.width(site) != space.unembed.shape[0]:
            raise WrongUse(f"{site!r} of {space.model.id} is no stream that its head's scores are made of.")
    state = b.model.record(x, site_b)[site_b]
    moved = (state.double() @ kernel(b, a)).to(a.model.device, a.model.dtype)
    return a.model.record(x, sites, edits=[Replace(site_a, moved)])


@torch.no_grad()
def stitch_table(b: EmbeddingSpace, a: EmbeddingSpace, x: Any, layers: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """For pairs (n, m): b's blocks 0 … n, then a's from m + 1 on. One row each: n, m, agreement (share of positions whose
    likeliest token is a's own), cross_entropy of the next token, in nats.
    """
    import pandas as pd

    own = a.model.record(x, "logits")
    ids, mask = own.tokens, own.mask
    if ids is None or mask is None:
        raise WrongUse("stitching is measured on token ids: give text or ids.")
    rows = []
    for n, m in layers:
        logits = stitched(b, a, x, f"blocks.{n}.resid_post", f"blocks.{m}.resid_post")["logits"]
        same = (logits.argmax(-1) == own["logits"].argmax(-1))[mask].double().mean()
        log_p = logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        rows.append([n, m, float(same), float(-log_p[mask[:, 1:]].mean())])
    return pd.DataFrame(rows, columns=["n", "m", "agreement", "cross_entropy"])
