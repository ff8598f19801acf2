"""``vgg-bn``: VGG with batch norm, global average pooling and one linear layer, of any widths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from plait.data import DataInfo
from plait.errors import BadInput
from plait_zoo.networks import Group, image_shape
from plait_zoo.options import VGG_PRESETS, VggOptions


class BNVGG(nn.Module):
    """conv3x3, batch norm, ReLU in a chain with 2x2 max pools; global average; linear.

    Convolutions have no bias; they start Kaiming-normal by fan-out, the linear layer normal with deviation 0.01 (chase
    card, section 3).

    Args:
        widths: channels per convolution; ``"M"`` is a pool.
        num_classes: K.
        in_channels: channels of the images.
    """

    def __init__(self, widths: Sequence[int | str], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._convolutions: list[int] = []
        channels = in_channels
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            self._convolutions.append(len(layers))
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits

    def channel_groups(self) -> list[Group]:
        """Every convolution but the last, whose output feeds the classifier (chase card, section 2)."""
        at = self._convolutions
        return [(f"features.{a}", f"features.{a + 1}", [f"features.{b}"]) for a, b in pairwise(at)]


def parse_widths(text: str) -> list[int | str]:
    """``"32,M,64"`` or the name of a preset as layers; the options have checked it."""
    parts = [part.strip() for part in VGG_PRESETS.get(text.strip(), text).split(",")]
    return ["M" if part == "M" else int(part) for part in parts]


def build(options: VggOptions, info: DataInfo) -> BNVGG:
    """The network for images of ``info.input_shape``.

    Raises:
        BadInput: the data are no images, or too small for so many pools.
    """
    channels, height, width = image_shape(info, "vgg-bn")
    widths = parse_widths(options.widths)
    pools = widths.count("M")
    if min(height, width) < 2**pools:
        raise BadInput(
            f"model vgg-bn: {pools} pools (M) need images of at least {2**pools} pixels; these have {height} x {width}."
        )
    return BNVGG(widths, info.num_classes, channels)
