"""Verdicts on expectations, and from them on a claim."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from plait_experiments import power, statistics
from plait_experiments.expressions import ROUNDING, Columns, Comparison
from plait_experiments.power import Power
from plait_experiments.statistics import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Values = Mapping[tuple[str, str], Mapping[int, float | None]]
"""(arm, metric) -> seed -> value; None or NaN where a run gave none, no entry where it did not finish."""


class Verdict(StrEnum):
    """What can be said of an expectation or a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"
    """The interval straddles the threshold, or some seeds are missing."""
    GUARD_BROKEN = "guard broken"
    """What was expected is there, but something else was lost for it."""
    NOT_RUN = "not run"
    PILOT = "pilot"
    """A few seeds, run to learn how many it takes: nothing is judged."""


UNDECIDABLE = "undecidable at this size"
"""Said instead of *undecided* where a verdict needs more seeds than `plait_experiments.power.MOST`."""


@dataclass(frozen=True)
class Judgement:
    """An expectation against the figures.

    Attributes:
        text: the expectation.
        guard: whether it is a guard.
        verdict: of this expectation alone.
        left, right: its sides at the means; None when nothing ran.
        margin: by how much it holds (negative: fails), in the unit of its sides.
        interval: of the margin, paired over seeds; of the difference where wins are counted; None for extremes and
            equalities, and for one seed.
        difference: where wins are counted, the mean of what is counted, positive for a win.
        power: what a verdict takes; None where there is no interval.
        exact: whether it is judged without an interval, in every seed that ran.
        n: seeds that count.
        missing: ``arm.metric`` -> seeds without a value.
        paper_margin: the margin at the paper's own figures, where they are known.
        note: a sentence on what limits the verdict.
    """

    text: str
    guard: bool
    verdict: Verdict
    left: float | None = None
    right: float | None = None
    margin: float | None = None
    interval: Interval | None = None
    difference: float | None = None
    power: Power | None = None
    exact: bool = False
    n: int = 0
    missing: Mapping[str, Sequence[int]] | None = None
    paper_margin: float | None = None
    note: str = ""

    @property
    def undecidable(self) -> bool:
        """Whether it is undecided, and would need more seeds than anybody runs."""
        return self.verdict is Verdict.UNDECIDED and self.power is not None and self.power.undecidable

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "expectation": self.text,
            "guard": self.guard,
            "verdict": self.verdict.value,
            "left": self.left,
            "right": self.right,
            "margin": self.margin,
            "interval": self.interval.as_dict() if self.interval else None,
            "difference": self.difference,
            "power": self.power.as_dict() if self.power else None,
            "undecidable": self.undecidable,
            "exact": self.exact,
            "n": self.n,
            "missing": {name: list(seeds) for name, seeds in (self.missing or {}).items()},
            "paper_margin": self.paper_margin,
            "note": self.note,
        }


def judge(
    comparison: Comparison,
    values: Values,
    seeds: Sequence[int],
    *,
    guard: bool = False,
    paper: Mapping[str, float] | None = None,
    required: float | None = None,
) -> Judgement:
    """Judge one expectation.

    It holds or fails where its interval excludes the threshold; else it is undecided. A count of wins needs both: the
    count on one side of its threshold, and the interval of what is counted on the same side of its own.

    Only seeds with a finite value everywhere in the expectation count, so that arms stay paired. With a seed missing an
    expectation can fail, but not hold: a run that crashed or diverged must not improve an average.

    Args:
        comparison: the expectation.
        values: what was measured.
        seeds: the seeds that were planned.
        guard: whether it is a guard.
        paper: ``arm.metric`` -> the paper's figure.
        required: the margin that a verdict must be able to see, for its power; default the observed one.
    """
    import numpy as np

    missing = {
        f"{arm}.{metric}": lost
        for arm, metric in comparison.references
        if (lost := [s for s in seeds if not _finite(values.get((arm, metric), {}).get(s))])
    }
    common = [s for s in seeds if not any(s in lost for lost in missing.values())]
    at_paper = paper_margin(comparison, paper or {})
    if not common:
        note = f"no seed has a value of {' and of '.join(missing)}"
        return Judgement(comparison.text, guard, Verdict.NOT_RUN, missing=missing, paper_margin=at_paper, note=note)
    columns = {
        reference: np.array([float(values[reference][s] or 0.0) for s in common]) for reference in comparison.references
    }
    left, right = (float(side) for side in comparison.sides(columns, len(seeds)))
    margin = float(comparison.margin(columns, len(seeds)))
    exact = not comparison.smooth and not comparison.counts
    evidence: Evidence | None = None
    if comparison.operator == "==":
        verdict, note = _of(bool(comparison.in_every_seed(columns, len(seeds)).all())), ""
    elif not math.isfinite(margin):
        verdict, note = Verdict.UNDECIDED, "the margin is undefined (a division by zero)"
    elif exact:
        verdict, note = _of(_reached(margin, comparison, left, right)), ""
    elif comparison.counts:
        reached = _reached(margin, comparison, left, right)
        evidence = _of_wins(comparison, columns, len(seeds), reached, required)
        verdict, note = evidence.verdict, evidence.note
        if verdict not in (_of(reached), Verdict.UNDECIDED):
            verdict = Verdict.UNDECIDED
            note = "; ".join(filter(None, ["the count says otherwise than the interval of the difference", note]))
    else:
        evidence = _evidence(comparison, columns, len(seeds), required)
        verdict, note = evidence.verdict, evidence.note
    if missing and verdict is Verdict.HOLDS:
        verdict = Verdict.UNDECIDED
    if missing:
        lost_text = "; ".join(f"{name}: seed {', '.join(map(str, lost))}" for name, lost in missing.items())
        note = "; ".join(filter(None, [note, f"without a value: {lost_text}"]))
    return Judgement(
        comparison.text,
        guard,
        verdict,
        _or_none(left),
        _or_none(right),
        _or_none(margin),
        evidence.interval if evidence else None,
        evidence.margin if evidence and comparison.counts else None,
        evidence.power if evidence else None,
        exact,
        len(common),
        missing,
        at_paper,
        note,
    )


