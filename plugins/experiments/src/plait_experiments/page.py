"""The HTML page of a verification, self-contained, in the style of the run report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plait import __version__
from plait.storage.files import write_text
from plait_experiments import tables
from plait_experiments.drift import smaller
from plait_experiments.results import ClaimResult, Verification
from plait_experiments.verdicts import Judgement, Verdict
from plait_report.charts import Chart, Series
from plait_report.formatting import number, printable

BADGES = {
    Verdict.HOLDS: "finished",
    Verdict.FAILS: "failed",
    Verdict.GUARD_BROKEN: "failed",
    Verdict.UNDECIDED: "running",
    Verdict.NOT_RUN: "running",
    Verdict.PILOT: "running",
}
"""The report's badge class of each verdict."""


@dataclass(frozen=True)
class Whisker:
    """An expectation's interval on an axis: everything in percent of the width.

    Attributes:
        low, high, point, zero: where the interval, the margin and the threshold lie.
        label: the same in words.
    """

    low: float
    high: float
    point: float
    zero: float
    label: str


def write_pages(verifications: Sequence[Verification], folder: Path) -> list[Path]:
    """Write ``<plugin>.html`` and ``<plugin>.json`` for each.

    Returns:
        The files, pages first.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    files = {}
    for verification in verifications:
        files[folder / f"{verification.plugin}.html"] = render(verification)
        files[folder / f"{verification.plugin}.json"] = as_json(verification.as_dict())
    return write_files(files)


def render(verification: Verification) -> str:
    """The page of one verification."""
    keys = count()
    claims = [(r, _panels(r, keys), [_whisker(j) for j in r.judgements]) for r in verification.claims]
    return rendered("verification.html.j2", verification=verification, claims=claims)


# ---- shared with the scoreboard ----------------------------------------------------------------------------------
def rendered(template: str, **values: Any) -> str:
    """A page from a template of this package."""
    page = _templates().get_template(template)
    return printable(page.render(**values, tables=tables, smaller=smaller, badges=BADGES, version=__version__))


@cache
def _templates() -> Environment:
    loader = ChoiceLoader([PackageLoader("plait_experiments", "templates"), PackageLoader("plait_report", "templates")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def as_json(document: object) -> str:
    """A JSON file's text."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def write_files(files: Mapping[Path, str]) -> list[Path]:
    """Write texts, and return where."""
    for path, text in files.items():
        write_text(path, text)
    return list(files)


# ---- inside ------------------------------------------------------------------------------------------------------
def _panels(result: ClaimResult, keys: count[int]) -> list[tuple[Chart, Markup, list[tuple[str, int, bool]]]]:
    """One chart per metric: a line per seed over the arms, so that pairs can be followed."""
    panels = []
    for name, metric in result.metrics.items():
        arms = [arm for arm in result.arms if any(v is not None for v in arm.values.get(name, {}).values())]
        if len(arms) < 2:
            continue
        series = tuple(
            Series(
                f"seed {seed}",
                tuple(float(i) for i in range(len(arms))),
                tuple(_nan(arm.values[name].get(seed)) for arm in arms),
            )
            for seed in result.seeds
        )
        label = f"{name} ({metric.unit})" if metric.unit else name
        better = "" if metric.better == "neither" else f"{metric.better} is better"
        chart = Chart(label, "", metric.unit, series, categories=tuple(arm.name for arm in arms), caption=better)
        from plait_report import figures  # a page without charts needs no matplotlib

        svg = Markup(figures.draw(chart, f"c{next(keys)}"))  # ElementTree escaped its text
        panels.append((chart, svg, figures.legend(series)))
    return panels


def _whisker(judgement: Judgement) -> Whisker | None:
    interval = judgement.interval
    margin = judgement.margin if judgement.difference is None else judgement.difference
    if interval is None or margin is None:
        return None
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    room = (high - low or 1.0) * 0.08
    low, high = low - room, high + room

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    label = f"margin {number(margin)}, interval {tables.bracket(interval)}, threshold 0"
    return Whisker(at(interval.low), at(interval.high), at(margin), at(0.0), label)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
