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

    def numbered(self, rows: Tensor) -> Batch:
        """The same examples as these rows of another split, int64 [B]."""
        self["index"] = rows
        return self

    def to(self, device: torch.device | str) -> Batch:
        """The same fields on a device."""
        return Batch({k: v.to(device, non_blocking=True) if hasattr(v, "to") else v for k, v in self.items()})


class Parts(Batch):
    """Several batches that make one step together: all their examples, computed part by part.

    Where shapes differ from part to part (texts of different length) only the parts have that field.
    """

    def __init__(self, parts: Sequence[Batch]) -> None:
        joined = {name: [part[name] for part in parts] for name in parts[0] if all(name in part for part in parts)}
        alike = {name: values for name, values in joined.items() if _alike(values)}
        super().__init__({n: torch.cat(values) if len(values) > 1 else values[0] for n, values in alike.items()})
        self["index"] = torch.arange(self.size)
        self.parts = list(parts)

    def chunks(self, parts: int) -> list[Batch]:
        """The batches as they came."""
        return self.parts

    def to(self, device: torch.device | str) -> Parts:
        """The same parts on a device."""
        return Parts([part.to(device) for part in self.parts])

    def take(self, rows: Tensor) -> Batch:
        """The sub-batch of these rows, int64 [M].

        Raises:
            BadInput: the parts have inputs of different shapes.
        """
        if apart := self.parts[0].keys() - self.keys():
            raise BadInput(f"rows of batches that differ in the shape of {', '.join(sorted(apart))} cannot be joined.")
        return super().take(rows)


class ByShape(Parts):
    """Examples whose shapes differ, as a list of batches of one shape each.

    A step computes it part by part as one batch: the mean is over all examples, and so are the shares of accumulation.
    A split or stream that hands it out always does so, also where there is one shape: over several processes the parts
    may differ, but not the kind.

    Args:
        parts: batches with ``index``, the rows in the split.
        order: of each example, part after part, its place among the rows that were asked for, int64 [B]; default: the
            rows were asked for in the order in which they lie in the parts.
    """

    def __init__(self, parts: Sequence[Batch], order: Tensor | None = None) -> None:
        super().__init__(parts)
        self["index"] = torch.cat([part["index"] for part in parts])
        self.order = torch.arange(self.size) if order is None else order

    def chunks(self, parts: int) -> list[Batch]:
        """Each shape in chunks of about a part's share of all examples."""
        return [chunk for part in self.parts for chunk in part.chunks(max(1, -(-parts * part.size // self.size)))]

    def numbered(self, rows: Tensor) -> ByShape:
        """As of `Batch`, in the order in which the rows were asked for."""
        given = torch.split(rows[self.order], [part.size for part in self.parts])
        numbered = [part.numbered(own) for part, own in zip(self.parts, given, strict=True)]
        return ByShape(numbered, self.order)

    def to(self, device: torch.device | str) -> ByShape:
        """The same list on a device."""
        return ByShape([part.to(device) for part in self.parts], self.order)

    def take(self, rows: Tensor) -> ByShape:
        """The examples of these rows, int64 [M], each shape for itself."""
        ends = torch.tensor([part.size for part in self.parts]).cumsum(0)
        of_part = torch.bucketize(rows.cpu(), ends, right=True)
        parts, places = [], []
        for number, part in enumerate(self.parts):
            if len(own := (of_part == number).nonzero().flatten()):
                parts.append(part.take(rows[own] - (ends[number] - part.size)))
                places.append(own)
        return ByShape(parts, torch.cat(places))


def in_parts(batch: Any) -> list[Any]:
    """The batches that are computed one after another: those of a `Parts`, of any other batch itself."""
    return batch.parts if isinstance(batch, Parts) else [batch]


def _alike(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Tensor) and value.ndim and value.shape[1:] == values[0].shape[1:] for value in values)


def not_finite(batch: Any) -> str:
    """Which numbers of a batch are NaN or infinite, in words (fields, and rows in the split); empty where none is."""
    if isinstance(batch, Parts):
        return "; ".join(filter(None, map(not_finite, batch.parts)))
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
        if hasattr(split, "at_once"):
            self.at_once = split.at_once
        self.fields: dict[str, Tensor] = {k: v[rows] for k, v in getattr(split, "fields", {}).items() if k != "input"}
        self.fields["index"] = torch.arange(len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any:
        picked = torch.as_tensor(rows)
        batch = self.split.__getitems__(self.rows[picked])
        if isinstance(batch, Batch):
            return batch.numbered(picked)
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
