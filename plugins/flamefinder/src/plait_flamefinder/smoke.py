"""How much smoke lies over a patch: a score from RGB alone, and the three buckets. Card section 3, corrections 9."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .options import SmokeRule
from .patches import patch_means

__all__ = ["OBSCURED", "PARTIAL", "UNOBSCURED", "buckets", "smoke_score"]

UNOBSCURED = 0
PARTIAL = 1
OBSCURED = 2
"""The buckets, in the order of `plait_flamefinder.patches.BUCKETS`."""
CLEAR, THICK = 0.35, 0.50
"""Scores below the first are unobscured, above the second obscured."""


def smoke_score(rgb: npt.NDArray[np.uint8], size: int, rule: SmokeRule = "dark-channel") -> npt.NDArray[np.float32]:
    """The smoke score S of each patch, about 0 (clear) to 1 (white), float32 [H // size, W // size].

    ``dark-channel`` is the mean over the patch of the 7x7 minimum filter of min(R, G, B) / 255. It takes bright dry
    grass and sky for smoke. ``relative`` subtracts what the clearest tenth of the frame has, counts a pixel by how
    grey it is, and leaves out a sky: bright, blue, and connected with the upper edge.

    Args:
        rgb: uint8 [H, W, 3].
        size: side of a patch, pixels.
        rule: which score.
    """
    dark = ndimage.minimum_filter(rgb.min(2), size=7).astype(np.float32) / 255
    if rule == "relative":
        largest = rgb.max(2).astype(np.float32) / 255
        grey = 1 - (largest - rgb.min(2) / 255) / np.maximum(largest, 1e-3)
        base = np.quantile(dark, 0.1)
        dark = np.clip((dark - base) / max(1 - float(base), 1e-3), 0, 1) * grey.astype(np.float32) ** 2
        dark[sky_mask(rgb)] = 0
    return patch_means(dark, size)


def sky_mask(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Bright pixels that are blue more than red and hang together with the upper edge, bool [H, W]."""
    bright = (rgb[..., 2] > 140) & (rgb[..., 2].astype(np.int16) - rgb[..., 0] > 15)
    components, _ = ndimage.label(bright)
    at_edge = np.unique(components[0])
    return np.asarray(np.isin(components, at_edge[at_edge > 0]))


def buckets(score: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The bucket of each score: 0 unobscured, 1 partial, 2 obscured."""
    return (score >= CLEAR).astype(np.int64) + (score > THICK)
