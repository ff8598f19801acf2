"""What this library raises. Imports no torch."""

from __future__ import annotations

from plait.errors import BadInput

__all__ = ["MalletrainError"]


class MalletrainError(BadInput):
    """Bad input: one line that names the field, the value and what to do; the command line ends with exit code 2."""
