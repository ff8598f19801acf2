"""Parsed data kept between runs in the user's cache folder. Nothing depends on it: a cache that fails is no error."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

from plait.errors import RunFailed
from plait.storage.files import write_atomically


def cache_dir() -> Path:
    """The user's cache folder, on Linux ``$XDG_CACHE_HOME/plait`` or ``~/.cache/plait``; it need not exist."""
    return user_cache_path("plait", appauthor=False)


def load(name: str) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays stored under a name, or None when there are none or they cannot be read. Executes nothing."""
    try:
        with np.load(cache_dir() / f"{name}.npz", allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except Exception:  # a damaged archive raises many things, and each means the same: parse again
        return None


def store(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep arrays under a name, whole or not at all; a folder that cannot be written is left alone."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type,unused-ignore]

    with contextlib.suppress(RunFailed):
        write_atomically(cache_dir() / f"{name}.npz", write)
