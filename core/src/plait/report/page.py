"""What was read, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from plait import __version__
from plait.report.formatting import one_line, printable

if TYPE_CHECKING:
    from plait.report.charts import Chart
    from plait.report.reading import RunView

MOST_FIGURES = 60
"""Further charts are shown as caption and values only, so that a chatty plugin cannot make a report take minutes."""

MOST_VALUES = 60
"""A chart of a plugin with at most this many points shows its values as a table too."""


@dataclass(frozen=True)
class Panel:
    """A chart as the template needs it: ``svg`` is markup, empty when the chart was not drawn."""

    title: str
    caption: str
    svg: Markup
    wide: bool
    legend: list[tuple[str, int, bool]]
    columns: list[str]
    rows: list[list[str]]


def render(run: RunView) -> str:
    """The page of a run."""
    keys = count()
    curves = {prefix: list(_panels(charts, keys)) for prefix, charts in run.curves.items()}
    plugins = [(plugin, list(_panels(plugin.charts, keys, values=True))) for plugin in run.plugins]
    page = _template().render(run=run, curves=curves, plugins=plugins, version=__version__, one_line=one_line)
    return printable(page)


def _panels(charts: list[Chart], keys: Iterator[int], values: bool = False) -> Iterator[Panel]:
    for chart in charts:
        key = next(keys)
        few = values and 0 < chart.size <= MOST_VALUES
        columns, rows = chart.values() if few else ([], [])
        if key >= MOST_FIGURES:
            yield Panel(chart.title, chart.caption, Markup(), False, [], columns, rows)
            continue
        from plait.report import figures  # a page without charts needs no matplotlib

        svg = Markup(figures.draw(chart, f"f{key}"))  # ElementTree escaped its text
        yield Panel(chart.title, chart.caption, svg, chart.wide, figures.legend(chart.series), columns, rows)


@cache
def _template() -> Template:
    loader = PackageLoader("plait.report", "templates")
    strict = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return strict.get_template("report.html.j2")
