"""The command ``plait``: thin commands over plait-core, with no logic that a library user would miss."""

__version__ = "0.1.0"
