"""What training patches go through: turns and flips, a random thermal gain, and the network's own range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from plait.data import Batch

__all__ = ["gained", "to_network", "turned"]

IMAGES = ("input", "rgb")
"""Fields that are turned together."""


def turned(batch: Any, generator: Generator) -> Batch:
    """Each example in one of the eight ways of turning and flipping a square, thermal and RGB alike."""
    way = torch.randint(8, (len(batch["input"]),), generator=generator)
    images = {name: batch[name].clone() for name in IMAGES if name in batch}
    for number in range(1, 8):
        rows = (way == number).nonzero().flatten()
        for image in images.values():
            part = torch.rot90(image[rows], number % 4, (2, 3))
            image[rows] = part.flip(3) if number >= 4 else part
    return Batch({**batch, **images})


def gained(thermal: Tensor, strength: float, generator: Generator) -> Tensor:
    """Thermal patches [B, 1, P, P] in [0, 1] with a gain exp(U(-a, a)) and an offset U(-a/2, a/2) each, clipped."""
    draws = torch.rand(2, len(thermal), 1, 1, 1, generator=generator) * 2 - 1
    return (thermal * (strength * draws[0]).exp() + 0.5 * strength * draws[1]).clamp(0, 1)


def to_network(batch: Any) -> Any:
    """The batch with its input in [-1, 1], as the network takes it."""
    return Batch({**batch, "input": batch["input"] * 2 - 1})
