"""The card's embedded model: a VGG with batch norm, global average pooling and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["bn_vgg"]


class BNVGG(nn.Module):
    """conv3x3-BN-ReLU chain with 2x2 max pools, global average and a linear classifier. See :func:`bn_vgg`."""

    def __init__(self, widths: Sequence[int | str], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._chain: list[tuple[str, str]] = []
        channels = in_channels
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            self._chain.append((f"features.{len(layers)}", f"features.{len(layers) + 1}"))
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits

    def channel_groups(self) -> list[tuple[str, str | None, tuple[str, ...]]]:
        """Every convolution but the last, as (producer, norm, consumers)."""
        return [(conv, norm, (self._chain[i + 1][0],)) for i, (conv, norm) in enumerate(self._chain[:-1])]


def bn_vgg(
    widths: Sequence[int | str] = (32, 32, "M", 64, 64, "M", 128, 128), num_classes: int = 10, in_channels: int = 1
) -> BNVGG:
    """VGG with batch norm; the default has N = 287 264 maskable weights and C = 320 prunable channels.

    Args:
        widths: channels per convolution; any string (by custom ``"M"``) is a 2x2 max pool.
        num_classes: size of the output.
        in_channels: channels of the input images ``[B, in_channels, H, W]``.
    """
    return BNVGG(widths, num_classes, in_channels)
