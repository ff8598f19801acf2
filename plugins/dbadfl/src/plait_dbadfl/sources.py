"""The data set and the network of the card's reference experiment, as light declarations. Imports no torch."""

from __future__ import annotations

from plait import DataSource, ModelSource, later

CLOTHES_PLACE = "/usr/share/datasets/fashion-mnist"
"""Where the Debian package dataset-fashion-mnist puts its files."""
WORDS = frozenset({"field:input", "field:label", "field:group", "field:index", "task:classification"})


def data_sources() -> dict[str, DataSource]:
    """The embedded default, and Fashion-MNIST where its files are."""
    return {
        "shared-clothes": DataSource(
            "plait_dbadfl.clothes:load",
            "Fashion-MNIST, 6,000 of it to train (Debian package or idx files)",
            WORDS - {"field:group"},
            later("plait_dbadfl.data_options:SharedClothesOptions"),
            (CLOTHES_PLACE,),
            "apt-get install dataset-fashion-mnist (Debian)",
        ),
        "shared-digits": DataSource(
            "plait_dbadfl.embedded:load",
            "1,797 real digits 8x8, 1,297 to train (scikit-learn)",
            WORDS,
            later("plait_dbadfl.data_options:SharedDigitsOptions"),
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
            later("plait_dbadfl.data_options:SmallMlpOptions"),
        )
    }
