"""The data and the network of the reference experiment for a run of plait."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from plait.data import Data, DataInfo, TensorSplit
from plait.errors import BadInput
from plait_dbadfl.data_options import SharedDigitsOptions, SmallMlpOptions
from plait_dbadfl.reference import digits


def load(options: SharedDigitsOptions, seed: int) -> Data:
    """scikit-learn's digits; the division is the same for every seed of a run.

    Fields: ``input`` float32 [n, 1, 8, 8] in [0, 1], ``label`` int64, ``group`` int64: 1 where the digit has more ink
    than the median of its class (a stand-in for a sensitive group, so that group methods can run along).

    Raises:
        BadInput: test and validation leave no training images.
    """
    dataset = digits(options.shuffle, test=options.test)
    if options.validation >= len(dataset.train):
        raise BadInput(f"validation={options.validation} leaves no training image of {len(dataset.train)}")
    ink = torch.cat([dataset.train, dataset.test]).mean((1, 2, 3))
    labels = torch.cat([dataset.train_labels, dataset.test_labels])
    medians = torch.stack([ink[labels == c].median() for c in range(dataset.classes)])
    cut = len(dataset.train) - options.validation

    def split(images: Tensor, label: Tensor) -> TensorSplit:
        return TensorSplit({"input": images, "label": label, "group": (images.mean((1, 2, 3)) > medians[label]).long()})

    return Data(
        DataInfo("classification", (1, 8, 8), dataset.classes, 2, frozenset({"input", "label", "group", "index"})),
        split(dataset.train[:cut], dataset.train_labels[:cut]),
        split(dataset.train[cut:], dataset.train_labels[cut:]),
        split(dataset.test, dataset.test_labels),
        names={"group": ["little ink", "much ink"], "label": [str(c) for c in range(dataset.classes)]},
    )


class SmallMlp(nn.Sequential):
    """Linear, ReLU, linear."""

    def channel_groups(self) -> list[tuple[str, None, list[str]]]:
        """The hidden units: (who writes them, no norm, who reads them), by module name."""
        return [("1", None, ["3"])]


def build(options: SmallMlpOptions, info: DataInfo) -> nn.Module:
    """The network for inputs of ``info.input_shape``."""
    inputs = prod(info.input_shape)
    return SmallMlp(
        nn.Flatten(), nn.Linear(inputs, options.hidden), nn.ReLU(), nn.Linear(options.hidden, info.num_classes)
    )
