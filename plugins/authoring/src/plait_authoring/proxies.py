"""What a watched plugin is given in the place of batches, columns and predictions: the same, telling what is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import torch

from plait.data import Batch
from plait.data.batches import Parts
from plait.training.evaluation import Predicted, Predictions


class Listener(Protocol):
    """Who is told."""

    def read(self, name: Any) -> None:
        """A field is read."""

    def asked(self, name: Any) -> None:
        """Somebody asks whether there is such a field."""

    def acting(self, who: None) -> AbstractContextManager[None]:
        """The core works for the plugin."""


class _Watched(dict[str, Any]):
    """Fields that tell which of them are read."""

    watch: Listener

    def __getitem__(self, name: str) -> Any:
        self.watch.read(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.watch.asked(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`."""
        self.watch.asked(name)
        return super().get(name, default)


class WatchedBatch(_Watched, Batch):
    """A batch that tells which of its fields are read."""

    @classmethod
    def of(cls, batch: Batch, watch: Listener) -> Batch:
        """The same fields, watched; of several parts those of each part."""
        if isinstance(batch, Parts):
            parts = copy.copy(batch)
            parts.parts = [cls.of(part, watch) for part in batch.parts]
            return parts
        watched = cls(batch)
        watched.watch = watch
        return watched

    def take(self, rows: torch.Tensor) -> Batch:
        """As `Batch.take`."""
        return self.of(super().take(rows), self.watch)

    def chunks(self, parts: int) -> list[Batch]:
        """As `Batch.chunks`."""
        return [self.of(part, self.watch) for part in super().chunks(parts)]

    def to(self, device: torch.device | str) -> Batch:
        """As `Batch.to`."""
        return self.of(super().to(device), self.watch)


class WatchedFields(_Watched):
    """The columns of a split, or the fields of predictions, that tell which are read."""

    @classmethod
    def of(cls, fields: Mapping[str, Any], watch: Listener) -> WatchedFields:
        """The same fields, watched."""
        watched = cls(fields)
        watched.watch = watch
        return watched


class WatchedPredictions(Predictions):
    """Predictions that tell which fields are read; the forward passes stay shared with the other plugins."""

    def __init__(self, whole: Predictions, watch: Listener) -> None:
        self._whole, self._watch = whole, watch
        self.model, self.views = whole.model, whole.views

    @property
    def used(self) -> int:  # type: ignore[override]
        """How often a view was asked for."""
        return self._whole.used

    def __getitem__(self, name: str) -> Predicted:
        with self._watch.acting(None):
            predicted = self._whole[name]
        return replace(predicted, fields=WatchedFields.of(predicted.fields, self._watch))
