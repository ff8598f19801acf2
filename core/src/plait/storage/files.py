"""Files written whole or not at all. No torch here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from plait.errors import RunFailed


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(temporary_path)`` make a file beside ``path``, then put it in place in one step.

    Its permissions follow the umask, whatever ``write`` gave it (safetensors: the owner's alone).

    Raises:
        RunFailed: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            mode = os.fstat(handle.fileno()).st_mode & 0o777
        write(temporary)
        with contextlib.suppress(OSError):  # some network drives have no permissions
            temporary.chmod(mode)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFailed(f"{path} could not be written: {error}. Whatever stood there before is unchanged.") from error


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
