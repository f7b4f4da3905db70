"""Sub-updates: what each memory adds to the stream at a token, which of them weigh most, and what they do to candidates.

o = x + Σ_i m_i v_i + b, so the score of a token w changes by Σ_i m_i r_{i,w} + b · e_w: a memory promotes w where
m_i r_{i,w} > 0, and what it promotes least is eliminated. Source: Geva et al. 2022 (arXiv:2203.14680).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.memories import Layer, Memories
from interp.lenses.readout import token_id
from interp.model.model import teaches

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One layer at n tokens: m [n, memory] with the norm's scale in them, the stream before and after, the bias's part."""

    layer: Layer
    m: Float[Tensor, "n memory"]
    bias: Float[Tensor, "n d"]
    before: Float[Tensor, "n d"]
    after: Float[Tensor, "n d"]
    write: Float[Tensor, "n d"]

    @property
    def sum(self) -> Float[Tensor, "n d"]:
        """Σ_i m_i v_i + b, which is `write` up to rounding."""
        return self.m @ self.layer.values + self.bias

    @property
    def dominance(self) -> Float[Tensor, "n memory"]:
        """|m_i| ‖v_i‖."""
        return self.m.abs() * self.layer.values.norm(dim=1)


@dataclass(frozen=True, eq=False)
class SubUpdates:
    """The sub-updates of every layer of `layers` at the real tokens of a run."""

    memories: Memories
    layers: dict[str, LayerRun]
    ids: Int[Tensor, " n"] | None
    prompt: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    tops: dict[str, Int[Tensor, "2 n"]]  # the likeliest token before each layer, and after it, through the model's head

    @property
    def tokens(self) -> list[str]:
        """The tokens that were read; nothing for pictures."""
        return [""] * len(self.pos) if self.ids is None else self.memories.lens.words(self.ids.tolist())

    def dominant(self, layer: str, k: int = 10) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """(Memories, dominance |m_i| ‖v_i‖) of the k sub-updates that weigh most at each token, largest first."""
        run = self._run(layer)
        best, which = run.dominance.sort(dim=1, descending=True, stable=True)
        return which[:, :k], best[:, :k]

    def effects(self, layer: str, tokens: Sequence[int | str]) -> Float[Tensor, "n memory asked"]:
        """m_i r_{i,w}: what each memory adds to the score of each token w asked about. Raises `WrongUse` for no token."""
        E = self.memories.unembedding
        ids = [token_id(self.memories.model, t, E.shape[1]) for t in tokens]
        run = self._run(layer)
        return run.m[..., None] * (run.layer.values @ E[:, ids])

    def to_frame(self, k: int = 10) -> pd.DataFrame:
        """One row a layer, token and dominant sub-update: layer, prompt, pos, token, memory, coefficient, dominance, share
        (of Σ |m_i| ‖v_i‖ at the token), says (what it adds most to, by its sign).
        """
        import pandas as pd

        parts = []
        for role, run in self.layers.items():
            which, best = self.dominant(role, k)
            m = run.m.gather(1, which)
            said = self._says(role, which, m)
            n, k_here = which.shape
            table = {"layer": [role] * (n * k_here)}
            table |= {c: getattr(self, c).repeat_interleave(k_here).tolist() for c in ("prompt", "pos")}
            table |= {"token": [t for t in self.tokens for _ in range(k_here)], "memory": which.flatten().tolist()}
            share = best / run.dominance.sum(1, keepdim=True)
            table |= {"coefficient": m.flatten().tolist(), "dominance": best.flatten().tolist()}
            parts.append(pd.DataFrame(table | {"share": share.flatten().tolist(), "says": said}))
        return pd.concat(parts, ignore_index=True)

    def promotions(self, k: int = 10) -> pd.DataFrame:
        """Where a layer changes what is likeliest: one row a layer and token whose top before and after it differ.

        layer, prompt, pos, token; `old` and `new` (the likeliest before and after); `saturates`: no later layer of these
        changes it again; for both the score's change by memories that raise it, by those that lower it, by the bias
        (new_up + new_down + new_bias is all that the layer does to it), and of the k dominant ones alone (new_dominant).
        """
        import pandas as pd

        rows: list[list[Any]] = []
        words = self.memories.lens.words
        last = self.tops[next(reversed(self.layers))][1]
        settled = torch.ones_like(last, dtype=torch.bool)
        for role in reversed(self.layers):
            old, new = self.tops[role]
            settled &= new == last
            here = []
            for i in (old != new).nonzero().flatten().tolist():
                pair = torch.stack([old[i], new[i]]).tolist()
                row = [role, int(self.prompt[i]), int(self.pos[i]), self.tokens[i], *words(pair), bool(settled[i])]
                here.append([*row, *(v for token in pair for v in self._moved(role, i, token, k))])
            rows = here + rows
        named = [f"{who}_{what}" for who in ("old", "new") for what in ("up", "down", "bias", "dominant")]
        names = ["layer", "prompt", "pos", "token", "old", "new", "saturates", *named]
        return pd.DataFrame(rows, columns=names)

    def plot(self, row: int = -1, k: int = 10) -> go.Figure:
        """One token: a row for each layer with its k dominant sub-updates, shaded by their share, and what they say."""
        return _plot(self, row, k)

    # ------------------------------------------------------------

    def _run(self, layer: str) -> LayerRun:
        if layer not in self.layers:
            raise WrongUse(f"{layer!r} was not read; these were: {', '.join(self.layers)}.")
        return self.layers[layer]

    def _moved(self, role: str, i: int, token: int, k: int) -> tuple[float, float, float, float]:
        """(Up, down, by the bias, by the k dominant) of a token's score at one place."""
        run, e = self.layers[role], self.memories.unembedding[:, token]
        each = run.m[i] * (run.layer.values @ e)
        dominant = each[self.dominant(role, k)[0][i]].sum()
        return float(each.clamp(min=0).sum()), float(each.clamp(max=0).sum()), float(run.bias[i] @ e), float(dominant)

    def _says(self, role: str, which: Int[Tensor, "n k"], m: Float[Tensor, "n k"], count: int = 3) -> list[str]:
        """What ±v_i says, the sign that of its coefficient."""
        wanted = torch.stack([which.flatten(), (m < 0).long().flatten()], dim=1)
        distinct, at = wanted.unique(dim=0, return_inverse=True)
        said: list[str] = []
        for memory, negative in distinct.tolist():
            ids = self.memories.read(role, [memory], count, -1 if negative else 1)[0][0].tolist()
            said.append(" ".join(repr(w)[1:-1] for w in self.memories.lens.words(ids)))
        return [said[i] for i in at.tolist()]


