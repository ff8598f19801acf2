"""The one exception of the method library."""

from __future__ import annotations

__all__ = ["ChaseError"]


class ChaseError(ValueError):
    """A request that Chase cannot honour; the message is one line naming the option or tensor and the value."""


def brief(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
