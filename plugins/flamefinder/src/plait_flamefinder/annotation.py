"""Flames in an RGB frame without smoke: a chain of pixel filters on the channels. Card section 2, corrections 1.

The thresholds of the paper were not reachable. ``paper-like`` is a reconstruction and was fitted on generated frames;
``loose`` and ``strict`` were fitted on ten real frames of FLAME3. So look at the masks: ``plait flamefinder annotate``.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .errors import FlamefinderError
from .options import Rule

__all__ = ["MIN_COMPONENT", "flame_mask"]

MIN_COMPONENT = 3
"""Pixels of an 8-connected component that the rule ``paper-like`` keeps at least."""


def flame_mask(rgb: npt.NDArray[np.uint8], rule: Rule = "paper-like") -> npt.NDArray[np.bool_]:
    """The pixels of a frame that a named rule takes for flame, bool [H, W].

    Args:
        rgb: uint8 [H, W, 3].
        rule: ``paper-like`` (distance to the frame's mean, no vegetation, orange to yellow, no specks), ``loose`` or
            ``strict`` (distances between channels alone).

    Raises:
        FlamefinderError: another shape or type, or an unknown rule.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise FlamefinderError(f"an RGB frame is uint8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}.")
    red, green, blue = (rgb[..., channel].astype(np.int16) for channel in range(3))
    if rule in ("loose", "strict"):
        return (red - blue > 50) & (red - green > 40) & (red > (190 if rule == "loose" else 210))
    if rule != "paper-like":
        raise FlamefinderError(f"no rule {rule!r}; known: {', '.join(get_args(Rule))}.")
    mean_red, mean_blue = float(red.mean()), float(blue.mean())
    distance = red - blue
    hot = (distance > 95) & (distance - (mean_red - mean_blue) > 60) & (red - green > 20)
    hot &= (red > mean_red + 25) & (red > 190)
    orange = (green > blue) & (green < 0.93 * red) & (green > 60) & (blue < 170)
    return without_specks(hot & orange)


def without_specks(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask without its 8-connected components of fewer than `MIN_COMPONENT` pixels."""
    components: npt.NDArray[Any] = ndimage.label(mask, structure=np.ones((3, 3)))[0]
    large = np.bincount(components.ravel()) >= MIN_COMPONENT
    return np.asarray(large[components] & mask)
