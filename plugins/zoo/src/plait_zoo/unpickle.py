"""Reading the published CIFAR pickles without running them, by `plait.pickled`."""

from __future__ import annotations

from typing import IO, Any

from plait.pickled import ArrayUnpickler, Refused, StoredArray

__all__ = ["Refused", "read"]


def read(file: IO[bytes]) -> dict[str, Any]:
    """The dictionary in a pickle, bytes keys as strings, arrays as numpy arrays; nothing in the file is executed.

    Raises:
        Refused: the pickle asks for anything but plain values and number arrays.
        Exception: whatever the pickle machine raises on damaged input.
    """
    found = ArrayUnpickler(file, encoding="bytes").load()
    if not isinstance(found, dict):
        raise Refused(f"a {type(found).__name__} instead of a dictionary")
    names = [key.decode("ascii", "replace") if isinstance(key, bytes) else str(key) for key in found]
    values = [value.numpy() if isinstance(value, StoredArray) else value for value in found.values()]
    return dict(zip(names, values, strict=True))
