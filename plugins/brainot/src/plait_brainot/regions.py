"""Which voxels belong to which region of the brain, from NSD's own volumes or from boolean vectors (card, 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BrainotError
from .nifti import volume

__all__ = ["regions"]

VISUAL = {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "hV4": (7,)}
"""Region -> its labels, ventral and dorsal, in ``prf-visualrois``."""
KINDS = ("faces", "bodies", "places", "words")
"""Regions that prefer a kind of image, each from its ``floc-KIND``."""

Array = npt.NDArray[Any]


def regions(path: str | None, voxels: Mapping[int, int]) -> dict[int, dict[str, Array]]:
    """The voxels of each region of each subject.

    Args:
        path: NSD's folder ``ppdata``, or an NPZ of boolean vectors ``subject1/V1``; None: no regions.
        voxels: subject -> V.

    Raises:
        BrainotError: files that cannot be read, a subject without regions, a region that is empty or of another length.
    """
    if path is None:
        return {}
    place = Path(path).expanduser()
    given: dict[int, dict[str, Array]] = {}
    for subject, count in voxels.items():
        masks = _volumes(place, subject) if place.is_dir() else _vectors(place, subject)
        for name, mask in masks.items():
            if mask.shape != (count,):
                raise BrainotError(f"data.rois: {path}: subject{subject}/{name} is {list(mask.shape)}, not [{count}]")
            if not mask.any():
                raise BrainotError(f"data.rois: {path}: subject{subject}/{name} is empty")
        given[subject] = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    return given


def _vectors(file: Path, subject: int) -> dict[str, Array]:
    start = f"subject{subject}/"
    try:
        with np.load(file, allow_pickle=False) as stored:
            masks = {name.removeprefix(start): stored[name] for name in stored.files if name.startswith(start)}
    except (OSError, ValueError) as error:
        raise BrainotError(f"data.rois: {file}: no NPZ of boolean vectors: {error}") from None
    if not masks:
        raise BrainotError(f"data.rois: {file} has no region {start}NAME")
    return masks


def _volumes(folder: Path, subject: int) -> dict[str, Array]:
    """The regions of card 2.10 within ``nsdgeneral``, whose voxels are in C order; ``rest`` are those of no region."""
    rois = folder / f"subj0{subject}" / "func1pt8mm" / "roi"
    inside = volume(rois / "nsdgeneral.nii.gz") > 0
    labels = {}
    for name in ("prf-visualrois", *(f"floc-{kind}" for kind in KINDS)):
        labels[name] = volume(rois / f"{name}.nii.gz")
        if labels[name].shape != inside.shape:
            shapes = f"{list(labels[name].shape)}, nsdgeneral {list(inside.shape)}"
            raise BrainotError(f"data.rois: {rois}: the volumes do not belong together: {name} {shapes}")
    masks = {name: np.isin(labels["prf-visualrois"][inside], numbers) for name, numbers in VISUAL.items()}
    masks |= {kind: labels[f"floc-{kind}"][inside] > 0 for kind in KINDS}
    masks["rest"] = ~np.any(list(masks.values()), axis=0)
    return masks
