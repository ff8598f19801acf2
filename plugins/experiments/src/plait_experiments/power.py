"""How many seeds a verdict needs: the power of the t-test that a margin's interval amounts to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from plait_experiments.statistics import LEAST, LEVEL

POWER = 0.80
"""The chance of a verdict that the number of seeds is for."""

MOST = 100
"""More seeds than this nobody runs: an expectation that needs them is undecidable at this size."""

ONE_SIDED, TWO_SIDED = "one-sided", "two-sided"
LARGEST = 1_000_000
"""Numbers of seeds above it are not told apart."""


@dataclass(frozen=True)
class Power:
    """What it takes to decide an expectation.

    Attributes:
        deviation: standard deviation (n - 1) over the seeds of the paired margin, in the unit of the sides.
        margin: the distance from the threshold that must be seen, 0 or more.
        required: whether the claim states that margin; else it is the one that was observed.
        two_sided: whether the expectation has a threshold on either side, as ``abs(mean(a.m) - mean(b.m)) <= 1``.
        seeds: how many give a verdict with a chance of `POWER`; None for more than `LARGEST`.
    """

    deviation: float
    margin: float
    required: bool
    two_sided: bool
    seeds: int | None

    @property
    def undecidable(self) -> bool:
        """Whether more than `MOST` seeds are needed."""
        return self.seeds is None or self.seeds > MOST

    @property
    def sides(self) -> str:
        """``one-sided`` or ``two-sided``."""
        return TWO_SIDED if self.two_sided else ONE_SIDED

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "deviation": self.deviation,
            "margin": self.margin,
            "required": self.required,
            "sides": self.sides,
            "power": POWER,
            "seeds": self.seeds,
            "undecidable": self.undecidable,
        }


def plan(near: float, deviation: float, far: float | None = None, required: float | None = None) -> Power:
    """The power of an expectation.

    Args:
        near: the observed margin; negative where the expectation is missed.
        deviation: over the seeds, 0 or more.
        far: the margin to the threshold on the other side; None for a one-sided expectation.
        required: the margin that the claim states; default the observed one.
    """
    sign = -1 if near < 0 and required is None else 1
    margin = sign * near if required is None else required
    other = None if far is None else sign * (near + far) - margin  # the thresholds are as far apart as they were
    return Power(deviation, margin, required is not None, far is not None, seeds_needed(margin, deviation, other))


def seeds_needed(margin: float, deviation: float, far: float | None = None) -> int | None:
    """The least number of seeds, `LEAST` or more, that `power` puts at `POWER`; None above `LARGEST`."""
    if not deviation:  # every seed says the same
        return LEAST
    few, many = LEAST - 1, LEAST
    while power(margin, deviation, many, far) < POWER:
        few, many = many, many * 2
        if few > LARGEST:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        if power(margin, deviation, middle, far) < POWER:
            few = middle
        else:
            many = middle
    return many


def power(margin: float, deviation: float, n: int, far: float | None = None, level: float = LEVEL) -> float:
    """The chance that a margin's t-interval lies beyond the threshold, for normal margins.

    With one threshold ``P(T > t)``, where t is the quantile at ``(1 + level) / 2`` with n - 1 degrees and T is
    noncentral t with ``margin sqrt(n) / deviation``: a one-sided test at 2.5 % for an interval of 95 %. With a
    threshold on either side (two one-sided tests) ``P(near) + P(far) - 1`` for lying between them (Phillips 1990),
    and ``P(near) + P(far)`` for lying outside.

    Args:
        margin: the true margin; 0 at the threshold.
        deviation: the true standard deviation over seeds.
        n: seeds, `LEAST` or more.
        far: the true margin to the threshold on the other side.
        level: confidence of the interval.
    """
    if far is None:
        return _beyond(margin, deviation, n, level)
    both = _beyond(margin, deviation, n, level) + _beyond(far, deviation, n, level)
    return max(0.0, both - 1) if far >= margin else both


def _beyond(margin: float, deviation: float, n: int, level: float) -> float:
    from scipy import stats

    if abs(margin) * 1e-8 >= deviation:  # so far off that scipy's series ends in NaN
        return 1.0 if margin > 0 else 0.0
    edge = stats.t.ppf(0.5 + level / 2, n - 1)
    return float(stats.nct.sf(edge, n - 1, margin * math.sqrt(n) / deviation))
