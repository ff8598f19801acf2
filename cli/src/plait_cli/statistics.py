"""The few figures that comparing runs needs: mean, standard error, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float | None:
    """The standard deviation (n - 1) over the root of n; None for fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values))


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """``mean``, ``standard_error``, ``n`` of the defined values, and how many were ``undefined``."""
    defined = [v for v in values if v is not None and math.isfinite(v)]
    return {
        "mean": mean(defined) if defined else None,
        "standard_error": standard_error(defined),
        "n": len(defined),
        "undefined": len(values) - len(defined),
    }


def difference(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> dict[str, Any]:
    """``second - first``, given seed -> value: paired over the common seeds, else of the two means."""
    common = [s for s in first if s in second and first[s] is not None and second[s] is not None]
    if common:
        gaps = [float(second[s] or 0.0) - float(first[s] or 0.0) for s in common]
        return {**summary(gaps), "paired": True}
    one, other = summary(list(first.values())), summary(list(second.values()))
    if one["mean"] is None or other["mean"] is None:
        return {"mean": None, "standard_error": None, "n": 0, "undefined": 0, "paired": False}
    errors = (one["standard_error"], other["standard_error"])
    joint = math.hypot(*errors) if None not in errors else None
    return {
        "mean": other["mean"] - one["mean"],
        "standard_error": joint,
        "n": min(one["n"], other["n"]),
        "undefined": 0,
        "paired": False,
    }
