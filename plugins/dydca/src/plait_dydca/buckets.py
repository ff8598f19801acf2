"""Splits of a clip: whole frames, patches by shape, and streams whose batches have one shape. Card, section 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data import Batch, ByShape
from plait.data.seeds import seed_of
from plait.data.streams import Stream

from .clips import Clip
from .degradation import Array
from .network import as_input, groups, windows

__all__ = ["BucketStream", "CropStream", "FrameSplit", "PatchSplit", "TrainingPatches"]


AT_ONCE = 150_000
"""Low-resolution pixels of an evaluation's pass."""


class PatchSplit:
    """The patches of a plan, as lists by path and shape.

    Each batch of a list has ``input`` [B, 3, h + 2 halo, w + 2 halo], ``target`` [B, 3, h scale, w scale], ``frame``
    [B], ``borders`` [B, 4] (whether another patch lies above, below, left, right), and one number each: ``path`` and
    ``halo``.

    Args:
        clip: both resolutions.
        patches: [N, 6].
        halo: low-resolution pixels around a patch.
    """

    in_memory = True

    def __init__(self, clip: Clip, patches: Array, halo: int) -> None:
        self.clip, self.patches, self.halo = clip, patches, halo
        self.fingerprint = clip.digest
        self.at_once = max(1, int(AT_ONCE / (patches[:, 3] * patches[:, 4]).mean()))

    def __len__(self) -> int:
        return len(self.patches)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> ByShape:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        number = picked.numpy()
        members = [torch.from_numpy(own) for own in groups(self.patches[number])]
        parts = [self.batch(self.patches[number[own.numpy()]], picked[own]) for own in members]
        return ByShape(parts, torch.cat(members))

    def batch(self, patches: Array, index: Tensor) -> Batch:
        """Patches of one path and shape."""
        clip, scale = self.clip, self.clip.scale
        height, width = clip.lr.shape[1:3]
        large = patches.copy()
        large[:, 1:5] *= scale
        y, x = patches[:, 1], patches[:, 2]
        borders = np.stack([y > 0, y + patches[:, 3] < height, x > 0, x + patches[:, 4] < width], 1)
        return Batch(
            {
                "input": as_input(windows(clip.lr, patches, self.halo)),
                "target": as_input(windows(clip.hr, large, 0)),
                "frame": torch.from_numpy(patches[:, 0].copy()),
                "borders": torch.from_numpy(borders),
                "path": int(patches[0, 5]),
                "halo": self.halo,
                "index": index,
            }
        )


class FrameSplit(PatchSplit):
    """Whole frames of a clip, each a patch of its own, as plain batches."""

    def __init__(self, clip: Clip) -> None:
        height, width = clip.lr.shape[1:3]
        super().__init__(clip, np.array([(number, 0, 0, height, width, 0) for number in range(len(clip))]), 0)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:  # type: ignore[override]
        picked = torch.as_tensor(rows, dtype=torch.int64)
        return self.batch(self.patches[picked.numpy()], picked)


class TrainingPatches(PatchSplit):
    """Patches to train on, drawn shape by shape.

    Args:
        clip, patches, halo: as of `PatchSplit`.
        fine: pixels of a fine cell: a batch has as many pixels as ``batch_size`` of them.
        anywhere: patches are cut out at random places of their frame.
        drop_last: as of the recipe.
    """

    def __init__(
        self, clip: Clip, patches: Array, halo: int, fine: int, *, anywhere: bool = False, drop_last: bool = False
    ) -> None:
        super().__init__(clip, patches, halo)
        self.fine, self.anywhere, self.drop_last = fine, anywhere, drop_last

    def stream(self, name: str, seed: int, batch_size: int, **options: Any) -> BucketStream:
        """Batches of one path and shape."""
        kind = CropStream if self.anywhere else BucketStream
        return kind(self, name, seed, batch_size, drop_last=self.drop_last, **options)


class BucketStream(Stream):
    """Batches of one path and shape each, of about equal area, all batches of an epoch in random order.

    The state is the number of drawn batches, as of every `Stream`; every rank takes its share of the same batch.
    """

    split: TrainingPatches

    def __init__(self, split: TrainingPatches, name: str, seed: int, batch_size: int, **options: Any) -> None:
        super().__init__(split, name, seed, batch_size, **options)
        self.buckets = [torch.from_numpy(rows) for rows in groups(split.patches)]
        areas = [int(np.prod(split.patches[rows[0], 3:5])) for rows in self.buckets]
        self.sizes = [max(1, batch_size * split.fine // area) for area in areas]
        counts = [
            len(rows) // size if self.drop_last and len(rows) >= size else -(-len(rows) // size)
            for rows, size in zip(self.buckets, self.sizes, strict=True)
        ]
        self.batches_per_epoch = sum(counts)
        self._places = [(bucket, place) for bucket, count in enumerate(counts) for place in range(count)]
        self._shuffled: tuple[int, list[tuple[int, int]]] | None = None

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """Bucket, and number of the batch in it, of each batch of an epoch."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, "order", epoch))
            turns = torch.randperm(len(self._places), generator=generator).tolist()
            self._shuffled = epoch, [self._places[turn] for turn in turns]
        return self._shuffled[1]

    def rows(self, start: int) -> Iterator[Tensor]:
        """As of `Stream`."""
        number = start
        while True:
            epoch, first = divmod(number, self.batches_per_epoch)
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, epoch))
            shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in self.buckets]
            for bucket, place in self.order(epoch)[first:]:
                size = self.sizes[bucket]
                yield self.own(shuffled[bucket][place * size : (place + 1) * size])
                number += 1

    def size(self, batch_number: int) -> int:
        """As of `Stream`."""
        epoch, inside = divmod(batch_number, self.batches_per_epoch)
        bucket, place = self.order(epoch)[inside]
        return min(self.sizes[bucket], len(self.buckets[bucket]) - place * self.sizes[bucket])


class CropStream(BucketStream):
    """The same, but each patch lies at a random place of its frame."""

    def _open(self) -> Iterator[Any]:
        number = self.drawn
        height, width = self.split.clip.lr.shape[1:3]
        for rows in self.rows(self.drawn):
            patches = self.split.patches[rows.numpy()].copy()
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, "places", number, self.rank))
            free = torch.tensor([height - patches[0, 3], width - patches[0, 4]]) + 1
            at = (torch.rand(len(rows), 2, generator=generator, dtype=torch.float64) * free).long()
            patches[:, 1:3] = at.numpy()
            yield ByShape([self.split.batch(patches, rows)])
            number += 1
