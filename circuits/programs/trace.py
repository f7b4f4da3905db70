"""What a program computes on one input: every variable at every position, and the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.programs.program import ONES, POSITIONS, Program
from circuits.programs.tasks import END, UNKNOWN

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Trace:
    """`values[variable]` has an entry a position, `<s>` first; the last variable is the label."""

    tokens: tuple[str, ...]
    values: dict[str, list[Any]]

    def to_frame(self) -> pd.DataFrame:
        """A row a variable, a column a position."""
        import pandas as pd

        return pd.DataFrame(self.values, index=[f"{i} {t}" for i, t in enumerate(self.tokens)]).T

    def plot(self) -> go.Figure:
        """The same as a picture: equal values of a variable have one colour."""
        import plotly.graph_objects as go

        from interp.model.pictures import shown

        names = list(self.values)
        codes = [[sorted(set(map(str, row))).index(str(v)) for v in row] for row in self.values.values()]
        shade = [[code / max(max(row), 1) for code in row] for row in codes]
        text = [[shown(str(v)) for v in row] for row in self.values.values()]
        places = [f"{i} {shown(t)}" for i, t in enumerate(self.tokens)]
        grid = go.Heatmap(
            z=shade,
            x=places,
            y=names,
            text=text,
            texttemplate="%{text}",
            colorscale="Blues",
            showscale=False,
            xgap=2,
            ygap=2,
        )
        figure = go.Figure(grid, layout={"height": 90 + 32 * len(names), "margin": {"t": 30, "l": 110}})
        figure.update_yaxes(autorange="reversed")
        return figure


def trace(program: Program, body: str | tuple[str, ...] | list[str]) -> Trace:
    """Every variable of the program on a body. Raises `WrongUse` for one that it does not take."""
    program.check(body)
    place = {token: i for i, token in enumerate(program.vocabulary)}
    known = [place.get(token, place.get(UNKNOWN, 0)) for token in body]
    ids = [0, *known, *([place[END]] if END in place else [])]
    tokens, real = np.array([ids]), np.ones((1, len(ids)), bool)
    found = program.variables(tokens, real)
    shown = [n for n in found if n not in (ONES, POSITIONS) or n in program.live()]
    values = {n: [_said(program, n, int(v)) for v in found[n][0]] for n in shown}
    labels = [program.labels[i] for i in program.run(tokens, real)[0]]
    end = len(body) + 1
    values["label"] = [labels[i] if 1 <= i < end else "" for i in range(len(ids))]
    return Trace(tuple(program.vocabulary[i] for i in ids), values)


def _said(program: Program, name: str, value: int) -> Any:
    return value if program.is_count(name) else program.names(name)[value]
