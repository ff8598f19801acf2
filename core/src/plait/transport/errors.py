"""The one exception of the transport helpers."""

from __future__ import annotations


class TransportError(ValueError):
    """A transport problem that has no answer as posed; the message names the argument, its value and its shape."""
