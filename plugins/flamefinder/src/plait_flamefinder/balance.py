"""Batches with as many examples of each class, drawn with replacement. Card section 7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.data.batches import Split, SplitAround
from plait.data.seeds import seed_of
from plait.data.streams import Stream, column

from .errors import FlamefinderError

__all__ = ["BalancedSplit"]


class BalancedSplit(SplitAround):
    """A training split that is drawn from in balance; everything but its stream is the split's that it stands for.

    Args:
        split: with the field ``label``.
        num_classes: K.

    Raises:
        FlamefinderError: a class without an example.
    """

    def __init__(self, split: Split, num_classes: int) -> None:
        super().__init__(split)
        labels = column(split, "label")
        self.by_class = [(labels == number).nonzero().flatten() for number in range(num_classes)]
        if missing := [str(number) for number, rows in enumerate(self.by_class) if not len(rows)]:
            raise FlamefinderError(
                f"no training example of class {', '.join(missing)}, so batches cannot be balanced: check the labels, "
                "or set balanced = false."
            )

    def stream(self, name: str, seed: int, batch_size: int, **options: Any) -> BalancedStream:
        """Endless balanced batches; an epoch is as many as shuffling the split would give."""
        stream = BalancedStream(self.split, name, seed, batch_size, **options)
        stream.by_class = self.by_class
        return stream


class BalancedStream(Stream):
    """A `Stream` whose batches are drawn class by class, each by a seed of its own, so that any of them can be next."""

    by_class: Sequence[Tensor]

    def rows(self, start: int) -> Iterator[Tensor]:
        """This rank's row numbers of batch ``start``, ``start + 1``, ..."""
        classes, number = self.by_class, start
        while True:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, "balanced", number))
            places = torch.arange(self.batch_size) + number  # what is left over goes to another class each time
            counts = torch.bincount(places % len(classes), minlength=len(classes)).tolist()
            drawn = [
                rows[torch.randint(len(rows), (count,), generator=generator)]
                for rows, count in zip(classes, counts, strict=True)
            ]
            yield self.own(torch.cat(drawn)[torch.randperm(self.batch_size, generator=generator)])
            number += 1

    def size(self, batch_number: int) -> int:
        """Every batch is whole."""
        return self.batch_size
