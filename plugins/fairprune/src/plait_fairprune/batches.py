"""Batches of a run: each group and label in proportion, and a part of the training data kept for pruning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plait.data.batches import Split, SplitAround
from plait.data.seeds import seed_of
from plait.data.streams import Stream, column

__all__ = ["FairSplit", "proportional_order"]


def proportional_order(cells: Tensor, generator: torch.Generator) -> Tensor:
    """An order of the rows in which every stretch has each cell in its proportion, to about one row: int64 [n].

    Args:
        cells: the cell of each row, int64 [n].
        generator: shuffles the rows of each cell, and shifts the cells against each other.
    """
    shuffled = torch.randperm(len(cells), generator=generator)
    by_cell = shuffled[cells[shuffled].argsort(stable=True)]
    counts = torch.bincount(cells)
    starts = counts.cumsum(0) - counts
    of_cell = cells[by_cell]
    shifts = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    place = (torch.arange(len(cells)) - starts[of_cell] + shifts[of_cell]) / counts[of_cell]
    return by_cell[place.argsort(stable=True)]


class FairSplit(SplitAround):
    """A training split that is drawn from in proportion, and perhaps in two parts.

    Everything but its stream is the split's that it stands for.

    Args:
        split: the training split, with the fields ``label`` and ``group``.
        num_classes: K.
        stratify: each batch has every (group, label) in proportion; False shuffles plainly.
        pruning_share: share of the rows that only pruning and fine-tuning see (the others only the dense phase); None:
            all rows are for everything.
        seed: of the division.
        drop_last: as of the recipe.

    Attributes:
        dense_steps: batches of the training stream before pruning; set by whoever knows the schedule, before the first
            batch.
    """

    def __init__(
        self, split: Split, num_classes: int, stratify: bool, pruning_share: float | None, seed: int, drop_last: bool
    ) -> None:
        super().__init__(split)
        self.stratify, self.drop_last = stratify, drop_last
        self.cells = column(split, "group") * num_classes + column(split, "label")
        everything = torch.arange(len(split))
        self.dense_rows = self.pruning_rows = everything
        self.dense_steps = 0
        if pruning_share is not None:
            order = proportional_order(self.cells, torch.Generator().manual_seed(seed_of(seed, "fairprune division")))
            first = len(order) - max(1, round(pruning_share * len(order)))
            self.dense_rows, self.pruning_rows = order[:first].sort().values, order[first:].sort().values

    def stream(self, name: str, seed: int, batch_size: int, **options: Any) -> FairStream:
        """The run's stream begins with the dense rows; all others (the mask's) draw from the pruning rows alone."""
        return FairStream(self, name, seed, batch_size, **options)


class FairStream(Stream):
    """A `Stream` whose rows come from a `FairSplit`.

    An epoch is as many batches as the whole split has, whichever part they are drawn from.
    """

    def __init__(self, parts: FairSplit, name: str, seed: int, batch_size: int, **options: Any) -> None:
        super().__init__(parts.split, name, seed, batch_size, drop_last=parts.drop_last, **options)
        self.parts = parts

    def rows(self, start: int) -> Iterator[Tensor]:
        """As of `Stream`."""
        number = start
        drawn: tuple[int, str] | None = None
        order = torch.empty(0, dtype=torch.int64)
        while True:
            chosen, local, label = self._part(number)
            epoch, place = divmod(local, self.batches_of(len(chosen)))
            if drawn != (epoch, label):
                generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, label, epoch))
                if self.parts.stratify:
                    order = chosen[proportional_order(self.parts.cells[chosen], generator)]
                else:
                    order = chosen[torch.randperm(len(chosen), generator=generator)]
                drawn = (epoch, label)
            yield self.own(order[place * self.batch_size : (place + 1) * self.batch_size])
            number += 1

    def size(self, batch_number: int) -> int:
        """As of `Stream`."""
        chosen, local, _ = self._part(batch_number)
        place = local % self.batches_of(len(chosen))
        return min(self.batch_size, len(chosen) - place * self.batch_size)

    def _part(self, number: int) -> tuple[Tensor, int, str]:
        """The rows that batch ``number`` draws from, its number among the batches of that part, and the part's name."""
        dense = self.parts.dense_steps
        if self.name == "train" and number < dense:
            return self.parts.dense_rows, number, "dense"
        return self.parts.pruning_rows, number - dense if self.name == "train" else number, "pruning"
