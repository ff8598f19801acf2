"""Samples of NSD in tars, one after another (card, 5.1)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BrainotError

__all__ = ["Sample", "array", "members", "samples"]

KINDS = ("jpg", "nsdgeneral.npy", "coco73k.npy")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """An image that a subject saw: betas float32 [looks, V], the image's file (JPEG or NPY), its number in COCO."""

    betas: Array
    image: Callable[[], bytes]
    coco: int


def samples(root: Path, split: str, subject: int) -> Iterator[Sample]:
    """The samples of a subject in ``train``, ``val`` or ``test`` of ``webdataset_avg_split``, in the order of the tars.

    Raises:
        BrainotError: no such tar, a sample without one of its files, betas without the axis of repetitions.
    """
    files = sorted((root / split).glob(f"{split}_subj0{subject}_*.tar"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
    if not files:
        raise BrainotError(f"{root / split}: no {split}_subj0{subject}_*.tar; give the folder webdataset_avg_split")
    for file in files:
        for key, of in members(file, KINDS):
            betas, coco = (array(of[kind], f"{file}: {key}.{kind}") for kind in KINDS[1:])
            if betas.ndim != 2:
                raise BrainotError(
                    f"{file}: {key}.nsdgeneral.npy is {list(betas.shape)}; repetitions x voxels are needed"
                )
            yield Sample(betas.astype(np.float32), lambda image=of["jpg"]: image, int(coco.ravel()[0]))  # type: ignore[misc]


def members(file: Path, kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The files ``KEY.kind`` of each key in a tar.

    Raises:
        BrainotError: no tar, or a key without one of the kinds.
    """
    parts: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind in kinds and (opened := tar.extractfile(member)):
                    parts.setdefault(key, {})[kind] = opened.read()
    except tarfile.TarError as error:
        raise BrainotError(f"{file}: no tar that can be read: {error}") from None
    for key, of in parts.items():
        if missing := [kind for kind in kinds if kind not in of]:
            raise BrainotError(f"{file}: sample {key} has no {key}.{missing[0]}")
        yield key, of


def array(data: bytes, where: str) -> Array:
    """An NPY file. Executes nothing.

    Raises:
        BrainotError: it is none.
    """
    try:
        result: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise BrainotError(f"{where} is no NumPy array: {error}") from None
    return result
