"""Charts as inline SVG that reads on light and dark pages.

Matplotlib draws through its object API: no pyplot, and its settings are put back afterwards. Colours are written
as CSS variables of the page (``--muted``, ``--grid``, ``--s0`` ... ``--s7``), so that one drawing serves both schemes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plait.report.charts import Chart, Series
from plait.report.formatting import UNDEFINED, one_line

COLOURS = 8
"""Series colours; further series repeat them with a dashed line."""

POINTS = 1000
"""Most points drawn of one series."""

MUTED, GRID = "#010101", "#010102"
SIZE = 9.0
GLYPH = 0.62 * SIZE
"""Points: the size of text, and a generous width of one character in it."""
_VARIABLES = {f"#0101{16 + i:02x}": f"var(--s{i})" for i in range(COLOURS)}
_VARIABLES |= {MUTED: "var(--muted)", GRID: "var(--grid)"}
_COLOUR = re.compile(r"#0101[0-9a-f]{2}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "plait",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": SIZE,
    "axes.formatter.useoffset": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 6),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "text.color": MUTED,
    "lines.markersize": 3.5,
}


def colour(position: int) -> str:
    """The placeholder colour of a series, replaced by ``var(--s<i>)``."""
    return f"#0101{16 + position % COLOURS:02x}"


def draw(chart: Chart, key: str) -> str:
    """A chart as an ``<svg>`` element.

    Args:
        chart: what to draw.
        key: unique on the page; prefixes the ids inside.
    """
    with _settings():
        if chart.kind == "graph":
            return to_svg(_graph(chart), key, chart.title)
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
        return to_svg(figure, key, chart.title)


def legend(series: Sequence[Series]) -> list[tuple[str, int, bool]]:
    """(name, colour number, dashed) of every series, for the page to show; empty when one series needs no legend."""
    return [(s.name, i % COLOURS, i >= COLOURS) for i, s in enumerate(series)] if len(series) > 1 else []


def to_svg(figure: Figure, key: str, label: str) -> str:
    """A figure as an ``<svg>`` element with unique ids, page colours, no metadata and no background."""
    buffer = io.BytesIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    FigureCanvasSVG(figure)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    return _embed(ElementTree.fromstring(buffer.getvalue()), key, label)


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
        axes.add_collection(LineCollection(list(ends), colors=GRID, linewidths=1.0, zorder=1))
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
    axes.axhline(0, color=MUTED, linewidth=0.6)
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
def _settings() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the process or a matplotlibrc set (usetex, a style); put back after."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # a glyph that the layout font lacks: the page's own font has it
        warnings.simplefilter("ignore", UserWarning)
        settings: Any = matplotlib.rcParams
        settings.update(_defaults() | _SETTINGS)
        yield


@cache
def _defaults() -> dict[str, Any]:
    return {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}


def _embed(root: ElementTree.Element, key: str, label: str) -> str:
    used = set(_references(root))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "title"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            plain = _local(name)
            if plain == "id":
                if value in used:
                    element.set("id", f"{key}-{value}")
            elif plain == "href":
                element.set("href", f"#{key}-{value.removeprefix('#')}")
            else:
                value = _COLOUR.sub(lambda m: _VARIABLES.get(m.group(), m.group()), value)
                element.set(plain, _REFERENCE.sub(rf"url(#{key}-\1)", value))
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": one_line(label)})
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            if _local(name) == "href":
                yield value.removeprefix("#")
            yield from _REFERENCE.findall(value)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
