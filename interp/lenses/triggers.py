"""What a memory's key looks for: the prefixes of a text on which its coefficient is largest, kept as the text streams by.

Of every window of text a memory has one candidate, the position where m_i is largest; the t windows with the largest are
kept. A prefix is the window up to that position, its target the token that comes next. Source: Geva et al. 2021
(arXiv:2012.14913), sections 3 and 4, whose windows are sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.memories import ROWS, Memories
from interp.model.edits import in_range
from interp.model.model import teaches
from interp.store.recording import batches, padded
from interp.texts import documents

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float, Int

SHOWN = 12  # tokens of a prefix in a table
CONFIDENT = 0.1  # share of a layer's values, those with the largest probabilities


@dataclass(frozen=True)
class Trigger:
    """One prefix: the tokens of its window up to the position, the token that comes next, and m there."""

    tokens: tuple[str, ...]
    target: str
    coefficient: float


@dataclass(frozen=True, eq=False)
class Kept:
    """Of one layer: the largest coefficients of each memory, largest first (-inf: none), and where they are."""

    value: Float[Tensor, "top memory"]
    window: Int[Tensor, "top memory"]
    pos: Int[Tensor, "top memory"]

    @staticmethod
    def none(top: int, memories: int) -> Kept:
        """Nothing yet."""
        where = torch.zeros(top, memories, dtype=torch.long)
        return Kept(torch.full((top, memories), -torch.inf), where, where)

    def with_(self, m: Float[Tensor, "window pos memory"], real: Bool[Tensor, "window pos"], first: int) -> Kept:
        """And those of some windows, numbered from `first`; of equal ones the earlier stay."""
        best, pos = m.masked_fill(~real[..., None], -torch.inf).max(dim=1)
        best = torch.where(best > 0, best, -torch.inf)  # a memory that is not used there has no trigger
        window = (first + torch.arange(len(best)))[:, None].expand(-1, best.shape[1])
        both = [
            torch.cat(pair) for pair in ((self.value, best.float().cpu()), (self.window, window), (self.pos, pos.cpu()))
        ]
        order = both[0].sort(dim=0, descending=True, stable=True).indices[: len(self.value)]
        return Kept(*(t.gather(0, order) for t in both))


@dataclass(frozen=True, eq=False)
class Triggers:
    """The triggers of all memories of some layers, found in `tokens` tokens of text. `sign` -1: where m_i is lowest."""

    memories: Memories
    layers: dict[str, Kept]
    windows: dict[int, list[int]]  # ids of those that are still named
    tokens: int
    sign: int

    def of(self, layer: str, memory: int) -> list[Trigger]:
        """A memory's triggers, strongest first. Raises `WrongUse` for one that was not looked at."""
        if layer not in self.layers:
            raise WrongUse(f"{layer!r} was not looked at; these layers were: {', '.join(self.layers)}.")
        kept, words, made = self.layers[layer], self.memories.lens.words, []
        in_range(kept.value.shape[1], [memory], "memory", layer)
        columns = (getattr(kept, n)[:, memory].tolist() for n in ("value", "window", "pos"))
        for value, window, pos in zip(*columns, strict=True):
            if value > 0:
                ids = self.windows[window]
                made.append(Trigger(tuple(words(ids[: pos + 1])), words([ids[pos + 1]])[0], self.sign * value))
        return made

    def targets(self, layer: str) -> Int[Tensor, "top memory"]:
        """The token after each trigger; -1 where there is none."""
        kept = self.layers[layer]
        ids = [
            self.windows[w][p + 1] if v > 0 else -1
            for v, w, p in zip(*(t.flatten().tolist() for t in (kept.value, kept.window, kept.pos)), strict=True)
        ]
        return torch.tensor(ids).view(kept.value.shape)

    @torch.no_grad()
    def agreement(self) -> pd.DataFrame:
        """How far values predict what comes after their key's triggers; a row a layer.

        memories (that have a trigger); agreement: share whose value's likeliest token is the target of the strongest
        trigger; chance: the same were targets dealt out at random; any: share whose likeliest token is the target of any
        trigger kept; confident: `any` among the tenth of values with the largest probability; rank: median rank of the
        strongest trigger's target under the value; largest: mean probability of the likeliest token.
        """
        import pandas as pd

        rows = []
        for role, kept in self.layers.items():
            live = kept.value[0] > 0
            targets = self.targets(role)[:, live]
            if not targets.numel():
                rows.append([role, 0, *[float("nan")] * 6])
                continue
            which = live.nonzero().flatten().tolist()
            ids, p = (t[:, 0] for t in self.memories.read(role, which, 1, self.sign))
            hit = (targets == ids).any(0).double()
            sure = p.argsort(descending=True, stable=True)[: max(1, round(CONFIDENT * len(p)))]
            rank = self._ranks(role, which, targets[0]).double()
            vocabulary = self.memories.unembedding.shape[1]
            share = [torch.bincount(t, minlength=vocabulary).double() / len(ids) for t in (ids, targets[0])]
            numbers = [(ids == targets[0]).double().mean(), share[0] @ share[1], hit.mean(), hit[sure].mean()]
            rows.append([role, len(which), *map(float, [*numbers, rank.quantile(0.5), p.mean()])])
        names = ["layer", "memories", "agreement", "chance", "any", "confident", "rank", "largest"]
        return pd.DataFrame(rows, columns=names)

    def _ranks(self, role: str, which: list[int], targets: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """1 + how many tokens each value says sooner than the target."""
        found = []
        values = self.memories.values(role, which)
        for v, target in zip(values.split(ROWS), targets.to(values.device).split(ROWS), strict=True):
            r = self.sign * self.memories.scores(v)
            found.append(1 + (r > r.gather(1, target[:, None])).sum(1))
        return torch.cat(found).cpu()

    def to_frame(self, memories: int | Sequence[int] | None = None, prefix: int = SHOWN) -> pd.DataFrame:
        """One row a trigger: layer, memory, number (from 1, strongest first), coefficient, prefix (its last tokens), target.

        `memories`: some of them, of every layer; default: all, which is many rows.
        """
        import pandas as pd

        chosen = [memories] if isinstance(memories, int) else memories
        rows = [
            [role, i, number, t.coefficient, "".join(t.tokens[-prefix:]), t.target]
            for role, kept in self.layers.items()
            for i in (range(kept.value.shape[1]) if chosen is None else chosen)
            for number, t in enumerate(self.of(role, i), 1)
        ]
        return pd.DataFrame(rows, columns=["layer", "memory", "number", "coefficient", "prefix", "target"])

    def plot(self) -> go.Figure:
        """Agreement of keys and values from layer to layer: with the strongest trigger, with any, by chance."""
        import plotly.graph_objects as go

        table, figure = self.agreement(), go.Figure()
        for name in ("any", "agreement", "chance"):
            figure.add_scatter(x=table["layer"], y=table[name], name=name, mode="lines+markers")
        title = f"Values that predict what follows their keys' triggers, {self.tokens:,} tokens"
        return figure.update_layout(title=title, template="plotly_white", yaxis={"title": "share", "tickformat": ".1%"})


@teaches
@torch.no_grad()
def find_triggers(
    memories: Memories,
    texts: Path | Iterable[str],
    layers: str | Sequence[str] | None = None,
    *,
    top: int = 25,
    sign: int = 1,
    context: int = 64,
    batch: int = 32,
    tokens: int | None = None,
) -> Triggers:
    """The `top` strongest triggers of every memory in a text file, a folder of them, or texts.

    `context`: tokens of a window; `sign` -1 looks for the lowest coefficients instead (of GLU and GELU, which have both);
    `tokens`: stop after about this many. Positions of a start token, and the last of a window, whose target is not known,
    are left out; a coefficient must be above 0 (with `sign` -1, below). In memory: 20 bytes for each trigger, and the
    windows that one of them is in. Raises `WrongUse` for an empty text, a layer that is not there, a model that is not
    causal or has no tokenizer.
    """
    from tqdm.auto import tqdm

    if not memories.head.causal:
        raise WrongUse(f"{memories.model.id} looks both ways, so a prefix is not all that its keys see.")
    if top < 1 or sign not in (1, -1):
        raise WrongUse(f"top={top} and sign={sign}: keep at least one trigger; sign is 1 or -1.")
    names, model = memories.named(layers), memories.model
    kept = {r: Kept.none(top, len(memories.layers[r].values)) for r in names}
    windows: dict[int, list[int]] = {}
    seen = number = held = 0
    with tqdm(total=tokens, desc="triggers", unit=" tokens", mininterval=1, leave=False) as bar:
        for _, group in batches(model, documents(texts), context, batch):
            inputs, real = padded(model, group)
            cache = model.record(inputs, [f"{r}.post" for r in names])
            real[:, :-1] &= inputs.mask[:, 1:]
            real[:, -1] = False
            for r in names:
                kept[r] = kept[r].with_(sign * cache[f"{r}.post"], real, number)
            windows |= dict(enumerate(group, number))
            number, seen = number + len(group), seen + int(inputs.mask.sum())
            if len(windows) > 2 * held + 1000:
                windows = _named(windows, kept)
                held = len(windows)
            bar.update(int(inputs.mask.sum()))
            if tokens is not None and seen >= tokens:
                break
    if not seen:
        raise WrongUse("the text is empty: there is no window to look for triggers in.")
    return Triggers(memories, kept, _named(windows, kept), seen, sign)


def _named(windows: dict[int, list[int]], kept: dict[str, Kept]) -> dict[int, list[int]]:
    """The windows that a trigger is in."""
    wanted = torch.cat([k.window[k.value > 0].unique() for k in kept.values()]).unique().tolist()
    return {w: windows[w] for w in wanted}
