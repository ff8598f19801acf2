"""Figures over seeds: means, standard errors, paired differences and their intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Columns = Sequence["NDArray[np.float64]"]
Statistic = Callable[..., "NDArray[np.float64]"]
LEVEL = 0.95
"""Confidence of every interval."""

RESAMPLES = 9999
LEAST = 2
"""Fewer seeds give no interval."""

FEW = 11
"""Fewer seeds are said to be few, and their interval is Student's t; from here on it is a bootstrap."""

SAME = 1e-12
"""Relative size of differences that are rounding."""


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
        method: ``t`` (Student's), ``BCa``, ``percentile`` (where BCa is undefined, e.g. with ties) or ``constant``
            (every seed agrees).
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


def interval(columns: Columns, statistic: Statistic, level: float = LEVEL) -> Interval | None:
    """A confidence interval of a statistic over seeds, paired: every column has the same seeds.

    Below `FEW` seeds Student's t on what the seeds say one by one (`by_seed`): ``observed +- t sd / sqrt(n)`` with
    n - 1 degrees. For the mean of paired differences that is the interval of the paired t-test. From `FEW` on a
    bootstrap, bias-corrected and accelerated (Efron 1987) where that is defined, else percentiles, its level widened as
    Hesterberg (2015, "What teachers should know about the bootstrap") does: quantiles at
    ``Phi(-sqrt(n / (n - 1)) t)``. Of few values a bootstrap is too narrow: of three it is about their range, which
    covers 75 %.

    Args:
        columns: values [n] each, finite, paired by position.
        statistic: of columns [..., n] along the last axis -> [...].
        level: confidence.

    Returns:
        None for fewer than `LEAST` seeds, or where the statistic is undefined (NaN) on the data or without a seed.
    """
    n = len(columns[0])
    observed = float(statistic(*columns))
    if n < LEAST or not math.isfinite(observed):
        return None
    return _student(columns, statistic, observed, level) if n < FEW else _bootstrap(columns, statistic, observed, level)


def by_seed(columns: Columns, statistic: Statistic) -> NDArray[np.float64]:
    """What every seed says of a statistic, [n]: Tukey's pseudo-values ``n s - (n - 1) s_without_the_seed``.

    For the mean of something that each seed has, such as a paired difference, these are the seeds' own values; for
    another function of means, such as a ratio, they are its jackknife.

    Args:
        columns, statistic: as in `interval`; two seeds or more.
    """
    import numpy as np

    n = len(columns[0])
    others = np.array([[i for i in range(n) if i != left_out] for left_out in range(n)])
    return n * statistic(*columns) - (n - 1) * statistic(*(column[others] for column in columns))


def deviation(columns: Columns, statistic: Statistic) -> float | None:
    """The standard deviation (n - 1) of `by_seed`: for a mean of paired differences their own.

    Returns:
        0 where the seeds differ by rounding only; None for fewer than `LEAST` seeds, or where it is undefined.
    """
    import numpy as np

    if len(columns[0]) < LEAST:
        return None
    values = by_seed(columns, statistic)
    if not np.isfinite(values).all():
        return None
    scale = max(float(np.abs(column).max()) for column in [*columns, values])
    return 0.0 if np.ptp(values) <= SAME * len(values) * scale else float(values.std(ddof=1))


def _student(columns: Columns, statistic: Statistic, observed: float, level: float) -> Interval | None:
    from scipy import stats

    n, spread = len(columns[0]), deviation(columns, statistic)
    if spread is None:
        return None
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * spread / math.sqrt(n)
    return Interval(observed - half, observed + half, "t" if spread else "constant", n, level)


def _bootstrap(columns: Columns, statistic: Statistic, observed: float, level: float) -> Interval | None:
    import numpy as np
    from scipy import stats

    n = len(columns[0])
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
    if spread <= SAME * max(1.0, abs(observed)):
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
