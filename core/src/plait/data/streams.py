"""Streams: endless shuffled batches that can stop and go on anywhere, and batches in order."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from plait.data.batches import Split
from plait.data.seeds import seed_of
from plait.errors import BadInput


class Stream:
    """Endless batches of a split, shuffled by (seed, name, epoch), that can go on from any batch at any world size.

    Args:
        split: what to draw from.
        name: part of the seed, so that two streams of one run differ.
        seed: the run's seed.
        batch_size: examples per batch over all ranks; the last batch of an epoch may be smaller.
        rank, world: this process takes its contiguous share of every batch.
        drop_last: leave out a last batch of an epoch that is smaller than the others.
        workers: loader processes, for splits that read files.

    `share` gives, for a batch, this rank's rows over the mean rows of a rank: by it the mean loss of the rank must be
    scaled so that the average over ranks equals the mean over the whole batch (1.0 on one process).
    """

    def __init__(
        self,
        split: Split,
        name: str,
        seed: int,
        batch_size: int,
        *,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.split, self.name, self.seed, self.batch_size = split, name, seed, batch_size
        self.augment, self.rank, self.world, self.workers = augment, rank, world, workers
        self.drop_last = drop_last
        self.batches_per_epoch = self.batches_of(len(split))
        self.drawn = 0
        self._source: Iterator[Any] | None = None

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0, of the next batch."""
        return self.drawn // self.batches_per_epoch

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self._source is None:
            self._source = self._open()
        batch = next(self._source)
        if self.augment is not None:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, "augment", self.drawn, self.rank))
            batch = self.augment(batch, generator)
        self.drawn += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """How many batches were drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after that many batches."""
        self.drawn, self._source = int(state["drawn"]), None

    def rows(self, start: int) -> Iterator[Tensor]:
        """This rank's row numbers of batch ``start``, ``start + 1``, ..."""
        number = start
        while True:
            epoch, first = divmod(number, self.batches_per_epoch)
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, epoch))
            order = torch.randperm(len(self.split), generator=generator)
            for batch in range(first, self.batches_per_epoch):
                whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield self.own(whole)
                number += 1

    def own(self, whole: Tensor) -> Tensor:
        """This rank's rows of a batch of all ranks, int64.

        A rank left without rows repeats one, with share 0: every rank must take part in the all-reduce.
        """
        mine = whole.tensor_split(self.world)[self.rank]
        return mine if len(mine) else whole[:1]

    def batches_of(self, rows: int) -> int:
        """Batches of one pass over so many rows."""
        return max(1, rows // self.batch_size if self.drop_last else -(-rows // self.batch_size))

    def _open(self) -> Iterator[Any]:
        rows = self.rows(self.drawn)
        if self.workers == 0 or getattr(self.split, "in_memory", False):
            return (self.split.__getitems__(r) for r in rows)
        loader: Iterable[Any] = DataLoader(
            self.split,  # type: ignore[arg-type]
            batch_sampler=(r.tolist() for r in rows),
            num_workers=self.workers,
            collate_fn=_as_is,
            generator=torch.Generator().manual_seed(seed_of(self.seed, self.name, "workers")),  # not the global one
            persistent_workers=False,
        )
        return _unwrapped(loader)

    def share(self, batch_number: int) -> float:
        """This rank's rows of a batch over the mean rows of a rank."""
        whole = self.size(batch_number)
        mine = whole // self.world + (self.rank < whole % self.world)
        return mine * self.world / whole

    def size(self, batch_number: int) -> int:
        """Rows of a batch over all ranks."""
        in_epoch = batch_number % self.batches_per_epoch
        return min(self.batch_size, len(self.split) - in_epoch * self.batch_size)


def column(split: Split, name: str) -> Tensor:
    """One field of every row, [n], without reading inputs where the split can do so (``fields`` or ``column``).

    Raises:
        BadInput: the split has no such field.
    """
    with contextlib.suppress(KeyError):
        return getattr(split, "fields", {})[name]  # type: ignore[no-any-return]
    if hasattr(split, "column"):
        return split.column(name)  # type: ignore[no-any-return]
    parts = [batch[name] for batch in in_order(split, 256) if name in batch]
    if not parts:
        raise BadInput(f"the data has no field {name!r}.")
    return torch.cat(parts)


def _as_is(batch: Any) -> Any:
    return batch


def _unwrapped(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of loader processes; what one raises says again what it said there, with that traceback as a note."""
    try:
        yield from loader
    except Exception as error:
        _, wrapped, original = str(error).partition("\nOriginal Traceback ")
        if wrapped:  # torch has put the traceback into the message
            said = re.split(r"\n(?! )", re.split(r"\n  File ", original)[-1].rstrip(), maxsplit=1)[-1]
            kind, _, message = said.partition(": ")
            same = kind.rpartition(".")[2] == type(error).__name__
            text = type(error.args[0]) if error.args and isinstance(error.args[0], str) else str  # KeyErrorMessage
            error.args = (text(message if same else said),)
            error.add_note(f"Traceback {original}")
        raise


def in_order(split: Split, batch_size: int) -> Iterator[Any]:
    """Batches of a split in order, for evaluation."""
    for start in range(0, len(split), batch_size):
        yield split.__getitems__(torch.arange(start, min(start + batch_size, len(split))))
