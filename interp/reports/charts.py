"""Small pictures as inline SVG; colours come from the page, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Protocol

WIDTH, LABELS = 720, 210  # of a chart, and of the room for names at its right


class Chart(Protocol):
    """A picture with a title."""

    @property
    def title(self) -> str:
        """What stands above it."""

    def svg(self) -> str:
        """The picture."""


@dataclass(frozen=True)
class Curve:
    """A named line through the points (x, y)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class LineChart:
    """Curves over a common x; `levels` are dashed lines across, by name. The y axis is logarithmic, y > 0, unless `linear`."""

    title: str
    x_label: str
    curves: Sequence[Curve]
    levels: Mapping[str, float] = field(default_factory=dict)
    height: int = 300
    linear: bool = False

    def svg(self) -> str:
        """The picture."""
        top, bottom, left, right = 14, self.height - 40, 46, WIDTH - LABELS
        values = [*(y for c in self.curves for y in c.y), *self.levels.values()]
        low, high = min(values) / 1.12, max(values) * 1.12
        if self.linear:
            room = 0.06 * (max(values) - min(values)) or 0.5
            low, high = min(values) - room, max(values) + room
        last = max(x for c in self.curves for x in c.x)

        def at_x(x: float) -> float:
            return left + (right - left) * x / last

        def at_y(y: float) -> float:
            share = (y - low) / (high - low) if self.linear else math.log(y / low) / math.log(high / low)
            return bottom - (bottom - top) * share

        parts = [
            _line(left, at_y(t), right, at_y(t), "grid") + _text(left - 8, at_y(t) + 4, f"{t:g}", "end")
            for t in (_even(low, high) if self.linear else _ticks(low, high))
        ]
        parts += [_text(at_x(x), bottom + 18, f"{x:,.0f}", "middle") for x in _steps(last)]
        parts.append(_text((left + right) / 2, self.height - 4, self.x_label, "middle"))
        names = []
        for number, (name, y) in enumerate(self.levels.items()):
            parts.append(_line(left, at_y(y), right, at_y(y), f"level s{number + len(self.curves)}"))
            names.append((at_y(y), f"{name} {y:.3f}", number + len(self.curves)))
        for number, curve in enumerate(self.curves):
            points = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(curve.x, curve.y, strict=True))
            parts.append(f'<polyline class="curve s{number}" points="{points}"/>')
            names.append((at_y(curve.y[-1]), f"{curve.name} {curve.y[-1]:.3f}", number))
        parts += [_text(right + 10, y + 4, name, "start", f"name s{n}") for y, name, n in _apart(names, 17)]
        return _svg(self.height, f"{self.title}. " + "; ".join(name for _, name, _ in names), parts)


@dataclass(frozen=True)
class Scale:
    """Named values on one axis, a row of them for each thing compared; labels stand above and below by turns."""

    title: str
    x_label: str
    rows: Mapping[str, Mapping[str, float]]

    def svg(self) -> str:
        """The picture."""
        left, right, step = 110, WIDTH - 20, 84
        values = [v for row in self.rows.values() for v in row.values()]
        low, span = min(values), (max(values) - min(values)) or 1.0
        height = step * len(self.rows) + 26
        parts = [_text((left + right) / 2, height - 4, self.x_label, "middle")]
        for number, (name, row) in enumerate(self.rows.items()):
            y = step * number + step / 2
            parts += [_line(left, y, right, y, "grid"), _text(left - 22, y + 4, name, "end", "name")]
            dots = [
                (left + (right - left) * (v - low) / span, f"{k} {v:.3f}", n) for n, (k, v) in enumerate(row.items())
            ]
            parts += [f'<circle class="dot s{n}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>' for x, _, n in dots]
            for side, drop in ((dots[::2], -14), (dots[1::2], 26)):
                parts += [_text(x, y + drop, text, "middle", f"name s{n}") for x, text, n in _beside(side, left, right)]
        told = "; ".join(
            f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()) for name, row in self.rows.items()
        )
        return _svg(height, f"{self.title}. {told}", parts)


