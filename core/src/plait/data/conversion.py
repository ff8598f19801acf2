"""Splits as people have them: arrays, torch's data sets, lists of rows, taken for what they can only mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from plait.data.batches import Batch, ByShape, Split, Subset, TensorSplit, as_tensor
from plait.errors import BadInput

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


class Rows:
    """A split over a data set that gives its rows one by one, as (input, label) or as dicts of fields.

    Args:
        source: what has ``len(source)`` and ``source[row]``; a list lies in memory.
        where: what it is called in messages.
        truth: the name of the second of a pair: ``label`` or ``target``.
    """

    def __init__(self, source: Any, where: str, truth: str) -> None:
        self.source, self.where, self.truth = source, where, truth
        self.in_memory = isinstance(source, list)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        numbers = torch.as_tensor(rows).tolist()
        read = [self._named(self.source[row], row) for row in numbers]
        fields = {name: self._stacked(name, [fields[name] for fields in read], numbers) for name in read[0]}
        return Batch({**fields, "index": torch.as_tensor(numbers)})

    def _named(self, row: Any, number: int) -> Mapping[str, Any]:
        if isinstance(row, Mapping):
            return row
        if isinstance(row, (list, tuple)) and len(row) == 2:
            return {"input": row[0], self.truth: row[1]}
        given = f"{len(row)} values" if isinstance(row, (list, tuple)) else f"a {type(row).__name__}"
        raise BadInput(
            f"{self.where}: row {number} is {given}; a row is a pair (input, {self.truth}), or a dict that names its "
            "fields."
        )

    def _stacked(self, name: str, values: list[Any], numbers: list[int]) -> Tensor:
        named = zip(values, numbers, strict=True)
        tensors = [as_tensor(value, f"{self.where}: row {number}: {name!r}") for value, number in named]
        for tensor, number in zip(tensors, numbers, strict=True):
            if tensor.shape != tensors[0].shape:
                both = f"{tuple(tensors[0].shape)} in row {numbers[0]} and {tuple(tensor.shape)} in row {number}"
                raise BadInput(f"{self.where}: {name!r} is {both}; all rows need one shape.")
        return torch.stack(tensors)


class Mended:
    """Another split whose arrays are tensors and whose class numbers are int64 [B]; all else is that split's.

    Args:
        split: the other split.
        integers: fields that hold class numbers.
    """

    def __init__(self, split: Split, integers: Sequence[str]) -> None:
        self.split, self.integers = split, tuple(integers)
        self.fields: dict[str, Tensor] = mended(getattr(split, "fields", {}), integers)

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        return Batch(mended(self.split.__getitems__(rows), self.integers))

    def __getattr__(self, name: str) -> Any:
        if name in ("in_memory", "at_once", "fingerprint"):
            return getattr(self.split, name)
        raise AttributeError(name)


def mended(fields: Mapping[str, Any], integers: Sequence[str]) -> dict[str, Any]:
    """The same fields with arrays as tensors, and with class numbers of any width, [n] or [n, 1], as int64 [n]."""
    whole = {n: as_tensor(v, f"field {n!r}") if isinstance(v, np.ndarray) else v for n, v in fields.items()}
    for name in integers:
        value = whole.get(name)
        if isinstance(value, Tensor) and value.dtype in INTEGERS:
            whole[name] = value.to(torch.int64)
            if value.ndim == 2 and value.shape[1] == 1:
                whole[name] = whole[name].squeeze(1)
    return whole


def as_split(given: Any, where: str, truth: str, integers: Sequence[str]) -> Split:
    """What was given as a split, as one: the same object where it is a split as plait takes it.

    Args:
        given: a split; a mapping of tensors; a pair of tensors, a ``TensorDataset``, a data set or list of rows.
        where: what it is called in messages.
        truth: the field that the second of a pair is: ``label`` or ``target``.
        integers: fields that hold class numbers.

    Raises:
        BadInput: anything else, with what to give instead.
    """
    split = _split(given, where, truth)
    if not len(split) or hasattr(split, "stream"):
        return split
    batch = split.__getitems__([0])
    if isinstance(batch, ByShape) or not isinstance(batch, Mapping) or "index" not in batch:
        return split  # a batch of another kind, a graph say; `Data.check` says what is missing
    after = mended(batch, integers)
    if isinstance(batch, Batch) and all(after[n] is v or _same(after[n], v) for n, v in batch.items()):
        return split
    return TensorSplit(mended(split.fields, integers)) if type(split) is TensorSplit else Mended(split, integers)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape


def _split(given: Any, where: str, truth: str) -> Split:
    if isinstance(given, torch_data.DataLoader):
        raise BadInput(f"{where} is a DataLoader; plait makes the batches itself: give its data set (loader.dataset).")
    if isinstance(given, torch_data.IterableDataset):
        raise BadInput(
            f"{where} is an IterableDataset, whose rows have no numbers to shuffle and resume by: give a data set with "
            "len() and [row], a list of its rows say."
        )
    if isinstance(given, torch_data.Subset):
        return Subset(_split(given.dataset, where, truth), torch.as_tensor(list(given.indices), dtype=torch.int64))
    if isinstance(given, torch_data.TensorDataset):
        return _pair(given.tensors, where, truth)
    if isinstance(given, Mapping):
        return TensorSplit(given)
    if isinstance(given, tuple) and given and all(isinstance(v, (Tensor, np.ndarray)) for v in given):
        return _pair(given, where, truth)
    rows = hasattr(given, "__getitem__") and not isinstance(given, (str, bytes, Tensor, np.ndarray, tuple))
    if hasattr(given, "__len__") and hasattr(given, "__getitems__"):
        if not rows or not len(given) or not isinstance(given.__getitems__([0]), list):
            return given  # type: ignore[no-any-return]
        return Rows(given, where, truth)  # torch's own protocol: a list of rows
    if hasattr(given, "__len__") and rows:
        return Rows(given, where, truth)
    raise BadInput(
        f"{where} is of the type {type(given).__name__}; give a plait.TensorSplit, a TensorDataset, or a data set with "
        f"len() and [row] of (input, {truth}) pairs."
    )


def _pair(tensors: Sequence[Any], where: str, truth: str) -> TensorSplit:
    if len(tensors) != 2:
        raise BadInput(
            f"{where} has {len(tensors)} tensor{'s' * (len(tensors) != 1)} without names; two are input and {truth}. "
            f"Name them: plait.TensorSplit({{'input': ..., {truth!r}: ..., 'group': ...}})."
        )
    return TensorSplit({"input": tensors[0], truth: tensors[1]})
