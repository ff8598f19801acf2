"""A small residual network with basic or bottleneck blocks, the card's second embedded model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plait_chase.errors import ChaseError

__all__ = ["SmallResNet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; ``[B, C_in, H, W]`` to ``[B, C, H/stride, W/stride]``."""

    inner = (("conv1", "bn1", "conv2"),)

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1 to a quarter, 3x3, 1x1 back, around a shortcut; ``[B, C_in, H, W]`` to ``[B, C, H/stride, W/stride]``."""

    inner = (("conv1", "bn1", "conv2"), ("conv2", "bn2", "conv3"))

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        middle = max(1, width // 4)
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def _shortcut(inputs: int, width: int, stride: int) -> nn.Module:
    if inputs == width and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class SmallResNet(nn.Module):
    """Stem, one stage of ``depth`` blocks per width (halving the image from the second on), average, linear.

    Args:
        block: ``"basic"`` (default) or ``"bottleneck"``.
        widths: channels per stage, default (16, 32, 64).
        depth: blocks per stage, default 2.
        num_classes: size of the output, default 10.
        in_channels: channels of the input images ``[B, in_channels, H, W]``, default 1.

    Raises:
        ChaseError: unknown block.
    """

    def __init__(
        self,
        block: str = "basic",
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 2,
        num_classes: int = 10,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        kinds: dict[str, type[BasicBlock] | type[BottleneckBlock]] = {
            "basic": BasicBlock,
            "bottleneck": BottleneckBlock,
        }
        if block not in kinds:
            raise ChaseError(f"block={block!r} is unknown; choose one of {', '.join(kinds)}")
        self._inner = kinds[block].inner
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for number in range(depth):
                blocks.append(kinds[block](channels, width, 2 if stage and not number else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``."""
        features = self.blocks(torch.relu(self.norm(self.stem(images))))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits

    def channel_groups(self) -> list[tuple[str, str | None, tuple[str, ...]]]:
        """The convolutions inside the blocks; the residual stream keeps its width."""
        return [
            (f"blocks.{i}.{conv}", f"blocks.{i}.{norm}", (f"blocks.{i}.{reader}",))
            for i in range(len(self.blocks))
            for conv, norm, reader in self._inner
        ]
