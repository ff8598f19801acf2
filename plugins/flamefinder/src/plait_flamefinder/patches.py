"""Patches of frames: the grid, sums over it, and the data that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plait import Batch, Data, DataInfo, TensorSplit

from .augmentation import IMAGES, to_network, turned
from .errors import FlamefinderError

__all__ = ["Columns", "PatchSplit", "assembled", "cut", "patch_means", "patch_sums"]

Columns = dict[str, npt.NDArray[Any]]
"""Name -> a value of each patch, [n, ...]."""
FIELDS = frozenset({"input", "label", "group", "index", "bucket", "hot", "frame", "patch"})
"""Fields of every batch of patches."""
BUCKETS = ("unobscured", "partial", "obscured")
"""Names of the buckets of smoke, by number."""
POSITIVE_PX = 4
"""Flame pixels from which on a test patch is flame; those with fewer, but some, are ambiguous and left out."""
HOT_PX = 20
"""Pixels of hot distractor above which a patch without flame counts for the false positives on hot ground."""


def cut(frame: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """The non-overlapping patches of a frame [H, W, ...], the grid in its centre: [rows, columns, size, size, ...].

    Raises:
        FlamefinderError: the patch is larger than the frame.
    """
    height, width = frame.shape[:2]
    rows, columns = height // size, width // size
    if not rows or not columns:
        raise FlamefinderError(f"a patch of {size} pixels is larger than the frame of {height} x {width}.")
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    inside = frame[top : top + rows * size, left : left + columns * size]
    return inside.reshape(rows, size, columns, size, *frame.shape[2:]).swapaxes(1, 2)


def patch_sums(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Sums over the patches of counts or masks [H, W], int64 [rows, columns]."""
    return np.asarray(cut(values, size).sum((2, 3), dtype=np.int64))


def patch_means(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.float32]:
    """Means over the patches of [H, W], float32 [rows, columns]."""
    return np.asarray(cut(values, size).mean((2, 3), dtype=np.float64), np.float32)


class PatchSplit:
    """Columns [n, ...] in memory, the images ``input`` and ``rgb`` as bytes, handed out as float32 in [0, 1]."""

    in_memory = True
    at_once = 128  # examples in a pass of an evaluation: what lies between two layers then fits a core's cache

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._whole = TensorSplit(columns)
        self.fields = {name: value for name, value in self._whole.fields.items() if name not in IMAGES}

    def __len__(self) -> int:
        return len(self._whole)

    def __getitems__(self, rows: Any) -> Batch:
        batch = self._whole.__getitems__(rows)
        return Batch(
            batch | {n: batch[n].float() / 255 for n in IMAGES if n in batch and batch[n].dtype == torch.uint8}
        )


def assembled(splits: Mapping[str, Columns], groups: tuple[str, str], rgb: bool, notes: Sequence[str]) -> Data:
    """The data of the columns of ``train``, ``validation`` and ``test``; with ``rgb`` training has RGB patches.

    Raises:
        FlamefinderError: the training patches are of one class alone.
    """
    label = splits["train"]["label"]
    if label.all() or not label.any():
        raise FlamefinderError(
            f"{'only' if label.any() else 'no'} flame patches in unobscured training frames: check data.min_flame_px "
            "or data.rule, the RGB rule, or take more frames."
        )
    size = splits["train"]["input"].shape[-1]
    info = DataInfo("classification", (1, size, size), 2, 2, FIELDS | ({"rgb"} if rgb else set()))
    names = {"label": ("no flame", "flame"), "group": groups, "bucket": BUCKETS}
    train, validation, test = (PatchSplit(splits[name]) for name in ("train", "validation", "test"))
    return Data(info, train, validation, test, turned, to_network, names=names, notes=tuple(notes))
