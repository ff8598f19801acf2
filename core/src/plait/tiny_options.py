"""Options of the generated data and the small model, kept apart so that planning imports no torch."""

from __future__ import annotations

from pydantic import Field

from plait.plugin import Options


class TinyImagesOptions(Options):
    """Options of ``tiny-images``."""

    train: int = Field(256, ge=2, le=100_000, description="training images; validation a quarter, test a half of it")
    size: int = Field(8, ge=4, le=64, description="side of the image in pixels")
    classes: int = Field(4, ge=2, le=100, description="number of classes")
    minority_share: float = Field(0.25, ge=0, le=1, description="share of the darker group")
    noise: float = Field(0.2, ge=0, le=10, description="standard deviation of the pixel noise")


class TinyCNNOptions(Options):
    """Options of ``tiny-cnn``."""

    width: int = Field(8, ge=1, le=1024, description="channels of the first convolution; the second has twice as many")
