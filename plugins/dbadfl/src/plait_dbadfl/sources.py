"""The data set and the network of the card's reference experiment, as light declarations. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from plait import DataSource, ModelSource, Options


class SharedDigitsOptions(Options):
    """Options of ``shared-digits``."""

    test: int = Field(500, ge=20, le=1500, description="test images of the 1,797")
    validation: int = Field(0, ge=0, le=1000, description="images taken off the training part, for choices")
    shuffle: int = Field(0, ge=0, lt=2**31, description="seed of the division, the same for every run")


class SmallMlpOptions(Options):
    """Options of ``small-mlp``."""

    hidden: int = Field(32, ge=1, le=65536, description="units of the hidden layer")


WORDS = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})


def data_sources() -> dict[str, DataSource]:
    """The embedded default."""
    return {
        "shared-digits": DataSource(
            "plait_dbadfl.embedded:load",
            "1,797 real digits 8x8, 1,297 to train (scikit-learn)",
            WORDS,
            SharedDigitsOptions,
        )
    }


def models() -> dict[str, ModelSource]:
    """The network of the reference experiment."""
    needs = frozenset({"field:input", "task:classification"})
    return {
        "small-mlp": ModelSource(
            "plait_dbadfl.embedded:build",
            "linear, ReLU, linear: 64-32-10 on digits",
            frozenset(),
            needs,
            SmallMlpOptions,
        )
    }
