"""How many layers a program needs, and how many attention heads in each."""

from __future__ import annotations

from dataclasses import dataclass

from circuits.rasp.graph import Aggregate, Node, Selector, SOp, order


@dataclass(frozen=True)
class Cost:
    """Layers, and attention heads by layer (from 1)."""

    layers: int
    heads_per_layer: dict[int, int]


def cost(node: SOp | Selector) -> Cost:
    """Layers and heads of a transformer that computes `node`, each step as early as it can be.

    depth(input) = 0; elementwise: the deepest parent's; selector: that + 1; aggregate: max(depth(value) + 1, depth(selector)).
    A head is a selector that some aggregate reads at that depth; equal selectors made twice are two.
    """
    heads: dict[int, set[Selector]] = {}
    at = depths(node)
    for step, layer in at.items():
        if isinstance(step, Aggregate):
            heads.setdefault(layer, set()).add(step.selector)
    if isinstance(node, Selector):
        heads.setdefault(at[node], set()).add(node)
    return Cost(at[node], {layer: len(heads[layer]) for layer in sorted(heads)})


def depths(node: Node) -> dict[Node, int]:
    """The layer in which each step that `node` is computed from is ready; 0: before the first attention."""
    found: dict[Node, int] = {}
    for step in order(node):
        found[step] = _depth(step, found)
    return found


def _depth(step: Node, depths: dict[Node, int]) -> int:
    deepest = max((depths[p] for p in step.parents() if isinstance(p, SOp)), default=0)
    if isinstance(step, Aggregate):
        return max(deepest + 1, depths[step.selector])
    if isinstance(step, Selector):
        return max([deepest + 1, *(depths[p] for p in step.parents() if isinstance(p, Selector))])
    return deepest
