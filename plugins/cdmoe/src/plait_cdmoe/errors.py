"""What this library raises. Imports no torch."""

from __future__ import annotations

__all__ = ["CdmoeError"]


class CdmoeError(ValueError):
    """Bad input; the message is one line and names the option, layer or file, and what to do."""
