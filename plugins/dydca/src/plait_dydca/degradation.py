"""Low-resolution frames, and the bicubic up-sampling that a network is compared with. Card, section 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import DydcaError

__all__ = ["Array", "Frame", "cropped", "downscale", "upscale"]

Frame = npt.NDArray[np.uint8]
Array = npt.NDArray[np.int64]
"""Rows of whole numbers, as the patches of a plan."""


def downscale(frame: Frame, scale: int) -> Frame:
    """Pillow's bicubic with antialias, rounded: uint8 [H, W, 3] to [H/scale, W/scale, 3].

    Raises:
        DydcaError: H or W is not divisible by ``scale``.
    """
    height, width = frame.shape[:2]
    if height % scale or width % scale:
        raise DydcaError(
            f"a frame of {width}x{height} is not divisible by the scale {scale}: cut off what is over (--crop, "
            "data.crop = true)."
        )
    return _resized(frame, width // scale, height // scale)


def upscale(frame: Frame, scale: int) -> Frame:
    """Pillow's bicubic: uint8 [h, w, 3] to [h scale, w scale, 3]."""
    return _resized(frame, frame.shape[1] * scale, frame.shape[0] * scale)


def cropped(frame: Frame, scale: int) -> Frame:
    """Without the last rows and columns that ``scale`` does not divide.

    Raises:
        DydcaError: nothing would be left.
    """
    height, width = (side - side % scale for side in frame.shape[:2])
    if not height or not width:
        raise DydcaError(f"a frame of {frame.shape[1]}x{frame.shape[0]} is smaller than the scale {scale}.")
    return frame[:height, :width]


def _resized(frame: Frame, width: int, height: int) -> Frame:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
