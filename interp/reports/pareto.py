"""What sparsity costs: points in a plane, joined by kind, whose tooltips name the folder of the dictionary."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from interp.reports.charts import LABELS, WIDTH, _apart, _line, _svg, _text, _ticks
from interp.reports.page import Table, write_report

COLOURS = 6  # of lines, in the style sheet
HEIGHT = 340
MEASURES = {"fvu": "FVU", "loss_recovered": "Loss recovered"}


@dataclass(frozen=True)
class Point:
    """A dictionary: where it lies, which others differ from it by the seed alone, and what its tooltip says."""

    x: float
    y: float
    group: str
    told: str


@dataclass(frozen=True)
class Pareto:
    """Points by kind over x > 0 on a logarithmic axis; a line joins the means over seeds, in order of x."""

    title: str
    x_label: str
    kinds: Mapping[str, Sequence[Point]]

    def svg(self) -> str:
        """The picture."""
        points = [p for of_kind in self.kinds.values() for p in of_kind]
        at_x, at_y, parts = _plane([p.x for p in points], [p.y for p in points], self.x_label)
        names = []
        for number, (kind, of_kind) in enumerate(self.kinds.items()):
            colour = f"s{number % COLOURS}"
            means = [(at_x(x), at_y(y)) for x, y in _means(of_kind)]
            parts.append(
                f'<polyline class="curve {colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in means)}"/>'
            )
            parts += [
                f'<circle class="dot {colour}" cx="{at_x(p.x):.1f}" cy="{at_y(p.y):.1f}" r="6">'
                f"<title>{escape(p.told)}</title></circle>"
                for p in of_kind
            ]
            names.append((means[-1][1], kind, number % COLOURS))
        right = WIDTH - LABELS
        parts += [_text(right + 14, y + 4, kind, "start", f"name s{n}") for y, kind, n in _apart(names, 17)]
        return _svg(HEIGHT, f"{self.title}. " + "; ".join(p.told.replace("\n", ", ") for p in points), parts)


def _plane(xs: Sequence[float], ys: Sequence[float], x_label: str) -> tuple[Any, Any, list[str]]:
    """Where x (logarithmic) and y (linear) stand in the picture, and its grid."""
    top, bottom, left, right = 14, HEIGHT - 44, 56, WIDTH - LABELS
    x_low, x_high = min(xs) / 1.15, max(xs) * 1.15
    step = _step((max(ys) - min(ys)) or 0.1)
    y_low, y_high = step * math.floor(min(ys) / step), step * math.ceil(max(ys) / step + 1e-9)
    y_high = max(y_high, y_low + step)

    def at_x(x: float) -> float:
        return left + (right - left) * math.log(x / x_low) / math.log(x_high / x_low)

    def at_y(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    levels = [y_low + step * i for i in range(round((y_high - y_low) / step) + 1)]
    parts = [
        _line(left, at_y(y), right, at_y(y), "grid") + _text(left - 8, at_y(y) + 4, f"{y:.6g}", "end") for y in levels
    ]
    parts += [_text(at_x(x), bottom + 18, f"{x:g}", "middle") for x in _ticks(x_low, x_high)]
    return at_x, at_y, [*parts, _text((left + right) / 2, HEIGHT - 6, x_label, "middle")]


def _step(span: float) -> float:
    """A round number that goes about five times into `span`."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(m * power for m in (1, 2, 5, 10) if m * power * 6 >= span)


def _means(points: Sequence[Point]) -> list[tuple[float, float]]:
    groups = defaultdict(list)
    for p in points:
        groups[p.group].append(p)
    return sorted((sum(p.x for p in g) / len(g), sum(p.y for p in g) / len(g)) for g in groups.values())


def charts(rows: Sequence[Mapping[str, Any]]) -> list[Pareto]:
    """L0 against FVU, and against the loss recovered if it was measured, for each site; a line for each kind."""
    found = []
    for measure, name in MEASURES.items():
        sites: dict[str, dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.get(measure) is not None and row["l0"] > 0:
                site = row["reads"] if row["reads"] == row["writes"] else f"{row['reads']} → {row['writes']}"
                told = f"{row['name']}\nL0 {row['l0']:.4g}, {name} {row[measure]:.4g}"
                point = Point(row["l0"], row[measure], row["name"].rsplit("-seed", 1)[0], told)
                sites[site][row["kind"]].append(point)
        found += [Pareto(f"{name} against L0, {site}", "L0: latents active on a row", k) for site, k in sites.items()]
    return found


def write_sweep(path: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str], note: str) -> None:
    """A page with the charts and the table of a sweep; a dictionary that stopped has only its name and the step."""
    header = {"name": "Folder", "l0": "L0", "fvu": "FVU", "dead": "Dead share", "loss_recovered": "Loss recovered"}
    header |= {"kl": "KL", "stopped": "Stopped at step"}
    shown = {key: title for key, title in header.items() if any(row.get(key) is not None for row in rows)}
    table = [[row.get(key) for key in shown] for row in rows]
    write_report(
        path,
        "A sweep of sparse dictionaries",
        lead=f"{len(rows)} dictionaries, trained in one pass over the same rows. Hover over a point for its folder.",
        facts=facts,
        tables=[Table("All dictionaries", list(shown.values()), table, note)],
        charts=charts(rows),
    )
