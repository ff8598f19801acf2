"""Where Debian packages put data. Imports nothing."""

from __future__ import annotations

FASHION_PLACES = (
    "/usr/share/datasets/fashion-mnist",
    "/usr/share/dataset-fashion-mnist",
    "/usr/local/share/datasets/fashion-mnist",
)
"""Where ``fashion-mnist`` looks when it is given no path."""
