"""Figures, durations and foreign text as the report shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

UNDEFINED = "undefined"
"""What a value that is None, NaN or infinite is called; never 0."""

LARGEST = 1e300
"""Beyond this, axis arithmetic overflows; such a value is treated as infinite."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """The text without what neither HTML nor UTF-8 can hold (control characters, lone surrogates)."""
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: Any, limit: int = 0) -> str:
    """Printable text on one line, cut at ``limit`` characters (0: never)."""
    line = " ".join(printable(str(text)).split())
    return line if not limit or len(line) <= limit else line[: limit - 1] + "…"


def defined(value: Any) -> float | None:
    """A finite float, or None for anything else (None, NaN, infinities, text, booleans)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= LARGEST else None


def number(value: Any) -> str:
    """Four significant digits, thousands grouped; ``undefined`` for what is not a finite number."""
    known = defined(value)
    if known is None:
        return UNDEFINED
    size = abs(known)
    if size >= 1e15:
        return f"{known:.4g}"
    if known == int(known):
        return f"{int(known):,}"
    if size >= 1000:
        return f"{known:,.1f}"
    return f"{known:.4g}" if size >= 1e-4 else f"{known:.3e}"


def cell(value: Any) -> str:
    """Any JSON value as the text of a table cell."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {cell(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(v) for v in value)
    return number(value)


def is_number(value: Any) -> bool:
    """Whether a cell is set like a number (an undefined one too)."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return UNDEFINED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
