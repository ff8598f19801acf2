"""``cnn``: the small network of the fairsam card, section 5.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.data import DataInfo
from plait_zoo.networks import Group, image_shape
from plait_zoo.options import CnnOptions

SMALL = 16
"""Up to this side the third convolution keeps the size and the width."""
LAST = 4
"""Larger maps are averaged down to this side before the linear layer."""


class SmallCNN(nn.Module):
    """Three times conv3x3, batch norm, ReLU, then a linear layer over the flattened maps; the input minus 0.5.

    Channels are w, 2w, 4w with stride 2, 2, 2; for images up to 16 pixels w, 2w, 2w with stride 2, 2, 1. Convolutions
    have no bias. Maps larger than 4x4 (images above 32) are averaged to 4x4.

    Args:
        shape: (C, H, W) of the images.
        num_classes: K.
        width: w.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        channels, height, wide = shape
        small = max(height, wide) <= SMALL
        last, stride = (2 * width, 1) if small else (4 * width, 2)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, last, 3, stride=stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(last)
        halvings = 2 if small else 3
        sides = [-(-side // 2**halvings) for side in (height, wide)]
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(LAST) if max(sides) > LAST else nn.Identity()
        area = LAST * LAST if max(sides) > LAST else sides[0] * sides[1]
        self.head = nn.Linear(last * area, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        maps = torch.relu(self.norm1(self.conv1(images - 0.5)))
        maps = torch.relu(self.norm2(self.conv2(maps)))
        maps = torch.relu(self.norm3(self.conv3(maps)))
        logits: Tensor = self.head(self.pool(maps).flatten(1))
        return logits

    def channel_groups(self) -> list[Group]:
        """Every convolution; the linear layer reads each channel of the last one as neighbouring columns."""
        return [("conv1", "norm1", ["conv2"]), ("conv2", "norm2", ["conv3"]), ("conv3", "norm3", ["head"])]


def build(options: CnnOptions, info: DataInfo) -> SmallCNN:
    """The network for images of ``info.input_shape``.

    Raises:
        BadInput: the data are no images.
    """
    return SmallCNN(image_shape(info, "cnn"), info.num_classes, options.width)
