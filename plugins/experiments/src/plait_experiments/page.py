"""The HTML page of a verification, self-contained, in the style of the run report; and the scoreboard of several."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from plait import __version__
from plait_experiments import tables
from plait_experiments.results import ClaimResult, Verification
from plait_experiments.verdicts import Judgement, Verdict
from plait.report.charts import Chart, Series
from plait.report.formatting import number, printable

BADGES = {
    Verdict.HOLDS: "finished",
    Verdict.FAILS: "failed",
    Verdict.GUARD_BROKEN: "failed",
    Verdict.UNDECIDED: "running",
    Verdict.NOT_RUN: "running",
}
"""The report's badge class of each verdict."""


@dataclass(frozen=True)
class Bar:
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


def write_pages(found: Sequence[Verification], folder: Path) -> list[Path]:
    """Write ``<plugin>.html`` and ``<plugin>.json`` for each.

    Returns:
        The files, pages first.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    files = {}
    for one in found:
        files[folder / f"{one.plugin}.html"] = render(one)
        files[folder / f"{one.plugin}.json"] = _json(one.as_dict())
    return _written(files)


def write_scoreboard(found: Sequence[Verification], folder: Path) -> list[Path]:
    """Write ``scoreboard.html``, ``scoreboard.md`` and ``scoreboard.json`` with exactly these verifications.

    Returns:
        The files.

    Raises:
        RunFailed: as `write_pages`.
    """
    files = {
        folder / "scoreboard.html": render_scoreboard(found),
        folder / "scoreboard.md": markdown(found),
        folder / "scoreboard.json": _json({"plait": __version__, "plugins": [one.as_dict() for one in found]}),
    }
    return _written(files)


def _written(files: Mapping[Path, str]) -> list[Path]:
    from plait.storage.files import write_text

    for path, text in files.items():
        write_text(path, text)
    return list(files)


def render(found: Verification) -> str:
    """The page of one verification."""
    keys = count()
    claims = [(result, _panels(result, keys), [_bar(j) for j in result.judgements]) for result in found.claims]
    page = _template("verification.html.j2").render(
        found=found, claims=claims, tables=tables, badges=BADGES, version=__version__
    )
    return printable(page)


def render_scoreboard(found: Sequence[Verification]) -> str:
    """The scoreboard as a page."""
    page = _template("scoreboard.html.j2").render(found=found, tables=tables, badges=BADGES, version=__version__)
    return printable(page)


def markdown(found: Sequence[Verification]) -> str:
    """The scoreboard as Markdown, for the docs."""
    parts = [
        "# Scoreboard",
        "Written by `plait verify`; nothing here is edited by hand. *holds* and *fails*: the 95 % interval of "
        "the margin lies on that side of the threshold; *undecided*: it straddles it; a margin below 0 is a miss.",
    ]
    for one in found:
        parts.append(f"## {one.plugin}")
        if one.paper:
            parts.append(one.paper)
        parts.append("; ".join(f"{what}: {value}" for what, value in tables.facts(one) if what != "cells"))
        parts.append(tables.markdown_table(tables.SCORE_COLUMNS, [tables.score_row(r) for r in one.claims]))
        inferred = [f"- `{r.claim.id}`: {r.claim.reconstruction}" for r in one.claims if r.claim.reconstruction]
        if inferred:
            parts.append("What is reconstruction:\n\n" + "\n".join(inferred))
        for result in one.claims:
            parts += _details(result)
        parts += [f"Note: {note}." for note in one.notes]
    return "\n\n".join(parts) + "\n"


# ---- inside ------------------------------------------------------------------------------------------------------
def _details(result: ClaimResult) -> list[str]:
    if not any(arm.values for arm in result.arms):
        return []
    columns, tried = tables.tuning_rows(result)
    parts = [
        f"### {result.claim.id}: {result.verdict.value}",
        tables.markdown_table(tables.ARM_COLUMNS, tables.arm_rows(result)),
        tables.markdown_table(tables.EXPECTATION_COLUMNS, tables.expectation_rows(result)),
    ]
    if tried:
        parts.append(tables.markdown_table(columns, tried))
    return parts


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


def _bar(judgement: Judgement) -> Bar | None:
    found = judgement.interval
    if found is None or judgement.margin is None:
        return None
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    room = (high - low or 1.0) * 0.08
    low, high = low - room, high + room

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    label = f"margin {number(judgement.margin)}, interval {tables.bracket(found)}, threshold 0"
    return Bar(at(found.low), at(found.high), at(judgement.margin), at(0.0), label)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


@cache
def _template(name: str) -> Template:
    loader = ChoiceLoader([PackageLoader("plait_experiments", "templates"), PackageLoader("plait_report", "templates")])
    strict = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return strict.get_template(name)
