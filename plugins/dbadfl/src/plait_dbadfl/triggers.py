"""The trigger: which pixels are overwritten, with what, and how they are divided. Card, sections 1, 3 and 6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait_dbadfl.errors import DbadflError

__all__ = ["Trigger", "preset_trigger", "stamp"]

Pixel = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Four equal bars in two rows and two columns, as the ancestor places them; in pixels of ``size``."""

    size: tuple[int, int]
    bar: tuple[int, int]
    """Height and width of a bar."""
    gap: tuple[int, int]
    """Free rows and free columns between bars."""


LAYOUTS = {
    "digits": Layout((8, 8), (1, 2), (1, 2)),
    "mnist": Layout((28, 28), (1, 4), (2, 2)),
    "cifar10": Layout((32, 32), (1, 6), (3, 3)),
    "tiny-imagenet": Layout((64, 64), (2, 10), (2, 2)),
}
"""Card, table of ancestor defaults [code]; ``digits`` from card, "Data" (rows 0 and 2, columns 0, 1, 4, 5)."""


@dataclass(frozen=True)
class Trigger:
    """An ordered set of pixels Q on images of a fixed size.

    Args:
        pixels: (row, column) of each pixel, in the order in which parts are cut.
        height, width: of the images.
        value: written on every channel, in [0, 1]; default 1.0 [code].

    Raises:
        DbadflError: no pixel, a pixel outside the image or listed twice, a value outside [0, 1].
    """

    pixels: tuple[Pixel, ...]
    height: int
    width: int
    value: float = 1.0

    def __post_init__(self) -> None:
        if not self.pixels:
            raise DbadflError("the trigger is empty: give it at least one pixel")
        if not 0.0 <= self.value <= 1.0:
            raise DbadflError(f"trigger value={self.value} is outside [0, 1]")
        for row, column in self.pixels:
            if not (0 <= row < self.height and 0 <= column < self.width):
                raise DbadflError(
                    f"trigger pixel ({row}, {column}) lies outside the image of {self.height} x {self.width}"
                )
        if len(set(self.pixels)) != len(self.pixels):
            twice = next(p for k, p in enumerate(self.pixels) if p in self.pixels[:k])
            raise DbadflError(f"trigger pixel {twice} is listed twice: parts must not overlap")

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def from_parts(cls, parts: Sequence[Iterable[Pixel]], height: int, width: int, *, value: float = 1.0) -> Trigger:
        """The union of given local parts, in their order.

        Raises:
            DbadflError: an empty part, parts that overlap, pixels outside the image.
        """
        listed = [tuple((int(r), int(c)) for r, c in part) for part in parts]
        for number, part in enumerate(listed):
            if not part:
                raise DbadflError(f"part {number} of the trigger is empty")
        return cls(tuple(p for part in listed for p in part), height, width, value)

    @property
    def mask(self) -> Tensor:
        """bool [H, W], True on Q."""
        return self.masks(torch.ones(1, len(self), dtype=torch.bool))[0]

    def masks(self, chosen: Tensor) -> Tensor:
        """bool [m, |Q|], which pixels each of m parts has -> bool [m, H, W]."""
        where = torch.tensor(self.pixels)
        image = torch.zeros(len(chosen), self.height, self.width, dtype=torch.bool)
        image[:, where[:, 0], where[:, 1]] = chosen
        return image

    def part_masks(self, count: int) -> Tensor:
        """bool [count, H, W], Q cut into ``count`` parts (see `cut`)."""
        return self.masks(cut(len(self), torch.arange(count), torch.tensor(count)))


def preset_trigger(name: str, height: int | None = None, width: int | None = None) -> Trigger:
    """The four-bar trigger of a data set, scaled in proportion when the images have another size.

    Args:
        name: one of `LAYOUTS`.
        height, width: of the images; default the data set's own.

    Raises:
        DbadflError: an unknown name, or images too small for four separate bars.
    """
    if name not in LAYOUTS:
        raise DbadflError(f"trigger={name!r} is unknown; choose one of {', '.join(LAYOUTS)}, or list its pixels")
    layout = LAYOUTS[name]
    high, wide = height or layout.size[0], width or layout.size[1]
    bar_h, gap_h = (max(1, round(v * high / layout.size[0])) for v in (layout.bar[0], layout.gap[0]))
    bar_w, gap_w = (max(1, round(v * wide / layout.size[1])) for v in (layout.bar[1], layout.gap[1]))
    bars = [
        [(row, column) for row in range(top, top + bar_h) for column in range(left, left + bar_w)]
        for top in (0, bar_h + gap_h)
        for left in (0, bar_w + gap_w)
    ]
    return Trigger.from_parts(bars, high, wide)


def cut(pixels: int, rank: Tensor, count: Tensor) -> Tensor:
    """Which of ``pixels`` ordered pixels belong to part ``rank`` of ``count``, contiguous and balanced.

    Part i is ``Q[floor(i|Q|/m) : floor((i+1)|Q|/m)]``; with more parts than pixels, parts are reused cyclically.

    Args:
        pixels: |Q|.
        rank: int64 [n], i.
        count: int64 [n] or scalar, m.

    Returns:
        bool [n, |Q|].

    Source: card, section 6 [inferred].
    """
    parts = count.clamp(max=pixels)
    part = rank % parts
    column = torch.arange(pixels)
    low, high = part * pixels // parts, (part + 1) * pixels // parts
    return (column >= low[..., None]) & (column < high[..., None])


def stamp(images: Tensor, mask: Tensor, value: Tensor | float = 1.0) -> Tensor:
    """Overwrite the pixels under ``mask`` on every channel; the input is not changed.

    Args:
        images: [..., ch, H, W].
        mask: bool, broadcastable to [..., H, W].
        value: a number, or a tensor broadcastable to [..., H, W].

    Returns:
        A new tensor; its leading dimensions are those of ``images`` and ``mask`` broadcast.

    Raises:
        DbadflError: mask and images of different size.
    """
    if mask.shape[-2:] != images.shape[-2:]:
        raise DbadflError(
            f"a trigger mask of {tuple(mask.shape[-2:])} does not fit images of {tuple(images.shape[-2:])}"
        )
    ink = value.to(images.dtype).unsqueeze(-3) if isinstance(value, Tensor) else images.new_tensor(value)
    return torch.where(mask.unsqueeze(-3), ink, images)
