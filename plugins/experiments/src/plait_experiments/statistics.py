"""Figures over seeds: means, standard errors, paired differences and their bootstrap intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence of every interval."""

RESAMPLES = 9999
LEAST = 3
"""Fewer seeds give no interval."""

FEW = 10
"""Fewer seeds are said to be few."""


@dataclass(frozen=True)
class Summary:
    """Mean and standard error of the defined values.

    Attributes:
        mean: None without a defined value.
        standard_error: standard deviation (n - 1) over the root of n; None for fewer than two values.
        n: how many values are defined.
        undefined: how many are missing, NaN or infinite.
    """

    mean: float | None
    standard_error: float | None
    n: int
    undefined: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends, in the unit of the statistic.
        method: ``BCa``, ``percentile`` (where BCa is undefined, e.g. with ties) or ``constant`` (every seed agrees).
        n: seeds.
        level: confidence.
    """

    low: float
    high: float
    method: str
    n: int
    level: float = LEVEL

    @property
    def few(self) -> bool:
        """Whether so few seeds stand behind it that it should be said."""
        return self.n < FEW and self.method != "constant"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "few": self.few}


@dataclass(frozen=True)
class Difference:
    """Second minus first.

    Attributes:
        summary: of the paired differences, or (unpaired) of the difference of the means.
        paired: whether common seeds were there to pair by.
        interval: of the mean paired difference; None with fewer than `LEAST` pairs.
    """

    summary: Summary
    paired: bool
    interval: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        interval = self.interval.as_dict() if self.interval else None
        return {**self.summary.as_dict(), "paired": self.paired, "interval": interval}


def summary(values: Sequence[float | None]) -> Summary:
    """Mean and standard error; None, NaN and infinities count as undefined."""
    defined = [float(v) for v in values if v is not None and math.isfinite(v)]
    n = len(defined)
    middle = math.fsum(defined) / n if n else None
    error = None
    if middle is not None and n > 1:
        error = math.sqrt(math.fsum((v - middle) ** 2 for v in defined) / (n - 1) / n)
    return Summary(middle, error, n, len(values) - n)


def difference(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> Difference:
    """Second minus first, given seed -> value: paired over the common seeds, else of the two means."""
    import numpy as np

    common = [s for s in first if _defined(first[s]) and s in second and _defined(second[s])]
    if common:
        gaps = [float(second[s] or 0.0) - float(first[s] or 0.0) for s in common]
        return Difference(summary(gaps), True, interval([np.array(gaps)], lambda gap: gap.mean(-1)))
    before, after = summary(list(first.values())), summary(list(second.values()))
    if before.mean is None or after.mean is None:
        return Difference(Summary(None, None, 0, 0), False, None)
    joint = None
    if before.standard_error is not None and after.standard_error is not None:
        joint = math.hypot(before.standard_error, after.standard_error)
    return Difference(Summary(after.mean - before.mean, joint, min(before.n, after.n), 0), False, None)


def interval(
    columns: Sequence[NDArray[np.float64]], statistic: Callable[..., NDArray[np.float64]], level: float = LEVEL
) -> Interval | None:
    """A paired bootstrap interval of a statistic over seeds.

    Seeds are drawn with replacement, the same ones in every column. Bias-corrected and accelerated (Efron 1987) where
    that is defined, else percentiles. Because a bootstrap of few values is too narrow, the level is widened as
    Hesterberg (2015, "What teachers should know about the bootstrap") does: quantiles at ``Phi(-sqrt(n / (n - 1)) t)``
    with Student's t of n - 1 degrees. Simulated coverage for a normal mean at 95 %: 0.91 with 5 seeds, 0.93 with 7,
    0.95 with 10 (plain percentiles: 0.82 with 5). `Interval.few` is set below `FEW`.

    Args:
        columns: values [n] each, finite, paired by position.
        statistic: of columns [..., n] along the last axis -> [...].
        level: confidence.

    Returns:
        None for fewer than `LEAST` seeds, or where the statistic is undefined (NaN) on the data.
    """
    import numpy as np
    from scipy import stats

    n = len(columns[0])
    if n < LEAST:
        return None
    observed = float(statistic(*columns))
    if not math.isfinite(observed):
        return None
    wide = _widened(level, n)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate data are handled below
        bootstrapped = stats.bootstrap(
            tuple(columns),
            lambda *drawn, axis=-1: statistic(*drawn),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=wide,
            method="BCa",
            rng=np.random.default_rng(0),
        )
    drawn = bootstrapped.bootstrap_distribution
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return None
    low, high = (float(end) for end in bootstrapped.confidence_interval)
    method = "BCa"
    spread = float(np.ptp(drawn))
    if spread <= 1e-12 * max(1.0, abs(observed)):
        return Interval(observed, observed, "constant", n, level)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        tail = (1 - wide) / 2
        low, high = (float(q) for q in np.quantile(drawn, [tail, 1 - tail]))
        method = "percentile"
    return Interval(low, high, method, n, level)


def _widened(level: float, n: int) -> float:
    from scipy import stats

    t = stats.t.ppf(0.5 + level / 2, n - 1)
    return float(1 - 2 * stats.norm.sf(math.sqrt(n / (n - 1)) * t))


def _defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