def combine(judgements: Iterable[Judgement]) -> Verdict:
    """The verdict on a claim: everything must hold, guards included; what fails is said before what is open."""
    judgements = list(judgements)
    expected = [j.verdict for j in judgements if not j.guard]
    everything = [j.verdict for j in judgements]
    if Verdict.FAILS in expected:
        return Verdict.FAILS
    if Verdict.FAILS in everything:
        return Verdict.GUARD_BROKEN
    if Verdict.NOT_RUN in everything or not everything:
        return Verdict.NOT_RUN
    for word in (Verdict.PILOT, Verdict.UNDECIDED):
        if word in everything:
            return word
    return Verdict.HOLDS


def paper_margin(comparison: Comparison, paper: Mapping[str, float]) -> float | None:
    """The margin at the paper's own figures; None when one of them is unknown, or for a count over seeds."""
    import numpy as np

    names = {(arm, metric): f"{arm}.{metric}" for arm, metric in comparison.references}
    if not comparison.smooth or any(name not in paper for name in names.values()):
        return None
    return _or_none(float(comparison.margin({r: np.array([paper[name]]) for r, name in names.items()}, 1)))


# ---- inside ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Evidence:
    """What the seeds say of one margin: its interval, the verdict by it, and the power."""

    margin: float | None
    interval: Interval | None
    power: Power | None
    verdict: Verdict
    note: str


def _evidence(comparison: Comparison, columns: Columns, seeds: int, required: float | None) -> Evidence:
    """Of a comparison of means."""
    names, values = list(columns), list(columns.values())
    near, far = comparison.opened(columns, seeds)

    def statistic(*drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        return near.margin(dict(zip(names, drawn, strict=True)), seeds)

    margin = float(statistic(*values))
    if not math.isfinite(margin):
        return Evidence(None, None, None, Verdict.UNDECIDED, "the difference is undefined (a division by zero)")
    interval = statistics.interval(values, statistic)
    deviation = statistics.deviation(values, statistic)
    beyond = None if far is None else float(far.margin(columns, seeds))
    takes = None if deviation is None else power.plan(margin, deviation, beyond, required)
    left, right = (float(side) for side in comparison.sides(columns, seeds))
    verdict, note = _by_interval(interval, comparison, left, right, len(values[0]))
    if verdict is Verdict.UNDECIDED and takes is not None:
        note = "; ".join(filter(None, [note, needs(takes)]))
    return Evidence(_or_none(margin), interval, takes, verdict, note)


def _of_wins(comparison: Comparison, columns: Columns, seeds: int, reached: bool, required: float | None) -> Evidence:
    """Of what a count of wins counts; with several counts, of the one that says least for the count."""
    counted = [_evidence(inner, columns, seeds, required) for inner in comparison.counted(columns, seeds)]
    if reached:
        return next((e for e in counted if e.verdict is not Verdict.HOLDS), counted[0])
    return next((e for e in counted if e.verdict is Verdict.FAILS), counted[0])


def needs(takes: Power) -> str:
    """How many seeds a verdict takes, in words."""
    if takes.seeds is None:
        return f"{UNDECIDABLE}: more than {power.LARGEST:,} seeds for {100 * power.POWER:.0f} % power"
    many = f"{takes.seeds:,} seeds for {100 * power.POWER:.0f} % power"
    return f"{UNDECIDABLE}: {many}" if takes.undecidable else f"it takes {many}"


def _by_interval(
    margins: Interval | None, comparison: Comparison, left: float, right: float, n: int
) -> tuple[Verdict, str]:
    if margins is None and n < statistics.LEAST:
        return Verdict.UNDECIDED, "one seed gives no interval"
    if margins is None:
        return Verdict.UNDECIDED, "the interval is undefined (a division by zero without one of the seeds)"
    few = f"few seeds ({n})" if margins.few else ""
    if _reached(margins.low, comparison, left, right):
        return Verdict.HOLDS, few
    if not _reached(margins.high, comparison, left, right):
        return Verdict.FAILS, few
    return Verdict.UNDECIDED, "; ".join(filter(None, ["the interval straddles the threshold", few]))


def _reached(margin: float, comparison: Comparison, left: float, right: float) -> bool:
    slack = ROUNDING * max(1.0, abs(left), abs(right))
    return margin > slack if comparison.strict else margin >= -slack


def _of(held: bool) -> Verdict:
    return Verdict.HOLDS if held else Verdict.FAILS


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
