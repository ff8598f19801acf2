"""Charts as inline SVG that reads on light and dark pages.

Matplotlib draws in the colours of the light page, through its object API: no pyplot, and its settings are put back
afterwards. Every colour is then written as the CSS variable of the page that it came from (``--muted``, ``--grid``,
``--s0`` ... ``--s7``), so that one drawing serves both schemes.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plait_report.charts import Chart, Series
from plait_report.formatting import UNDEFINED, one_line

POINTS = 1000
"""Most points drawn of one series."""

SIZE = 9.0
GLYPH = 0.62 * SIZE
"""Points: the size of text, and a generous width of one character in it."""

_SHEET = resources.files("plait_report").joinpath("templates/report.css").read_text(encoding="utf-8")
PALETTE: dict[str, str] = dict(re.findall(r"--(muted|grid|s\d): (#\w{6});", _SHEET.partition("@media")[0]))
"""Variable of the page -> its colour on the light page."""
COLOURS = len(PALETTE) - 2
"""Series colours; further series repeat them with a dashed line."""
_VARIABLES = {value: f"var(--{name})" for name, value in PALETTE.items()}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": SIZE,
    "axes.formatter.useoffset": False,
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 6),
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "text.color": PALETTE["muted"],
    "lines.markersize": 3.5,
}


def colour(position: int) -> str:
    """The colour of a series on the light page, which becomes ``var(--s<i>)``."""
    return PALETTE[f"s{position % COLOURS}"]


def draw(chart: Chart, key: str) -> str:
    """A chart as an ``<svg>`` element.

    Args:
        chart: what to draw.
        key: unique on the page; the ids inside are made from it.
    """
    with _settings(key):
        if chart.kind == "graph":
            return to_svg(_graph(chart), chart.title)
        figure = Figure(figsize=(11.5, 3.2) if chart.wide else (4.2, 2.5))
        axes: Axes = figure.add_subplot()
        (_bars if chart.kind == "bar" else _lines)(axes, chart)
        axes.set_xlabel(one_line(chart.x, 60))
        axes.set_ylabel(one_line(chart.y, 36))
        left, below = _name_categories(axes, chart) if chart.categories is not None else (0.0, SIZE)
        if not any(np.isfinite(s.y).any() for s in chart.series):
            axes.text(0.5, 0.5, f"every value is {UNDEFINED}", transform=axes.transAxes, ha="center", va="center")
            axes.set_yticks([])
        _set_margins(figure, axes, left, below)
        return to_svg(figure, chart.title)


def legend(series: Sequence[Series]) -> list[tuple[str, int, bool]]:
    """(name, colour number, dashed) of every series, for the page to show; empty when one series needs no legend."""
    return [(s.name, i % COLOURS, i >= COLOURS) for i, s in enumerate(series)] if len(series) > 1 else []


def to_svg(figure: Figure, label: str) -> str:
    """A figure as an ``<svg>`` element in the page's colours, without metadata, style sheet and background."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]  # the page's own <svg> takes its place
    drawn = re.sub(r"<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)  # nothing refers to these, and every figure has the same
    drawn = re.sub(r"(?<=: )#\w{6}\b", lambda match: _VARIABLES.get(match[0], match[0]), drawn)
    width, height = 72 * figure.get_size_inches()
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(one_line(label))}">{drawn}'


