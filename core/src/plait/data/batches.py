"""Batches, and the splits that hand them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from plait.errors import BadInput


class Batch(dict[str, Any]):
    """Named fields of B examples: ``input`` [B, ...], ``label`` [B] int64, ``index`` [B] (row in the split), and more.

    A field that is no tensor belongs to the batch as a whole: a graph, say, on which the examples are nodes.
    Sub-batches keep it, and if it has ``.to(device)`` it moves along.
    Any object with ``batch[name]``, ``name in batch`` and ``.to(device)`` serves as a batch too (a PyG ``Data`` does).
    """

    @property
    def size(self) -> int:
        """B, the number of examples."""
        return len(self["index"])

    def take(self, rows: Tensor) -> Batch:
        """The sub-batch of these rows, int64 [M]."""
        return Batch({k: v[rows] if isinstance(v, Tensor) else v for k, v in self.items()})

    def chunks(self, parts: int) -> list[Batch]:
        """At most ``parts`` sub-batches of nearly equal size, in order, none of them empty."""
        rows = torch.arange(self.size).tensor_split(parts)
        return [
            Batch({k: v[r[0] : r[-1] + 1] if isinstance(v, Tensor) else v for k, v in self.items()})
            for r in rows
            if len(r)
        ]

    def to(self, device: torch.device | str) -> Batch:
        """The same fields on a device."""
        return Batch({k: v.to(device, non_blocking=True) if hasattr(v, "to") else v for k, v in self.items()})


def not_finite(batch: Any) -> str:
    """Which numbers of a batch are NaN or infinite, in words (fields, and rows in the split); empty where none is."""
    odd = []
    for name, value in batch.items() if isinstance(batch, Mapping) else ():
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point() and not bool(value.isfinite().all()):
            rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().cpu()
            index = batch.get("index")
            if isinstance(index, Tensor) and index.ndim == 1 and len(index) == len(value):
                rows = index.cpu()[rows].sort().values
            shown = ", ".join(map(str, rows[:5].tolist())) + " ..." * (len(rows) > 5)
            odd.append(f"the field {name!r} has NaN or infinite numbers in row {shown} of its split")
    return "; ".join(odd)


@runtime_checkable
class Split(Protocol):
    """A part of a data set. ``__getitems__`` returns the batch of the given rows.

    A split may have ``fields``: its cheap columns (label, group, ...), name -> tensor [n]; the input need not be among
    them. ``in_memory = True`` says that reading needs no loader processes. ``at_once`` is how many rows an evaluation
    predicts in one pass, where a pass costs the same for few as for many (nodes of one graph). ``fingerprint``, a text,
    says which data it is, so that a run does not go on over other data; default: of its columns of integers. A split
    that is not drawn from by shuffling its rows has a method
    ``stream(name, seed, batch_size, *, augment, rank, world, workers)`` that gives a `Stream`.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any: ...


class TensorSplit:
    """A split that lies in memory as tensors whose first dimension is the example.

    Args:
        fields: name -> tensor (or array, or list of numbers) [n, ...]; ``index`` is added when missing.

    Raises:
        BadInput: no field, fields of different length, or one that holds no numbers.
    """

    in_memory = True

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields: dict[str, Tensor] = {name: as_tensor(value, f"field {name!r}") for name, value in fields.items()}
        lengths = {name: len(value) if value.ndim else 0 for name, value in self.fields.items()}
        if len(set(lengths.values())) != 1:
            raise BadInput(f"the fields of a split must have one length, got {lengths}.")
        self.size = next(iter(lengths.values()))
        self.fields.setdefault("index", torch.arange(self.size))

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        picked = torch.as_tensor(rows)
        return Batch({name: value.index_select(0, picked) for name, value in self.fields.items()})


class SplitAround:
    """Another split, and everything of it; for a subclass that changes one thing, its stream say."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any:
        return self.split.__getitems__(rows)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "split":
            raise AttributeError(name)
        return getattr(self.split, name)


class Subset:
    """Some rows of another split, in the given order; ``fields`` holds the cheap columns that the other one has."""

    def __init__(self, split: Split, rows: Tensor) -> None:
        self.split, self.rows = split, rows
        self.in_memory = getattr(split, "in_memory", False)
        self.fields: dict[str, Tensor] = {k: v[rows] for k, v in getattr(split, "fields", {}).items() if k != "input"}
        self.fields["index"] = torch.arange(len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any:
        picked = torch.as_tensor(rows)
        batch = self.split.__getitems__(self.rows[picked])
        batch["index"] = picked
        return batch


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor as it is; an array, a number, or lists of numbers as a tensor of the same values.

    Raises:
        BadInput: anything else, naming ``what``.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic, int, float, list, tuple)):
        try:
            whole = np.ascontiguousarray(value) if isinstance(value, np.ndarray) and value.ndim else value
            return torch.as_tensor(whole)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{what} is no tensor and cannot be made one: {error}.") from error
    kind = type(value)
    image = f"{kind.__module__}.".startswith("PIL.")
    mend = "a tensor (torchvision.transforms.ToTensor(), say, as the data set's transform)" if image else "a tensor"
    raise BadInput(f"{what} is {'a PIL image' if image else f'of the type {kind.__name__}'}; give {mend}.")
