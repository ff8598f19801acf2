"""Reading arrays out of published pickles without running them, for loaders of data that is only there as pickles.

The unpickler knows a handful of names, and each gives a placeholder of ours that only remembers its arguments: no
function of numpy's, and nothing else at all, is called from the file. Arrays are then made from the remembered bytes.

`read_dictionary` serves for files like CIFAR's. A loader of another kind of file derives no class: it tells
`ArrayUnpickler` which further names its files may ask for, and gives each a placeholder of its own.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "Array", "ArrayUnpickler", "Name", "Refused", "StoredArray", "StoredDType", "read_dictionary"]

Array = npt.NDArray[Any]
DTYPES = {name: np.dtype(f"<{name}") for name in ("f4", "f8", "i2", "i4", "i8", "u4", "u8")}
DTYPES |= {name: np.dtype(name) for name in ("i1", "u1", "b1")}
"""The element types that are read, by the names they have in a pickle."""


class Refused(Exception):
    """The pickle asks for something that arrays do not need, or is no such file."""


class Name:
    """A callable that a pickle may ask for; it carries no state that the pickle could change."""

    __slots__ = ()


class StoredDType:
    """Remembers the name and the byte order of an element type."""

    __slots__ = ("big", "name")

    def __init__(self, name: object = "", *flags: object) -> None:
        self.name, self.big = _text(name), False

    def __setstate__(self, state: object) -> None:
        self.big = isinstance(state, tuple) and len(state) > 1 and _text(state[1]) == ">"


class StoredArray:
    """Remembers the parts of an array."""

    __slots__ = ("state",)

    def __init__(self, *parts: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def numpy(self) -> Array:
        """The array, not writable.

        Raises:
            Refused: its type is none of `DTYPES`, or its parts do not fit.
        """
        state = self.state
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array of unknown form")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, StoredDType) or dtype.name not in DTYPES or dtype.big:
            raise Refused(f"an array of {getattr(dtype, 'name', 'unknown')} values, not little-endian numbers")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("an array of unknown shape")
        if not isinstance(data, (bytes, str)):
            raise Refused("an array of objects")
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote the bytes as a string
        array = np.frombuffer(raw, DTYPES[dtype.name])
        if len(array) != math.prod(shape):
            raise Refused(f"an array of shape {shape} with {len(array)} values")
        return array.reshape(shape, order="F" if fortran else "C")


class _Reconstruct(Name):
    def __call__(self, *arguments: object) -> StoredArray:
        return StoredArray()


class _FromBuffer(Name):
    def __call__(self, data: object, dtype: object, shape: object, order: object = "C") -> StoredArray:
        array = StoredArray()
        array.state = (1, shape, dtype, order != "C", bytes(data) if isinstance(data, bytearray) else data)
        return array


class _Latin1(Name):
    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise Refused("an encoding other than latin1")
        return text.encode("latin1")


class _NoBytes(Name):
    """``bytes()``, which older protocols write for an empty array."""

    def __call__(self, *arguments: object) -> bytes:
        if arguments:
            raise Refused("a call of bytes")
        return b""


class ArrayUnpickler(pickle._Unpickler):
    """Reads numbers, texts, lists, dictionaries and arrays; arrays come as `StoredArray`.

    Args:
        file: at the beginning of a pickle.
        encoding: of the strings that Python 2 wrote: ``latin1`` gives text, ``bytes`` bytes.
        further: (module, name) -> what a pickle that asks for it gets: a `Name`, or a placeholder class with slots.

    ``load`` raises `Refused` when the file asks for any other name, and whatever the pickle machine raises on damaged
    input.
    """

    # the Python version keeps its memo in a dict; the C version's grows to any index that the file names

    def __init__(
        self,
        file: IO[bytes],
        *,
        encoding: Literal["latin1", "bytes"] = "latin1",
        further: Mapping[tuple[str, str], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._further = dict(further or {})

    def find_class(self, module: str, name: str) -> Any:
        """The placeholder of a name."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Reconstruct()
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _FromBuffer()
        known = {
            ("numpy", "ndarray"): StoredArray,
            ("numpy", "dtype"): StoredDType,
            ("_codecs", "encode"): _Latin1(),
            ("__builtin__", "bytes"): _NoBytes(),
            ("builtins", "bytes"): _NoBytes(),
            **self._further,
        }
        if (module, name) not in known:
            raise Refused(f"the name {module}.{name}")
        return known[module, name]


def read_dictionary(file: IO[bytes]) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3, arrays as numpy arrays; nothing in the file is executed.

    Args:
        file: at the beginning of a pickle.

    Returns:
        Its values by their keys as strings; Python 2's strings are bytes, and arrays are not writable.

    Raises:
        Refused: the pickle asks for anything but plain values and number arrays.
        Exception: whatever the pickle machine raises on damaged input.
    """
    content = ArrayUnpickler(file, encoding="bytes").load()
    if not isinstance(content, dict):
        raise Refused(f"a {type(content).__name__} instead of a dictionary")
    names = [key.decode("ascii", "replace") if isinstance(key, bytes) else str(key) for key in content]
    values = [value.numpy() if isinstance(value, StoredArray) else value for value in content.values()]
    return dict(zip(names, values, strict=True))


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
