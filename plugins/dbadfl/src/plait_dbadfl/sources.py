"""The data set and the network of the card's reference experiment, as light declarations. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from plait import DataSource, ModelSource, Options


class SharedDigitsOptions(Options):
    """Options of ``shared-digits``."""

    test: int = Field(500, ge=20, le=1500, description="test images of the 1,797")
    validation: int = Field(0, ge=0, le=1000, description="images taken off the training part, for choices")
    shuffle: int = Field(0, ge=0, lt=2**31, description="seed of the division, the same for every run")


CLOTHES_PLACE = "/usr/share/datasets/fashion-mnist"
"""Where the Debian package dataset-fashion-mnist puts its files."""


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


WORDS = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})


def data_sources() -> dict[str, DataSource]:
    """The embedded default, and Fashion-MNIST where its files are."""
    return {
        "shared-clothes": DataSource(
            "plait_dbadfl.clothes:load",
            "Fashion-MNIST, 6,000 of it to train (Debian package or idx files)",
            WORDS - {"field:group"},
            SharedClothesOptions,
            (CLOTHES_PLACE,),
            "apt-get install dataset-fashion-mnist (Debian)",
        ),
        "shared-digits": DataSource(
            "plait_dbadfl.embedded:load",
            "1,797 real digits 8x8, 1,297 to train (scikit-learn)",
            WORDS,
            SharedDigitsOptions,
        ),
    }


def models() -> dict[str, ModelSource]:
    """The network of the reference experiment."""
    needs = frozenset({"field:input", "task:classification"})
    return {
        "small-mlp": ModelSource(
            "plait_dbadfl.embedded:build",
            "linear, ReLU, linear: 64-32-10 on digits",
            frozenset({"model:channel-groups"}),
            needs,
            SmallMlpOptions,
        )
    }