def downsample(
    x: NDArray[np.float64], y: NDArray[np.float64], limit: int = POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``limit`` points that keep the ends and the least and greatest y of every stretch.

    Args:
        x: positions [P].
        y: values [P], NaN where undefined; a stretch with some defined values shows those.
        limit: at least 4.
    """
    if len(y) <= limit:
        return x, y
    keep = {0, len(y) - 1}
    for stretch in np.array_split(np.arange(len(y)), limit // 2 - 1):
        known = stretch[np.isfinite(y[stretch])]
        keep |= {int(known[y[known].argmin()]), int(known[y[known].argmax()])} if known.size else {int(stretch[0])}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


# ---- inside ------------------------------------------------------------------------------------------------------
def _lines(axes: Axes, chart: Chart) -> None:
    for position, series in enumerate(chart.series):
        x, y = downsample(np.array(series.x, dtype=float), np.array(series.y, dtype=float))
        style = "-" if position < COLOURS else "--"
        marker = "o" if len(y) <= 24 else ""
        thin = 0.8 if len(y) > 300 else 1.5
        axes.plot(x, y, style, marker=marker, color=colour(position), linewidth=thin)
        if not marker:
            alone = _isolated(y)
            axes.plot(x[alone], y[alone], "o", color=colour(position))
    if chart.categories is None:
        whole = all(float(x).is_integer() for s in chart.series for x in s.x)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))


def _graph(chart: Chart) -> Figure:
    """Places in the plane and the lines between them, equal scales, no axes."""
    figure = Figure(figsize=(4.2, 3.6))
    axes: Axes = figure.add_axes((0, 0, 1, 1))
    if chart.links:
        ends = np.array(chart.links, dtype=float).reshape(-1, 2, 2)
        axes.add_collection(LineCollection(list(ends), colors=PALETTE["grid"], linewidths=1.0, zorder=1))
    count = max(1, chart.size)
    for position, series in enumerate(chart.series):
        size = max(3.0, min(9.0, 60.0 / count**0.5))
        shape = "o" if position < COLOURS else "s"
        axes.plot(series.x, series.y, shape, color=colour(position), markersize=size, linestyle="none", zorder=2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    axes.set_axis_off()
    return figure


def _isolated(y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points between two gaps, which a line alone would not show."""
    known = np.isfinite(y)
    before, after = np.r_[False, known[:-1]], np.r_[known[1:], False]
    isolated: NDArray[np.bool_] = known & ~before & ~after
    return isolated


def _bars(axes: Axes, chart: Chart) -> None:
    count = max(1, len(chart.series))
    width = 0.8 / count
    for position, series in enumerate(chart.series):
        x = np.array(series.x, dtype=float) + (position - (count - 1) / 2) * width
        y = np.array(series.y, dtype=float)
        known = np.isfinite(y)
        faded = 1.0 if position < COLOURS else 0.6
        axes.bar(x[known], y[known], width * 0.92, color=colour(position), linewidth=0, alpha=faded)
        for place in x[~known]:
            axes.text(place, 0, f" {UNDEFINED}", rotation=90, ha="center", va="bottom", size=7)
    axes.axhline(0, color=PALETTE["muted"], linewidth=0.6)
    axes.grid(False, axis="x")


def _name_categories(axes: Axes, chart: Chart) -> tuple[float, float]:
    """Name the positions; how far the names reach to the left and below, in points."""
    names = [one_line(c, 22) for c in chart.categories or ()]
    every = max(1, -(-len(names) // 60))
    places = list(range(0, len(names), every))
    crowded = sum(len(names[p]) + 2 for p in places) > (130 if chart.wide else 44)
    axes.set_xticks(places, [names[p] for p in places])
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    if not crowded:
        return 0.0, SIZE
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="right", rotation_mode="anchor")
    return 0.6 * GLYPH * len(names[0]), SIZE + 0.6 * GLYPH * max(map(len, names))


def _set_margins(figure: Figure, axes: Axes, left: float, below: float) -> None:
    """Room for the labels, from their lengths: matplotlib's own layout engines would double the time of a figure."""
    ticks = axes.yaxis.get_major_formatter().format_ticks(list(axes.get_yticks()))
    left = max(left, GLYPH * max(map(len, ticks), default=0) + (SIZE + 6 if axes.get_ylabel() else 0) + 6)
    bottom = below + (SIZE + 4 if axes.get_xlabel() else 0) + 8
    width, height = (72 * inches for inches in figure.get_size_inches())
    figure.subplots_adjust(left / width, min(bottom / height, 0.6), 1 - 8 / width, 1 - 14 / height)


@contextmanager
def _settings(key: str) -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the process or a matplotlibrc set (usetex, a style); put back after."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # a glyph that the layout font lacks: the page's own font has it
        warnings.simplefilter("ignore", UserWarning)
        settings: Any = matplotlib.rcParams
        settings.update(_defaults() | _SETTINGS | {"svg.hashsalt": key})
        yield


@cache
def _defaults() -> dict[str, Any]:
    return {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
