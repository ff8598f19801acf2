"""Volumes of a scanner from NIfTI files, by nibabel (an extra)."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import BrainotError

__all__ = ["volume"]


def volume(file: Path) -> npt.NDArray[np.float64]:
    """The numbers of a NIfTI file, float64 [x, y, z] or [x, y, z, time].

    Raises:
        BrainotError: no nibabel, no such file, one that cannot be read.
    """
    if importlib.util.find_spec("nibabel") is None:
        raise BrainotError(f"{file}: reading NIfTI files needs nibabel: pip install nibabel")
    if not file.is_file():
        raise BrainotError(f"{file} is not there")
    try:
        return np.asarray(importlib.import_module("nibabel").load(file).dataobj, dtype=np.float64)
    except Exception as error:  # a damaged file may raise anything
        raise BrainotError(f"{file}: no NIfTI image: {type(error).__name__}: {str(error).splitlines()[0]}") from None
