"""Normalisation just before the model, and augmentations of whole batches by one generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from plait.data import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Augment = Callable[[Batch, torch.Generator], Batch]
"""A change of a training batch by the draws of one generator."""


class Normalize:
    """``(input - mean) / std`` per channel; the input field float32 [B, C, H, W] in [0, 1], C means and deviations."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._on: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its input normalised."""
        images = batch["input"]
        key = (images.device, images.dtype)
        if key not in self._on:
            # copying to a GPU waits for it, so once per device is enough
            self._on[key] = (
                images.new_tensor(self.mean).reshape(-1, 1, 1),
                images.new_tensor(self.std).reshape(-1, 1, 1),
            )
        mean, std = self._on[key]
        return Batch({**batch, "input": (images - mean) / std})


class CropFlip:
    """Pad with zeros, crop and flip left-right at random: the CIFAR augmentation, one gather for the whole batch.

    Args:
        pad: pixels added on every side; the crop has the image's size.
        flip: probability of the flip.
    """

    def __init__(self, pad: int = 4, flip: float = 0.5) -> None:
        self.pad, self.flip = pad, flip

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its input [B, C, H, W] augmented; the generator is on the CPU, as the batch is."""
        images = batch["input"]
        count, _, height, width = images.shape
        down = torch.randint(2 * self.pad + 1, (count, 1), generator=generator)
        right = torch.randint(2 * self.pad + 1, (count, 1), generator=generator)
        mirrored = torch.rand(count, 1, generator=generator) < self.flip
        rows = down + torch.arange(height)
        columns = right + torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width))
        padded = functional.pad(images, (self.pad,) * 4).movedim(1, -1)
        picked = padded[torch.arange(count).reshape(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
        return Batch({**batch, "input": picked.movedim(-1, 1).contiguous()})


class Flip:
    """Flip left-right with probability ``share``."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its input [B, C, H, W] augmented."""
        images = batch["input"]
        mirrored = torch.rand(len(images), generator=generator) < self.share
        return Batch({**batch, "input": torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)})


class ResizedCropFlip:
    """A random part of the image, of random area and aspect (3/4 to 4/3), stretched to size, flipped half the time.

    It cuts from the decoded square, not from the file's full resolution: a batch is decoded before it is augmented.

    Args:
        min_area: smallest share of the square's area.
    """

    def __init__(self, min_area: float = 0.25) -> None:
        self.min_area = min_area

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its input [B, C, H, W] augmented; values stay within the image's own range."""
        images = batch["input"]
        draws = torch.rand(5, len(images), generator=generator)
        area = self.min_area + (1 - self.min_area) * draws[0]
        aspect = torch.exp((2 * draws[1] - 1) * math.log(4 / 3))
        wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0] = torch.where(draws[4] < 0.5, -wide, wide)
        theta[:, 1, 1] = high
        theta[:, 0, 2] = (2 * draws[2] - 1) * (1 - wide)
        theta[:, 1, 2] = (2 * draws[3] - 1) * (1 - high)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        cut = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return Batch({**batch, "input": cut})
