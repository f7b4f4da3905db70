"""How well a tool found what is true: edges or nodes it ranks, directions it learns."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from circuits.rasp.compile.circuit import Circuit, edges, possible_edges
from interp.dictionaries.recovery import recovery
from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float


@dataclass(frozen=True)
class Ranking:
    """What a ranking finds when everything scored at least a threshold is taken: a row for each distinct score, greatest first.

    `auc` = P(a true one scores above a false one) + ½ P(they score alike), the area under (false positive rate, recall);
    `average_precision` = Σ (recall_i - recall_{i-1}) precision_i.
    """

    threshold: Float[np.ndarray, "row"]
    precision: Float[np.ndarray, "row"]
    recall: Float[np.ndarray, "row"]
    false_positive_rate: Float[np.ndarray, "row"]
    auc: float
    average_precision: float

    def to_frame(self) -> pd.DataFrame:
        """A row for each threshold."""
        import pandas as pd

        names = ("threshold", "precision", "recall", "false_positive_rate")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def plot(self) -> go.Figure:
        """The two curves: recall over false positives, precision over recall."""
        import plotly.graph_objects as go

        roc = go.Scatter(
            x=[0.0, *self.false_positive_rate],
            y=[0.0, *self.recall],
            name=f"ROC, area {self.auc:.3f}",
            line_shape="linear",
        )
        curve = go.Scatter(
            x=self.recall,
            y=self.precision,
            name=f"precision over recall, mean {self.average_precision:.3f}",
            line_shape="vh",
        )
        layout = {"template": "plotly_white", "xaxis": {"range": [0, 1.02]}, "yaxis": {"range": [0, 1.02]}}
        return go.Figure([roc, curve], layout)


def ranked(scores: Mapping[Any, float], true: Collection[Hashable]) -> Ranking:
    """Scores of candidates against which of them are true. Raises `WrongUse` where none or all are, or a true one has no score."""
    missing = [each for each in true if each not in scores]
    if missing:
        raise WrongUse(f"{len(missing)} true ones have no score, {missing[0]!r} for one: score every candidate")
    wanted = set(true)
    labels = np.array([each in wanted for each in scores], dtype=float)
    values = np.array(list(scores.values()), dtype=float)
    if not 0 < labels.sum() < len(labels):
        raise WrongUse("a ranking needs true and false candidates; here all are of one kind")
    thresholds, inverse = np.unique(-values, return_inverse=True)
    hits = np.cumsum(np.bincount(inverse, labels, len(thresholds)))
    taken = np.cumsum(np.bincount(inverse, minlength=len(thresholds)))
    recall, misses = hits / labels.sum(), (taken - hits) / (1 - labels).sum()
    precision = hits / taken
    auc = np.trapezoid(np.concatenate([[0.0], recall]), np.concatenate([[0.0], misses]))
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    return Ranking(-thresholds, precision, recall, misses, float(auc), average)


def edge_ranking(circuit: Circuit, scores: Mapping[tuple[str, str, str], float]) -> Ranking:
    """Scores of (sender, receiver, part), as `possible_edges` has them; those left out count as the least."""
    candidates = possible_edges(circuit)
    unknown = set(scores) - set(candidates)
    if unknown:
        raise WrongUse(f"{sorted(unknown)[0]} is no edge that the model can have: see `possible_edges`")
    least = min(scores.values(), default=0.0) - 1.0
    true = {(e.sender, e.receiver, "in" if e.part == "erased" else e.part) for e in edges(circuit)}
    return ranked({edge: scores.get(edge, least) for edge in candidates}, true)


def node_ranking(circuit: Circuit, variable: str, scores: Mapping[str, float]) -> Ranking:
    """Scores of components, for being upstream of an output or variable: those that it is computed from are true."""
    least = min(scores.values(), default=0.0) - 1.0
    return ranked({c.name: scores.get(c.name, least) for c in circuit.components}, upstream(circuit, variable))


def upstream(circuit: Circuit, variable: str) -> set[str]:
    """The components that a variable or output is computed by, through all that they read. A name that is both is the variable."""
    names = {each.name for each in circuit.variables}
    alone = variable in circuit.components[-1].writes and variable not in names
    found, stack = set[str](), ["logits"] if alone else [each.writer for each in circuit.named(variable)]
    known = [edge for edge in edges(circuit) if edge.part != "erased"]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += [edge.sender for edge in known if edge.receiver == name]
    return found


def feature_recovery(
    basis: Float[Tensor, "features d_model"], learned: Float[Tensor, "latents d_model"]
) -> dict[str, float]:
    """How well the rows of a dictionary's decoder found the directions of values; see `interp.dictionaries.recovery`."""
    return recovery(basis, learned)
