"""NSD as MindEye2 publishes it: trials in tars, betas and images in HDF5 (card, 5.1), by h5py (an extra).

``wds/subj0S/{train,new_test}/*.tar`` with ``KEY.behav.npy`` of each trial: column 0 is the image's row in
``coco_images_224_float16.hdf5`` (``images``), column 5 the row in ``betas_all_subj0S_fp32_renorm.hdf5`` (``betas``).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BrainotError
from .tars import Sample, array, members

__all__ = ["samples"]

IMAGE, TRIAL = 0, 5
"""Columns of ``behav``."""


def samples(root: Path, split: str, subject: int) -> Iterator[Sample]:
    """The images that a subject saw in ``train`` or ``test``, each with all its looks; of ``val`` there is none.

    Raises:
        BrainotError: no h5py, a file that is missing or of another layout, a row that is not there.
    """
    if split == "val":
        return
    folder = root / "wds" / f"subj0{subject}"
    part = "new_test" if split == "test" and (folder / "new_test").is_dir() else split
    files = sorted((folder / part).glob("*.tar"))
    if not files:
        raise BrainotError(f"{folder / part}: no tar of trials; give the folder of MindEye2's files")
    betas = _rows(root / f"betas_all_subj0{subject}_fp32_renorm.hdf5", "betas", 2)
    images = _rows(root / "coco_images_224_float16.hdf5", "images", 4)
    looks: dict[int, list[int]] = {}
    for file in files:
        for key, of in members(file, ("behav.npy",)):
            behav = array(of["behav.npy"], f"{file}: {key}.behav.npy")
            if behav.ndim == 0 or behav.shape[-1] <= TRIAL:
                raise BrainotError(f"{file}: {key}.behav.npy is {list(behav.shape)}; [..., 17] is needed")
            image, trial = (int(behav.reshape(-1, behav.shape[-1])[0, column]) for column in (IMAGE, TRIAL))
            for row, stored in ((image, images), (trial, betas)):
                if not 0 <= row < len(stored):
                    raise BrainotError(f"{file}: {key} names row {row} of {stored.file.filename}, of {len(stored)}")
            looks.setdefault(image, []).append(trial)
    for image, trials in looks.items():
        seen = np.stack([betas[trial] for trial in trials]).astype(np.float32)
        yield Sample(seen, functools.partial(_file, images, image), image)


def _rows(file: Path, name: str, axes: int) -> Any:
    """The rows of a data set in an HDF5 file, which are read when they are asked for."""
    if importlib.util.find_spec("h5py") is None:
        raise BrainotError(f"{file}: reading HDF5 files needs h5py: pip install 'plait-brainot[nsd]'")
    if not file.is_file():
        raise BrainotError(f"{file} is not there")
    try:
        stored = importlib.import_module("h5py").File(file, "r").get(name)
    except OSError as error:
        raise BrainotError(f"{file}: no HDF5 file: {error}") from None
    if getattr(stored, "ndim", None) != axes:
        raise BrainotError(f"{file}: no data set {name!r} of {axes} axes in it")
    return stored


def _file(images: Any, row: int) -> bytes:
    """An image [3, H, W] in 0..1 as the bytes of an NPY file."""
    opened = io.BytesIO()
    np.save(opened, images[row])
    return opened.getvalue()
