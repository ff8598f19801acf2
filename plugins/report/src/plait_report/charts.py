"""What there is to draw, as plain values: checked and ordered here, drawn by `plait_report.figures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait_report.formatting import UNDEFINED, cell, defined, number

NAN = float("nan")


@dataclass(frozen=True)
class Series:
    """One line or one colour of bars; an undefined y is NaN."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        title: above it.
        x, y: the axes' labels.
        series: what is drawn.
        kind: ``line``, ``bar`` or ``graph`` (places in the plane).
        categories: the names of the positions 0, 1, ... on the x axis; None when x is a number.
        caption: a sentence below it.
        links: for a graph: (x0, y0, x1, y1) of each line between two places.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    kind: str = "line"
    categories: tuple[str, ...] | None = None
    caption: str = ""
    links: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def wide(self) -> bool:
        """Whether it needs the width of the page."""
        bars = max(1, len(self.series)) if self.kind == "bar" else 1
        return self.categories is not None and len(self.categories) * bars > 14

    @property
    def size(self) -> int:
        """How many points there are."""
        return sum(len(s.y) for s in self.series)

    def values(self) -> tuple[list[str], list[list[str]]]:
        """The same as a table: the header, and a row for every x; of a graph, a row for every place."""
        if self.kind == "graph":
            points = [(s.name, x, y) for s in self.series for x, y in zip(s.x, s.y, strict=True)]
            return ["", "x", "y"], [[name, number(x), number(y)] for name, x, y in points]
        columns_at: dict[float, list[str]] = {}
        for column, series in enumerate(self.series):
            for x, y in zip(series.x, series.y, strict=True):
                columns_at.setdefault(x, [""] * len(self.series))[column] = number(y)
        names = self.categories or ()
        rows = [
            [names[int(x)] if self.categories else number(x), *columns] for x, columns in sorted(columns_at.items())
        ]
        return [self.x or "x", *(s.name for s in self.series)], rows


def from_plot(plot: Mapping[str, Any]) -> Chart:
    """A plugin's plot as it stands in the result event.

    Raises:
        ValueError: it has not the form of a plot; the message says what is wrong.
    """
    pairs = _pairs(plot.get("series"))
    kind = str(plot.get("kind")) if plot.get("kind") in ("bar", "graph") else "line"
    positions = [x for points in pairs.values() for x, _ in points]
    named = kind == "bar" or (kind != "graph" and any(isinstance(x, (str, bool)) for x in positions))
    categories = tuple(dict.fromkeys(map(cell, positions))) if named else None
    position_of = {c: float(i) for i, c in enumerate(categories or ())}
    all_series, lost = [], 0
    for key, points in pairs.items():
        placed = [(position_of[cell(x)] if named else defined(x), _y(y)) for x, y in points]
        known = [(x, y) for x, y in placed if x is not None]
        lost += len(placed) - len(known)
        all_series.append(Series(key, tuple(x for x, _ in known), tuple(y for _, y in known)))
    title, x_label, y_label = (str(plot.get(key) or "") for key in ("title", "x", "y"))
    lost += sum(math.isnan(y) for s in all_series for y in s.y)
    links = _links(plot.get("links")) if kind == "graph" else ()
    return Chart(title, x_label, y_label, tuple(all_series), kind, categories, _undefined(lost), links)


def curves(scalars: Mapping[str, Sequence[tuple[float, Any]]]) -> list[Chart]:
    """The charts of logged scalars, each (step, value) pairs.

    ``a/b`` gets a chart of its own; ``a/b/c`` and ``a/b/d`` share one.
    """
    together: dict[str, list[Series]] = {}
    for name, points in scalars.items():
        parent, _, last = name.rpartition("/")
        shared = "/" in parent
        series = Series(last if shared else name, tuple(s for s, _ in points), tuple(_y(v) for _, v in points))
        together.setdefault(parent if shared else name, []).append(series)
    return [Chart(title, "step", "", tuple(group), caption=_summary(group)) for title, group in together.items()]


def _summary(series: Sequence[Series]) -> str:
    lost = _undefined(sum(math.isnan(y) for s in series for y in s.y))
    if len(series) != 1 or not series[0].y:
        return lost
    (line,) = series
    known = [(y, x) for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y)]
    parts = [f"last {number(line.y[-1])}"]
    if len({y for y, _ in known}) > 1:
        (low, at_low), (high, at_high) = min(known), max(known, key=lambda k: k[0])
        parts += [f"lowest {number(low)} at step {number(at_low)}", f"highest {number(high)} at step {number(at_high)}"]
    return " · ".join([*parts, *([lost] if lost else [])])


def _undefined(count: int) -> str:
    return "" if not count else f"{count} {UNDEFINED} value{'s' if count > 1 else ''} not drawn"


def _y(value: Any) -> float:
    known = defined(value)
    return NAN if known is None else known


def _links(links: Any) -> tuple[tuple[float, float, float, float], ...]:
    if not isinstance(links, list):
        return ()
    lines = []
    for link in links:
        ends = [defined(v) for v in link] if isinstance(link, list) else []
        known = [v for v in ends if v is not None]
        if len(ends) != 4 or len(known) != 4:
            raise ValueError(f"the link {cell(link)} is not four numbers x0, y0, x1, y1")
        lines.append((known[0], known[1], known[2], known[3]))
    return tuple(lines)


def _pairs(series: Any) -> dict[str, list[tuple[Any, Any]]]:
    if not isinstance(series, Mapping):
        raise ValueError("it has no series")
    pairs = {}
    for key, value in series.items():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, list) for v in value)):
            raise ValueError(f"the series {key!r} is not a pair of x and y values")
        xs, ys = value
        if len(xs) != len(ys):
            raise ValueError(f"the series {key!r} has {len(xs)} x values and {len(ys)} y values")
        pairs[str(key)] = list(zip(xs, ys, strict=True))
    return pairs
