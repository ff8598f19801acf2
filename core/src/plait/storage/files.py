"""Files written whole or not at all. No torch here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from plait.errors import RunFailed


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(temporary_path)`` make a file beside ``path``, then put it in place in one step.

    Raises:
        RunFailed: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFailed(f"{path} could not be written: {error}. Whatever stood there before is unchanged.") from error


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sync_directory(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
