"""The grid of patches of a frame, and sums over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FlamefinderError

__all__ = ["cut", "patch_means", "patch_sums"]


def cut(frame: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """The non-overlapping patches of a frame [H, W, ...], the grid in its centre: [rows, columns, size, size, ...].

    Raises:
        FlamefinderError: the patch is larger than the frame.
    """
    height, width = frame.shape[:2]
    rows, columns = height // size, width // size
    if not rows or not columns:
        raise FlamefinderError(f"a patch of {size} pixels is larger than the frame of {height} x {width}.")
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    inside = frame[top : top + rows * size, left : left + columns * size]
    return inside.reshape(rows, size, columns, size, *frame.shape[2:]).swapaxes(1, 2)


def patch_sums(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Sums over the patches of counts or masks [H, W], int64 [rows, columns]."""
    sums: npt.NDArray[np.int64] = cut(values, size).sum((2, 3), dtype=np.int64)
    return sums


def patch_means(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.float32]:
    """Means over the patches of [H, W], float32 [rows, columns]."""
    means: npt.NDArray[np.float32] = cut(values, size).mean((2, 3), dtype=np.float64).astype(np.float32)
    return means
