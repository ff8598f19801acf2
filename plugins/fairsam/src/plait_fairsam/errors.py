"""What this library raises, and the checks that say so in one line (imports no torch)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real

__all__ = ["FairsamError", "FairsamWarning"]


class FairsamError(ValueError):
    """Bad input; the message is one line and names the option and the offending value."""


class FairsamWarning(UserWarning):
    """Something the reader of the results must know: an empty cell, a group without test samples, a collapse."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(option: str, value: object, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``; otherwise raise `FairsamError` listing what is."""
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    raise FairsamError(f"{option}={value!r} is unknown; choose one of {', '.join(names)}{nearest(value, names)}")


def check_number(option: str, value: object, low: float = 0.0, high: float = math.inf) -> float:
    """Return ``value`` as a float if it is finite and in ``[low, high]``; otherwise raise `FairsamError`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise FairsamError(f"{option}={value!r} is not a number")
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise FairsamError(f"{option}={value!r} must be a finite number {bounds}")
    return number


def check_integer(option: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is an int in ``[low, high]``; otherwise raise `FairsamError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f">= {low}" if high is None else f"in {low}..{high}"
        raise FairsamError(f"{option}={value!r} must be an integer {bounds}")
    return value
