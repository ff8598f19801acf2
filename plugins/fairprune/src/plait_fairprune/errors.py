"""What this library raises. Imports no torch."""

from __future__ import annotations

__all__ = ["FairpruneError"]


class FairpruneError(ValueError):
    """Bad input; the message is one line and names the option or the data, and what to do."""