@dataclass(frozen=True)
class Bars:
    """Counts in the same bins, a strip of bars for each thing compared, each strip as tall as its largest count."""

    title: str
    x_label: str
    labels: Sequence[str]  # of the bins
    rows: Mapping[str, Sequence[int]]

    def svg(self) -> str:
        """The picture; counts stand above their bars."""
        left, right, step = 170, WIDTH - 10, 96
        width, height = (right - left) / len(self.labels), step * len(self.rows) + 40
        parts = [_text((left + right) / 2, height - 4, self.x_label, "middle")]
        parts += [_text(left + width * (i + 0.5), height - 24, label, "middle") for i, label in enumerate(self.labels)]
        for number, (name, counts) in enumerate(self.rows.items()):
            foot, high = step * (number + 1) - 6, max(counts, default=0) or 1
            parts.append(_text(left - 12, foot - 4, name, "end", "name"))
            parts.append(_line(left, foot, right, foot, "grid"))
            for i, count in enumerate(counts):
                x, tall = left + width * i, (step - 30) * count / high
                parts.append(
                    f'<rect class="bar" x="{x + 2:.1f}" y="{foot - tall:.1f}" width="{width - 4:.1f}" height="{tall:.1f}"/>'
                )
                parts += [_text(x + width / 2, foot - tall - 4, f"{count:,}", "middle")] * (count > 0)
        told = "; ".join(f"{name}: " + ", ".join(map(str, counts)) for name, counts in self.rows.items())
        return _svg(height, f"{self.title}. {told}", parts)


@dataclass(frozen=True)
class Matrices:
    """Matrices side by side, of the same rows and with columns of their own; entries from 0 to 1 are shades."""

    title: str
    rows: Sequence[str]
    parts: Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]]

    def svg(self) -> str:
        """The picture; every square says its row, column and number."""
        room = WIDTH / len(self.parts)
        most = max(len(columns) for columns, _ in self.parts.values())
        letters = max((len(c) for columns, _ in self.parts.values() for c in columns), default=1)
        size = min(
            max(26.0, 8.5 * letters + 4), (room - 80) / most
        )  # names of columns do not touch while there is room
        drawn = []
        for number, (name, (columns, entries)) in enumerate(self.parts.items()):
            left, top = number * room + 60, 46.0
            drawn.append(_text(left, 14, name, "start", "name"))
            drawn += [_text(left + size * (j + 0.5), top - 8, c, "middle") for j, c in enumerate(columns)]
            for i, (row, line) in enumerate(zip(self.rows, entries, strict=True)):
                drawn.append(_text(left - 8, top + size * (i + 0.5) + 4, row, "end"))
                drawn += [
                    f'<rect class="bar" x="{left + size * j:.1f}" y="{top + size * i:.1f}" width="{size - 1:.1f}" '
                    f'height="{size - 1:.1f}" fill-opacity="{0.06 + 0.94 * x:.3f}"><title>{escape(f"{row} → {c}: {x:.3g}")}'
                    "</title></rect>"
                    for j, (c, x) in enumerate(zip(columns, line, strict=True))
                ]
        return _svg(54 + size * len(self.rows), self.title, drawn)


def histogram(counts: Sequence[int], label: str) -> str:
    """Bars of log(1 + count), small enough to stand in a line of text."""
    high, width = math.log1p(max(counts, default=0)) or 1.0, 5
    bars = [
        f'<rect x="{width * i}" y="{30 - h:.1f}" width="{width - 1}" height="{h:.1f}"/>'
        for i, h in enumerate(max(0.75, 30 * math.log1p(c) / high) for c in counts)
    ]
    return f'<svg class="histogram" role="img" aria-label="{escape(label)}" viewBox="0 0 {width * len(counts)} 30">{"".join(bars)}</svg>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}">{"".join(parts)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for p in powers for m in (1, 2, 5) if low <= (t := float(f"{m}e{p}")) <= high]


def _even(low: float, high: float) -> list[float]:
    """Round numbers between the ends, four to eight of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    size = next(m * power for m in (1, 2, 5, 10) if m * power * 8 >= high - low)
    return [float(f"{size * i:.6g}") for i in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _steps(last: float) -> list[float]:
    """Round numbers from 0 to `last`, about five of them."""
    power = 10.0 ** math.floor(math.log10(last / 4)) if last > 0 else 1.0
    size = next(m * power for m in (1, 2, 5, 10) if m * power * 5 >= last)
    return [size * i for i in range(int(last / size) + 1)]


def _apart(names: Sequence[tuple[float, str, int]], gap: float) -> list[tuple[float, str, int]]:
    """Labels in order of height, pushed down where they would touch."""
    placed: list[tuple[float, str, int]] = []
    for y, name, number in sorted(names):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, name, number))
    return placed


def _beside(labels: Sequence[tuple[float, str, int]], left: float, right: float) -> list[tuple[float, str, int]]:
    """Centred labels in order, pushed to the right where they would touch, and back where they would leave the chart."""
    placed: list[tuple[float, str, int]] = []
    end = left - 20.0
    for x, text, number in sorted(labels):
        half = 3.7 * len(text)
        x = max(x, end + half)
        placed.append((x, text, number))
        end = x + half + 12
    over = max(0.0, end - 12 - right) if placed else 0.0
    return [(x - over * (n + 1 == len(placed)), text, number) for n, (x, text, number) in enumerate(placed)]
