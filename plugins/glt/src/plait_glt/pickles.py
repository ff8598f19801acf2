"""Reading published pickles of arrays, sparse matrices and lists without running them, by `plait_zoo.pickled`.

A sparse matrix is a placeholder, too, that only remembers its parts: nothing of scipy's is called from the file.
"""

from __future__ import annotations

from typing import IO, Any, NamedTuple

import numpy as np

from plait_zoo.pickled import Array, ArrayUnpickler, Name, Refused, StoredArray

__all__ = ["Array", "Entries", "Refused", "read", "read_named", "read_value"]


class Entries(NamedTuple):
    """A sparse matrix as its stored entries: row, column and value [nnz], and the shape."""

    row: Array
    column: Array
    value: Array
    shape: tuple[int, int]


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
        if not all(isinstance(part, StoredArray) for part in parts.values()) or not isinstance(shape, tuple):
            raise Refused("a sparse matrix without data, indices, indptr or shape")
        value, column, starts = (part.numpy() for part in parts.values() if isinstance(part, StoredArray))
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


class _ListName(Name):
    def __call__(self, *arguments: object) -> object:
        raise Refused("a call of list")


class _CopyReg(Name):
    def __call__(self, kind: object, base: object = None, state: object = None) -> _CSR:
        if kind is not _CSR:
            raise Refused("a class made by copy_reg")
        return _CSR()


FURTHER = {
    ("scipy.sparse.csr", "csr_matrix"): _CSR,
    ("scipy.sparse._csr", "csr_matrix"): _CSR,
    ("collections", "defaultdict"): _Lists,
    ("__builtin__", "list"): _ListName(),
    ("builtins", "list"): _ListName(),
    ("__builtin__", "object"): _ListName(),
    ("copy_reg", "_reconstructor"): _CopyReg(),
}
"""What a file may ask for beside arrays."""


def read(file: IO[bytes]) -> Entries | Array | dict[Any, Any]:
    """A sparse matrix as `Entries`, an array, or a dictionary of lists; nothing in the file is executed.

    Raises:
        Refused: the pickle asks for any other name, or holds anything else.
        Exception: whatever the pickle machine raises on damaged input.
    """
    content = ArrayUnpickler(file, further=FURTHER).load()
    if isinstance(content, _CSR):
        return content.entries()
    if isinstance(content, StoredArray):
        return content.numpy()
    if isinstance(content, dict):
        return dict(content)
    raise Refused(f"a {type(content).__name__} instead of a matrix, an array or a dictionary")


def read_value(file: IO[bytes]) -> object:
    """The next pickle of a file: numbers, texts, lists and dictionaries as they are, anything else a placeholder.

    Raises:
        Refused: it asks for any name but those of arrays.
        Exception: as `read`.
    """
    value: object = ArrayUnpickler(file, further=FURTHER).load()
    return value


def read_named(file: IO[bytes]) -> dict[str, Array]:
    """A dictionary from names to arrays; nothing in the file is executed.

    Raises:
        Refused: the pickle asks for any other name, or holds anything else.
        Exception: as `read`.
    """
    content = read_value(file)
    if not isinstance(content, dict):
        raise Refused(f"a {type(content).__name__} instead of a dictionary of arrays")
    odd = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, StoredArray)]
    if odd:
        raise Refused(f"a {type(content[odd[0]]).__name__} under {odd[0]!r} instead of an array")
    return {name: value.numpy() for name, value in content.items()}
