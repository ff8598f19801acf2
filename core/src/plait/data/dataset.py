"""The data set of a run: what a model must know of it, its splits, and whether they can be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.data.batches import Batch, Split, in_parts
from plait.data.conversion import INTEGERS, as_split
from plait.errors import BadInput

if TYPE_CHECKING:
    from plait.declare.results import Metric

SPLITS = ("train", "validation", "test")
LOOK = 8
"""Rows that are looked at where a split has no cheap columns."""


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
        keep: ``keep(outputs, batch)`` [B, ...], what an evaluation keeps of a batch's outputs where all of them would
            be too much (errors of large images, say); the figures are then those of ``figures`` alone.
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
    keep: Callable[[Any, Any], Any] | None = None

    def check(self, source: str) -> None:
        """Take the splits for what they can only mean (`plait.data.conversion`), and refuse what would spoil a run.

        Labels and groups of every split are looked at: all of them where the split has cheap columns, else the first
        rows. A class or group that only the test split has is a note.

        Args:
            source: what the data is called in messages.

        Raises:
            BadInput: something else than a split, an empty training or test split, validation that is the test split,
                batches without the fields of the task, class numbers that are none or lie out of range.
        """
        where = f"data {source}"
        if not isinstance(self.info, DataInfo):
            given = f"{type(self.info).__name__} as info"
            raise BadInput(f"{where}: Data takes info, train, validation, test in this order, got {given}.")
        task = self.info.task
        truth = "target" if task == "regression" else "label"
        numbers = {"label": self.info.num_classes} if task == "classification" else {}
        numbers["group"] = self.info.num_groups
        present: dict[str, dict[str, set[int]]] = {}
        for name in SPLITS:
            if name == "validation" and self.validation is self.test:
                raise BadInput(f"{where}: the validation split is the test split; choices would see the test.")
            split = as_split(getattr(self, name), f"{where}: the {name} split", truth, tuple(numbers))
            setattr(self, name, split)
            if not len(split):
                if name != "validation":
                    raise BadInput(f"{where}: the {name} split is empty.")
                continue
            first = split.__getitems__(torch.arange(min(LOOK, len(split))))
            self._check_batch(in_parts(first)[0], f"{where}: the {name} split", truth)
            cheap: Mapping[str, Tensor] = getattr(split, "fields", {})
            for column, count in numbers.items():
                shown = cheap if column in cheap else first
                value = shown[column] if column in shown else None  # noqa: SIM401 - a batch may be no mapping
                if isinstance(value, Tensor) and (value.numel() or column in cheap):
                    _check_numbers(value, column, count, f"{where}: the {name} split")
                    if column in cheap and value.ndim == 1:
                        present.setdefault(column, {})[name] = set(value.tolist())
        for column, of_split in present.items():
            if alone := sorted(of_split.get("test", set()) - of_split.get("train", of_split.get("test", set()))):
                known = self.names.get(column, ())
                named = ", ".join(f"{n} ({known[n]})" if n < len(known) else str(n) for n in alone)
                note = f"{where}: {column} {named} is in the test split and not in the training split"
                self.notes = (*self.notes, note)

    def _check_batch(self, batch: Any, where: str, truth: str) -> None:
        if not isinstance(batch, Mapping):
            if hasattr(batch, "to") and not isinstance(batch, Tensor):
                return  # an object that serves as a batch
            given = type(batch).__name__
        elif isinstance(batch, Batch) and "index" in batch:
            wanted = [] if self.forward is not None else ["input"]
            wanted += [truth] if self.info.task in ("classification", "multilabel", "regression") else []
            if missing := [name for name in wanted if name not in batch]:
                has = ", ".join(map(str, batch))
                raise BadInput(f"{where} has no field {missing[0]!r} (it has {has}): name its fields so.")
            return
        else:
            given = f"{type(batch).__name__} with {', '.join(map(str, batch))}"
        wanted_batch = "a plait.Batch that has the field 'index' (rows in the split)"
        raise BadInput(f"{where} hands out {given}; it must be {wanted_batch}.")

    def identity(self) -> dict[str, Any]:
        """What tells this data from other data, for checkpoints: JSON values, the same on every machine.

        Returns:
            Split -> ``rows``, ``fields`` (cheap column -> its type and shape), ``fingerprint`` (the split's own, else a
            hash of its columns of integers and booleans; numbers with a fraction may be rounded otherwise elsewhere).
        """
        known: dict[str, Any] = {}
        for name in SPLITS:
            split = getattr(self, name)
            columns = {n: v for n, v in getattr(split, "fields", {}).items() if n != "index" and isinstance(v, Tensor)}
            kinds = {n: f"{str(v.dtype).removeprefix('torch.')} {list(v.shape[1:])}" for n, v in columns.items()}
            fingerprint = getattr(split, "fingerprint", None)
            known[name] = {"rows": len(split), "fields": kinds, "fingerprint": fingerprint or _fingerprint(columns)}
        return known


def _fingerprint(columns: Mapping[str, Tensor]) -> str | None:
    digest, seen = hashlib.sha256(), False
    for name in sorted(columns):
        value = columns[name]
        if value.dtype in INTEGERS or value.dtype == torch.bool:
            seen = True
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest() if seen else None


def _check_numbers(value: Tensor, name: str, count: int, where: str) -> None:
    """Refuse a column that does not hold the class numbers 0..count-1, [n]; with ``count`` 0 any that are not below 0.

    What can only mean one thing was mended before (`plait.data.conversion.mended`).
    """
    mend = ""
    if value.is_floating_point() and bool(value.isnan().any()):
        rows = value.reshape(len(value), -1).isnan().any(1).nonzero().flatten().tolist()
        mend = f"has NaN in row {', '.join(map(str, rows[:5]))}{' ...' * (len(rows) > 5)}: leave such rows out"
    elif value.ndim == 2 and (value.shape[1] == count or name == "group"):
        mend = f"is {list(value.shape)}: give class numbers [n], by .argmax(1) where the rows are one-hot"
    elif value.dtype not in INTEGERS:
        mend = f"is {str(value.dtype).removeprefix('torch.')}: give class numbers int64, by .long() if they are whole"
    if mend:
        raise BadInput(f"{where}: {name!r} {mend}.")
    if not len(value):
        return
    low, high = int(value.min()), int(value.max())
    if low >= 0 and (high < count or (count == 0 and name != "label")):
        return
    about = f"num_{'classes' if name == 'label' else 'groups'} is {count}"
    if low == -1:
        mend = "Where -1 marks rows without one, leave them out of the split."
    elif low >= 1 and high - low < count:
        mend = f"Where they begin at {low}, subtract {low}."
    else:
        mend = f"Number them from 0, or say so in DataInfo: {about}."
    raise BadInput(f"{where}: {name}s {low}..{high} lie outside 0..{count - 1}. {mend}")
