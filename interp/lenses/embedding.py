"""Parameters in embedding space: what weights say in the vocabulary, without a run of the model.

With E [d, V] the token embeddings and E' [V, d] a right inverse (E E' = 1), a state h is ĥ = h E, and every product that a
transformer makes of its weights can be written between tokens: h · k = ĥ (E' k), (h W_VO) E = ĥ (E' W_VO E) and
h_i W_QK h_jᵀ = ĥ_i (E' W_QK E'ᵀ) ĥ_jᵀ. So what reads the stream (keys, W_Q, W_K, W_V) is shown by E', what writes to it
(values, W_O) by E. Source: Dar et al. 2022 (arXiv:2209.02535).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.kernels import largest
from interp.model.compose import circuits
from interp.model.edits import in_range
from interp.model.model import Model
from interp.texts import token_texts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

INVERSES = ("pinv", "transpose")
READERS, WRITERS = ("W_in", "W_gate", "W_up", "W_Q", "W_K", "W_V"), ("W_out", "W_O")
BYTES = 2**27  # for the block of an interaction matrix that exists at one time


@dataclass(frozen=True, eq=False)
class TopTokens:
    """Of each vector of a weight the tokens it says most, with their scores. Heads have an axis of their own."""

    weight: str
    inverse: str
    ids: Int[Tensor, "... vector k"]
    scores: Float[Tensor, "... vector k"]
    space: EmbeddingSpace

    @property
    def tokens(self) -> list[list[str]]:
        """The tokens of each vector, heads one after the other."""
        return [self.space.words(row) for row in self.ids.flatten(0, -2).tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row a vector: weight, head (-1: none), vector, tokens (a list), score (of the first)."""
        import pandas as pd

        count = self.ids.shape[-2]
        heads = [i // count if self.ids.ndim == 3 else -1 for i in range(len(self.tokens))]
        table = {"weight": self.weight, "head": heads, "vector": [i % count for i in range(len(heads))]}
        return pd.DataFrame(table | {"tokens": self.tokens, "score": self.scores.flatten(0, -2)[:, 0].tolist()})

    def plot(self, vectors: Sequence[int] = range(20)) -> go.Figure:
        """Some vectors (heads counted through), a row each: the tokens, shaded by their scores."""
        import plotly.graph_objects as go

        from interp.model.pictures import shown

        ids, scores = self.ids.flatten(0, -2), self.scores.flatten(0, -2)
        rows = [i for i in vectors if i < len(ids)]
        text = [[shown(w) for w in self.space.words(ids[i].tolist())] for i in rows]
        heat = go.Heatmap(z=scores[rows].tolist(), y=[str(i) for i in rows], text=text, texttemplate="%{text}")
        heat.update(colorscale="Blues", colorbar={"title": "score"})
        down = {"title": "vector", "type": "category", "autorange": "reversed"}
        size = {"width": 160 + 84 * ids.shape[-1], "height": 140 + 24 * len(rows)}
        return go.Figure(heat, {"title": self.weight, "yaxis": down, "template": "plotly_white", **size})


@dataclass(frozen=True, eq=False)
class Pairs:
    """The largest entries of an interaction matrix between tokens, largest first."""

    circuit: str
    head: int
    inverse: str
    rows: Int[Tensor, " k"]  # the token that is read; of QK: the query's
    columns: Int[Tensor, " k"]  # the token that is written; of QK: the key's
    values: Float[Tensor, " k"]
    space: EmbeddingSpace

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: `reads` and `writes` (of QK: `query` and `key`), value."""
        import pandas as pd

        names = ("query", "key") if self.circuit.endswith("QK") else ("reads", "writes")
        words = (self.space.words(t.tolist()) for t in (self.rows, self.columns))
        return pd.DataFrame(dict(zip(names, words, strict=True)) | {"value": self.values.tolist()})

    def plot(self, most: int = 30) -> go.Figure:
        """Bars, one a pair."""
        import plotly.graph_objects as go

        from interp.model.pictures import shown

        frame = self.to_frame().head(most)
        names = [f"{shown(a)} → {shown(b)}" for a, b in zip(frame.iloc[:, 0], frame.iloc[:, 1], strict=True)]
        bars = go.Bar(x=frame["value"], y=[f"{n + 1}. {name}" for n, name in enumerate(names)], orientation="h")
        layout = {"title": f"{self.circuit}, head {self.head}", "yaxis": {"autorange": "reversed"}}
        return go.Figure(bars, layout | {"template": "plotly_white", "height": 140 + 20 * len(names)})


class EmbeddingSpace:
    """The weights of a model as scores of tokens, and of pairs of tokens.

    `inverse` "pinv": E' is the pseudo-inverse, and the identities above hold exactly. "transpose": E' = Eᵀ, which the
    authors use, as it survives better that only the largest entries are looked at; the identities then do not hold.
    Readers are shown by the input embeddings and writers by the output embeddings where a model has two of them. Norms,
    rotary embeddings and biases are left out, as in the paper; the norms' gains are part of the weights in
    `interp.model.fold.folded(model)`. Raises `WrongUse` for a model without one of the two, or with embeddings of
    another width than its stream, and for another inverse.
    """

    def __init__(self, model: Model, inverse: str = "pinv") -> None:
        if inverse not in INVERSES:
            raise WrongUse(f"inverse={inverse!r} is none of {', '.join(INVERSES)}.")
        self.model, self.inverse, self.weights = model, inverse, model.weights
        self.words = token_texts(model.tokenizer)
        self.embed, self.unembed = (self._table(name) for name in ("W_E", "W_U"))
        if self.embed.shape != self.unembed.T.shape:
            raise WrongUse(
                f"{model.id} embeds {len(self.embed)} tokens in {self.embed.shape[1]} numbers, and its head gives "
                f"{self.unembed.shape[1]} scores for {self.unembed.shape[0]}: they are no two views of one vocabulary."
            )

    def _table(self, name: str) -> Tensor:
        layout = self.weights.layout(name)
        table = self.weights[name]
        return layout.scale * layout.multiplier * table.to(torch.promote_types(table.dtype, torch.float32))

    # ------------------------------------------------------------ the two projections

    @cached_property
    def gram(self) -> Float[Tensor, "d d"]:
        """E Eᵀ of the input embeddings, in float64."""
        wide = self.embed.double()
        return wide.T @ wide

    def pulled(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """u with E' k = Eᵀ u: of the pseudo-inverse (E Eᵀ)⁻¹ k, of the transpose k itself."""
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        if self.inverse == "transpose":
            return vectors
        return torch.linalg.solve(self.gram, vectors.double().T).T.to(vectors)

    def read_by(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
        """(E' k)ᵀ of vectors that read the stream: keys, columns of W_Q, W_K and W_V."""
        return self.pulled(vectors).to(self.embed) @ self.embed.T

    def written_by(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
        """v E of vectors that are written to the stream: values, rows of W_O."""
        return vectors.to(self.unembed) @ self.unembed

    # ------------------------------------------------------------ single vectors

    def vectors(self, weight: str) -> Float[Tensor, "... vector d"]:
        """A weight as the vectors it consists of: columns of what reads the stream, rows of what writes to it.

        Raises `WrongUse` for a weight that does neither.
        """
        name = weight.rsplit(".", 1)[-1]
        if name not in (*READERS, *WRITERS):
            raise WrongUse(
                f"{weight!r} neither reads the stream ({', '.join(READERS)}) nor writes to it ({', '.join(WRITERS)})."
            )
        t = self.weights[weight]
        return t.mT if name in READERS else t

    @torch.no_grad()
    def read(self, weight: str, k: int = 10, sign: int = 1) -> TopTokens:
        """The k tokens that each vector of a weight says most: neurons of an MLP, subheads of a head (one for each of its
        entries: column i of W_V and row i of W_O are one subhead). `sign` -1: those it says least, as scores of -vector.
        """
        vectors = self.vectors(weight)
        project = self.read_by if weight.rsplit(".", 1)[-1] in READERS else self.written_by
        found = [
            largest(sign * project(part), None, min(k, len(self.embed)))
            for part in vectors.reshape(-1, vectors.shape[-1]).split(256)
        ]
        scores, ids = (torch.cat(t).cpu().view(*vectors.shape[:-1], -1) for t in zip(*found, strict=True))
        return TopTokens(weight, self.inverse, ids, scores, self)

    # ------------------------------------------------------------ pairs of tokens

    def factors(self, circuit: str, head: int) -> tuple[Float[Tensor, "vocabulary e"], Float[Tensor, "e vocabulary"]]:
        """(L, R) with L R the interaction matrix of a head: "blocks.3.attn.OV" is E' W_V W_O E, "….QK" E' W_Q W_Kᵀ E'ᵀ.

        A query head that shares its key head is given that. Raises `WrongUse` for another circuit or head.
        """
        attention, _, kind = circuit.rpartition(".")
        if kind not in ("OV", "QK") or f"{attention}.W_O" not in self.weights:
            known = [n.removesuffix("W_O") for n in self.weights if n.endswith(".W_O")]
            raise WrongUse(
                f"{circuit!r} is no circuit of {self.model.id}: {known[0] if known else 'ATTENTION.'}OV or QK, say."
            )
        c = circuits(self.weights, attention)
        in_range(len(c.q), [head], "head", circuit)
        if kind == "QK":
            return self.read_by(c.q[head].T).T, self.read_by(c.k[head].T)
        return self.read_by(c.v[head].T).T, self.written_by(c.o[head])

    @torch.no_grad()
    def pairs(self, circuit: str, head: int, k: int = 50, sign: int = 1) -> Pairs:
        """The k largest entries of a head's interaction matrix (`sign` -1: the lowest), which is never held whole.

        A block of rows at a time, those of the largest norm first; it ends when ‖row‖ · max ‖column‖ falls below the k-th
        largest so far, so the answer is exact. For V tokens and heads of e entries at most V² e products.
        """
        left, right = self.factors(circuit, head)
        k = min(k, left.shape[0] * right.shape[1])
        norms, most = left.norm(dim=1), float(right.norm(dim=0).max())
        order = norms.argsort(descending=True, stable=True)
        size = max(1, BYTES // (right.shape[1] * right.element_size()))
        best = left.new_empty(0), order.new_empty(0), order.new_empty(0)
        for rows in order.split(size):
            if len(best[0]) == k and float(norms[rows[0]]) * most * (1 + 1e-5) < float(best[0][-1]):
                break
            best = _merged(best, rows, sign * (left[rows] @ right), k)
        values, i, j = (t.cpu() for t in best)
        return Pairs(circuit, head, self.inverse, i, j, sign * values, self)


Best = tuple[Tensor, Tensor, Tensor]  # values, rows, columns


def _merged(best: Best, rows: Int[Tensor, " n"], block: Float[Tensor, "n vocabulary"], k: int) -> Best:
    """The k largest of those so far and of a block of rows; of equal ones the first by row and column."""
    flat = block.flatten()
    if len(best[0]) == k:
        at = (flat >= best[0][-1]).nonzero().flatten()
    else:
        at = flat.topk(min(k, len(flat))).indices
        at = (flat >= flat[at[-1]]).nonzero().flatten()  # all that equal the last
    new = flat[at], rows[at // block.shape[1]], at % block.shape[1]
    values, i, j = (torch.cat(pair) for pair in zip(best, new, strict=True))
    order = (i * block.shape[1] + j).argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)][:k]
    return values[order], i[order], j[order]
