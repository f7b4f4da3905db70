"""Saturation: from which layer on a prediction stays; and a rule that leaves the model there.

A prediction is saturated at layer l if the likeliest token after l is that after every later layer. The rule knows, of
examples, the groups (`Memories.clusters`) of their dominant sub-updates at each layer, and where they were saturated. It
leaves at l if the groups here match those of examples saturated at l better, place by place, than those of examples
saturated at any later layer: the best match and the mean match, both. Source: Geva et al. 2022 (arXiv:2203.14680), section
6.2, and the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.memories import Memories
from interp.model.model import teaches
from interp.model.onward import run_until
from interp.store.recording import batches
from interp.texts import documents

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float, Int

DOMINANT = 10  # sub-updates of a layer that the rule looks at
TRAINED = 0.9  # share of the examples that the rule is made from


def saturation(tops: Int[Tensor, "n layer"]) -> Int[Tensor, " n"]:
    """The first layer from which on the likeliest token is the last layer's."""
    same = (tops == tops[:, -1:]).flip(1).long().cumprod(1).sum(1)
    return tops.shape[1] - same


@dataclass(frozen=True, eq=False)
class Examples:
    """n prefixes of a text, and of each what the layers do at its last position."""

    prefixes: list[list[int]]
    dominant: Int[Tensor, "n layer k"]  # the memories that weigh most, by number within their layer, heaviest first
    tops: Int[Tensor, "n layer"]  # the likeliest token after each layer
    layers: tuple[str, ...]

    @property
    def saturated(self) -> Int[Tensor, " n"]:
        """At which layer each is saturated."""
        return saturation(self.tops)

    def __getitem__(self, which: Int[Tensor, " m"]) -> Examples:
        """Some of them."""
        return replace(
            self,
            prefixes=[self.prefixes[i] for i in which.tolist()],
            dominant=self.dominant[which],
            tops=self.tops[which],
        )


@teaches
@torch.no_grad()
def exit_examples(
    memories: Memories,
    texts: Path | Iterable[str],
    count: int = 1000,
    *,
    k: int = DOMINANT,
    context: int = 64,
    batch: int = 16,
    seed: int = 0,
) -> Examples:
    """One prefix of each window of a text, cut at a position drawn by `seed`, until there are `count`.

    Raises `WrongUse` for a text without windows, and for a model where a layer has no memories (the rule asks all).
    """
    model, layers = memories.model, tuple(memories.layers)
    blocks = len(memories.head.stack.blocks)
    if len(layers) != blocks or not memories.head.causal:
        raise WrongUse(
            f"{model.id} has {blocks} blocks and {len(layers)} layers of memories, or looks both ways: the rule needs a causal "
            "model with a feed-forward layer in every block."
        )
    draw = torch.Generator().manual_seed(seed)
    prefixes: list[list[int]] = []
    dominant: list[Tensor] = []
    tops: list[Tensor] = []
    for _, group in batches(model, documents(texts), context, batch):
        cut = [ids[: 1 + int(torch.randint(len(ids), (), generator=draw))] for ids in group][: count - len(prefixes)]
        cache = model.record(model.pad(cut), [s for r in layers for s in memories.around(r)])
        rows, last = torch.arange(len(cut)), torch.tensor([len(ids) - 1 for ids in cut])
        here = {site: cache[site][rows, last] for site in cache}
        dominant.append(torch.stack([_dominant(memories, r, here, k) for r in layers], dim=1))
        tops.append(torch.stack([_top(memories, r, here) for r in layers], dim=1))
        prefixes += cut
        if len(prefixes) >= count:
            break
    if not prefixes:
        raise WrongUse("the text is empty: there is no prefix to look at.")
    return Examples(prefixes, torch.cat(dominant), torch.cat(tops), layers)


def _top(memories: Memories, role: str, here: Mapping[str, Tensor]) -> Int[Tensor, " n"]:
    """The likeliest token after the layer, at n positions."""
    return memories.head(here[f"{role.rsplit('.', 1)[0]}.resid_post"]).argmax(1).cpu()


def _dominant(memories: Memories, role: str, here: Mapping[str, Tensor], k: int) -> Int[Tensor, "n k"]:
    """By |m_i| ‖v_i‖, heaviest first. (The scale of a norm is the same for all memories of a token.)"""
    layer = memories.layers[role]
    weight = here[f"{role}.post"].to(layer.values).abs() * layer.values.norm(dim=1)
    return weight.sort(dim=1, descending=True, stable=True).indices[:, :k].cpu()