@teaches
@torch.no_grad()
def sub_updates(
    memories: Memories, x: Any, layers: str | Sequence[str] | None = None, *, bos: bool | None = None
) -> SubUpdates:
    """Split what the layers write in a run on `x` over their memories.

    Where a norm follows a layer its divisor at each token is held and multiplied into m. Raises `WrongUse` for a layer
    that is not there, and an empty text.
    """
    if isinstance(x, str) and not x.strip():
        raise WrongUse("the text is empty: give at least one word.")
    names, lens = memories.named(layers), memories.lens
    inputs = lens.inputs(x, bos)
    cache = memories.model.record(inputs, list(dict.fromkeys(s for r in names for s in memories.around(r))))
    ids, mask = lens.places(inputs, cache[f"{names[0]}.write"])
    states = {site: cache[site][mask] for site in cache}
    runs, tops = {}, {}
    for role in names:
        layer = memories.layers[role]
        wide = {site: states[site].to(layer.values) for site in memories.around(role)}
        m, write = wide[f"{role}.post"], wide[f"{role}.write"]
        scale, after = layer.scale(m, write), wide[f"{role.rsplit('.', 1)[0]}.resid_post"]
        before, bias = memories.before(role, wide), scale * layer.bias + layer.constant
        runs[role] = LayerRun(layer, scale * m, bias, before, after, write)
        tops[role] = torch.stack([lens.head(t).argmax(1) for t in (before, after)]).cpu()
    flat = mask.nonzero()[:, 0].cpu(), (mask.cumsum(1) - 1)[mask].cpu()
    return SubUpdates(memories, runs, None if ids is None else ids[mask.to(ids.device)].cpu(), *flat, tops)


def _plot(found: SubUpdates, row: int, k: int) -> go.Figure:
    import plotly.graph_objects as go

    from interp.model.pictures import shown

    one = range(len(found.pos))[row]
    frame = found.to_frame(k)
    frame = frame[(frame["prompt"] == int(found.prompt[one])) & (frame["pos"] == int(found.pos[one]))]
    z, text = [], []
    for role in found.layers:
        here = frame[frame["layer"] == role]
        z.append(here["share"].tolist())
        text.append(
            [f"{i}<br>{shown(s.split(' ')[0] or ' ')}" for i, s in zip(here["memory"], here["says"], strict=True)]
        )
    heat = go.Heatmap(z=z, y=list(found.layers), x=[f"{n + 1}." for n in range(k)], text=text, texttemplate="%{text}")
    heat.update(colorscale="Blues", colorbar={"title": {"text": "share of Σ |m| ‖v‖", "side": "right"}})
    title = f"Dominant sub-updates at {int(found.pos[one])} {found.tokens[one]!r}"
    size = {"width": 170 + 92 * k, "height": 150 + 46 * len(z)}
    return go.Figure(heat).update_layout(title=title, template="plotly_white", **size)
