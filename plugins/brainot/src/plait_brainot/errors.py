"""What this library raises. Imports no torch."""

from __future__ import annotations

from plait.errors import BadInput

__all__ = ["BrainotError"]


class BrainotError(BadInput):
    """Bad input; the message is one line and names the file, the option or the shape, and what to do."""
