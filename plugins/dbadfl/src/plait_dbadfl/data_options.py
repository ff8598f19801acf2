"""Options of the data sets and of the network of the reference experiment. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from plait import Options
from plait_dbadfl.sources import CLOTHES_PLACE


class SharedDigitsOptions(Options):
    """Options of ``shared-digits``."""

    test: int = Field(500, ge=20, le=1500, description="test images of the 1,797")
    validation: int = Field(0, ge=0, le=1000, description="images taken off the training part, for choices")
    shuffle: int = Field(0, ge=0, lt=2**31, description="seed of the division, the same for every run")


class SharedClothesOptions(Options):
    """Options of ``shared-clothes``."""

    path: str = Field(CLOTHES_PLACE, description="folder of the idx files, plain or gzipped")
    train: int = Field(6000, ge=100, le=60_000, description="training images of the 60,000")
    validation: int = Field(0, ge=0, le=10_000, description="further training images, for choices")
    test: int = Field(1000, ge=100, le=10_000, description="test images of the 10,000")
    shuffle: int = Field(0, ge=0, lt=2**31, description="seed of the subset, the same for every run")


class SmallMlpOptions(Options):
    """Options of ``small-mlp``."""

    hidden: int = Field(32, ge=1, le=65536, description="units of the hidden layer")
