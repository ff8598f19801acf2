"""The one exception of the method library."""

from __future__ import annotations

__all__ = ["DbadflError"]


class DbadflError(ValueError):
    """A request that the method cannot honour; the message is one line naming the option or tensor and the value."""
