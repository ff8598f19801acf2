"""Batches, the splits that hand them out, and the data set of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from plait.errors import BadInput

if TYPE_CHECKING:
    from plait.declare.results import Metric


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


@runtime_checkable
class Split(Protocol):
    """A part of a data set. ``__getitems__`` returns the batch of the given rows.

    A split may have ``fields``: its cheap columns (label, group, ...), name -> tensor [n]; the input need not be among
    them. ``in_memory = True`` says that reading needs no loader processes. ``at_once`` is how many rows an evaluation
    predicts in one pass, where a pass costs the same for few as for many (nodes of one graph). A split that is not
    drawn from by shuffling its rows has a method
    ``stream(name, seed, batch_size, *, augment, rank, world, workers)`` that gives a `Stream`.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Any: ...


class TensorSplit:
    """A split that lies in memory as tensors whose first dimension is the example.

    Args:
        fields: name -> tensor [n, ...]; ``index`` is added when missing.

    Raises:
        BadInput: no field, or fields of different length.
    """

    in_memory = True

    def __init__(self, fields: Mapping[str, Tensor]) -> None:
        lengths = {name: len(value) for name, value in fields.items()}
        if len(set(lengths.values())) != 1:
            raise BadInput(f"the fields of a split must have one length, got {lengths}.")
        self.size = next(iter(lengths.values()))
        self.fields: dict[str, Tensor] = {**fields}
        self.fields.setdefault("index", torch.arange(self.size))

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        picked = torch.as_tensor(rows)
        return Batch({name: value.index_select(0, picked) for name, value in self.fields.items()})


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


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of the data: ``input_shape`` without the batch dimension, ``num_classes``, ``task``."""

    task: str = "classification"
    input_shape: tuple[int, ...] = ()
    num_classes: int = 0
    num_groups: int = 0
    fields: frozenset[str] = frozenset({"input", "label", "index"})
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Data:
    """A data set ready for a run.

    Attributes:
        info: what a model must know.
        train, validation, test: the splits; validation is never the test split.
        augment: ``augment(batch, generator) -> batch``, applied to training batches; the generator is seeded by run,
            stream, epoch and batch, so a resumed run augments alike.
        prepare: ``prepare(batch) -> batch``, applied to every batch just before the model (normalisation), after views.
        forward: ``forward(model, batch)``; default ``model(batch["input"])``.
        readout: ``readout(raw, batch) -> outputs`` [B, ...], the outputs of the batch's examples out of all that
            ``forward`` gave (the rows of some nodes, say); default: all of it.
        figures: ``figures(outputs, fields) -> {name: Metric}`` of a whole split, where the task's own figures are not
            those that count (ROC-AUC, say). They are published as ``task/<name>``, and by the first of them the best
            state on validation is chosen.
        names: human names, e.g. ``{"group": ["light", "dark"], "label": [...]}``.
        notes: lines shown to the user (a fallback that was taken, say).
    """

    info: DataInfo
    train: Split
    validation: Split
    test: Split
    augment: Callable[[Any, torch.Generator], Any] | None = None
    prepare: Callable[[Any], Any] | None = None
    forward: Callable[[Callable[..., Any], Any], Any] | None = None
    readout: Callable[[Any, Any], Any] | None = None
    figures: Callable[[Any, Mapping[str, Any]], Mapping[str, Metric]] | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def check(self, source: str) -> None:
        """Refuse what would spoil a run later.

        Raises:
            BadInput: an empty training or test split, validation that is the test split, labels out of range.
        """
        for name in ("train", "test"):
            if not len(getattr(self, name)):
                raise BadInput(f"data {source}: the {name} split is empty.")
            batch = getattr(self, name).__getitems__([0])
            if isinstance(batch, Mapping) and not (isinstance(batch, Batch) and "index" in batch):
                given = f"{type(batch).__name__} with {', '.join(map(str, batch))}"
                wanted = "a plait.Batch that has the field 'index' (rows in the split)"
                raise BadInput(f"data {source}: the {name} split hands out {given}; it must be {wanted}.")
        if self.validation is self.test:
            raise BadInput(f"data {source}: the validation split is the test split; choices would see the test.")
        label = getattr(self.train, "fields", {}).get("label")
        if self.info.task == "classification" and label is not None and len(label):
            low, high = int(label.min()), int(label.max())
            if low < 0 or high >= self.info.num_classes:
                raise BadInput(f"data {source}: labels {low}..{high} lie outside 0..{self.info.num_classes - 1}.")
