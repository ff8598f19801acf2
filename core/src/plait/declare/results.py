"""What a method reports: one figure, a table, a plot. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One figure: its value, unit (``%``, ``points``, ``MACs``, ...; empty for a pure number) and better direction."""

    value: float
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table for the terminal and the report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Plot:
    """A plot for the report: series name -> (x values, y values).

    Attributes:
        title, x, y: above it, and at its axes.
        series: what is drawn.
        kind: ``line``; ``bar``; or ``graph``: the series are kinds of nodes, each point a place in the plane, without
            axes.
        links: for a ``graph``: (x0, y0, x1, y1) of each line between two places, drawn behind the points.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]]
    kind: Literal["line", "bar", "graph"] = "line"
    links: Sequence[tuple[float, float, float, float]] = ()
