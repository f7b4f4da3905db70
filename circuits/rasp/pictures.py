"""A program beside the weights that it was compiled to, on one input: what each head should select and where it attends, and
the values at every position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.model import Block
from circuits.rasp.truth import Truth
from interp.reports.charts import Matrices
from interp.reports.page import Table, write_report

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float
    from torch import Tensor

    from circuits.rasp.graph import SOp
    from circuits.rasp.syntax import Atom


@dataclass(frozen=True, eq=False)
class HeadPicture:
    """A head: the keys that its selector selects, and its attention, whose first key is the BOS."""

    name: str
    writes: list[str]
    selected: Bool[Tensor, "query key"]
    counts: bool
    attention: Float[Tensor, "query 1+key"]

    @property
    def wanted(self) -> Float[Tensor, "query 1+key"]:
        """The attention that the selector asks for: alike over the selected keys; the BOS where there is none, and in a count."""
        bos = torch.ones(len(self.selected), 1) if self.counts else ~self.selected.any(1, keepdim=True)
        rows = torch.cat([bos, self.selected], 1).float()
        return rows / rows.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Picture:
    """All heads of a compiled model on an input, and each variable's values, with the site from which on it is there."""

    tokens: list[Atom]
    heads: list[HeadPicture]
    values: dict[str, tuple[str, list[Atom]]]
    outputs: dict[str, list[Atom]]  # of the weights

    @property
    def off(self) -> float:
        """The greatest difference of an attention from what its selector asks for."""
        return max((float((head.attention - head.wanted).abs().max()) for head in self.heads), default=0.0)

    def to_frame(self) -> pd.DataFrame:
        """One row a head, query and key (-1: the BOS): head, query, key, selected, attention."""
        import pandas as pd

        rows = [
            [head.name, q, k, k >= 0 and bool(head.selected[q, k]), float(head.attention[q, k + 1])]
            for head in self.heads
            for q in range(len(self.tokens))
            for k in range(-1, len(self.tokens))
        ]
        return pd.DataFrame(rows, columns=["head", "query", "key", "selected", "attention"])

    def plot(self) -> go.Figure:
        """Two heat maps a head: the selector, the attention."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        from interp.model.pictures import shown

        titles = [t for head in self.heads for t in (f"{head.name} selects for {', '.join(head.writes)}", "attends")]
        figure = make_subplots(rows=max(1, len(self.heads)), cols=2, subplot_titles=titles)
        words = [shown(str(token)) for token in self.tokens]
        for row, head in enumerate(self.heads, 1):
            maps = ((head.selected.float(), words), (head.attention, ["BOS", *words]))
            for column, (z, keys) in enumerate(maps, 1):
                place = {"row": row, "col": column}
                figure.add_trace(go.Heatmap(z=z, zmin=0, zmax=1, colorscale="Blues", showscale=False), **place)
                figure.update_xaxes(tickvals=list(range(len(keys))), ticktext=keys, **place)
                figure.update_yaxes(tickvals=list(range(len(words))), ticktext=words, autorange="reversed", **place)
        return figure.update_layout(template="plotly_white", height=120 + 260 * max(1, len(self.heads)))

    def write(self, path: str | Path, title: str = "A program and its weights") -> None:
        """One offline page: values, then each head."""
        words = [str(token) for token in self.tokens]
        rows: list[Sequence[Any]] = [[name, ready, *map(str, v)] for name, (ready, v) in self.values.items()]
        rows += [[name, "logits", *map(str, values)] for name, values in self.outputs.items()]
        header = ["value", "from", *(f"{i} {word}" for i, word in enumerate(words))]
        charts = [
            Matrices(
                f"{head.name}, for {', '.join(head.writes)}",
                words,
                {
                    "the program selects": (words, head.selected.double().tolist()),
                    "the weights attend": (["BOS", *words], head.attention.tolist()),
                },
            )
            for head in self.heads
        ]
        lead = (
            "Queries are rows, keys columns. A query that selects several keys attends to them alike; one that selects none "
            "attends to the BOS, as does one that counts, besides. No attention is further from that than "
            f"{self.off:.1g}."
        )
        write_report(
            path,
            title,
            lead=lead,
            tables=[Table("Values, by the program and by the weights", header, rows)],
            charts=charts,
        )


@torch.no_grad()
def picture(nodes: dict[str, SOp], compiled: Compiled, tokens: str | list[Atom]) -> Picture:
    """The program (`nodes` by name, as it was compiled) and its weights on one input.

    Raises `RaspError` where the program has no value, or for an input that the model does not take.
    """
    ids, truth, model = compiled.ids([tokens]), Truth(nodes, compiled), compiled.model
    values, selections = truth.values(tokens), truth.selections(tokens)
    attention: dict[str, Tensor] = {}
    h = model.stream(ids)
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if (scores := block.scores(h)) is not None:
            attention |= {f"blocks.{i}.attn.{n}": rows[1:] for n, rows in enumerate(scores[0].softmax(-1))}
        h = block(h)
    writes = {component.name: component.writes for component in compiled.components}
    heads = [
        HeadPicture(name, writes[name], torch.from_numpy(selected), counts, attention[name])
        for name, (selected, counts) in sorted(selections.items(), key=lambda each: list(attention).index(each[0]))
    ]
    held = {variable.name: (variable.ready, values[variable.name]) for variable in compiled.variables}
    return Picture(list(tokens), heads, held, {name: compiled.apply(tokens, name) for name in nodes})
