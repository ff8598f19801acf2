"""The page of a run, as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from plait import __version__
from plait.storage.directory import RunDirectory
from plait.storage.files import write_text
from plait_report.contents import read
from plait_report.formatting import one_line, printable

if TYPE_CHECKING:
    from plait_report.charts import Chart

MOST_FIGURES = 60
"""Further charts are shown as caption and values only, so that a chatty plugin cannot make a report take minutes."""

MOST_VALUES = 60
"""A chart of a plugin with at most this many points shows its values as a table too."""


@dataclass(frozen=True)
class Panel:
    """A chart as the template needs it: ``svg`` is markup, empty when the chart was not drawn."""

    title: str
    caption: str
    svg: str
    wide: bool
    legend: list[tuple[str, int, bool]]
    columns: list[str]
    rows: list[list[str]]


def write(run_directory: Path) -> Path:
    """Write ``report.html`` into a run directory, whole or not at all; the same directory gives the same bytes.

    The run may be finished, failed, interrupted or still going.

    Returns:
        The path of the report.

    Raises:
        RunFailed: the disk is full or not writable; an older report still stands.
    """
    contents = read(RunDirectory(run_directory))
    keys = count()
    curves = {prefix: list(_panels(charts, keys)) for prefix, charts in contents.curves.items()}
    plugins = [(plugin, list(_panels(plugin.charts, keys, values=True))) for plugin in contents.plugins]
    html = _template().render(run=contents, curves=curves, plugins=plugins, version=__version__, one_line=one_line)
    path = run_directory / "report.html"
    write_text(path, printable(html))
    return path


def _panels(charts: list[Chart], keys: Iterator[int], values: bool = False) -> Iterator[Panel]:
    for chart in charts:
        key = next(keys)
        few = values and 0 < chart.size <= MOST_VALUES
        columns, rows = chart.values() if few else ([], [])
        if key >= MOST_FIGURES:
            yield Panel(chart.title, chart.caption, "", False, [], columns, rows)
            continue
        from plait_report import figures  # a page without charts needs no matplotlib

        svg = figures.draw(chart, f"f{key}")
        yield Panel(chart.title, chart.caption, svg, chart.wide, figures.legend(chart.series), columns, rows)


@cache
def _template() -> Template:
    loader = PackageLoader("plait_report", "templates")
    strict = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return strict.get_template("report.html.j2")