@dataclass(frozen=True, eq=False)
class ExitRule:
    """The groups of examples' dominant sub-updates at each layer, and where the examples were saturated."""

    memories: Memories
    groups: dict[str, Int[Tensor, " memory"]]
    known: Int[Tensor, "n layer k"]  # groups
    saturated: Int[Tensor, " n"]

    @classmethod
    def of(cls, memories: Memories, examples: Examples, clusters: int = 200, method: str = "agglomerative") -> ExitRule:
        """The rule that examples make, with values in `clusters` groups."""
        groups = memories.clusters(min(clusters, sum(len(v.values) for v in memories.layers.values())), method=method)
        known = torch.stack([groups[r][examples.dominant[:, i]] for i, r in enumerate(examples.layers)], dim=1)
        return cls(memories, groups, known, examples.saturated)

    def leaves(self, layer: int, groups: Int[Tensor, " k"]) -> bool:
        """Whether to leave after a layer where the dominant sub-updates are of these groups."""
        match = (self.known[:, layer] == groups).sum(1).double()
        best: dict[int, tuple[float, float]] = {}
        for at in range(layer, self.known.shape[1]):
            some = match[self.saturated == at]
            if len(some):
                best[at] = float(some.max()), float(some.mean())
        here = best.pop(layer, None)
        return here is not None and all(here[0] > top and here[1] > mean for top, mean in best.values())

    @torch.no_grad()
    def run(self, ids: Sequence[int]) -> tuple[int, int]:
        """(The token that is predicted after a prefix, blocks that were run): the model stops where the rule leaves it."""
        roles = list(self.memories.layers)
        here: dict[str, Tensor] = {}
        blocks = 0

        def enough(site: str, t: Tensor) -> bool:
            nonlocal blocks
            here[site] = t[:, -1]
            if not site.endswith(".resid_post"):
                return False
            role, blocks = roles[blocks], blocks + 1
            chosen = self.groups[role][_dominant(self.memories, role, here, self.known.shape[2])[0]]
            return blocks < len(roles) and self.leaves(blocks - 1, chosen)

        wanted = [s for r in roles for s in (f"{r}.post", f"{r.rsplit('.', 1)[0]}.resid_post")]
        run_until(self.memories.model, [list(ids)], wanted, enough)
        last = f"{roles[blocks - 1].rsplit('.', 1)[0]}.resid_post"
        return int(self.memories.head(here[last]).argmax()), blocks


@dataclass(frozen=True, eq=False)
class Exits:
    """What a rule did to examples that it was not made from, run one by one."""

    blocks: int  # of the model
    run: Int[Tensor, " n"]  # blocks that were run
    right: Bool[Tensor, " n"]  # the token is the whole model's
    fixed: Float[Tensor, " layer"]  # the share that is right if every run is left after that layer

    @property
    def accuracy(self) -> float:
        """Share of examples whose token is the whole model's."""
        return float(self.right.double().mean())

    @property
    def saved(self) -> float:
        """Blocks that were not run, in the mean over examples."""
        return self.blocks - float(self.run.double().mean())

    def to_frame(self) -> pd.DataFrame:
        """The rule, and leaving always after the same layer: how, accuracy, saved (blocks), saved_share."""
        import pandas as pd

        rows: list[list[Any]] = [["rule", self.accuracy, self.saved]]
        rows += [[f"always after {i}", float(p), float(self.blocks - 1 - i)] for i, p in enumerate(self.fixed)]
        frame = pd.DataFrame(rows, columns=["how", "accuracy", "saved"])
        return frame.assign(saved_share=frame["saved"] / self.blocks)

    def plot(self) -> go.Figure:
        """Accuracy against blocks saved: the rule's point beside the line of leaving always after the same layer."""
        import plotly.graph_objects as go

        table, figure = self.to_frame(), go.Figure()
        for name, part, mode in (("always after a layer", table[1:], "lines+markers"), ("rule", table[:1], "markers")):
            figure.add_scatter(x=part["saved"], y=part["accuracy"], text=part["how"], name=name, mode=mode)
        axes = {
            "xaxis": {"title": "blocks saved, of " + str(self.blocks)},
            "yaxis": {"title": "accuracy", "tickformat": ".0%"},
        }
        return figure.update_layout(title="Early exit", template="plotly_white", **axes)


@torch.no_grad()
def early_exit(
    memories: Memories, examples: Examples, clusters: int = 200, seed: int = 38, method: str = "agglomerative"
) -> Exits:
    """Make the rule from 90 % of the examples, drawn by `seed`, and run the model on the others under it.

    Each run really stops at the block where the rule leaves. Raises `WrongUse` for fewer than 10 examples.
    """
    from tqdm.auto import tqdm

    n = len(examples.prefixes)
    if n < 10:
        raise WrongUse(f"{n} examples cannot be split into 90 % and 10 %: give at least 10.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    known, others = examples[order[: round(TRAINED * n)]], examples[order[round(TRAINED * n) :]]
    rule = ExitRule.of(memories, known, clusters, method)
    runs = [rule.run(ids) for ids in tqdm(others.prefixes, desc="early exit", leave=False, mininterval=1)]
    tokens, blocks = (torch.tensor(t) for t in zip(*runs, strict=True))
    final = others.tops[:, -1]
    fixed = (others.tops == final[:, None]).double().mean(0)
    return Exits(examples.tops.shape[1], blocks, tokens == final, fixed)
