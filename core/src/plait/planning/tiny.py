"""A generated data set and a small model, so that every plugin can be tried and tested with the core alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.data import Data, DataInfo, TensorSplit
from plait.data.seeds import seed_of
from plait.planning.task import TinyCNNOptions, TinyImagesOptions


def load(options: TinyImagesOptions, seed: int) -> Data:
    """Generated images: K smooth class patterns under noise, in two groups, the second darker and rarer.

    Fields: ``input`` float32 [n, 1, S, S] in [0, 1], ``label`` int64 in 0..K-1, ``group`` int64 (0 light, 1 dark).
    """
    generator = torch.Generator().manual_seed(seed_of("tiny-images", seed))
    size, classes = options.size, options.classes
    of_patterns = torch.Generator().manual_seed(seed_of("tiny-images patterns", classes))
    coarse = torch.rand(classes, 1, 4, 4, generator=of_patterns)
    patterns = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)

    def split(n: int) -> TensorSplit:
        label = torch.randint(classes, (n,), generator=generator)
        group = (torch.rand(n, generator=generator) < options.minority_share).long()
        noise = options.noise * torch.randn(n, 1, size, size, generator=generator)
        images = (patterns[label] * (1 - 0.5 * group).reshape(-1, 1, 1, 1) + noise).clamp(0, 1)
        return TensorSplit({"input": images, "label": label, "group": group})

    fields = frozenset({"input", "label", "group", "index"})
    info = DataInfo("classification", (1, size, size), classes, 2, fields, {"generated": True})
    train, validation, test = options.train, max(options.train // 4, 8), max(options.train // 2, 16)
    return Data(info, split(train), split(validation), split(test), names={"group": ["light", "dark"]})


class TinyCNN(nn.Module):
    """conv-norm-relu twice, global average, linear: [B, C, S, S] -> logits [B, K]."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, S, S]."""
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def channel_groups(self) -> list[tuple[str, str | None, list[str]]]:
        """(producer, norm, consumers) of the channels that can be removed."""
        return [("conv1", "norm1", ["conv2"]), ("conv2", "norm2", ["head"])]


def build(options: TinyCNNOptions, info: DataInfo) -> TinyCNN:
    """The small model for images of ``info.input_shape``."""
    return TinyCNN(info.input_shape[0], options.width, info.num_classes)
