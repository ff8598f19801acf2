"""``mlp``: linear layers with ReLU between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from plait.data import DataInfo
from plait.errors import BadInput
from plait_zoo.networks import Group, classes
from plait_zoo.options import MlpOptions


class MLP(nn.Module):
    """Linear layers with ReLU between: inputs [B, ...] flattened to ``widths[0]``, logits [B, ``widths[-1]``]."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, ...]."""
        hidden = inputs.flatten(1)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden if number == 0 else hidden.relu())
        return hidden

    def channel_groups(self) -> list[Group]:
        """Every hidden layer's units, read by the next layer."""
        return [(f"layers.{number}", None, [f"layers.{number + 1}"]) for number in range(len(self.layers) - 1)]


def build(options: MlpOptions, info: DataInfo) -> MLP:
    """The network for inputs of ``info.input_shape``.

    Raises:
        BadInput: the data declare no shape or no classes.
    """
    if not info.input_shape or min(info.input_shape) < 1:
        raise BadInput(f"model mlp needs inputs of fixed shape; the data's shape is {tuple(info.input_shape)}.")
    return MLP([math.prod(info.input_shape), *options.widths, classes(info, "mlp")])
