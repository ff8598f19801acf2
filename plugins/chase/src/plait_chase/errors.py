"""The one exception of the method library."""

from __future__ import annotations

__all__ = ["ChaseError"]


class ChaseError(ValueError):
    """A request that Chase cannot honour; the message is one line naming the option or tensor and the value."""
