"""Reading published pickles of arrays without running them.

The unpickler knows a handful of names, and each gives a placeholder of ours that only remembers its arguments: no
function of numpy's or scipy's, and nothing else at all, is called from the file. Arrays are then made from the bytes.
"""

from __future__ import annotations

import pickle
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

DTYPES = {name: np.dtype(f"<{name}") for name in ("f4", "f8", "i2", "i4", "i8", "u4", "u8")}
DTYPES |= {name: np.dtype(name) for name in ("i1", "u1", "b1")}
Array = npt.NDArray[Any]


class Refused(Exception):
    """The pickle asks for something that arrays do not need, or is no such file."""


class Entries(NamedTuple):
    """A sparse matrix as its stored entries: row, column and value [nnz], and the shape."""

    row: Array
    column: Array
    value: Array
    shape: tuple[int, int]


class _DType:
    __slots__ = ("big", "name")

    def __init__(self, name: object = "", *flags: object) -> None:
        self.name, self.big = _text(name), False

    def __setstate__(self, state: object) -> None:
        self.big = isinstance(state, tuple) and len(state) > 1 and _text(state[1]) == ">"


class _NDArray:
    __slots__ = ("state",)

    def __init__(self, *parts: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def numpy(self) -> Array:
        """The array."""
        state = self.state
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array of unknown form")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or dtype.name not in DTYPES or dtype.big:
            raise Refused(f"an array of {getattr(dtype, 'name', 'unknown')} values, not little-endian numbers")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("an array of unknown shape")
        if not isinstance(data, (bytes, str)):
            raise Refused("an array of objects")
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote the bytes as a string
        array = np.frombuffer(raw, DTYPES[dtype.name])
        count = 1
        for side in shape:
            count *= side
        if len(array) != count:
            raise Refused(f"an array of shape {shape} with {len(array)} values")
        return array.reshape(shape, order="F" if fortran else "C")


class _CSR:
    __slots__ = ("state",)

    def __init__(self, *parts: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def entries(self) -> Entries:
        """The stored entries, checked."""
        state = self.state
        if not isinstance(state, dict):
            raise Refused("a sparse matrix of unknown form")
        parts = {name: state.get(name) for name in ("data", "indices", "indptr")}
        shape = state.get("_shape", state.get("shape"))
        if not all(isinstance(part, _NDArray) for part in parts.values()) or not isinstance(shape, tuple):
            raise Refused("a sparse matrix without data, indices, indptr or shape")
        value, column, starts = (part.numpy() for part in parts.values() if isinstance(part, _NDArray))
        if len(shape) != 2 or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("a sparse matrix of unknown shape")
        rows, columns = shape
        if starts.dtype.kind not in "iu" or column.dtype.kind not in "iu" or not value.ndim == column.ndim == 1:
            raise Refused("a sparse matrix with indices that are no integers")
        lengths: Array = np.diff(starts.astype(np.int64))
        if len(starts) != rows + 1 or starts[0] != 0 or (lengths < 0).any():
            raise Refused("a sparse matrix whose row starts do not fit its shape")
        if not starts[-1] == len(value) == len(column):
            raise Refused("a sparse matrix whose row starts do not fit its values")
        if len(column) and (column.min() < 0 or column.max() >= columns):
            raise Refused(f"a sparse matrix with a column outside 0..{columns - 1}")
        row = np.repeat(np.arange(rows, dtype=np.int64), lengths)
        return Entries(row, column.astype(np.int64), value, (rows, columns))


class _Lists(dict[Any, Any]):
    """Stands for ``collections.defaultdict(list)``; the default is forgotten."""

    def __init__(self, *default: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        raise Refused("a dictionary with a state")


class _Name:
    """A callable that carries no state a pickle could change."""

    __slots__ = ()


class _ListName(_Name):
    def __call__(self, *arguments: object) -> object:
        raise Refused("a call of list")


class _NoBytes(_Name):
    """``bytes()``, which older protocols write for an empty array."""

    def __call__(self, *arguments: object) -> bytes:
        if arguments:
            raise Refused("a call of bytes")
        return b""


class _Reconstruct(_Name):
    def __call__(self, *arguments: object) -> _NDArray:
        return _NDArray()


class _FromBuffer(_Name):
    def __call__(self, data: object, dtype: object, shape: object, order: object = "C") -> _NDArray:
        array = _NDArray()
        array.state = (1, shape, dtype, order != "C", bytes(data) if isinstance(data, bytearray) else data)
        return array


class _CopyReg(_Name):
    def __call__(self, kind: object, base: object = None, state: object = None) -> _CSR:
        if kind is not _CSR:
            raise Refused("a class made by copy_reg")
        return _CSR()


class _Latin1(_Name):
    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise Refused("an encoding other than latin1")
        return text.encode("latin1")


class _Unpickler(pickle._Unpickler):
    # the Python version keeps its memo in a dict; the C version's grows to any index that the file names

    def find_class(self, module: str, name: str) -> Any:
        found = _known(module, name)
        if found is None:
            raise Refused(f"the name {module}.{name}")
        return found


def _known(module: str, name: str) -> Any:
    if module in ("scipy.sparse.csr", "scipy.sparse._csr") and name == "csr_matrix":
        return _CSR
    if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
        return _Reconstruct()
    if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
        return _FromBuffer()
    return {
        ("numpy", "ndarray"): _NDArray,
        ("numpy", "dtype"): _DType,
        ("collections", "defaultdict"): _Lists,
        ("__builtin__", "list"): _ListName(),
        ("builtins", "list"): _ListName(),
        ("__builtin__", "object"): _ListName(),
        ("__builtin__", "bytes"): _NoBytes(),
        ("builtins", "bytes"): _NoBytes(),
        ("copy_reg", "_reconstructor"): _CopyReg(),
        ("_codecs", "encode"): _Latin1(),
    }.get((module, name))


def read(file: IO[bytes]) -> Entries | Array | dict[Any, Any]:
    """A sparse matrix as `Entries`, an array, or a dictionary of lists; nothing in the file is executed.

    Raises:
        Refused: the pickle asks for any other name, or holds anything else.
        Exception: whatever the pickle machine raises on damaged input.
    """
    found = _Unpickler(file, encoding="latin1").load()
    if isinstance(found, _CSR):
        return found.entries()
    if isinstance(found, _NDArray):
        return found.numpy()
    if isinstance(found, dict):
        return dict(found)
    raise Refused(f"a {type(found).__name__} instead of a matrix, an array or a dictionary")


def read_value(file: IO[bytes]) -> object:
    """The next pickle of a file: numbers, texts, lists and dictionaries as they are, anything else a placeholder.

    Raises:
        Refused: it asks for any name but those of arrays.
        Exception: as `read`.
    """
    value: object = _Unpickler(file, encoding="latin1").load()
    return value


def read_named(file: IO[bytes]) -> dict[str, Array]:
    """A dictionary from names to arrays; nothing in the file is executed.

    Raises:
        Refused: the pickle asks for any other name, or holds anything else.
        Exception: as `read`.
    """
    found = read_value(file)
    if not isinstance(found, dict):
        raise Refused(f"a {type(found).__name__} instead of a dictionary of arrays")
    odd = [key for key, value in found.items() if not isinstance(key, str) or not isinstance(value, _NDArray)]
    if odd:
        raise Refused(f"a {type(found[odd[0]]).__name__} under {odd[0]!r} instead of an array")
    return {name: value.numpy() for name, value in found.items()}


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
